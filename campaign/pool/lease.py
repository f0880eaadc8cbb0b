"""The sign of life that pilots wait for."""

from __future__ import annotations

import time
from pathlib import Path


class Lease:
    """A counter the submitter raises, aged by this machine's own monotonic clock: file times play no part.

    Args:
        path: ``NONCE PID COUNT``.
        lease_s: Its length.
        pool: The nonce of the pool; another's counter is no sign of life.
    """

    def __init__(self, path: Path, lease_s: float, pool: str) -> None:
        self.path, self.lease_s, self.pool = path, lease_s, pool
        self.seen, self.since = "", time.monotonic()

    def expired(self) -> bool:
        """Whether nothing new was seen for the lease's length."""
        try:
            now = self.path.read_text()
        except OSError:
            now = self.seen
        if now != self.seen and now.startswith(f"{self.pool} "):
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > self.lease_s
