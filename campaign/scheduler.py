"""What is ready is submitted; what arrives makes more ready: batches of tasks, merges and reduce stages."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.batches import Queue
from campaign.errors import (
    CampaignError,
    FrozenChanged,
    InferenceError,
    InputError,
    PartialError,
    ProviderError,
    ServerError,
)
from campaign.later import Later
from campaign.ledger import Ledger, Places
from campaign.lost import Call, Calls
from campaign.merge import Merged, Target, receipt_of
from campaign.outputs import HISTOGRAMS
from campaign.plan import Output, Pass, Plan, Reduce, Shape, shapes
from campaign.progress import Progress
from campaign.protocols import JobTicket, Provider
from campaign.receipts import FROZEN, Receipt, Receipts, parse
from campaign.rundir import RunDir, canonical_json
from campaign.spent import Spent
from campaign.trees import Tree

if TYPE_CHECKING:
    from campaign import work
else:
    work = Later("campaign.work")

SLOW_S = 0.001  # a look at what can be merged that takes longer is not taken every time
AHEAD = 3  # calls waiting per worker: enough that none idles, few enough that the driver's memory stays small


@dataclass
class State:
    """What is done and what cannot be done.

    Attributes:
        ledger: Partials that are there, and those that will not be.
        frozen: ``(path, sha256)`` of frozen values, by (stage, variation).
        merged: Merged outputs by name.
        failed: Outputs and ``stage/variation`` that will not be there.
        errors: Texts of what went wrong; alike ones together.
        counts: Tasks done and failed in this run, and those done anew because what they had left was spoilt.
        rungs: Rows by how they were answered.
        spent: Where the workers' seconds went.
        tasks_s: Seconds in batches of tasks, summed over workers.
        answered: When the first prediction was there, seconds since the epoch; 0: none yet.
        peak_mb: The most memory a worker has had.
    """

    ledger: Ledger
    frozen: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    errors: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)
    tasks_s: float = 0.0
    answered: float = 0.0
    peak_mb: float = 0.0

    def account(self, answer: work.Answer) -> None:
        """Add up what a batch says of itself."""
        self.rungs.update(answer.rungs)
        self.spent.update(answer.spent)
        self.tasks_s += answer.wall_s
        self.peak_mb = max(self.peak_mb, answer.peak_mb)
        if answer.answered:
            self.answered = min(self.answered or answer.answered, answer.answered)

    def note(self, error: CampaignError) -> None:
        """Keep an error for the report."""
        if isinstance(error, (InputError, ProviderError)):  # one file, one error, however many variations read it
            self.errors.setdefault(error.where, [str(error)])
            return
        # A wrong shape fails on every file alike: one error, and how many more there are.
        told = self.errors.setdefault(f"{type(error).__name__} {error.message}", [])
        told.append("" if told else str(error))

    def has_frozen(self, needed: Iterable[tuple[str, str]]) -> bool:
        """Whether frozen values are there."""
        return all(at in self.frozen for at in needed)

    def lacks_frozen(self, needed: Iterable[tuple[str, str]]) -> bool:
        """Whether one of these frozen values will not be there."""
        return any(f"{stage}/{variation}" in self.failed for stage, variation in needed)

    def has_inputs(self, reduce: Reduce) -> bool:
        """Whether a reduce stage can be called."""
        return all(o.name in self.merged for o in reduce.inputs.values()) and self.has_frozen(reduce.frozen)

    def cannot(self, reduce: Reduce) -> bool:
        """Whether something it needs will not be there."""
        return any(o.name in self.failed for o in reduce.inputs.values()) or self.lacks_frozen(reduce.frozen)


class Scheduler:
    """Brings a plan to its end.

    Args:
        plan: The plan.
        todo: What of it is to be done.
        state: What is done already; grows.
        rundir: The run directory.
        receipts: Its log.
        provider: Who gives the executor.
        workers: How many worker processes.
        retries: How often a task is tried again after an error that can heal.
        job: From `protocols.save_job`.
        shown: Progress.
        pool_failure: Why the pool is of no use any more, or None.
    """

    def __init__(
        self, plan: Plan, todo: Iterable[Pass], state: State, rundir: RunDir, receipts: Receipts, provider: Provider,
        workers: int, retries: int, job: JobTicket, shown: Progress,
        pool_failure: Callable[[], CampaignError | None],
    ) -> None:  # fmt: skip
        self.plan, self.state, self.rundir, self.receipts = plan, state, rundir, receipts
        self.workers, self.retries = workers, retries
        self.job, self.shown, self.pool_failure = job, shown, pool_failure
        self.root = str(rundir.root)
        self.queue = Queue(todo, state.ledger, workers)
        self.unmerged = [Tree(o) for o in plan.outputs if o.name not in state.merged]
        self.unreduced = [r for r in plan.reduces if (r.stage, r.variation) not in state.frozen]
        self.unexported: deque[Output] = deque()
        self.tries: Counter[tuple[int, int]] = Counter()
        self.healed: set[tuple[int, int]] = set()
        self.merges_at = 0.0
        self.calls = Calls(lambda: provider.tasks(workers))

    def run(self, look_around: Callable[[], None]) -> None:
        """Until nothing more can be done. What fails is noted, what does not depend on it goes on.

        Args:
            look_around: Called several times a second; raises when it is time to stop.

        Raises:
            FrozenChanged: A frozen value was altered: everything after it would be wrong.
            ServerError: No server is left to call.
        """
        while True:
            self._submit_ready()
            if not self.calls:
                return
            for take in self.calls.wait(0.2):
                take()
            look_around()  # after them: what was done is not to be done again

    @property
    def _room(self) -> int:
        return self.workers * AHEAD - len(self.calls)

    def _submit_ready(self) -> None:
        for shape, places in self.queue.hopeless(lambda shape: self.state.lacks_frozen(shape.frozen)):
            self._drop(shape, places)
        self._look_at_merges()
        self.unreduced = [r for r in self.unreduced if not self._reduce(r)]
        while self._room > 0:
            batch = self.queue.next(lambda shape: self.state.has_frozen(shape.frozen))
            if batch is None:
                break
            self.calls.submit(self._batch(*batch))
        while self.unexported and self._room > 0:
            self._export(self.unexported.popleft())
        self.calls.try_suspect()

    def _look_at_merges(self) -> None:
        """See which merges are ready; of 100,000 files that takes a while, so not more than a twentieth of the time."""
        start = time.monotonic()
        if start < self.merges_at and self.calls:
            return
        self.unmerged = [tree for tree in self.unmerged if not self._merge(tree)]
        end = time.monotonic()
        self.merges_at = end + 20 * (end - start) if end - start > SLOW_S else 0.0

    # Tasks.
    def _drop(self, shape: Shape, places: Places) -> None:
        self.state.ledger.lose(shape.emits, places)
        for line in shape.lines:
            self.shown.add(line.stage, 0, failed=len(places))

    def _batch(self, shape: Shape, places: Places) -> Call:
        """The call for some tasks of one shape."""
        frozen = {at: self.state.frozen[at] for at in shape.frozen}
        batch, half = shape.tasks(places.tolist()), len(places) // 2
        return Call(
            batch.files[0].url,
            lambda answer: self._arrived(shape, places, answer),
            lambda error: self._lost(shape, int(places[0]), error),
            work.run_batch,
            (self.job, self.root, batch, frozen, self._expected(shape, places)),
            (lambda: (self._batch(shape, places[:half]), self._batch(shape, places[half:]))) if half else None,
        )

    def _expected(self, shape: Shape, places: Places) -> tuple[str, ...]:
        """SHA-256 of the artefacts that tasks read."""
        if shape.artefact is None:
            return ()
        receipts = map(parse, self.state.ledger.of(shape.artefact, places))
        return tuple(r.sha256 if r is not None else "" for r in receipts)

    def _arrived(self, shape: Shape, places: Places, answer: work.Answer) -> None:
        self.state.account(answer)
        self.queue.measured(shape, len(places), answer.wall_s)
        if answer.done:
            done = places[np.frombuffer(answer.done, np.int64)]
            lengths = np.frombuffer(answer.lengths, np.int64)
            at = self.receipts.append(answer.lines) + np.cumsum(lengths) - lengths
            events = np.frombuffer(answer.events, np.int64)
            self.state.ledger.record(shape.emits, done, at.reshape(len(done), -1), events)
            self.state.counts["done"] += len(done)
            for stage, lines in Counter(line.stage for line in shape.lines).items():
                self.shown.add(stage, lines * len(done), rows=answer.rows[stage])
        again = [int(places[i]) for i, error in answer.errors if self._task_failed(shape, int(places[i]), error)]
        if again:
            self.queue.add(Pass(shape, np.array(again)))

    def _task_failed(self, shape: Shape, place: int, error: CampaignError) -> bool:
        """Note it; True if the task is to be tried again."""
        if isinstance(error, FrozenChanged):
            raise error
        failure = self.pool_failure() if isinstance(error, ServerError) else None
        if failure is not None:
            raise failure  # one error of the pool, not one of each file
        at = (shape.emits[0].number, place)
        self.tries[at] += 1
        if can_heal(error) and self.tries[at] <= self.retries:
            return True
        self.state.note(error)
        self.state.counts["failed"] += 1
        self._drop(shape, np.array([place]))
        return False

    def _lost(self, shape: Shape, place: int, error: CampaignError) -> None:
        if self._task_failed(shape, place, error):
            self.queue.add(Pass(shape, np.array([place])))

    # Merges.
    def _merge(self, tree: Tree) -> bool:
        """Submit what of a merge is ready; True if it is off the list."""
        output, line = tree.output, tree.output.line
        assert line is not None
        if self.state.ledger.cannot(line):
            self.state.failed.add(output.name)
            return True
        if output.name in self.state.failed:
            return True
        target = Target(output.stage, output.dataset, output.variation)
        if not tree.small and tree.whole:
            self._call(output.name, work.run_tree, (self.root, target, tree.in_order()), tree, self._merged)
            return True
        for first in tree.ready(self.state.ledger):
            if self._room <= 0:
                break
            end = tree.end(first)
            tree.asked.add(first)
            lines = self.state.ledger.raw(line, first, end)
            args = (self.root, target, first, output.keys[first:end], lines)
            if tree.small:
                self._call(output.name, work.run_whole, args, tree, self._merged)
                return True
            self._call(
                output.name, work.run_leaf, args, tree, lambda tree, found, at=first: self._leaf(tree, at, found)
            )
        return False

    def _call(
        self, what: str, function: Callable[..., Any], args: tuple[Any, ...], about: Any, then: Callable[..., None]
    ) -> None:
        def take(found: Any) -> None:
            then(about, found)

        self.calls.submit(Call(what, take, take, function, args))

    def _leaf(self, tree: Tree, first: int, found: Any) -> None:
        tree.asked.discard(first)
        if isinstance(found, work.Spoilt):
            self._heal(tree, found)
        elif isinstance(found, CampaignError):
            self._lose(tree.output, found)
        else:
            tree.leaves[first] = found

    def _merged(self, tree: Tree, found: Any) -> None:
        if isinstance(found, work.Spoilt):
            tree.asked.clear()
            self.unmerged.append(tree)
            self._heal(tree, found)
            return
        if isinstance(found, CampaignError):
            self._lose(tree.output, found)
            return
        self.state.merged[tree.output.name] = found
        if found.kind == HISTOGRAMS:
            self.unexported.append(tree.output)
        else:
            self._remember(tree.output, found)

    def _lose(self, output: Output, error: CampaignError) -> None:
        self.state.note(error)
        self.state.failed.add(output.name)

    def _heal(self, tree: Tree, found: work.Spoilt) -> None:
        """Make spoilt partials anew, each once."""
        line = tree.output.line
        assert line is not None
        places = [(line.number, i) for i in found.files]
        if not places or not self.healed.isdisjoint(places):
            self._lose(tree.output, found.error)
            return
        self.healed.update(places)
        files = np.array(found.files)
        self.state.ledger.forget(line, files)
        self.state.counts["again"] += len(files)
        others = frozenset(x for x in self.state.ledger.emits if x is not line)
        for shape in shapes([x for x in self.plan.lines if x.events is line.events], others):
            self.queue.add(Pass(shape, files))
        self.shown.say(f"{tree.output.name}: {len(files)} partials are not what was written and are made anew")

    def _export(self, output: Output) -> None:
        """Write the ROOT file of an output; of all that is ready this comes last, for nothing waits for it."""
        args = (self.state.merged[output.name],)
        self._call(output.name, work.run_export, args, output, self._exported)

    def _exported(self, output: Output, found: Merged | CampaignError) -> None:
        if isinstance(found, CampaignError):
            self._lose(output, found)
            del self.state.merged[output.name]
        else:
            self.state.merged[output.name] = found
            self._remember(output, found)

    def _remember(self, output: Output, merged: Merged) -> None:
        self.receipts.add(receipt_of(self.rundir, output, merged))

    # Reduce stages.
    def _reduce(self, reduce: Reduce) -> bool:
        """Submit a reduce stage if its time has come; True if it is off the list."""
        if self.state.cannot(reduce):
            self._reduce_failed(reduce)
            return True
        if not self.state.has_inputs(reduce):
            return False
        merged = {d: self.state.merged[o.name] for d, o in reduce.inputs.items()}
        frozen = {at: self.state.frozen[at] for at in reduce.frozen}
        metadata = {d: self._metadata(d) for d in reduce.inputs}
        slim = work.ReduceCall(reduce.stage, reduce.variation, reduce.frozen)
        args = (self.job, self.root, slim, merged, frozen, metadata)
        self._call(f"{reduce.stage}/{reduce.variation}", work.run_reduce, args, reduce, self._reduced)
        return True

    def _metadata(self, dataset: str) -> dict[str, Any]:
        given = self.plan.campaign.datasets[dataset]
        return {"is_mc": given.is_mc, **(given.metadata if isinstance(given.metadata, dict) else {})}

    def _reduce_failed(self, reduce: Reduce) -> None:
        self.state.failed.add(f"{reduce.stage}/{reduce.variation}")
        self.shown.add(reduce.stage, 0, failed=1)

    def _reduced(self, reduce: Reduce, found: work.Reduced | CampaignError) -> None:
        if isinstance(found, FrozenChanged):
            raise found
        if isinstance(found, CampaignError):
            self.state.note(found)
            self._reduce_failed(reduce)
            return
        size = Path(found.path).stat().st_size
        receipt = Receipt(
            reduce.key, reduce.stage, "all", reduce.variation, "", FROZEN, found.sha256, size,
            more=canonical_json(found.artefacts),
        )  # fmt: skip
        self.receipts.add(receipt)
        self.state.ledger.frozen[reduce.stage, reduce.variation] = receipt
        self.state.frozen[reduce.stage, reduce.variation] = (found.path, found.sha256)
        self.shown.add(reduce.stage)


def can_heal(error: CampaignError) -> bool:
    """Whether trying again can help."""
    if isinstance(error, InferenceError):
        return not error.permanent
    return isinstance(error, (ServerError, PartialError)) or isinstance(
        error.__cause__, (TimeoutError, ConnectionError)
    )
