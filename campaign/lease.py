"""The sign of life that pilots wait for."""

from __future__ import annotations

import time
from pathlib import Path


class Lease:
    """A counter the submitter raises, aged by this machine's own monotonic clock: file times play no part."""

    def __init__(self, path: Path, lease_s: float) -> None:
        self.path, self.lease_s = path, lease_s
        self.seen, self.since = "", time.monotonic()

    def expired(self) -> bool:
        """Whether nothing new was seen for the lease's length."""
        try:
            now = self.path.read_text()
        except OSError:
            now = self.seen
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > self.lease_s
