"""What is ready is submitted; what arrives makes more ready: tasks, merges and reduce stages on one executor."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import work
from campaign.errors import (
    CampaignError,
    FrozenChanged,
    InferenceError,
    InputError,
    PartialError,
    ProviderError,
    ServerError,
)
from campaign.merge import Merged
from campaign.outputs import HISTOGRAMS
from campaign.plan import Output, Plan, Reduce, Task, longest_first
from campaign.progress import Progress
from campaign.protocols import Provider
from campaign.rundir import Receipt, Receipts, RunDir

AHEAD = 3  # tasks waiting per worker: enough that none idles, few enough that the driver's memory stays small
LOSSES = 2  # workers a call may lose while it runs alone before it is held to be the cause
EXECUTORS = 6  # executors that may break, with no call answered in between, before the machine is held to be the cause


@dataclass
class State:
    """What is done and what cannot be done.

    Attributes:
        have: Receipts of partials that are there, by key.
        frozen: ``(path, sha256)`` of frozen values, by (stage, variation).
        merged: Merged outputs by name.
        failed: Keys, outputs and ``stage/variation`` that will not be there.
        errors: Texts of what went wrong; alike ones together.
        counts: Tasks done and failed in this run.
        rungs: Rows by how they were answered.
    """

    have: dict[str, Receipt] = field(default_factory=dict)
    frozen: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    errors: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)

    def note(self, error: CampaignError) -> None:
        """Keep an error for the report."""
        if isinstance(error, (InputError, ProviderError)):  # one file, one error, however many variations read it
            self.errors.setdefault(error.where, [str(error)])
            return
        # A wrong shape fails on every file alike: one error, and how many more there are.
        self.errors.setdefault(f"{type(error).__name__} {error.message}", []).append(str(error))

    def has_inputs(self, reduce: Reduce) -> bool:
        """Whether a reduce stage can be called."""
        return all(o.name in self.merged for o in reduce.inputs.values()) and all(
            f in self.frozen for f in reduce.frozen
        )

    def cannot(self, reduce: Reduce) -> bool:
        """Whether something it needs will not be there."""
        needs = [o.name for o in reduce.inputs.values()] + [f"{s}/{v}" for s, v in reduce.frozen]
        return any(n in self.failed for n in needs)


@dataclass
class Call:
    """Something a worker is to do.

    Attributes:
        what: The file, output or reduce stage it is about.
        then: Takes its answer.
        lost: Takes the error if it is held to have killed its workers.
        function, args: The call.
        losses: Workers that died while they did it and nothing else.
    """

    what: str
    then: Callable[[Any], None]
    lost: Callable[[CampaignError], None]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    losses: int = 0


class Scheduler:
    """Brings a plan to its end.

    Args:
        plan: The plan.
        todo: Its tasks that are to be done.
        state: What is done already; grows.
        rundir: The run directory.
        receipts: Its log.
        provider: Who gives the executor.
        workers: How many worker processes.
        retries: How often a task is tried again after an error that can heal.
        job: From `work.save_job`.
        shown: Progress.
        pool_failure: Why the pool is of no use any more, or None.
    """

    def __init__(
        self, plan: Plan, todo: Iterable[Task], state: State, rundir: RunDir, receipts: Receipts, provider: Provider,
        workers: int, retries: int, job: tuple[str, str], shown: Progress,
        pool_failure: Callable[[], CampaignError | None],
    ) -> None:  # fmt: skip
        self.plan, self.state, self.rundir, self.receipts = plan, state, rundir, receipts
        self.provider, self.workers, self.retries = provider, workers, retries
        self.job, self.shown, self.pool_failure = job, shown, pool_failure
        self.root = str(rundir.root)
        self.queue: deque[Task] = deque(longest_first(todo))
        self.unmerged = list(plan.outputs)
        self.unreduced = [r for r in plan.reduces if (r.stage, r.variation) not in state.frozen]
        self.unexported: deque[str] = deque()
        self.under_way: dict[Future[Any], Callable[[Future[Any]], None]] = {}
        self.tries: Counter[str] = Counter()
        self.suspects: deque[Call] = deque()
        self.executors = 0
        self.executor = self._new_executor()

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
            if not self.under_way:
                return
            arrived, _ = wait(self.under_way, timeout=0.2, return_when=FIRST_COMPLETED)
            look_around()
            for future in arrived:
                self.under_way.pop(future)(future)

    def _submit_ready(self) -> None:
        self.unmerged = [o for o in self.unmerged if not self._merge(o)]
        self.unreduced = [r for r in self.unreduced if not self._reduce(r)]
        room = self.workers * AHEAD - len(self.under_way)
        later: list[Task] = []
        while self.queue and room > 0:
            task = self.queue.popleft()
            if self._will_never_be_ready(task):
                self._drop(task)
            elif self._is_ready(task):
                self._submit(task)
                room -= 1
            else:
                later.append(task)
        self.queue.extendleft(reversed(later))
        while self.unexported and room > 0:
            self._export(self.unexported.popleft())
            room -= 1
        if self.suspects and not self.under_way:
            self._call(self.suspects.popleft(), alone=True)

    def _call(self, call: Call, *, alone: bool = False) -> None:
        try:
            future: Future[Any] = self.executor.submit(call.function, *call.args)
        except BrokenExecutor:
            self.executor = self._new_executor()
            future = self.executor.submit(call.function, *call.args)
        self.under_way[future] = lambda f: self._answered(call, f, alone)

    def _answered(self, call: Call, future: Future[Any], alone: bool) -> None:
        """Pass an answer on, or do the call again: a lost worker is not the fault of what it did, until it is.

        When a worker dies, everything under way with it is lost too. All of it is done again, one call at a time and
        with nothing beside it, so that the one that kills its worker, and only that one, is found and named.
        """
        error = future.exception()
        if error is None:
            self.executors = 0
            call.then(future.result())
            return
        call.losses += alone
        if call.losses < LOSSES:
            self.suspects.append(call)
            return
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        call.lost(
            ProviderError(
                f"{LOSSES} workers were lost while they did nothing else ({said})",
                where=call.what,
                remedy="does a stage crash on it, or need more memory than there is?",
            )
        )

    def _new_executor(self) -> Executor:
        self.executors += 1
        if self.executors > EXECUTORS:
            raise ProviderError(f"workers were lost together {EXECUTORS} times", remedy="is there enough memory?")
        return self.provider.tasks(self.workers)

    # Tasks.
    def _is_ready(self, task: Task) -> bool:
        frozen = all(at in self.state.frozen for s in task.steps for at in s.frozen)
        return frozen and (task.artefact is None or task.artefact in self.state.have)

    def _will_never_be_ready(self, task: Task) -> bool:
        lost = self.state.failed
        return task.artefact in lost or any(f"{at[0]}/{at[1]}" in lost for s in task.steps for at in s.frozen)

    def _drop(self, task: Task) -> None:
        for step in task.steps:
            self.state.failed.add(step.key)
            self.shown.add(step.stage, 0, failed=1)

    def _submit(self, task: Task) -> None:
        frozen = {at: self.state.frozen[at] for s in task.steps for at in s.frozen}
        expected = self.state.have[task.artefact].sha256 if task.artefact else ""
        self._call(
            Call(
                task.source.file.url,
                lambda result: self._arrived(task, result),
                lambda error: self._task_failed(task, error),
                work.run_task,
                (self.job, self.root, task, frozen, expected),
            )
        )

    def _arrived(self, task: Task, result: work.Result) -> None:
        self.state.rungs += result.rungs
        if result.error is not None:
            self._task_failed(task, result.error)
            return
        for receipt in result.receipts:
            self.receipts.add(receipt)
            self.state.have[receipt.key] = receipt
        self.state.counts["done"] += 1
        for stage, count in Counter(s.stage for s in task.steps).items():
            self.shown.add(stage, count, rows=result.rows[stage])

    def _task_failed(self, task: Task, error: CampaignError) -> None:
        if isinstance(error, FrozenChanged):
            raise error
        failure = self.pool_failure() if isinstance(error, ServerError) else None
        if failure is not None:
            raise failure  # one error of the pool, not one of each file
        self.tries[task.id] += 1
        if can_heal(error) and self.tries[task.id] <= self.retries:
            self.queue.append(task)
            return
        self.state.note(error)
        self.state.counts["failed"] += 1
        self._drop(task)

    # Merges and reduce stages.
    def _merge(self, output: Output) -> bool:
        """Submit a merge if its time has come; True if it is off the list."""
        if any(k in self.state.failed for k in output.keys):
            self.state.failed.add(output.name)
            return True
        if not all(k in self.state.have for k in output.keys):
            return False
        receipts = [self.state.have[k] for k in output.keys]

        def then(found: Any) -> None:
            self._merged(output, found)

        self._call(Call(output.name, then, then, work.run_merge, (self.root, output, receipts)))
        return True

    def _merged(self, output: Output, found: Merged | CampaignError) -> None:
        if isinstance(found, CampaignError):
            self.state.note(found)
            self.state.failed.add(output.name)
            return
        self.state.merged[output.name] = found
        if found.kind == HISTOGRAMS:
            self.unexported.append(output.name)

    def _export(self, name: str) -> None:
        """Write the ROOT file of an output; of all that is ready this comes last, for nothing waits for it."""

        def then(found: Any) -> None:
            self._exported(name, found)

        self._call(Call(name, then, then, work.run_export, (self.state.merged[name],)))

    def _exported(self, name: str, found: Merged | CampaignError) -> None:
        if isinstance(found, CampaignError):
            self.state.note(found)
            self.state.failed.add(name)
            del self.state.merged[name]
        else:
            self.state.merged[name] = found

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

        def then(found: Any) -> None:
            self._reduced(reduce, found)

        args = (self.job, self.root, reduce, merged, frozen, metadata)
        self._call(Call(f"{reduce.stage}/{reduce.variation}", then, then, work.run_reduce, args))
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
        self.receipts.add(
            Receipt(reduce.key, reduce.stage, "all", reduce.variation, "", "frozen", found.sha256, size, 0, 0)
        )
        self.state.frozen[reduce.stage, reduce.variation] = (found.path, found.sha256)
        self.shown.add(reduce.stage)


def can_heal(error: CampaignError) -> bool:
    """Whether trying again can help."""
    if isinstance(error, InferenceError):
        return not error.permanent
    return isinstance(error, (ServerError, PartialError)) or isinstance(
        error.__cause__, (TimeoutError, ConnectionError)
    )
