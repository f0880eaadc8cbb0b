"""Runs batches of tasks on a worker. Errors are returned, not raised, so that they arrive whole."""

from __future__ import annotations

import resource
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from campaign.errors import CampaignError, InputError, PartialError
from campaign.planning.datasets import changed
from campaign.planning.task import Batch, Task
from campaign.report.timing import Timing
from campaign.storage.frozen_values import Frozen
from campaign.storage.packs import PackWriter
from campaign.storage.rundir import RunDir
from campaign.worker.deadline import Deadline
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import Pipeline
from campaign.worker.process import Worker, worker_of
from campaign.worker.stage_errors import explain
from campaign.worker.stage_log import StageLog, log_of, stage_log


@dataclass
class Answer:
    """What a batch sends back; small.

    Attributes:
        lines: Receipts of the partials that its tasks left, as lines of the log.
        lengths: Of these lines, bytes.
        done: Places in the batch of the tasks that were done.
        events: Entries that each of them read.
        errors: Places of the others, and why.
        parked: Rows of these that no server was there for, by place: they are lost unless the task is tried again.
        rungs: Rows by how they were answered (`campaign.inference.client.RUNGS`).
        rows: Rows by stage.
        wall_s: How long it took.
        spent: Where its seconds went.
        answered: When its first prediction was there, seconds since the epoch; 0: none.
        peak_mb: The most memory its worker has had until now.
        refused: Servers that its worker did not believe.
    """

    lines: bytes = b""
    lengths: array[int] = field(default_factory=lambda: array("q"))
    done: array[int] = field(default_factory=lambda: array("q"))
    events: array[int] = field(default_factory=lambda: array("q"))
    errors: list[tuple[int, CampaignError]] = field(default_factory=list)
    parked: dict[int, int] = field(default_factory=dict)
    rungs: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0
    spent: Timing = field(default_factory=Timing)
    answered: float = 0.0
    peak_mb: float = 0.0
    refused: set[str] = field(default_factory=set)


def run_batch(
    job: JobTicket, root: str, batch: Batch, frozen: Frozen, expected: Sequence[str], marks: Sequence[str] = (),
    call: str = "",
) -> Answer:  # fmt: skip
    """Do the tasks of a batch, one after the other; its small partials go into one pack.

    Args:
        job: From `save_job`.
        root: The run directory.
        batch: The tasks.
        frozen: Where the frozen values lie that their steps need.
        expected: SHA-256 of the content of the artefact that each of them reads; empty: they read the events.
        marks: Of each step, what tells the frozen values its partials are made with; empty: none has any.
        call: What the driver calls this; empty: it is no driver, and this process is not to be ended.

    Returns:
        Receipts and errors; it does not raise. If the pack cannot be written, that is the error of each task.
    """
    start = time.monotonic()
    answer = Answer()
    rundir = RunDir(Path(root))
    worker: Worker | None = None
    before: Counter[str] = Counter()
    try:
        worker = worker_of(job)
        before = Counter(worker.servers.rows) if worker.servers else before
        with Deadline(worker.job.deadline_s, rundir.workers, call) as deadline, PackWriter(rundir) as pack:
            log = stage_log(rundir.stage_logs, call)
            answer.lines = b"".join(_each(worker, rundir, batch, frozen, expected, marks, pack, deadline, log, answer))
    except Exception as error:  # noqa: BLE001  process boundary: type, text and traceback are handed on
        task = batch.task(0)
        known = error if isinstance(error, CampaignError) else explain(error, task.steps[0].stage, "writing", root)
        if isinstance(error, OSError):  # of the run directory's disk: no fault of any file
            known = PartialError(f"cannot be written: {error.strerror or error}", where=root, remedy="is there room?")
        answer = Answer(errors=[(i, known) for i in range(len(batch))])
    if worker and worker._servers:
        answer.rungs = Counter(worker._servers.rows) - before
        del answer.rungs["parked"]
        answer.refused = worker._servers.refused
    answer.wall_s = time.monotonic() - start
    answer.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return answer


def _each(
    worker: Worker, rundir: RunDir, batch: Batch, frozen: Frozen, expected: Sequence[str], marks: Sequence[str],
    pack: PackWriter, deadline: Deadline, log: StageLog | None, answer: Answer,
) -> Iterator[bytes]:  # fmt: skip
    for i in range(len(batch)):
        task, parked = batch.task(i), worker.parked
        try:
            chain = Pipeline(worker, rundir, task, frozen, expected[i] if expected else "", pack, marks)
            deadline.start(i)
            try:
                _unchanged(task)
                receipts = chain.run()
                deadline.kept()
                _unchanged(task)
            finally:
                deadline.stop()
                answer.spent.update(chain.spent)
                answer.answered = answer.answered or chain.answered
        except Exception as error:  # noqa: BLE001  process boundary: type, text and traceback are handed on
            told = _told(error, task)
            printed = _keep_output(log, rundir, task)
            if printed:
                told.log = f"{told.log}\nprinted output: {printed}".strip("\n")
            answer.errors.append((i, told))
            answer.parked[i] = worker.parked - parked
            continue
        _keep_output(log, rundir, task)
        answer.rows.update(chain.rows)
        answer.done.append(i)
        answer.events.append(max(r.events for r in receipts))
        for receipt in receipts:
            line = receipt.line()
            answer.lengths.append(len(line))
            yield line


def _keep_output(log: StageLog | None, rundir: RunDir, task: Task) -> Path | None:
    """Move what the task's stages have printed to the log of its file; where that is, if they have printed anything."""
    if log is None or not log.printed():
        return None
    source, stages = task.source, dict.fromkeys(f"{s.stage}/{s.variation}" for s in task.steps)
    path = log_of(rundir.stage_logs, source.file.url, source.dataset)
    return path if log.move(path, f"{source.file.url}: {', '.join(stages)}") else None


def _unchanged(task: Task, log: str = "") -> None:
    """Refuse a file that is not the one the campaign was planned with, as far as is known."""
    how = changed(task.source.file) if task.artefact is None else ""
    if how:
        raise InputError(
            f"changed while the campaign ran: {how}", where=task.source.file.url, log=log,
            remedy="leave it alone while it is read, and run again: its results are made again",
        )  # fmt: skip


def _told(error: Exception, task: Task) -> CampaignError:
    """What went wrong with a task, and where."""
    if not isinstance(error, CampaignError):
        error = explain(error, task.steps[0].stage, "reading", task.source.file.url)
    try:
        _unchanged(task, str(error))  # of a file that changes any error may come
    except InputError as why:
        return why
    url = task.source.file.url
    if url not in error.where and url not in error.message:
        error.where = f"{url}: {error.where}" if error.where else url
    return error
