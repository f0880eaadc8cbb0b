"""Submits tasks, merges (`campaign.driver.merge_scheduler`) and reduce stages as soon as their inputs are complete."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.driver.failure_policy import FailurePolicy
from campaign.driver.merge_scheduler import MergeScheduler
from campaign.driver.partial_index import Places
from campaign.driver.run_servers import RunServers
from campaign.driver.task_queue import TaskQueue
from campaign.driver.work import Work
from campaign.driver.worker_calls import WorkerCall, WorkerCalls
from campaign.errors import ArtefactError, CampaignError, FrozenChanged, ServerError, SpecError
from campaign.inference.local_model import NOTE
from campaign.planning.plan import InputGroup, Layer, PendingTasks, Reduce, TaskTemplate, shapes
from campaign.protocols import Provider
from campaign.report.progress import Progress
from campaign.spec.models import campaign_workers
from campaign.storage.receipts import FROZEN, UNFINISHED, Receipt, parse
from campaign.storage.rundir import RunDir
from campaign.util.hashing import canonical_json
from campaign.util.lazy import LazyModule
from campaign.worker.deadline import deaths
from campaign.worker.job import BatchInputs

if TYPE_CHECKING:
    from campaign.worker import reducing, tasks
else:
    reducing, tasks = LazyModule("campaign.worker.reducing"), LazyModule("campaign.worker.tasks")

NOWHERE = np.empty(0, np.int64)
AHEAD = 3  # calls waiting per worker: enough that none idles, few enough that the driver's memory stays small


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskInputs:
    """The inputs of the tasks of one call, besides their files.

    Attributes:
        frozen, marks, expected: See `campaign.worker.tasks.run_batch`.
        reads: Places in the log of the receipts of the artefacts that the tasks read, shape (n,). Empty: they read
            events.
    """

    sent: BatchInputs
    reads: Places

    def pick(self, some: Places) -> TaskInputs:
        """The inputs of some of the tasks."""
        if not len(self.reads):
            return self
        return TaskInputs(self.sent.pick(some), self.reads[some])

    def read(self, i: int) -> int:
        """Place in the log of the receipt of a task's artefact. -1: the task reads events."""
        return int(self.reads[i]) if len(self.reads) else -1


