"""One task under way: ranges of a file (or of an artefact) go through the steps, and partials grow."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from campaign.client import Pending, Servers, connect
from campaign.errors import CampaignError, InputError, OutputError, StageError
from campaign.frozenvalue import thaw
from campaign.outputs import Columns, ColumnsReader, Output, Partial, as_output, start_partial
from campaign.plan import Step, Task
from campaign.protocols import WEIGHT, Context, Job, TwoStepStage
from campaign.ragged import Ragged
from campaign.ragged import events as as_events
from campaign.rundir import Receipt, RunDir

Frozen = Mapping[tuple[str, str], tuple[str, str]]
"""``(reduce stage, variation)`` -> ``(path, sha256)``."""

DEPTH = 2  # ranges whose requests are out while the next one is read


class Worker:
    """What a worker process keeps between tasks of one run: stages, and a handle on the pool."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stages: dict[str, Any] = {}
        self._servers: Servers | None = None

    def stage(self, name: str) -> Callable[..., Any]:
        """A stage, loaded once."""
        if name not in self._stages:
            code = self.job.stages[name]
            try:
                self._stages[name] = code.load()
            except Exception as error:  # process boundary: the user's module may raise anything
                raise StageError(
                    f"{code.where} cannot be loaded here: {type(error).__name__}: {error}", where=f"stage {name}"
                ) from error
        return self._stages[name]  # type: ignore[no-any-return]

    @property
    def servers(self) -> Servers | None:
        """The pool, None for a campaign without one."""
        if self._servers is None and self.job.servers is not None:
            self._servers = connect(self.job.servers)
        return self._servers

    def open(self, task: Task) -> Any:
        """The source of a task's events."""
        module, _, cls = self.job.reader.partition(":")
        source = task.source
        return getattr(import_module(module), cls)(source.file.url, source.tree, dict(source.branches))


