"""Runs on a worker: tasks, merges and reduce stages; errors are sent back, not raised, so that they arrive whole."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from campaign.chain import Chain, Frozen, MissingBranch, Worker, explain, fresh, thawed
from campaign.errors import CampaignError, InputError, OutputError, PartialError, StageError
from campaign.frozenvalue import freeze
from campaign.merge import LazyMerged, Merged, export, merge
from campaign.outputs import Columns, as_output
from campaign.plan import Output as PlannedOutput
from campaign.plan import Reduce, Task
from campaign.protocols import WEIGHT, Context, Job, TwoStepStage
from campaign.rundir import Receipt, RunDir


@dataclass
class Result:
    """What a task sends back; small.

    Attributes:
        receipts: Of the partials it left.
        rungs: Rows by how they were answered (`campaign.client.RUNGS`).
        rows: Rows by stage.
        error: Why it could not be done.
        wall_s: How long it took.
        pid: Of the worker.
    """

    receipts: list[Receipt] = field(default_factory=list)
    rungs: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    error: CampaignError | None = None
    wall_s: float = 0.0
    pid: int = 0


@cache
def _worker(job_path: str, token: str) -> Worker:  # noqa: ARG001  the token tells runs of one directory apart
    with Path(job_path).open("rb") as stream:
        return Worker(pickle.load(stream))  # noqa: S301  written by this run's own driver, and only by it


def save_job(job: Job, path: Path) -> tuple[str, str]:
    """Leave the job for workers; returns what tells it from others."""
    from campaign.rundir import file_digest, write_aside

    with write_aside(path) as stream:
        os.fchmod(stream.fileno(), 0o600)  # it may hold the headers of attached servers
        pickle.dump(job, stream)
    return str(path), file_digest(path)


def run_task(job: tuple[str, str], root: str, task: Task, frozen: Frozen, expected: str = "") -> Result:
    """Do one task.

    Args:
        job: From `save_job`.
        root: The run directory.
        task: The task.
        frozen: Where the frozen values lie that its steps need.
        expected: SHA-256 of the content of the artefact it reads.

    Returns:
        Receipts, or the error; it does not raise.
    """
    start = time.monotonic()
    result = Result(pid=os.getpid())
    rungs: Counter[str] = Counter()
    worker: Worker | None = None
    try:
        worker = _worker(*job)
        rungs = Counter(worker.servers.rows) if worker.servers else Counter()
        chain = Chain(worker, RunDir(Path(root)), task, frozen, expected)
        try:
            with _deadline(worker.job.deadline_s):
                result.receipts = chain.run()
        finally:
            result.rows = chain.rows
    except CampaignError as error:
        result.error = _placed(error, task)
    except Exception as error:  # noqa: BLE001  process boundary: type, text and traceback are handed on
        result.error = _placed(explain(error, task.steps[0].stage, "reading", task.source.file.url), task)
    if worker and worker._servers:
        result.rungs = Counter(worker._servers.rows) - rungs
    result.wall_s = time.monotonic() - start
    return result


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise in the main thread when a task takes too long; Python code that hangs is ended so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_signum: int, _frame: object) -> None:
        raise StageError(f"ran longer than {seconds:g} s", remedy="raise 'task_deadline_s', or see where it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _placed(error: CampaignError, task: Task) -> CampaignError:
    url = task.source.file.url
    if url not in error.where and url not in error.message:
        error.where = f"{url}: {error.where}" if error.where else url
    return error


def run_merge(root: str, output: PlannedOutput, receipts: Sequence[Receipt]) -> Merged | CampaignError:
    """Merge one output; an error is returned, not raised, so that it arrives whole."""
    try:
        return merge(RunDir(Path(root)), output, {r.key: r for r in receipts})
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return PartialError(f"{type(error).__name__}: {error}", where=output.name, log=traceback.format_exc())


def run_export(merged: Merged) -> Merged | CampaignError:
    """Write the ROOT file of a merged output; an error is returned."""
    try:
        return export(merged)
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return OutputError(f"{type(error).__name__}: {error}", where=merged.name, log=traceback.format_exc())


@dataclass(frozen=True)
class Reduced:
    """A reduce stage's frozen value: where it lies, and what it must be."""

    path: str
    sha256: str
    artefacts: tuple[str, ...]


def run_reduce(
    job: tuple[str, str], root: str, reduce: Reduce, merged: Mapping[str, Merged], frozen: Frozen,
    metadata: Mapping[str, Any],
) -> Reduced | CampaignError:  # fmt: skip
    """Call a reduce stage on merged outputs and freeze what it returns; an error is returned."""
    rundir = RunDir(Path(root))
    where = f"stage {reduce.stage}, variation {reduce.variation}"
    try:
        worker = _worker(*job)
        folder = rundir.artefacts(reduce.stage, reduce.variation)
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier version of the stage has left is not its work
        folder.mkdir(parents=True)
        stage = worker.stage(reduce.stage)
        ctx = Context(
            dataset="",
            metadata=metadata,
            variation=reduce.variation,
            weight=WEIGHT,
            options=fresh(worker.job.stages[reduce.stage].options),
            frozen={at[0]: thawed(*frozen[at]) for at in reduce.frozen},
            servers=worker.servers,
            artefacts=folder,
        )
        value = stage(LazyMerged(merged), ctx)
        path = rundir.frozen(reduce.stage, reduce.variation)
        sha256 = freeze(value, path)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if not names:
            folder.rmdir()
        return Reduced(str(path), sha256, tuple(names))
    except CampaignError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        return error
    except Exception as error:  # noqa: BLE001  process boundary: the user's code may raise anything
        code = worker.job.stages[reduce.stage].where if "worker" in locals() else ""
        told = explain(error, reduce.stage, code, where)
        told.where = f"{where} ({code})"
        return told


def look(job: tuple[str, str], task: Task, rows: int) -> CampaignError | str | None:
    """Try the stages before the first inference on a few rows, in a process of its own.

    Returns:
        None if all is well; ``"empty"`` or ``"unreadable"`` if this file cannot tell; or what is missing.
    """
    try:
        worker = _worker(*job)
        chain = Chain(worker, RunDir(Path("/nonexistent")), task, {})
        source = worker.open(task)
    except InputError as error:
        return error if error.remedy.startswith("correct ") else "unreadable"
    except CampaignError as error:
        return error
    try:
        if not source.entries:
            return "empty"
        batch = chain.weighted(source, source.read(0, min(rows, source.entries)))
        return _try_steps(chain, batch)
    except InputError as error:
        return error if error.where.startswith("weight ") else "unreadable"
    except MissingBranch as error:
        error.where = f"{task.source.file.url}, tree {task.source.tree}: {error.where}"
        return error
    except OutputError as error:
        return error
    except CampaignError:
        return None  # what else a stage raises on a few rows, the run will tell with all of them
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
        given, ctx = chain.given(step, batch, values), chain.context(step, None)
        value = as_output(chain.guard(step, stage, given, ctx), step.stage)
        values[step.key] = value
        if step.weight is not None and isinstance(value, Columns) and WEIGHT not in value:
            return OutputError(
                f"drops the column ctx.weight, so variation '{step.variation}' could not differ from nominal",
                where=f"stage {step.stage}",
                remedy="carry batch[ctx.weight] on to what it returns, row by row",
            )
    return None
