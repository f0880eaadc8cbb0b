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

FACTS_S = 60.0  # what is asked of a lost file must not hold up the rest


def run_facts(
    job: JobTicket, root: str, batch: Batch, weight: str | None, call: str = ""
) -> tuple[int | None, float | None]:
    """Entries of a lost file, and its sum of weights, if it can still be opened and read; None: unknown.

    Args:
        job: From `save_job`.
        root: The run directory.
        batch: One task on it.
        weight: Expression of the weight, or None.
        call: See `run_batch`.
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
    except Exception:  # noqa: BLE001  it is lost already: what cannot be learned of it is unknown
        return entries, None