class Scheduler:
    """Submits the tasks, merges and reduce calls of a run, and takes their answers.

    Args:
        work: The plan, the tasks to do, and what is done already.
        rundir: The run directory.
        provider: Gives the executor.
        servers: The servers of the run: the ticket for workers, and why no server can be used.
        shown: Progress.
    """

    def __init__(self, work: Work, rundir: RunDir, provider: Provider, servers: RunServers, shown: Progress) -> None:
        plan, state = work.plan, work.state
        self.plan, self.state, self.rundir, self.receipts = plan, state, rundir, state.index.receipts
        self.servers, self.shown, self.job = servers, shown, servers.ticket
        self.root = str(rundir.root)
        workers = campaign_workers(plan.campaign)
        self.queue = TaskQueue(work.todo, state.index, workers)
        self.unreduced = work.reduces
        self.tries: Counter[tuple[int, int]] = Counter()
        self.name, self.numbers = secrets.token_hex(4), count()  # of calls
        self.calls = WorkerCalls(
            lambda: provider.tasks(workers), lambda: deaths(rundir.workers, rundir.stage_logs), workers * AHEAD,
            provider.why_broken,
        )  # fmt: skip
        self.merges = MergeScheduler(plan, state, rundir, self.receipts, self.calls, shown, self._anew)
        self.failures = FailurePolicy(plan, state, self.calls, self.job, self.root, self._id)

    def run(self, look_around: Callable[[], None]) -> None:
        """Work until nothing more can be done. A failure is noted; everything that does not depend on it goes on.

        Args:
            look_around: Called several times a second. It raises when the run is to stop.

        Raises:
            FrozenChanged: A frozen value was altered, so that everything after it would be wrong.
            ServerError: No server is left to call.
        """
        while True:
            left = len(self.merges), len(self.unreduced)
            self._submit_ready()
            if not self.calls:
                if left == (len(self.merges), len(self.unreduced)):
                    return
                continue  # a frozen value of an earlier run was put into force, or given up: others may follow
            for take in self.calls.wait(0.2):
                take()
            self.shown.under_way(len(self.calls))
            look_around()  # after them: what was done is not to be done again

    def _submit_ready(self) -> None:
        for shape, places in self.queue.hopeless(lambda shape: self.state.lacks_frozen(shape.frozen)):
            self._drop(shape, places)
        self.merges.submit_ready()
        self.unreduced = [r for r in self.unreduced if not self._reduce(r)]
        while self.calls.room > 0:
            batch = self.queue.next(lambda shape: self.state.has_frozen(shape.frozen))
            if batch is None:
                break
            self.calls.submit(self._batch(*batch))
        self.merges.submit_exports()
        self.calls.try_suspect()

    # Tasks.
    def _drop(self, shape: TaskTemplate, places: Places) -> None:
        self.state.index.lose(shape.emits, places)
        for line in shape.lines:
            self.shown.add(line.stage, 0, failed=len(places))

    def _id(self) -> str:
        return f"{self.name}-{next(self.numbers)}"

    def _batch(self, shape: TaskTemplate, places: Places) -> WorkerCall:
        """The call for some tasks of one shape, with the frozen values and artefacts as they are now."""
        marks = tuple(map(self.state.made_with, shape.lines)) if shape.frozen else ()
        reads = NOWHERE if shape.artefact is None else self.state.index.at(shape.artefact, places)
        receipts = [parse(line) for line in self.receipts.lines(reads.tolist())]
        expected = tuple(r.sha256 if r is not None else "" for r in receipts)
        sent = BatchInputs({at: self.state.frozen[at] for at in shape.frozen}, expected, marks)
        return self._call(shape, places, TaskInputs(sent, reads))

    def _call(self, shape: TaskTemplate, places: Places, given: TaskInputs) -> WorkerCall:
        """The call for tasks with these inputs. If it is divided, its parts get the same inputs."""
        batch, half, name = shape.tasks(places.tolist()), len(places) // 2, self._id()
        every = np.arange(len(places))

        def divided(some: Places, others: Places) -> tuple[WorkerCall, WorkerCall]:
            return (
                self._call(shape, places[some], given.pick(some)),
                self._call(shape, places[others], given.pick(others)),
            )

        return WorkerCall(
            batch.files[0].url,
            lambda answer: self._arrived(shape, places, answer, given),
            lambda error: self._lost(shape, int(places[0]), error),
            tasks.run_batch,
            (self.job, self.root, batch, given.sent, name),
            (lambda: divided(every[:half], every[half:])) if half else None,
            id=name,
            part=(lambda i: divided(every[[i]], np.delete(every, i))) if half else None,
        )

    def _arrived(self, shape: TaskTemplate, places: Places, answer: tasks.Answer, given: TaskInputs) -> None:
        self.state.account(answer)
        self._timed(shape, places, answer)
        self.queue.measured(shape, len(places), answer.wall_s)
        if answer.done:
            done = places[np.frombuffer(answer.done, np.int64)]
            lengths = np.frombuffer(answer.lengths, np.int64)
            at = self.receipts.append(answer.lines) + np.cumsum(lengths) - lengths
            events = np.frombuffer(answer.events, np.int64)
            # Of a file that has failed in an earlier pass meanwhile nothing is wanted in this run.
            wanted = ~self.state.index.lost(shape.emits[0], done)
            self.state.index.record(shape.emits, done[wanted], at.reshape(len(done), -1)[wanted], events[wanted])
            self.state.counts["done"] += len(done)
            for stage, lines in Counter(line.stage for line in shape.lines).items():
                self.shown.add(stage, lines * len(done), rows=answer.rows[stage])
        again = []
        for i, error in answer.errors:
            parked = answer.parked.get(i, 0)
            self.state.rungs["parked"] += parked
            if self._task_failed(shape, int(places[i]), error, given.read(i)):
                again.append(int(places[i]))
                self.state.rungs["parked"] -= parked  # not lost yet
        if again:
            self.queue.add(PendingTasks(shape, np.array(again)))

    def _timed(self, shape: TaskTemplate, places: Places, answer: tasks.Answer) -> None:
        """Keep when its worker was in these tasks."""
        events, stages = shape.events, list(dict.fromkeys(line.stage for line in shape.lines))

        def about(i: int) -> dict[str, Any]:
            return {"file": events.files.url(int(places[i])), "dataset": events.dataset, "stages": stages}

        end = answer.starts[0] + answer.wall_s if answer.starts else 0.0
        self.state.times.add(answer.worker, answer.starts, end, about)

    def _task_failed(self, shape: TaskTemplate, place: int, error: CampaignError, read: int = -1) -> bool:
        """Note the error of a task. Returns True if the task is to be tried again.

        Args:
            shape: The task's template.
            place: Its file.
            error: What went wrong.
            read: Place in the log of the receipt of the artefact that the task read. -1: none.
        """
        if isinstance(error, FrozenChanged):
            raise error
        failure = self.servers.failure() if isinstance(error, ServerError) else None
        if failure is not None:
            raise failure  # one error of the pool, not one of each file
        spoilt = shape.artefact if isinstance(error, ArtefactError) else None
        if spoilt is not None and self.merges.renew(spoilt, place, read):
            return True
        at = (shape.emits[0].number, place)
        self.tries[at] += 1
        if not error.permanent and self.tries[at] <= self.plan.campaign.retries:
            return True
        self._locate(error)
        logger.warning("task failed: %s", error)
        if self.state.note(error):
            self.shown.fail(str(error))
        self.state.counts["failed"] += 1
        self._drop(shape, np.array([place]))
        self.failures.failed(shape, place, error)
        return False

    def _locate(self, error: CampaignError) -> None:
        """Add the line of the stage in the campaign file, which a worker does not know."""
        place = self.plan.campaign.locate(SpecError("", key=("stages", error.stage))).where if error.stage else ""
        if place and place not in error.where:
            error.where = f"{place}: {error.where}"

    def _lost(self, shape: TaskTemplate, place: int, error: CampaignError) -> None:
        if self._task_failed(shape, place, error):
            self.queue.add(PendingTasks(shape, np.array([place])))

    def _anew(self, events: InputGroup, lines: frozenset[Layer], places: Places) -> None:
        """Have the partials of some files made again."""
        others = frozenset(self.state.index.emits) - lines
        for shape in shapes([x for x in self.plan.lines if x.events is events], others):
            if any(self.plan.infers(line.stage) for line in shape.lines):
                self.job = self.servers.start_late()  # nothing else may have needed one
            self.queue.add(PendingTasks(shape, places))
            self.state.counts["again"] += len(places)

    # Reduce stages.
    def _reduce(self, reduce: Reduce) -> bool:
        """Submit a reduce stage if its inputs are complete. Returns True if it needs no further look."""
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
        if (reduce.stage, reduce.variation) in self.state.index.frozen:
            # Its file and its plots are about to be others than the receipt says, whatever comes then.
            self._receive(reduce, Receipt(UNFINISHED, reduce.stage, "all", reduce.variation, "", FROZEN, "", 0))
        missing, name = self.state.missing(reduce), self._id()
        called = reducing.ReduceCall(reduce.stage, reduce.variation, merged, frozen, metadata, missing)
        args = (self.job, self.root, called, name)
        about, began = (reduce, self.state.made_from(reduce)), time.time()

        def take(found: reducing.Reduced | CampaignError) -> None:
            self.state.times.add_reduce(f"{reduce.stage}/{reduce.variation}", began, time.time())
            self._reduced(*about, found)

        self.calls.submit(
            WorkerCall(f"{reduce.stage}/{reduce.variation}", take, take, reducing.run_reduce, args, id=name)
        )
        return True

    def _receive(self, reduce: Reduce, receipt: Receipt) -> None:
        self.receipts.add(receipt, durable=True)
        self.state.index.frozen[reduce.stage, reduce.variation] = receipt

    def _in_force(self, reduce: Reduce) -> None:
        """Let a new frozen value count, and have the partials made again that were made with another one."""
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

    def _reduced(self, reduce: Reduce, made_from: str, found: reducing.Reduced | CampaignError) -> None:
        if isinstance(found, FrozenChanged):
            raise found
        if isinstance(found, CampaignError) or self.state.cannot(reduce):  # its inputs were withdrawn meanwhile
            if isinstance(found, CampaignError) and not self.state.cannot(reduce) and self.state.note(found):
                self.shown.fail(str(found))
                logger.warning("reduce stage failed: %s", found)
            self._reduce_failed(reduce)
            return
        self.state.asked(found)
        notes = (NOTE,) if found.rungs["local_twin"] else ()
        size, at = Path(found.path).stat().st_size, (reduce.stage, reduce.variation)
        more = canonical_json({"made_from": made_from, "artefacts": found.artefacts})
        kept = Receipt(reduce.key, at[0], "all", at[1], "", FROZEN, found.sha256, size, notes=notes, more=more)
        self._receive(reduce, kept)
        self.state.frozen[at] = (found.path, found.sha256)
        self._in_force(reduce)
