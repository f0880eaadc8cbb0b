"""Queues waiting tasks and decides how many of them go into one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from campaign.driver.partial_index import PartialIndex, Places
from campaign.planning.plan import PendingTasks, TaskTemplate, longest_first

BATCH_S = 0.25  # what a batch should take: long against a submission, short against what a lost one costs
GROWTH = 8  # times the size of the batch that was measured
LARGEST = 10_000
SHARE = 4  # near the end no batch holds more than this part of what one worker has left


@dataclass(eq=False)
class _Waiting:
    shape: TaskTemplate
    left: Places  # files, longest first


class TaskQueue:
    """Batches of ready tasks, longest files first, sized by what tasks of their shape have taken.

    Args:
        passes: What is to be done.
        index: What is there.
        workers: How many there are.
    """

    def __init__(self, passes: Iterable[PendingTasks], index: PartialIndex, workers: int) -> None:
        self._index, self._workers = index, workers
        self._waiting: list[_Waiting] = []
        self._sizes: dict[TaskTemplate, int] = {}
        for some in passes:
            self.add(some)

    def add(self, some: PendingTasks) -> None:
        """Take more tasks."""
        sizes = np.frombuffer(some.shape.events.files.sizes, np.int64)
        for w in self._waiting:
            if w.shape is some.shape:
                w.left = longest_first(np.concatenate([w.left, some.places]), sizes)
                return
        self._waiting.append(_Waiting(some.shape, longest_first(some.places, sizes)))

    def measured(self, shape: TaskTemplate, tasks: int, wall_s: float) -> None:
        """A batch has taken so long."""
        wanted = BATCH_S * tasks / max(wall_s, 1e-6)
        self._sizes[shape] = max(1, int(min(wanted, GROWTH * tasks, LARGEST)))

    def next(self, ready: Callable[[TaskTemplate], bool]) -> tuple[TaskTemplate, Places] | None:
        """The next batch, None if nothing is ready.

        Args:
            ready: Whether the frozen values of a shape are there.
        """
        found = [(w, *self._ready(w)) for w in self._waiting if len(w.left) and ready(w.shape)]
        found = [(w, now, later) for w, now, later in found if len(now)]
        if not found:
            return None
        # Nominal first: what draws figures of it, or waits for it, then runs beside the rest. Then the largest file.
        w, now, later = max(found, key=lambda x: (x[0].shape.nominal, x[0].shape.events.files.sizes[x[1][0]]))
        share = math.ceil(sum(len(x[1]) for x in found) / (SHARE * self._workers))
        count = min(self._sizes.get(w.shape, 1), share)
        w.left = now[count:] if not len(later) else np.concatenate([now[count:], later])
        if not len(w.left):
            self._waiting.remove(w)
        return w.shape, now[:count]

    def _ready(self, w: _Waiting) -> tuple[Places, Places]:
        """Files whose artefact is there, if they need one, and the others."""
        artefact = w.shape.artefact
        if artefact is None or self._index.whole(artefact):
            return w.left, w.left[:0]
        there = self._index.there(artefact, w.left)
        return w.left[there], w.left[~there]

    def hopeless(self, cannot: Callable[[TaskTemplate], bool]) -> list[tuple[TaskTemplate, Places]]:
        """Take out what will never be ready.

        Args:
            cannot: Whether frozen values of a shape will not be there.
        """
        found = []
        for w in list(self._waiting):
            gone = [x for x in (w.shape.artefact, w.shape.emits[0]) if x is not None and self._index.cannot(x)]
            if cannot(w.shape):
                lost = np.ones(len(w.left), bool)
            elif gone:
                lost = np.logical_or.reduce([self._index.lost(x, w.left) for x in gone])
            else:
                continue
            if lost.any():
                found.append((w.shape, w.left[lost]))
                w.left = w.left[~lost]
            if not len(w.left):
                self._waiting.remove(w)
        return found
