"""Counts a worker's seconds by stage and by activity, and adds them up over tasks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

RUN, WAIT, AHEAD, WRITE = "run", "wait", "ahead", "write"
"""What is done: at work, waiting for an answer or for a read under way, at work in the background, writing partials."""


class Timing(Counter[tuple[str, str]]):
    """Wall seconds by ``(stage, what)``; reading counts as the stage ``read``."""

    def add(self, stage: str, what: str, seconds: float) -> None:
        """Count seconds."""
        self[stage, what] += seconds  # type: ignore[assignment]  # a Counter of seconds

    @contextmanager
    def on(self, stage: str, what: str) -> Iterator[None]:
        """Count what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, what, time.perf_counter() - start)
