"""Pipeline: runs one task. Ranges of a file pass through the steps, and the partials grow."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any
from weakref import WeakValueDictionary

import awkward as ak
import numpy as np

from campaign.errors import BranchError, CampaignError, InputError, OutputError
from campaign.inference.client import Shared, Stream
from campaign.inference.local_model import NOTE
from campaign.outputs.columns import Columns, ColumnsPartial, ColumnsReader
from campaign.outputs.kinds import Output, Partial, as_output, start_partial
from campaign.planning.task import Step, Task
from campaign.protocols import WEIGHT, Context, Source, TwoStepStage
from campaign.report.timing import AHEAD, RUN, WAIT, WRITE, Timing
from campaign.storage.frozen_values import Frozen, fresh, thawed
from campaign.storage.packs import PackWriter
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.files import writing
from campaign.util.hashing import file_digest
from campaign.util.threads import aside
from campaign.worker.process import Worker
from campaign.worker.stage_client import RangeServers
from campaign.worker.stage_errors import explain
from campaign.worker.stage_log import trim
from campaign.worker.weight_use import WeightUses

DEPTH = 2  # ranges whose requests are out while the next one is read
MOST = 32  # ranges whose last rows may wait for more to fill a request: bounds the memory


class Pipeline:
    """One task under way: ranges of a source through the steps, in order, partials growing."""

    def __init__(
        self, worker: Worker, rundir: RunDir, task: Task, frozen: Frozen, expected: str = "",
        pack: PackWriter | None = None, marks: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.expected, self.pack = expected, pack
        self.marks = dict(zip((s.key for s in task.steps), marks, strict=True)) if marks else {}
        self.worker, self.rundir, self.task = worker, rundir, task
        self.frozen = {at: thawed(*frozen[at]) for s in task.steps for at in s.frozen if at in frozen}
        self.options = {s.stage: fresh(worker.job.stages[s.stage].options) for s in task.steps}
        self.partials: dict[str, Partial] = {}
        self.rows: Counter[str] = Counter()
        self.events = 0
        self.spent = Timing()
        self.answered = 0.0  # when the first prediction was there, seconds since the epoch
        self.streams: dict[tuple[str, str], Stream] = {}
        self.weighing = WeightUses(task.steps, worker.job.stages)
        self.begins: Callable[[Step], None] | None = None  # called before each call of the user's code
        several = len({s.stage for s in task.steps}) < len(task.steps)
        self.shared: Shared | None = WeakValueDictionary() if several else None
        # A range's events are let go when the last step that takes them has them.
        self.last_reader = max((i for i, s in enumerate(task.steps) if s.parent in (None, task.artefact)), default=0)

    def run(self) -> list[Receipt]:
        """All ranges, then the receipts; on an error nothing unfinished stays behind."""
        under_way: deque[tuple[Iterator[None], RangeServers]] = deque()
        by_twin = self.worker.by_twin
        try:
            # What is read from stays open until the last range is done: its columns may be read when they are touched.
            with ExitStack() as stack:
                for batch in self.ranges(stack):
                    servers = RangeServers(self.worker.connected, self.streams, self.shared)
                    steps = self.steps(batch, servers)
                    del batch  # what of it is still needed, the steps keep
                    if next(steps, _DONE) is not _DONE:
                        under_way.append((steps, servers))
                    # Rows that do not fill a request wait for those of the next ranges.
                    while len(under_way) > DEPTH and (under_way[0][1].sent or len(under_way) > MOST):
                        deque(under_way.popleft()[0], maxlen=0)
                # Not ended: a step behind another that infers may still add to its own, and flushes it when it asks.
                for stream in self.streams.values():
                    stream.flush()
                while under_way:
                    deque(under_way.popleft()[0], maxlen=0)
            notes = (NOTE,) if self.worker.by_twin > by_twin else ()  # whoever merges it later must know
            return [self._receipt(s, notes) for s in self.task.steps if s.emit]
        finally:
            for _, servers in under_way:  # after an error
                servers.cancel()
            for partial in self.partials.values():
                partial.discard()

    # Where batches come from.
    def ranges(self, stack: ExitStack) -> Iterator[Any]:
        """Row ranges of the file, or of the artefact as they were written; at least one, perhaps of no rows."""
        if self.task.artefact is not None:
            reader = ColumnsReader(self.rundir.columns(self.task.artefact))
            stack.callback(reader.close)
            written = reader.verified(self.expected)
            while True:
                with self.spent.on("read", RUN):
                    batch = next(written, None)
                if batch is None:
                    return
                yield batch
        with self.spent.on("read", RUN):
            source = self.worker.open(self.task)
        stack.callback(source.close)
        self.events = self.worker.job.entries(source)
        yield from self._read(source)

    def _read(self, source: Any) -> Iterator[Any]:
        spans = list(row_ranges(self.events, self.worker.job.read_rows, getattr(source, "clusters", ())))
        coming: Future[Any] | None = None
        for i, span in enumerate(spans):
            with self.spent.on("read", WAIT if coming else RUN):
                batch = coming.result() if coming else self._read_range(source, span)
            # A first range says which branches are used, unless an earlier file has; then the next one is read ahead.
            known = i > 0 or bool(getattr(source, "touched", None))
            # By a thread that nobody waits for: a read that hangs must not outlive its task's deadline.
            ahead = spans[i + 1] if known and spans[i + 1 :] else None
            coming = aside("read-ahead", self._read_range, source, ahead, AHEAD) if ahead else None
            yield self.weighted(source, batch)
        self.worker.remember(self.task, source)

    def _read_range(self, source: Source, span: tuple[int, int], what: str = RUN) -> Any:
        start = time.thread_time()
        try:
            return source.read(*span)
        finally:
            if what == AHEAD:
                self.spent.add("read", AHEAD, time.thread_time() - start)

    def weighted(self, source: Any, batch: Any) -> dict[str | None, Any]:
        """The batch once per weight expression of the task's first steps."""
        found: dict[str | None, Any] = {}
        if WEIGHT in batch.layout.fields:
            raise BranchError(
                f"has a branch '{WEIGHT}', the name of the column ctx.weight",
                where=self.task.source.file.url,
                remedy="give it another name, whether it is used or not: "
                f"datasets.{self.task.source.dataset}.branches: {{file_weight: {WEIGHT}}}",
            )
        for expression in {s.weight: None for s in self.task.steps if s.parent is None}:
            weight = np.ones(len(batch)) if expression is None else self._evaluated(source, expression, batch)
            layout = batch.layout
            found[expression] = ak.Array(
                ak.contents.RecordArray(
                    [*layout.contents, ak.contents.NumpyArray(weight)], [*layout.fields, WEIGHT], length=len(batch)
                )
            )
        return found

    def _evaluated(self, source: Any, expression: str, batch: Any) -> np.ndarray[Any, Any]:
        given, where = source.weight(expression, batch), f"weight '{expression}' in {self.task.source.file.url}"
        try:  # a reader of the user's own may give anything
            weight = np.asarray(given, np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"gives {ak.type(given)}, one number per event is needed", where=where) from error
        if weight.shape != (len(batch),):
            raise InputError(f"gives shape {weight.shape}, one number per event is needed", where=where)
        return weight

    # What is done with one.
    def steps(self, batch: Any, servers: RangeServers) -> Iterator[None]:
        """Run the steps on one range; yields once, when nothing can go on without a server's answer."""
        values: dict[str, Any] = {}
        waiting: dict[str, tuple[Step, Any, Any]] = {}
        yielded = False
        for i, step in enumerate(self.task.steps):
            if step.parent in waiting:
                if not yielded:
                    yielded = True
                    yield
                self._finish(step.parent or "", waiting, values)
            given = batch if step.parent == self.task.artefact and step.parent else self.given(step, batch, values)
            given = self.weighing.shown(step, given)
            batch = batch if i < self.last_reader else None
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
        value = self.guard(step, stage.finish, pending)
        self.answered = self.answered or time.time()
        self._keep(step, value, values)

    def _keep(self, step: Step, value: Any, values: dict[str, Any]) -> None:
        output: Output = as_output(value, step.stage)
        values[step.key] = output
        self.rows[step.stage] += output.rows if isinstance(output, Columns) else 0
        self.weighing.returned(step, output)
        if not step.emit:
            return
        if step.key not in self.partials:
            self.partials[step.key] = start_partial(output, lambda: self.rundir.columns(step.key))
        partial = self.partials[step.key]
        try:
            with self.spent.on(step.stage, WRITE):
                partial.add(output)
        except CampaignError as error:
            error.where = error.where or f"stage {step.stage}"
            raise

    def context(self, step: Step, servers: RangeServers | None) -> Context:
        """What the stage may know."""
        return Context(
            dataset=step.source.dataset,
            metadata=step.source.metadata,
            variation=step.variation,
            weight=WEIGHT,
            options=self.options[step.stage],
            frozen={at[0]: self.frozen[at] for at in step.frozen},
            servers=servers.of(step.key) if servers and self.worker.job.servers else None,
        )

    def guard(self, step: Step, call: Callable[..., Any], *args: Any) -> Any:
        """Call the user's code; what it raises is told with stage, file and traceback."""
        waited = self.worker.waited_s
        start = time.perf_counter()
        if self.begins is not None:
            self.begins(step)
        try:
            with self.weighing.looking(step):
                return call(*args)
        except CampaignError as error:
            error.where = error.where or f"stage {step.stage}"
            if not isinstance(error, InputError):  # that is the file's fault, and of no line of the campaign
                error.stage = error.stage or step.stage
            raise
        except (Exception, SystemExit) as error:  # the user's code: whatever it raises is told with its traceback
            before = next((s.stage for s in self.task.steps if s.key == step.parent), "")
            code, url = self.worker.job.stages[step.stage].where, self.task.source.file.url
            raise explain(error, step.stage, code, url, before) from error
        finally:
            trim()
            waited = self.worker.waited_s - waited
            self.spent.add(step.stage, WAIT, waited)
            self.spent.add(step.stage, RUN, time.perf_counter() - start - waited)

    def _receipt(self, step: Step, notes: tuple[str, ...]) -> Receipt:
        partial = self.partials[step.key]
        notes = (*notes, *self.weighing.notes(step, partial))
        pack, offset, own = "", 0, ""
        with self.spent.on(step.stage, WRITE):
            if isinstance(partial, ColumnsPartial):
                path = self.rundir.columns(step.key)
                with writing(path):
                    sha256, size = partial.write(path), path.stat().st_size
                    own = file_digest(path)  # still in memory: a small part of what writing it took
            else:
                assert self.pack is not None
                content = partial.content()
                (offset, sha256), size, pack = self.pack.add(content), len(content), self.pack.name
        del self.partials[step.key]  # one that could not be written is discarded with the others
        return Receipt(
            key=step.key,
            stage=step.stage,
            dataset=step.source.dataset,
            variation=step.variation,
            file=step.source.file.url,
            kind=partial.kind,
            sha256=sha256,
            size=size,
            rows=partial.rows,
            events=self.events if self.task.artefact is None else 0,
            pack=pack,
            offset=offset,
            notes=(*partial.notes, *notes),
            more=self.marks.get(step.key, ""),
            bytes_sha256=own,
        )


_DONE = object()


def row_ranges(entries: int, rows: int, clusters: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """Ranges of about ``rows`` entries; at least one, perhaps of none.

    Args:
        entries: Entries of the file.
        rows: The most entries of one range.
        clusters: Where a range is best begun, ascending: cut there, no basket is decompressed twice. A range is not
            made shorter than half of ``rows`` for it.
    """
    start = 0
    while entries - start > rows:
        at = bisect_right(clusters, start + rows)
        best = clusters[at - 1] if at else 0
        stop = best if best > start + rows // 2 else start + rows
        yield start, stop
        start = stop
    yield start, entries
