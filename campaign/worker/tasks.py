"""Runs on a worker: tasks, merges and reduce stages; errors are sent back, not raised, so that they arrive whole."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import shutil
import time
import traceback
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from campaign.errors import BranchError, CampaignError, InputError, OutputError, PartialError, StageError
from campaign.outputs.kinds import Columns, as_output
from campaign.outputs.merge import (
    LazyMerged,
    Leaf,
    Merged,
    Target,
    between,
    export,
    merge_leaf,
    merge_leaves,
    merge_whole,
    spoilt,
)
from campaign.planning.datasets import changed
from campaign.planning.task import Batch, Keys, Step, Task
from campaign.protocols import WEIGHT, Context, JobTicket, TwoStepStage
from campaign.report.timing import Spent
from campaign.storage.frozen_values import freeze, fresh, thawed
from campaign.storage.packs import PackWriter
from campaign.storage.receipts import parse
from campaign.storage.rundir import RunDir, file_digest
from campaign.util import grpc_fork  # noqa: F401  before all that imports gRPC
from campaign.worker.deadline import Deadline
from campaign.worker.pipeline import Chain, Frozen, Worker
from campaign.worker.stage_errors import MissingBranch, explain
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
    spent: Spent = field(default_factory=Spent)
    answered: float = 0.0
    peak_mb: float = 0.0
    refused: set[str] = field(default_factory=set)


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of arrays it has let go, instead of asking the kernel for zeroed pages again.

    Ranges of a file need the same arrays one after the other; their page faults took up to a third of the time. The
    numbers are glibc's ``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` (32 MiB: the most it takes).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 128 << 20)
        libc.mallopt(-3, 32 << 20)


@cache
def _worker(ticket: JobTicket) -> Worker:
    _keep_freed_memory()
    return Worker(ticket.job())


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
        worker = _worker(job)
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
            chain = Chain(worker, rundir, task, frozen, expected[i] if expected else "", pack, marks)
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
                told.log = f"{told.log}\nwhat was printed: {printed}".strip("\n")
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
            remedy="leave it alone while it is read, and run again: what was made of it is made anew",
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


@dataclass(frozen=True)
class Spoilt:
    """Partials that are not what their receipts say, so that a merge could not be made.

    Attributes:
        error: The first of them.
        files: Which, by their place in the output.
    """

    error: CampaignError
    files: tuple[int, ...]


def run_leaf(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Leaf | Spoilt | CampaignError:
    """Merge some consecutive files of an output.

    Args:
        root: The run directory.
        target: The output.
        first: Place of the first file in the output.
        keys: Of their partials.
        lines: Their receipts, as they stand in the log.
        gaps: Places of files among them that are lost.
    """
    made: Leaf | Spoilt | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_leaf)
    return made


def run_whole(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Merged | Spoilt | CampaignError:
    """Merge all files of an output; arguments as for `run_leaf`."""
    made: Merged | Spoilt | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_whole)
    return made


def _merging(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int],
    call: Callable[..., Any],
) -> Any:  # fmt: skip
    rundir = RunDir(Path(root))
    got = [r for r in map(parse, lines) if r is not None]
    try:
        if [r.key for r in got] != list(keys):
            raise PartialError("the log of receipts is not what it was", where=target.name, remedy="run again")
        return call(rundir, target, first, got, gaps)
    except PartialError as error:
        places = between(first, len(got), gaps)
        return Spoilt(error, tuple(places[i] for i in spoilt(rundir, got)))
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return PartialError(f"{type(error).__name__}: {error}", where=target.name, log=traceback.format_exc())


def run_tree(root: str, target: Target, leaves: Sequence[Leaf]) -> Merged | CampaignError:
    """Merge an output's leaves; an error is returned, not raised, so that it arrives whole."""
    try:
        return merge_leaves(RunDir(Path(root)), target, leaves)
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return PartialError(f"{type(error).__name__}: {error}", where=target.name, log=traceback.format_exc())


def run_export(merged: Merged) -> Merged | CampaignError:
    """Write the ROOT file of a merged output; an error is returned."""
    try:
        return export(merged)
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return OutputError(f"{type(error).__name__}: {error}", where=merged.name, log=traceback.format_exc())


@dataclass(frozen=True)
class Reduced:
    """A reduce stage's frozen value.

    Attributes:
        path: Where it lies.
        sha256: What it must be.
        artefacts: SHA-256 of its plots and tables, by name.
        rungs, refused: As in `Answer`.
    """

    path: str
    sha256: str
    artefacts: Mapping[str, str]
    rungs: Counter[str]
    refused: set[str]


@dataclass(frozen=True)
class ReduceCall:
    """Which reduce stage is called for which variation, with which frozen values."""

    stage: str
    variation: str
    frozen: tuple[tuple[str, str], ...]


