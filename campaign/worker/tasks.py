"""Runs batches of tasks on a worker.

Errors are returned, because a returned error reaches the driver with all its fields.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from campaign.errors import CampaignError, InputError, PartialError
from campaign.planning.datasets import changed
from campaign.planning.task import Batch, Task
from campaign.report.timing import Timing
from campaign.storage.packs import PackWriter
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.worker.deadline import Deadline
from campaign.worker.job import BatchInputs, JobTicket
from campaign.worker.pipeline import Pipeline
from campaign.worker.process import AnsweredRows, Worker, worker_of
from campaign.worker.stage_errors import explain, own_errors
from campaign.worker.stage_log import StageLog, log_of, stage_log


@dataclass
class Answer:
    """The result of a batch. It is small: the driver receives one for each batch.

    Attributes:
        lines: Receipts of the partials that the tasks wrote, as lines of the log.
        lengths: Length of each of these lines in bytes.
        done: Places in the batch of the tasks that are done.
        events: Number of entries that each of these tasks read.
        errors: Places of the other tasks, each with its error.
        parked: Rows of these other tasks that no server was available for, by place. They are lost unless the task is
            tried again.
        rungs: Number of rows by answer (`campaign.inference.client.RUNGS`).
        rows: Number of rows by stage.
        wall_s: Seconds that the batch took.
        worker: Host and process id of the worker.
        starts: Time at which each task began, seconds since the epoch.
        spent: These seconds by stage and activity.
        answered: Time of the first prediction, seconds since the epoch. 0: no prediction.
        peak_mb: The most memory that the worker has used until now.
        refused: Servers whose identity the worker did not accept, and the reasons.
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
    worker: str = ""
    starts: array[float] = field(default_factory=lambda: array("d"))
    spent: Timing = field(default_factory=Timing)
    answered: float = 0.0
    peak_mb: float = 0.0
    refused: set[str] = field(default_factory=set)


def run_batch(job: JobTicket, root: str, batch: Batch, inputs: BatchInputs, call: str = "") -> Answer:
    """Do the tasks of a batch one after the other. All their small partials go into one pack.

    Args:
        job: From `save_job`.
        root: The run directory.
        batch: The tasks.
        inputs: Their inputs besides the files.
        call: The name that the driver gives this call. Empty: this process is not a worker, and is not ended.

    Returns:
        Receipts and errors. It does not raise. If the pack cannot be written, each task has this error.
    """
    start = time.monotonic()
    answer, rundir = Answer(), RunDir(Path(root))
    rows = AnsweredRows(None)
    try:
        with own_errors(lambda error: _not_written(error, batch.task(0), root)):
            worker = worker_of(job)
            rows = AnsweredRows(worker.servers)
            with Deadline(worker.job.deadline_s, rundir.workers, call) as deadline, PackWriter(rundir) as pack:
                log = stage_log(rundir.stage_logs, call)
                run = _BatchRun(worker, rundir, inputs, pack, deadline, log, answer)
                answer.lines = b"".join(run.lines(batch))
    except CampaignError as error:
        answer = Answer(errors=[(i, error) for i in range(len(batch))])
    answer.rungs, answer.refused = rows.rungs, rows.refused
    del answer.rungs["parked"]
    answer.wall_s, answer.worker = time.monotonic() - start, f"{socket.gethostname()} {os.getpid()}"
    answer.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return answer


def _not_written(error: Exception | SystemExit, task: Task, root: str) -> CampaignError:
    """The error of a batch whose tasks ended, and whose pack or log could not be written."""
    if isinstance(error, OSError):  # the disk of the run directory is at fault, not an input file
        return PartialError(f"cannot be written: {error.strerror or error}", where=root, remedy="is there room?")
    return explain(error, task.steps[0].stage, "writing", root)


@dataclass(frozen=True)
class _BatchRun:
    """One batch under way: the objects that each of its tasks uses."""

    worker: Worker
    rundir: RunDir
    inputs: BatchInputs
    pack: PackWriter
    deadline: Deadline
    log: StageLog | None
    answer: Answer

    def lines(self, batch: Batch) -> Iterator[bytes]:
        """Do each task, and write its outcome into the answer. Yields the receipts as lines of the log."""
        for i in range(len(batch)):
            self.answer.starts.append(time.time())
            task, parked = batch.task(i), self.worker.parked
            try:
                with own_errors(lambda error, task=task: _not_read(error, task)):  # type: ignore[misc]
                    pipeline, receipts = self._run(task, i)
            except CampaignError as error:
                self._failed(i, task, error)
                self.answer.parked[i] = self.worker.parked - parked
                continue
            self._keep_output(task)
            self.answer.rows.update(pipeline.rows)
            self.answer.done.append(i)
            self.answer.events.append(max(r.events for r in receipts))
            for receipt in receipts:
                line = receipt.line()
                self.answer.lengths.append(len(line))
                yield line

    def _run(self, task: Task, i: int) -> tuple[Pipeline, list[Receipt]]:
        pipeline = Pipeline(self.worker, self.rundir, task, self.inputs.pick([i]), self.pack)
        self.deadline.start(i)
        try:
            _unchanged(task)
            receipts = pipeline.run()
            self.deadline.kept()
            _unchanged(task)
        finally:
            self.deadline.stop()
            self.answer.spent.update(pipeline.spent)
            self.answer.answered = self.answer.answered or pipeline.answered
        return pipeline, receipts

    def _failed(self, i: int, task: Task, error: CampaignError) -> None:
        error = _located(error, task)
        printed = self._keep_output(task)
        if printed:
            error.log = f"{error.log}\nprinted output: {printed}".strip("\n")
        self.answer.errors.append((i, error))

    def _keep_output(self, task: Task) -> Path | None:
        """Move the text that the task's stages printed to the log of its file. Returns the log; None: no text."""
        if self.log is None or not self.log.printed():
            return None
        source, stages = task.source, dict.fromkeys(f"{s.stage}/{s.variation}" for s in task.steps)
        path = log_of(self.rundir.stage_logs, source.file.url, source.dataset)
        return path if self.log.move(path, f"{source.file.url}: {', '.join(stages)}") else None


def _unchanged(task: Task, log: str = "") -> None:
    """Refuse a file that has changed since the campaign was planned.

    Raises:
        InputError: Its size or its time of change is different.
    """
    how = changed(task.source.file) if task.artefact is None else ""
    if how:
        raise InputError(
            f"changed while the campaign ran: {how}", where=task.source.file.url, log=log,
            remedy="leave it alone while it is read, and run again: its results are made again",
        )  # fmt: skip


def _not_read(error: Exception | SystemExit, task: Task) -> CampaignError:
    return explain(error, task.steps[0].stage, "reading", task.source.file.url)


def _located(error: CampaignError, task: Task) -> CampaignError:
    """The error of a task, with the file in its place."""
    try:
        _unchanged(task, str(error))  # if the file changes, any error can be a consequence
    except InputError as why:
        return why
    url = task.source.file.url
    if url not in error.where and url not in error.message:
        error.where = f"{url}: {error.where}" if error.where else url
    return error
