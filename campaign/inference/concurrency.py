"""Decides how many requests one process keeps in flight on one server, from the measured service time.

By Little's law a server that takes S seconds for a request and answers X of them per second works on X S at once: one,
or one per instance, or one per server behind a proxy. Twice as many keep it busy while answers and new requests travel.
A client held up for some milliseconds (a stage that keeps the interpreter to itself) must not be felt either, so the
window is worth `COVER_S` of the server's work. S is asked of the server, not taken from the answers' latency: that
holds the queue, which processes sharing a server would drive up against each other without end.
"""

from __future__ import annotations

import math

LEAST, MOST = 4, 64  # four: measured equal to eight and sixteen at 50 ms, where two let the server wait
COVER_S = 0.02


class ConcurrencyLimit:
    """The window of one server as one process sees it.

    Args:
        fixed: Requests in flight; None: found by measuring.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.size = fixed or LEAST
        self.rate = 0.0
        self.service_s = 0.0
        self._last: float | None = None
        self._answers, self._spent_s = 0, 0.0

    def answered(self, now: float, more: bool) -> None:
        """Note an answer.

        Args:
            now: Seconds on a monotonic clock.
            more: Whether a request was waiting to take its place; the rate is the server's only then.
        """
        if self._last is not None:
            self._answers, self._spent_s = self._answers + 1, self._spent_s + now - self._last
        self._last = now if more else None
        if self._answers >= 2 * self.size and self._spent_s > 0:
            self.rate = self._answers / self._spent_s
            self._answers, self._spent_s = 0, 0.0
            self._resize()

    def served(self, service_s: float) -> None:
        """Note what the server says of its time per request, in seconds."""
        self.service_s = service_s
        self._resize()

    def _resize(self) -> None:
        if self.fixed is None:
            wanted = math.ceil(self.rate * max(2 * self.service_s, COVER_S) - 1e-9)
            self.size = min(max(LEAST, wanted), MOST)
