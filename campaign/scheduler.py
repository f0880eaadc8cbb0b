"""What is ready is submitted; what arrives makes more ready: batches of tasks, merges and reduce stages."""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.batches import Queue
from campaign.errors import ArtefactError, CampaignError, FrozenChanged, OutputError, ServerError
from campaign.failures import Failures
from campaign.later import Later
from campaign.ledger import Places
from campaign.lost import Call, Calls
from campaign.merge import Merged, Target, receipt_of
from campaign.outputs import HISTOGRAMS
from campaign.plan import Events, Line, Output, Pass, Plan, Reduce, Shape, shapes
from campaign.progress import Progress
from campaign.protocols import JobTicket, Provider
from campaign.receipts import FROZEN, Receipt, Receipts, parse
from campaign.rundir import RunDir, canonical_json
from campaign.state import State
from campaign.trees import Tree
from campaign.twin import NOTE
from campaign.watch import deaths

if TYPE_CHECKING:
    from campaign import work
else:
    work = Later("campaign.work")

SLOW_S = 0.001  # a look at what can be merged that takes longer is not taken every time
AHEAD = 3  # calls waiting per worker: enough that none idles, few enough that the driver's memory stays small


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
        with_servers: Starts a pool if there is none, and returns the job that knows it.
    """

    def __init__(
        self, plan: Plan, todo: Iterable[Pass], state: State, rundir: RunDir, receipts: Receipts, provider: Provider,
        workers: int, retries: int, job: JobTicket, shown: Progress,
        pool_failure: Callable[[], CampaignError | None], with_servers: Callable[[], JobTicket],
    ) -> None:  # fmt: skip
        self.plan, self.state, self.rundir, self.receipts = plan, state, rundir, receipts
        self.workers, self.retries = workers, retries
        self.job, self.shown, self.pool_failure, self.with_servers = job, shown, pool_failure, with_servers
        self.root, self.began = str(rundir.root), receipts.end
        self.queue = Queue(todo, state.ledger, workers)
        self.unmerged = [Tree(o) for o in plan.outputs if o.name not in state.merged]
        self.unreduced = [r for r in plan.reduces if (r.stage, r.variation) not in state.frozen]
        self.unexported: deque[Output] = deque()
        self.tries: Counter[tuple[int, int]] = Counter()
        self.healed: set[tuple[int, int]] = set()
        self.redo: set[str] = set()  # outputs that hold a spoilt file when they arrive
        self.merges_at = 0.0
        self.name, self.numbers = secrets.token_hex(4), count()  # of calls
        self.calls = Calls(lambda: provider.tasks(workers), lambda: deaths(rundir.workers))
        self.failures = Failures(plan, state, self.calls, job, self.root, self._id)

    def run(self, look_around: Callable[[], None]) -> None:
        """Until nothing more can be done. What fails is noted, what does not depend on it goes on.

        Args:
            look_around: Called several times a second; raises when it is time to stop.

        Raises:
            FrozenChanged: A frozen value was altered: everything after it would be wrong.
            ServerError: No server is left to call.
        """
        while True:
            left = len(self.unmerged), len(self.unreduced)
            self._submit_ready()
            if not self.calls:
                if left == (len(self.unmerged), len(self.unreduced)):
                    return
                continue  # a frozen value of an earlier run was put into force, or given up: others may follow
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
            output = self.unexported.popleft()
            if output.name not in self.state.failed:
                self._export(output)
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

    def _id(self) -> str:
        return f"{self.name}-{next(self.numbers)}"

    def _batch(self, shape: Shape, places: Places, given: tuple[Any, ...] | None = None) -> Call:
        """The call for some tasks of one shape, with the frozen values of now or those given."""
        if given is None:
            marks = tuple(map(self.state.made_with, shape.lines)) if shape.frozen else ()
            given = {at: self.state.frozen[at] for at in shape.frozen}, marks
        batch, half, name = shape.tasks(places.tolist()), len(places) // 2, self._id()

        def divided(some: Places, others: Places) -> tuple[Call, Call]:
            return self._batch(shape, some, given), self._batch(shape, others, given)

        return Call(
            batch.files[0].url,
            lambda answer: self._arrived(shape, places, answer),
            lambda error: self._lost(shape, int(places[0]), error),
            work.run_batch,
            (self.job, self.root, batch, given[0], self._expected(shape, places), given[1], name),
            (lambda: divided(places[:half], places[half:])) if half else None,
            id=name,
            part=(lambda i: divided(places[[i]], np.delete(places, i))) if half else None,
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
            # Of a file that has failed in an earlier pass meanwhile nothing is wanted in this run.
            wanted = ~self.state.ledger.lost(shape.emits[0], done)
            self.state.ledger.record(shape.emits, done[wanted], at.reshape(len(done), -1)[wanted], events[wanted])
            self.state.counts["done"] += len(done)
            for stage, lines in Counter(line.stage for line in shape.lines).items():
                self.shown.add(stage, lines * len(done), rows=answer.rows[stage])
        again = []
        for i, error in answer.errors:
            parked = answer.parked.get(i, 0)
            self.state.rungs["parked"] += parked
            if self._task_failed(shape, int(places[i]), error):
                again.append(int(places[i]))
                self.state.rungs["parked"] -= parked  # not lost yet
        if again:
            self.queue.add(Pass(shape, np.array(again)))

    def _task_failed(self, shape: Shape, place: int, error: CampaignError) -> bool:
        """Note it; True if the task is to be tried again."""
        if isinstance(error, FrozenChanged):
            raise error
        failure = self.pool_failure() if isinstance(error, ServerError) else None
        if failure is not None:
            raise failure  # one error of the pool, not one of each file
        if isinstance(error, ArtefactError) and shape.artefact is not None and self._renew(shape.artefact, place):
            return True
        at = (shape.emits[0].number, place)
        self.tries[at] += 1
        if not error.permanent and self.tries[at] <= self.retries:
            return True
        self.state.note(error)
        self.state.counts["failed"] += 1
        self._drop(shape, np.array([place]))
        self.failures.failed(shape, place, error)
        return False

    def _lost(self, shape: Shape, place: int, error: CampaignError) -> None:
        if self._task_failed(shape, place, error):
            self.queue.add(Pass(shape, np.array([place])))

    # Merges.
    def _merge(self, tree: Tree) -> bool:
        """Submit what of a merge is ready; True if it is off the list."""
        output, line = tree.output, tree.output.line
        assert line is not None
        if output.name in self.state.failed:
            return True
        gaps = self.state.ledger.cannot(line)
        if (gaps and self.state.gaps.exceeded) or self.state.lacks_frozen(line.needs):
            self.state.failed.add(output.name)
            return True
        if not self.state.has_frozen(line.needs):  # what is there may have been made with others
            return False
        if not all(
            map(self.state.ledger.settled, self.state.ledger.before[line])
        ):  # a file that fails there is lost here too
            return False
        if gaps and not self._decided(tree, line):
            return output.name in self.state.failed
        target = Target(output.stage, output.dataset, output.variation)
        for first in tree.ready(self.state.ledger, gaps):
            if self._room <= 0:
                break
            end = tree.end(first)
            lost = self.state.ledger.gaps(line, first, end).tolist()
            there = sorted(set(range(first, end)).difference(lost))
            if not there:
                tree.leaves[first] = None
                continue
            tree.asked.add(first)
            lines = self.state.ledger.raw(line, first, end)
            some = replace(target, older=self.state.ledger.older(line, first, end, self.began))
            args = (self.root, some, first, line.keys.pick(there), lines, lost)
            if tree.small:
                self._call(output.name, work.run_whole, args, tree, self._merged)
                return True
            self._call(
                output.name, work.run_leaf, args, tree, lambda tree, found, at=first: self._leaf(tree, at, found)
            )
        if not tree.small and tree.whole:
            self._call(output.name, work.run_tree, (self.root, target, tree.in_order()), tree, self._merged)
            return True
        return False

    def _decided(self, tree: Tree, line: Line) -> bool:
        """Whether an output can be merged without lost files: all others are done, and it is known what is lost."""
        ledger = self.state.ledger
        places = ledger.gaps(line, 0, tree.files)
        if not ledger.settled(line) or not self.state.gaps.known(line.events, places):
            return False
        if len(places) == tree.files:
            self._lose(tree.output, OutputError("every file of it failed", where=tree.output.name))
            return False
        self.state.lacking[tree.output.name] = places
        return True

    def _call(
        self, what: str, function: Callable[..., Any], args: tuple[Any, ...], about: Any, then: Callable[..., None]
    ) -> None:
        def take(found: Any) -> None:
            then(about, found)

        self.calls.submit(Call(what, take, take, function, args))

    def _leaf(self, tree: Tree, first: int, found: Any) -> None:
        tree.asked.discard(first)
        if first in tree.spoilt:
            tree.spoilt.discard(first)
        elif isinstance(found, work.Spoilt):
            self._heal(tree, found)
        elif isinstance(found, CampaignError):
            self._lose(tree.output, found)
        else:
            tree.leaves[first] = found

    def _merged(self, tree: Tree, found: Any) -> None:
        if tree.output.name in self.state.failed:  # withdrawn meanwhile
            if isinstance(found, Merged):
                found.remove()
            return
        if tree.output.name in self.redo:  # it may hold the spoilt file
            self.redo.discard(tree.output.name)
            self.unmerged.append(Tree(tree.output))
            if isinstance(found, Merged):
                found.remove()
            return
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
        self._anew(line.events, frozenset([line]), files)
        self.shown.say(f"{tree.output.name}: {len(files)} partials are not what was written and are made anew")

    def _renew(self, artefact: Line, place: int) -> bool:
        """Make an artefact anew that is not what was written, once; whoever reads it waits for that."""
        one = np.array([place])
        if (artefact.number, place) in self.healed:  # by another task that reads it, or this is what was made anew
            there, lost = self.state.ledger.there(artefact, one), self.state.ledger.lost(artefact, one)
            return not there[0] and not lost[0]
        self.healed.add((artefact.number, place))
        self.state.ledger.forget(artefact, one)
        self._anew(artefact.events, frozenset([artefact]), one)
        for output in self.plan.outputs:  # what was merged of it is the spoilt file itself, under another name
            if output.line is not artefact:
                continue
            if self.state.merged.pop(output.name, None) is not None:
                self.unmerged.append(Tree(output))
            elif waiting := [tree for tree in self.unmerged if tree.output is output]:
                waiting[0].drop(place)
            elif output.name not in self.state.failed:
                self.redo.add(output.name)  # its merge is under way
        url = artefact.events.files.url(place)
        self.shown.say(f"{artefact.name}: the artefact of {url} is not what was written and is made anew")
        return True

    def _anew(self, events: Events, lines: frozenset[Line], places: Places) -> None:
        """Make partials of some files again."""
        others = frozenset(self.state.ledger.emits) - lines
        for shape in shapes([x for x in self.plan.lines if x.events is events], others):
            if any(self.plan.infers(line.stage) for line in shape.lines):
                self.job = self.with_servers()  # nothing else may have needed one
            self.queue.add(Pass(shape, places))
            self.state.counts["again"] += len(places)

    def _export(self, output: Output) -> None:
        """Write the ROOT file of an output; of all that is ready this comes last, for nothing waits for it."""
        merged = self.state.merged.get(output.name)
        if merged is not None:  # else it is merged again, and comes back
            self._call(output.name, work.run_export, (merged,), output, self._exported)

    def _exported(self, output: Output, found: Merged | CampaignError) -> None:
        if output.name in self.state.failed:  # withdrawn meanwhile
            if isinstance(found, Merged):
                found.remove()
        elif output.name not in self.state.merged:
            return  # it is merged again
        elif isinstance(found, CampaignError):
            self._lose(output, found)
            del self.state.merged[output.name]
        else:
            self.state.merged[output.name] = found
            self._remember(output, found)

    def _remember(self, output: Output, merged: Merged) -> None:
        lacking = self.state.lacking.get(output.name)
        gaps, shaky = () if lacking is None else lacking.tolist(), bool(self.state.because(output))
        self.receipts.add(receipt_of(self.rundir, output, merged, gaps, shaky=shaky))

    # Reduce stages.
    def _reduce(self, reduce: Reduce) -> bool:
        """Submit a reduce stage if its time has come; True if it is off the list."""
        if self.state.cannot(reduce):
            self._reduce_failed(reduce)
            return True
        if not self.state.has_inputs(reduce):
            return False
        if self.state.reuse(self.rundir, reduce):
            self._in_force(reduce)
            return True
        merged = {d: self.state.merged[o.name] for d, o in reduce.inputs.items()}
        frozen = {at: self.state.frozen[at] for at in reduce.frozen}
        metadata = {d: self._metadata(d) for d in reduce.inputs}
        slim, name = work.ReduceCall(reduce.stage, reduce.variation, reduce.frozen), self._id()
        args = (self.job, self.root, slim, merged, frozen, metadata, self.state.missing(reduce), name)
        about = (reduce, self.state.made_from(reduce))

        def take(found: work.Reduced | CampaignError) -> None:
            self._reduced(*about, found)

        self.calls.submit(Call(f"{reduce.stage}/{reduce.variation}", take, take, work.run_reduce, args, id=name))
        return True

    def _in_force(self, reduce: Reduce) -> None:
        """A frozen value is there; partials that were made with another one are not."""
        gaps = any(self.state.incomplete(o) for o in reduce.inputs.values())
        if gaps or self.state.shaky.intersection(reduce.frozen):
            self.state.shaky.add((reduce.stage, reduce.variation))
        self.shown.add(reduce.stage)
        for events, lines, places in self.state.settle():
            self._anew(events, lines, places)

    def _metadata(self, dataset: str) -> dict[str, Any]:
        given = self.plan.campaign.datasets[dataset]
        return {"is_mc": given.is_mc, **(given.metadata if isinstance(given.metadata, dict) else {})}

    def _reduce_failed(self, reduce: Reduce) -> None:
        self.state.failed.add(f"{reduce.stage}/{reduce.variation}")
        self.shown.add(reduce.stage, 0, failed=1)

    def _reduced(self, reduce: Reduce, made_from: str, found: work.Reduced | CampaignError) -> None:
        if isinstance(found, FrozenChanged):
            raise found
        if isinstance(found, CampaignError) or self.state.cannot(reduce):  # its inputs were withdrawn meanwhile
            if isinstance(found, CampaignError) and not self.state.cannot(reduce):
                self.state.note(found)
            self._reduce_failed(reduce)
            return
        self.state.asked(found)
        notes = (NOTE,) if found.rungs["local_twin"] else ()
        size, at = Path(found.path).stat().st_size, (reduce.stage, reduce.variation)
        more = canonical_json({"made_from": made_from, "artefacts": found.artefacts})
        kept = Receipt(reduce.key, at[0], "all", at[1], "", FROZEN, found.sha256, size, notes=notes, more=more)
        self.receipts.add(kept)
        self.state.ledger.frozen[at] = kept
        self.state.frozen[at] = (found.path, found.sha256)
        self._in_force(reduce)
