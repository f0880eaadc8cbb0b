"""Calls functions on an executor whose workers may die: repeats lost calls, and finds the call that kills workers."""

from __future__ import annotations

import logging
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
    """A call of a function in a worker.

    Attributes:
        what: The file, output or reduce stage that the call is about.
        then: Takes the answer.
        lost: Takes the error if the call is found to kill its workers.
        function, args: The call.
        halves: Makes two calls of one, each of half the tasks. None: the call cannot be divided.
        losses: Number of workers that died while they did nothing but this call.
        id: Name that the worker notes while it works on the call (`campaign.worker.deadline`). Empty: it notes none.
        part: Makes two calls of one: one task, and all others. None: there are no others.
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


logger = logging.getLogger(__name__)


class WorkerCalls:
    """The calls that workers are doing now.

    Args:
        new_executor: Gives an executor. Called again after an executor broke.
        deaths: Gives the notes of workers that died, each note once.
        most: Number of calls at a time. A call that was divided may exceed it.
        why_broken: Says how a worker of a broken executor ended. Empty: not known.
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
        """How many more calls may be submitted. Below 0: lost calls were divided and submitted again."""
        return self._most - len(self)

    def submit(self, call: WorkerCall, *, alone: bool = False) -> None:
        """Send a call to a worker. ``alone``: no other call runs meanwhile."""
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
        """If no call is under way, repeat one of the lost calls, with no other call beside it."""
        if self._quarantine and not self._under_way:
            self.submit(self._quarantine.popleft(), alone=True)

    def wait(self, timeout_s: float) -> list[Callable[[], None]]:
        """Wait for answers. Returns one function for each answer that has come; it passes the answer on."""
        arrived, _ = wait(self._under_way, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [self._taker(future) for future in arrived]

    def _taker(self, future: Future[Any]) -> Callable[[], None]:
        return lambda: self._under_way.pop(future)(future)

    def _answered(self, call: WorkerCall, future: Future[Any], executor: Executor, alone: bool) -> None:
        """Pass an answer on, or repeat the call if its worker was lost.

        When a worker dies, the other calls of its executor may be lost too. If the worker has noted which task it was
        in, that task is the suspect, and all other tasks are repeated normally. Otherwise the lost calls are repeated
        one at a time, with no other call beside them. A call that dies alone is halved, again and again, until the one
        task that kills its worker is found and named.
        """
        error = future.exception()
        if error is None:
            self._broken = 0
            self._at.pop(call.id, None)
            call.then(future.result())
            return
        logger.warning("call %s on %s was lost: %s", call.id, call.what, error)
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
        """Repeat the task that a worker was in when it died alone, and the other tasks normally."""
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