class Chain:
    """One task under way: ranges of a source through the steps, in order, partials growing."""

    def __init__(self, worker: Worker, rundir: RunDir, task: Task, frozen: Frozen, expected: str = "") -> None:
        self.expected = expected
        self.worker, self.rundir, self.task = worker, rundir, task
        self.frozen = {at: thawed(*frozen[at]) for s in task.steps for at in s.frozen if at in frozen}
        self.options = {s.stage: fresh(worker.job.stages[s.stage].options) for s in task.steps}
        self.partials: dict[str, Partial] = {}
        self.rows: Counter[str] = Counter()
        self.events = 0
        several = Counter(s.stage for s in task.steps)
        self.share = any(n > 1 for n in several.values())

    def run(self) -> list[Receipt]:
        """All ranges, then the receipts; on an error nothing unfinished stays behind."""
        try:
            # What is read from stays open until the last range is done: its columns may be read when they are touched.
            with ExitStack() as stack:
                flight: deque[Iterator[None]] = deque()
                for batch in self.ranges(stack):
                    steps = self.steps(batch)
                    if next(steps, _DONE) is not _DONE:
                        flight.append(steps)
                    while len(flight) > DEPTH:
                        deque(flight.popleft(), maxlen=0)
                while flight:
                    deque(flight.popleft(), maxlen=0)
            return [self._receipt(s) for s in self.task.steps if s.emit]
        finally:
            for partial in self.partials.values():
                partial.discard()

    # Where batches come from.
    def ranges(self, stack: ExitStack) -> Iterator[Any]:
        """Row ranges of the file, or of the artefact as they were written; at least one, perhaps of no rows."""
        if self.task.artefact is not None:
            reader = ColumnsReader(self.rundir.partial(self.task.artefact, "columns"))
            stack.callback(reader.close)
            yield from reader.verified(self.expected)
            return
        source = self.worker.open(self.task)
        stack.callback(source.close)
        self.events = source.entries
        yield from self._read(source, stack.enter_context(ThreadPoolExecutor(1, "read-ahead")))

    def _read(self, source: Any, ahead: ThreadPoolExecutor) -> Iterator[Any]:
        rows = self.worker.job.read_rows
        spans = [(i, min(i + rows, source.entries)) for i in range(0, source.entries, rows)] or [(0, 0)]
        # The first range says which branches are used; from then on the next one is read ahead.
        coming: Future[Any] | None = None
        for i, span in enumerate(spans):
            batch = coming.result() if coming else source.read(*span)
            coming = ahead.submit(source.read, *spans[i + 1]) if 0 < i < len(spans) - 1 else None
            yield self.weighted(source, batch)

    def weighted(self, source: Any, batch: Any) -> dict[str | None, Any]:
        """The batch once per weight expression of the task's first steps."""
        found: dict[str | None, Any] = {}
        for expression in {s.weight: None for s in self.task.steps if s.parent is None}:
            weight = np.ones(len(batch)) if expression is None else source.weight(expression, batch)
            layout = batch.layout
            found[expression] = ak.Array(
                ak.contents.RecordArray(
                    [*layout.contents, ak.contents.NumpyArray(weight)], [*layout.fields, WEIGHT], length=len(batch)
                )
            )
        return found

    # What is done with one.
    def steps(self, batch: Any) -> Iterator[None]:
        """Run the steps on one range; yields once, when nothing can go on without a server's answer."""
        values: dict[str, Any] = {}
        waiting: dict[str, tuple[Step, Any, Any]] = {}
        servers = _Shared(self.worker) if self.share else None
        yielded = False
        for step in self.task.steps:
            if step.parent in waiting:
                if not yielded:
                    yielded = True
                    yield
                self._finish(step.parent or "", waiting, values)
            given = batch if step.parent == self.task.artefact and step.parent else self.given(step, batch, values)
            stage, ctx = self.worker.stage(step.stage), self.context(step, servers)
            if isinstance(stage, TwoStepStage):
                waiting[step.key] = (step, stage, self.guard(step, stage.start, given, ctx))
            else:
                self._keep(step, self.guard(step, stage, given, ctx), values)
        if waiting and not yielded:
            yield
        for key in list(waiting):
            self._finish(key, waiting, values)

    def given(self, step: Step, batch: Any, values: Mapping[str, Any]) -> Any:
        """What a step takes: the weighted events, or what its parent returned."""
        if step.parent is None:
            return batch[step.weight]
        value = values[step.parent]
        if not isinstance(value, Columns):
            raise OutputError(
                f"takes the output of '{self._stage_of(step.parent)}', which is no columns", where=f"stage {step.stage}"
            )
        return value.to_awkward()

    def _stage_of(self, key: str) -> str:
        return next(s.stage for s in self.task.steps if s.key == key)

    def _finish(self, key: str, waiting: dict[str, tuple[Step, Any, Any]], values: dict[str, Any]) -> None:
        step, stage, pending = waiting.pop(key)
        self._keep(step, self.guard(step, stage.finish, pending), values)

    def _keep(self, step: Step, value: Any, values: dict[str, Any]) -> None:
        output: Output = as_output(value, step.stage)
        values[step.key] = output
        self.rows[step.stage] += output.rows if isinstance(output, Columns) else 0
        if not step.emit:
            return
        if step.key not in self.partials:
            self.partials[step.key] = start_partial(output, self._path(step, output))
        partial = self.partials[step.key]
        try:
            partial.add(output)
        except CampaignError as error:
            error.where = error.where or f"stage {step.stage}"
            raise

    def _path(self, step: Step, output: Output) -> Path:
        kind = "columns" if isinstance(output, Columns) else type(output).__name__.lower()
        return self.rundir.partial(step.key, kind)

    def context(self, step: Step, servers: Any) -> Context:
        """What the stage may know."""
        return Context(
            dataset=step.source.dataset,
            metadata=step.source.metadata,
            variation=step.variation,
            weight=WEIGHT,
            options=self.options[step.stage],
            frozen={at[0]: self.frozen[at] for at in step.frozen},
            servers=servers or self.worker.servers,
        )

    def guard(self, step: Step, call: Callable[..., Any], *args: Any) -> Any:
        """Call the user's code; what it raises is told with stage, file and traceback."""
        try:
            return call(*args)
        except CampaignError as error:
            error.where = error.where or f"stage {step.stage}"
            raise
        except Exception as error:  # the user's code: whatever it raises is told with its traceback
            raise explain(
                error, step.stage, self.worker.job.stages[step.stage].where, self.task.source.file.url
            ) from error

    def _receipt(self, step: Step) -> Receipt:
        partial = self.partials.pop(step.key)
        path = self.rundir.partial(step.key, partial.kind)
        sha256 = partial.write(path)
        return Receipt(
            key=step.key,
            stage=step.stage,
            dataset=step.source.dataset,
            variation=step.variation,
            file=step.source.file.url,
            kind=partial.kind,
            sha256=sha256,
            size=path.stat().st_size,
            rows=partial.rows,
            events=self.events if self.task.artefact is None else 0,
            notes=tuple(partial.notes),
        )