def run_reduce(
    job: JobTicket, root: str, reduce: ReduceCall, merged: Mapping[str, Merged], frozen: Frozen,
    metadata: Mapping[str, Any], missing: Mapping[str, Any], call: str = "",
) -> Reduced | CampaignError:  # fmt: skip
    """Call a reduce stage on merged outputs and freeze what it returns; an error is returned."""
    rundir = RunDir(Path(root))
    where = f"stage {reduce.stage}, variation {reduce.variation}"
    log = stage_log(rundir.stage_logs, call)
    path = rundir.stage_logs / reduce.stage / f"{reduce.variation}.log"
    error: CampaignError
    try:
        worker = _worker(job)
        made = _reduce(worker, rundir, reduce, merged, frozen, metadata, missing, call)
        if log is not None:
            log.move(path, where)
        return made
    except CampaignError as known:
        error = known
        error.where = f"{where}: {error.where}" if error.where else where
    except (Exception, SystemExit) as foreign:  # noqa: BLE001  process boundary: the user's code may raise anything
        code = worker.job.stages[reduce.stage].where if "worker" in locals() else ""
        error = explain(foreign, reduce.stage, code, where)
        error.where = f"{where} ({code})"
    if log is not None and log.move(path, where):
        error.log = f"{error.log}\nwhat was printed: {path}".strip("\n")
    return error


def _reduce(
    worker: Worker, rundir: RunDir, reduce: ReduceCall, merged: Mapping[str, Merged], frozen: Frozen,
    metadata: Mapping[str, Any], missing: Mapping[str, Any], call: str,
) -> Reduced:  # fmt: skip
    folder = rundir.artefacts(reduce.stage, reduce.variation)
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier version of the stage has left is not its work
    folder.mkdir(parents=True)
    stage = worker.stage(reduce.stage)
    before = Counter(worker.servers.rows) if worker.servers else Counter()
    ctx = Context(
        dataset="",
        metadata=metadata,
        variation=reduce.variation,
        weight=WEIGHT,
        options=fresh(worker.job.stages[reduce.stage].options),
        frozen={at[0]: thawed(*frozen[at]) for at in reduce.frozen},
        servers=worker.servers,
        artefacts=folder,
        missing=missing,
    )
    with Deadline(worker.job.deadline_s, rundir.workers, call) as deadline:
        deadline.start()
        value = stage(LazyMerged(merged), ctx)
        deadline.kept()
    path = rundir.frozen(reduce.stage, reduce.variation)
    sha256 = freeze(value, path)
    artefacts = {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    if not artefacts:
        folder.rmdir()
    rungs = Counter(worker.servers.rows) - before if worker.servers else before
    return Reduced(str(path), sha256, artefacts, rungs, worker.servers.refused if worker.servers else set())


@dataclass(frozen=True)
class Unseen:
    """Why a file cannot tell whether the campaign is right.

    Attributes:
        why: In words.
        broken: The file cannot be read, and will not be readable if it is tried again.
    """

    why: str
    broken: bool = False


def look(
    job: JobTicket, task: Task, rows: int, begins: Callable[[Task, Step], None] = lambda _task, _step: None
) -> CampaignError | Unseen | str:
    """Try the stages before the first inference on a few rows, in a process of its own.

    Args:
        job: The job.
        task: The task.
        rows: How many.
        begins: Called before each stage.

    Returns:
        What is missing; or that this file cannot tell; or what else a stage has raised, empty if nothing.
    """
    try:
        worker = _worker(job)
        chain = Chain(worker, RunDir(Path("/nonexistent")), task, {})
        chain.begins = lambda step: begins(task, step)
        source = worker.open(task)
    except InputError as error:
        return error if error.key else Unseen(error.message, error.permanent)
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  a reader of the user's own; the run will tell
        return Unseen(f"{type(error).__name__}: {error}")
    try:
        if not source.entries:
            return Unseen("it has no rows")
        batch = chain.weighted(source, source.read(0, min(rows, source.entries)))
        return _try_steps(chain, batch) or ""
    except InputError as error:
        known = isinstance(error, BranchError) or error.where.startswith("weight ")
        return error if known else Unseen(error.message)
    except MissingBranch as error:
        if error.stage:  # a column of another stage
            return error
        error.where = f"{task.source.file.url}, tree {task.source.tree}: {error.where}"
        return error
    except OutputError as error:
        return error
    except CampaignError as error:
        at = f" ({error.line})" if isinstance(error, StageError) and error.line else ""
        return f"{error.where}: {error.message}{at}"  # a few rows may be to blame: the run will tell with all of them
    finally:
        source.close()


def _try_steps(chain: Chain, batch: Any) -> CampaignError | None:
    values: dict[str, Any] = {}
    for step in chain.task.steps:
        known = step.parent is None or isinstance(values.get(step.parent), Columns)
        stage = chain.worker.stage(step.stage)
        if (
            not known
            or step.frozen
            or isinstance(stage, TwoStepStage)
            or chain.worker.job.stages[step.stage].uses_servers
        ):
            continue
        given, ctx = chain.weighing.shown(step, chain.given(step, batch, values)), chain.context(step, None)
        value = as_output(chain.guard(step, stage, given, ctx), step.stage)
        values[step.key] = value
        chain.weighing.returned(step, value)
        if step.weight is not None and step.weighs and isinstance(value, Columns) and WEIGHT not in value:
            return OutputError(
                f"drops the column ctx.weight, so variation '{step.variation}' could not differ from nominal",
                where=f"stage {step.stage}",
                remedy="carry batch[ctx.weight] on to what it returns, row by row",
            )
        chain.weighing.notes(step, value)
    return None
