"""Reads the entries and the sum of weights of a file that failed for good, on a worker."""

from __future__ import annotations

import math
from pathlib import Path

from campaign.planning.task import Batch
from campaign.storage.rundir import RunDir
from campaign.worker.deadline import Deadline
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import row_ranges
from campaign.worker.process import worker_of

FACTS_S = 60.0  # seconds that reading a failed file may take


def run_facts(
    job: JobTicket, root: str, batch: Batch, weight: str | None, call: str = ""
) -> tuple[int | None, float | None]:
    """Entries and sum of weights of a file that failed. None for a number that cannot be read.

    Args:
        job: From `save_job`.
        root: The run directory.
        batch: One task on the file.
        weight: Expression of the event weight. None: only the entries are read.
        call: See `campaign.worker.tasks.run_batch`.
    """
    entries: int | None = None
    try:
        worker = worker_of(job)
        with Deadline(min(worker.job.deadline_s, FACTS_S), RunDir(Path(root)).workers, call) as deadline:
            deadline.start()
            source = worker.open(batch.task(0))
            try:
                entries = int(source.entries)
                if weight is None:
                    return entries, None
                spans = row_ranges(entries, worker.job.read_rows, getattr(source, "clusters", ()))
                parts = (source.weight(weight, source.read(*span)).tolist() for span in spans)
                total = math.fsum(x for part in parts for x in part)
                deadline.kept()
                return entries, total if math.isfinite(total) else None
            finally:
                source.close()
    except Exception:  # noqa: BLE001  the file has failed already: its numbers stay unknown
        return entries, None
