"""Calls on an executor whose workers may die: what was lost with them is done again, and a cause is found and named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from campaign.errors import CampaignError, ProviderError

LOSSES = 2  # workers a call may lose while it runs alone before it is held to be the cause
EXECUTORS = 6  # executors that may break, with no call answered in between, before the machine is held to be the cause


@dataclass
class Call:
    """Something a worker is to do.

    Attributes:
        what: The file, output or reduce stage it is about.
        then: Takes its answer.
        lost: Takes the error if it is held to have killed its workers.
        function, args: The call.
        halves: Makes two calls of one, each of half the tasks; None: it cannot be divided.
        losses: Workers that died while they did it and nothing else.
    """

    what: str
    then: Callable[[Any], None]
    lost: Callable[[CampaignError], None]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    halves: Callable[[], tuple[Call, Call]] | None = None
    losses: int = 0


class Calls:
    """Calls under way.

    Args:
        new_executor: Gives an executor; asked again after one broke.
    """

    def __init__(self, new_executor: Callable[[], Executor]) -> None:
        self._give = new_executor
        self._under_way: dict[Future[Any], Callable[[Future[Any]], None]] = {}
        self._suspects: deque[Call] = deque()
        self._broken = 0
        self._executor = self._new_executor()

    def __len__(self) -> int:
        return len(self._under_way)

    def submit(self, call: Call, *, alone: bool = False) -> None:
        """Send it to a worker."""
        try:
            future: Future[Any] = self._executor.submit(call.function, *call.args)
        except BrokenExecutor:
            self._executor = self._new_executor()
            future = self._executor.submit(call.function, *call.args)
        self._under_way[future] = lambda f: self._answered(call, f, alone)

    def try_suspect(self) -> None:
        """If nothing is under way, do one of the calls that were lost, and nothing beside it."""
        if self._suspects and not self._under_way:
            self.submit(self._suspects.popleft(), alone=True)

    def wait(self, timeout_s: float) -> list[Callable[[], None]]:
        """Wait for answers; what is to be done with those that have come."""
        arrived, _ = wait(self._under_way, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [self._taker(future) for future in arrived]

    def _taker(self, future: Future[Any]) -> Callable[[], None]:
        return lambda: self._under_way.pop(future)(future)

    def _answered(self, call: Call, future: Future[Any], alone: bool) -> None:
        """Pass an answer on, or do the call again: a lost worker is not the fault of what it did, until it is.

        When a worker dies, everything under way with it is lost too. All of it is done again, one call at a time and
        with nothing beside it; a batch that dies alone is halved, and so on, so that the task that kills its worker,
        and only that one, is found and named.
        """
        error = future.exception()
        if error is None:
            self._broken = 0
            call.then(future.result())
            return
        if alone and call.halves is not None:
            self._broken -= 1  # something was learned
            self._suspects.extendleft(reversed(call.halves()))
            return
        call.losses += alone
        if call.losses < LOSSES:
            self._suspects.append(call)
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
        self._broken += 1
        if self._broken > EXECUTORS:
            raise ProviderError(f"workers were lost together {EXECUTORS} times", remedy="is there enough memory?")
        return self._give()