_DONE = object()
_READER = Path(uproot.__file__).parent


class MissingBranch(StageError):
    """A stage asks for a branch or a column that is not there."""


def explain(error: Exception, stage: str, where: str, url: str) -> CampaignError:
    """Whose fault an exception inside a stage is: the file's, or the stage's; with the user's part of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    text = (str(error).strip().splitlines() or [""])[0]
    if any(Path(f.filename).is_relative_to(_READER) for f in frames):
        # Branches are read when they are touched, so a torn basket shows inside the stage.
        return InputError(
            f"cannot be read: {type(error).__name__}: {text[:300]}", where=url, remedy="check or replace it"
        )
    user = [
        f
        for f in frames
        if "/awkward/" not in f.filename and not f.filename.endswith(("campaign/work.py", "errors.py"))
    ]
    log = "".join(traceback.format_list(user[-4:])) + f"{type(error).__name__}: {text}"
    if isinstance(error, (AttributeError, KeyError, IndexError, ValueError)) and "no field" in text:
        name = text.split("no field", 1)[1].split("'")[1:2]
        return MissingBranch(
            f"asks for '{(name or ['?'])[0]}', which is not there", where=f"stage {stage} ({where})", log=log,
            remedy="correct the name, or the tree, or map it under 'branches'",
        )  # fmt: skip
    return StageError(f"raised {type(error).__name__}: {text}", where=f"stage {stage} ({where})", log=log)


class _Shared:
    """The pool for one range that several weight-only variations go through: equal inputs are sent once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._asked: list[tuple[str, Mapping[str, Any], Pending]] = []

    def start(self, model: str, inputs: Mapping[str, Any]) -> Pending:
        """Like `Servers.start`."""
        for name, given, pending in self._asked:
            if name == model and given.keys() == inputs.keys() and all(_same(given[k], inputs[k]) for k in inputs):
                return pending
        pending = self._worker.servers.start(model, inputs)  # type: ignore[union-attr]
        self._asked.append((model, inputs, pending))
        return pending

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Like `Servers.infer`."""
        return self.start(model, inputs).result()

    def infer_events(self, model: str, events: Any) -> list[dict[str, Any]]:
        """Like `Servers.infer_events`."""
        pending = [self.start(model, event) for event in events]
        return [p.result() for p in pending]

    def infer_ragged(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Like `Servers.infer_ragged`."""
        return self.infer(model, as_events(self.model(model), inputs))

    def model(self, name: str) -> Any:
        """Like `Servers.model`."""
        return self._worker.servers.model(name)  # type: ignore[union-attr]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Ragged):
        return one.same(other)
    a, b = np.asarray(one), np.asarray(other)
    # Bytes, not values: NaN inputs are as good as any others.
    return a.dtype == b.dtype and a.shape == b.shape and (a is b or a.tobytes() == b.tobytes())


_THAWED: dict[tuple[str, str, int, int], Any] = {}


def thawed(path: str, sha256: str) -> Any:
    """A frozen value, read once per process as long as its file does not change."""
    try:
        stat = Path(path).stat()
    except OSError:
        return thaw(Path(path), sha256)  # says what is wrong
    at = (path, sha256, stat.st_mtime_ns, stat.st_size)
    if at not in _THAWED:
        _THAWED[at] = thaw(Path(path), sha256)
    return fresh(_THAWED[at])


def fresh(value: Any) -> Any:
    """New containers around the same values, so that what one task does to them no other task sees."""
    if isinstance(value, Mapping):
        return {key: fresh(inner) for key, inner in value.items()}
    return [fresh(inner) for inner in value] if isinstance(value, list) else value
