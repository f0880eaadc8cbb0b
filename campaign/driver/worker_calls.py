"""Calls functions on an executor whose workers may die: repeats lost calls, and finds the call that kills workers."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from campaign.errors import CampaignError, ProviderError
from campaign.worker.deadline import Death, late, oom_kills

LOSSES = 2  # workers a call may lose while it runs alone before it is held to be the cause
EXECUTORS = 6  # executors that may break, with no call answered in between, before the machine is held to be the cause


@dataclass(eq=False)
class WorkerCall:
    """Something a worker is to do.

    Attributes:
        what: The file, output or reduce stage it is about.
        then: Takes its answer.
        lost: Takes the error if it is held to have killed its workers.
        function, args: The call.
        halves: Makes two calls of one, each of half the tasks; None: it cannot be divided.
        losses: Workers that died while they did it and nothing else.
        id: What its worker calls it (`campaign.worker.deadline`); empty: its worker says nothing of it.
        part: Makes two calls of one, of the task at a place and of the others; None: there are no others.
    """

    what: str
    then: Callable[[Any], None]
    lost: Callable[[CampaignError], None]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    halves: Callable[[], tuple[WorkerCall, WorkerCall]] | None = None
    losses: int = 0
    id: str = ""
    part: Callable[[int], tuple[WorkerCall, WorkerCall]] | None = None


class WorkerCalls:
    """Calls under way.

    Args:
        new_executor: Gives an executor; asked again after one broke.
        deaths: What workers that have died say of it, each once.
        most: How many are wanted to be under way at most.
        why_broken: How a worker of a broken executor ended; empty: not known.
    """

    def __init__(
        self,
        new_executor: Callable[[], Executor],
        deaths: Callable[[], Sequence[Death]] = lambda: (),
        most: int = sys.maxsize,
        why_broken: Callable[[Executor], str] = lambda _: "",
    ) -> None:
        self._give, self._ask, self._most, self._why_broken = new_executor, deaths, most, why_broken
        self._under_way: dict[Future[Any], Callable[[Future[Any]], None]] = {}
        self._quarantine: deque[WorkerCall] = deque()
        self._deaths: dict[str, Death] = {}
        self._explained: set[Executor] = set()  # that broke because of a call that is known
        self._at: dict[str, Executor] = {}  # where calls that can be known were sent
        self._broken = 0
        self._ended = oom_kills()
        self._executor = self._new_executor()

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def room(self) -> int:
        """How many more are wanted; below 0: what was lost was divided, and sent again."""
        return self._most - len(self)

    def submit(self, call: WorkerCall, *, alone: bool = False) -> None:
        """Send it to a worker."""
        try:
            future: Future[Any] = self._executor.submit(call.function, *call.args)
        except BrokenExecutor:
            self._executor = self._new_executor()
            future = self._executor.submit(call.function, *call.args)
        executor = self._executor
        if call.id:
            self._at[call.id] = executor
        self._under_way[future] = lambda f: self._answered(call, f, executor, alone)

    def try_suspect(self) -> None:
        """If nothing is under way, do one of the calls that were lost, and nothing beside it."""
        if self._quarantine and not self._under_way:
            self.submit(self._quarantine.popleft(), alone=True)

    def wait(self, timeout_s: float) -> list[Callable[[], None]]:
        """Wait for answers; what is to be done with those that have come."""
        arrived, _ = wait(self._under_way, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [self._taker(future) for future in arrived]

    def _taker(self, future: Future[Any]) -> Callable[[], None]:
        return lambda: self._under_way.pop(future)(future)

    def _answered(self, call: WorkerCall, future: Future[Any], executor: Executor, alone: bool) -> None:
        """Pass an answer on, or do the call again: a lost worker is not the fault of what it did, until it is.

        When a worker dies, everything under way with it may be lost too. Where the worker has left word which task it
        was in, that one is the suspect, and everything else is done again as if nothing had been. Otherwise all of it
        is done again one call at a time and with nothing beside it; a batch that dies alone is halved, and so on, so
        that the task that kills its worker, and only that one, is found and named.
        """
        error = future.exception()
        if error is None:
            self._broken = 0
            self._at.pop(call.id, None)
            call.then(future.result())
            return
        self._learn()
        self._at.pop(call.id, None)  # whatever is sent again has its own place, or another name
        death = self._deaths.pop(call.id, None)
        if death is not None:
            self._suspect(call, death)
        elif isinstance(error, BrokenExecutor) and executor in self._explained and not alone:
            self.submit(call)
        elif alone and call.halves is not None:
            self._broken -= 1  # something was learned
            self._quarantine.extendleft(reversed(call.halves()))
        else:
            call.losses += alone
            self._again_alone(call, self._why_broken(executor) or f"{type(error).__name__}: {error}".splitlines()[0])

    def _learn(self) -> None:
        for death in self._ask():
            if death.call in self._at:
                self._deaths[death.call] = death
                self._explained.add(self._at[death.call])

    def _suspect(self, call: WorkerCall, death: Death) -> None:
        """A worker said which task it was in when it died."""
        self._broken -= 1  # something was learned
        suspect = call
        if call.part is not None:
            suspect, others = call.part(death.place)
            suspect.losses = call.losses
            self.submit(others)
        if death.late:
            suspect.lost(late(death.how, where=suspect.what, log=death.log))
            return
        suspect.losses += 1
        self._again_alone(suspect, death.how, death.log)

    def _again_alone(self, call: WorkerCall, said: str, log: str = "") -> None:
        if call.losses < LOSSES:
            self._quarantine.append(call)
            return
        ended = oom_kills() - self._ended
        memory = f"; the kernel has ended {ended} processes here meanwhile, for lack of memory" if ended else ""
        call.lost(
            ProviderError(
                f"{LOSSES} workers were lost while they did nothing else ({said}{memory})",
                where=call.what,
                remedy="does a stage crash on it, or need more memory than there is?",
                log=log,
            )
        )

    def _new_executor(self) -> Executor:
        self._broken += 1
        if self._broken > EXECUTORS:
            raise ProviderError(f"workers were lost together {EXECUTORS} times", remedy="is there enough memory?")
        return self._give()
