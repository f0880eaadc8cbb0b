"""Runs one task: reads a file in ranges, passes each range through the steps, and collects the partials."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import awkward as ak
import numpy as np

from campaign.errors import BranchError, CampaignError, OutputError, WeightError
from campaign.inference.client import Shared, Stream
from campaign.inference.local_model import NOTE
from campaign.outputs.columns import Columns, ColumnsPartial, ColumnsReader
from campaign.outputs.kinds import Output, Partial, as_output, start_partial
from campaign.planning.task import Step, Task
from campaign.protocols import WEIGHT, Context, Source, TwoStepStage
from campaign.report.timing import AHEAD, RUN, WAIT, WRITE, Timing
from campaign.storage.packs import PackWriter
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.files import writing
from campaign.util.hashing import file_digest
from campaign.util.threads import aside
from campaign.worker.contexts import Contexts
from campaign.worker.job import BatchInputs
from campaign.worker.process import Worker
from campaign.worker.stage_client import RangeServers
from campaign.worker.stage_errors import at_stage, explain, own_errors
from campaign.worker.stage_log import trim
from campaign.worker.weight_use import WeightUses

DEPTH = 2  # ranges that wait for answers while the next one is read
MOST = 32  # ranges whose last rows may wait for more rows to fill a request: limits the memory


@dataclass(frozen=True)
class Hooks:
    """Functions that a pipeline calls while it runs. ``campaign check`` and ``campaign tune`` use them.

    Attributes:
        stage_begins: Called with the step before each call of user code.
        rows_sent: Called with the model and its inputs when a stage sends rows to a model that batches.
    """

    stage_begins: Callable[[Step], None] = lambda _step: None
    rows_sent: Callable[[str, Mapping[str, Any]], None] = lambda _model, _inputs: None


class Pipeline:
    """Runs one task: the ranges of a source pass through the steps in order, and the partials grow.

    Args:
        worker: The state of this process.
        rundir: The run directory.
        task: The task.
        inputs: Its inputs besides the file: `BatchInputs` of this one task.
        pack: Takes small partials. None: the pipeline only tries stages and writes no partial.
        hooks: Functions that the pipeline calls while it runs.
    """

    def __init__(
        self,
        worker: Worker,
        rundir: RunDir,
        task: Task,
        inputs: BatchInputs | None = None,
        pack: PackWriter | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        inputs = inputs or BatchInputs()
        self.expected, self.pack, self.hooks = "".join(inputs.expected), pack, hooks or Hooks()
        self.marks = dict(zip((s.key for s in task.steps), inputs.marks, strict=True)) if inputs.marks else {}
        self.worker, self.rundir, self.task = worker, rundir, task
        self.contexts = Contexts(worker.job.stages, task.steps, inputs.frozen)
        self.partials: dict[str, Partial] = {}
        self.rows: Counter[str] = Counter()
        self.events = 0
        self.spent = Timing()
        self.answered = 0.0  # time of the first prediction, seconds since the epoch
        self.streams: dict[tuple[str, str], Stream] = {}
        self.weighing = WeightUses(task.steps, worker.job.stages)
        several = len({s.stage for s in task.steps}) < len(task.steps)
        self.shared: Shared | None = WeakValueDictionary() if several else None
        # The events of a range are freed when the last step that takes them has begun.
        self.last_reader = max((i for i, s in enumerate(task.steps) if s.parent in (None, task.artefact)), default=0)

    def run(self) -> list[Receipt]:
        """Process all ranges, write the partials and return their receipts.

        After an error, unfinished partials are removed.
        """
        under_way: deque[tuple[Iterator[None], RangeServers]] = deque()
        by_twin = self.worker.by_twin
        try:
            # The source stays open until the last range is done: a stage may still read a column.
            with ExitStack() as stack:
                for batch in self.ranges(stack):
                    servers = RangeServers(self.worker.connected, self.streams, self.shared, self.hooks.rows_sent)
                    steps = self.steps(batch, servers)
                    del batch  # the steps keep the parts that they need
                    if next(steps, _DONE) is not _DONE:
                        under_way.append((steps, servers))
                    # Rows that do not fill a request wait for rows of the next ranges.
                    while len(under_way) > DEPTH and (under_way[0][1].sent or len(under_way) > MOST):
                        deque(under_way.popleft()[0], maxlen=0)
                # The streams are not ended: a step that follows an inference may still add rows to its stream. It
                # flushes the stream when it waits for the answer.
                for stream in self.streams.values():
                    stream.flush()
                while under_way:
                    deque(under_way.popleft()[0], maxlen=0)
            notes = (NOTE,) if self.worker.by_twin > by_twin else ()  # a later merge warns about it
            return [self._receipt(s, notes) for s in self.task.steps if s.emit]
        finally:
            for _, servers in under_way:  # after an error
                servers.cancel()
            for partial in self.partials.values():
                partial.discard()

    # Reading.
    def ranges(self, stack: ExitStack) -> Iterator[Any]:
        """Row ranges of the file, or of the artefact as they were written. At least one, which may have no rows."""
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
            # The first range shows which branches are used, unless an earlier file has shown it. From then on, the next
            # range is read ahead.
            known = i > 0 or bool(getattr(source, "touched", None))
            # The thread is not joined: a read that hangs must not delay the end of its task.
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
        """The batch with a weight column, once for each weight expression of the task's first steps."""
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
        try:  # a reader of the user may return any value
            weight = np.asarray(given, np.float64)
        except (ValueError, TypeError) as error:
            raise WeightError(f"gives {ak.type(given)}, one number per event is needed", where=where) from error
        if weight.shape != (len(batch),):
            raise WeightError(f"gives shape {weight.shape}, one number per event is needed", where=where)
        return weight

    # Stages.
    def steps(self, batch: Any, servers: RangeServers) -> Iterator[None]:
        """Run the steps on one range. Yields once, when no step can run without a server's answer."""
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
            client = servers.of(step.key) if self.worker.job.servers else None
            stage, ctx = self.worker.stage(step.stage), self.context(step, client)
            if isinstance(stage, TwoStepStage):
                waiting[step.key] = (step, stage, self.guard(step, stage.start, given, ctx))
            else:
                self._keep(step, self.guard(step, stage, given, ctx), values)
        if waiting and not yielded:
            yield
        for key in list(waiting):
            self._finish(key, waiting, values)

    def given(self, step: Step, batch: Any, values: Mapping[str, Any]) -> Any:
        """The input of a step: the weighted events, or the columns of its parent."""
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

    def context(self, step: Step, servers: Any) -> Context:
        """The context of a step.

        Args:
            step: The step.
            servers: The object that the stage finds as ``ctx.servers``. None: the campaign has no servers.
        """
        return self.contexts.of(step, dataset=step.source.dataset, metadata=step.source.metadata, servers=servers)

    def guard(self, step: Step, call: Callable[..., Any], *args: Any) -> Any:
        """Call user code, and count the seconds that it takes.

        Raises:
            CampaignError: The code raised an exception. The error names the stage and the file, with the traceback.
        """
        waited = self.worker.waited_s
        start = time.perf_counter()
        self.hooks.stage_begins(step)
        try:
            with (
                own_errors(lambda error: self._explain(error, step)),
                at_stage(step.stage),
                self.weighing.looking(step),
            ):
                return call(*args)
        finally:
            trim()
            waited = self.worker.waited_s - waited
            self.spent.add(step.stage, WAIT, waited)
            self.spent.add(step.stage, RUN, time.perf_counter() - start - waited)

    def _explain(self, error: Exception | SystemExit, step: Step) -> CampaignError:
        before = next((s.stage for s in self.task.steps if s.key == step.parent), "")
        code = self.worker.job.stages[step.stage].where
        return explain(error, step.stage, code, self.task.source.file.url, before)

    def _receipt(self, step: Step, notes: tuple[str, ...]) -> Receipt:
        partial = self.partials[step.key]
        notes = (*notes, *self.weighing.notes(step, partial))
        pack, offset, own = "", 0, ""
        with self.spent.on(step.stage, WRITE):
            if isinstance(partial, ColumnsPartial):
                path = self.rundir.columns(step.key)
                with writing(path):
                    sha256, size = partial.write(path), path.stat().st_size
                    own = file_digest(path)  # the file is still in the page cache
            else:
                assert self.pack is not None
                content = partial.content()
                (offset, sha256), size, pack = self.pack.add(content), len(content), self.pack.name
        del self.partials[step.key]  # after an error, all partials that are still here are discarded
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
    """Cut a file into ranges of about ``rows`` entries. At least one range, which may be empty.

    Args:
        entries: Entries of the file.
        rows: The largest number of entries of one range.
        clusters: Entries at which the baskets begin, ascending. Ranges begin there if possible, so that no basket is
            decompressed twice. No range is made shorter than half of ``rows`` for this.
    """
    start = 0
    while entries - start > rows:
        at = bisect_right(clusters, start + rows)
        best = clusters[at - 1] if at else 0
        stop = best if best > start + rows // 2 else start + rows
        yield start, stop
        start = stop
    yield start, entries
