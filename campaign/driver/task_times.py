"""Collects when each worker was in tasks, and which files took longest, for the page of a run's report."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TASKS, SLOWEST = 200, 20  # the longest tasks that are remembered, and files that are named
MOST_SPANS = 1500  # of one worker
GAP_S = 0.02  # pauses that are shorter do not show


@dataclass
class _Worker:
    spans: list[list[float]] = field(default_factory=list)
    gap_s: float = GAP_S

    def add(self, start: float, end: float) -> None:
        if self.spans and start - self.spans[-1][1] <= self.gap_s:
            self.spans[-1][1] = max(self.spans[-1][1], end)
        else:
            self.spans.append([start, end])
        while len(self.spans) > MOST_SPANS:
            self.gap_s *= 2
            merged, self.spans = self.spans, []
            for span in merged:
                if self.spans and span[0] - self.spans[-1][1] <= self.gap_s:
                    self.spans[-1][1] = max(self.spans[-1][1], span[1])
                else:
                    self.spans.append(span)


@dataclass
class TaskTimes:
    """When workers were in tasks. All times are seconds since the epoch, by the workers' clocks."""

    _workers: dict[str, _Worker] = field(default_factory=dict)
    _slowest: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    _count: int = 0
    _reduces: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, worker: str, starts: Sequence[float], end: float, about: Callable[[int], dict[str, Any]]) -> None:
        """A batch was done.

        Args:
            worker: Host and pid.
            starts: When each of its tasks began.
            end: When the last one was over.
            about: File, dataset and stages of a task, by its place in the batch.
        """
        if not starts or not worker:
            return
        self._workers.setdefault(worker, _Worker()).add(starts[0], max(end, starts[0]))
        for i, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
            seconds = max(0.0, stop - start)
            if len(self._slowest) == TASKS and seconds <= self._slowest[0][0]:
                continue
            self._count += 1  # two tasks may take equally long
            found = (seconds, self._count, {**about(i), "seconds": round(seconds, 3), "worker": worker})
            (heapq.heappushpop if len(self._slowest) == TASKS else heapq.heappush)(self._slowest, found)

    def add_reduce(self, name: str, start: float, end: float) -> None:
        """A reduce stage was called and has answered."""
        self._reduces.append((name, start, end))

    def to_json(self, began: float) -> dict[str, Any]:
        """Spans in seconds from the start of the run, and the slowest tasks, the slowest first."""
        return {
            "workers": {
                name: [[round(at - began, 2) for at in span] for span in worker.spans]
                for name, worker in sorted(self._workers.items())
            },
            "reduces": [[name, round(start - began, 2), round(end - began, 2)] for name, start, end in self._reduces],
            "slowest": self._slowest_files(),
        }

    def _slowest_files(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for *_, about in sorted(self._slowest, key=lambda item: -item[0]):
            found.setdefault(about["file"], about)
        return list(found.values())[:SLOWEST]
