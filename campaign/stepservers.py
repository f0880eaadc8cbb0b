"""The pool as one step of a task sees it: the rows of a file are one stream, and equal requests are sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from campaign.client import Pending, Servers, Stream


class RangeServers:
    """The pool for one row range of a task.

    What a step starts joins the rows it started for the ranges before: requests are cut from the file's stream of
    rows, and only the last one of a file is padded. Asking for an answer whose last rows still wait for company sends
    them as they are, so that nothing waits for ever. Steps that differ in a weight alone ask for the same: once.

    Args:
        servers: Gives the process's handle on the pool.
        streams: The task's streams by step and model; those that begin are added.
    """

    def __init__(self, servers: Callable[[], Servers], streams: dict[tuple[str, str], Stream]) -> None:
        self._servers, self._streams = servers, streams
        self._asked: list[tuple[str, Mapping[str, Any], Pending]] = []

    @property
    def sent(self) -> bool:
        """Whether no row of this range waits for rows of the next one to fill its request."""
        return all(pending.sent for _, _, pending in self._asked)

    def of(self, step: str) -> StepServers:
        """As the step of this key sees it."""
        return StepServers(self, step)

    def start(self, step: str, model: str, inputs: Mapping[str, Any]) -> Pending:
        """See `campaign.client.Servers.start`."""
        for name, given, pending in self._asked:
            if name == model and given.keys() == inputs.keys() and all(_same(given[k], inputs[k]) for k in inputs):
                return pending
        stream = self._streams.get((step, model))
        if stream is None:
            stream = self._streams[step, model] = self.handle.stream(model)
        pending = stream.add(inputs)
        self._asked.append((model, inputs, pending))
        return pending

    @property
    def handle(self) -> Servers:
        """The process's handle."""
        return self._servers()


class StepServers:
    """What a stage finds as ``ctx.servers``."""

    def __init__(self, range_: RangeServers, step: str) -> None:
        self._range, self._step = range_, step

    def start(self, model: str, inputs: Mapping[str, Any]) -> Pending:
        """Send rows, now or with those of the next range; returns what `Pending.result` gives them from.

        Raises:
            InferenceError: Wrong name, shape or dtype.
        """
        return self._range.start(self._step, model, inputs)

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Send rows and wait for their answers; see `campaign.client.Servers.infer`."""
        return self.start(model, inputs).result()

    def infer_events(self, model: str, events: Iterable[Mapping[str, Any]]) -> list[dict[str, np.ndarray[Any, Any]]]:
        """One request per event; see `campaign.client.Servers.infer_events`."""
        return self._range.handle.infer_events(model, events)

    def model(self, name: str) -> Any:
        """What is known of a model; see `campaign.client.Servers.model`."""
        return self._range.handle.model(name)


def _same(one: Any, other: Any) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    # Bytes, not values: NaN inputs are as good as any others.
    return a.dtype == b.dtype and a.shape == b.shape and (a is b or a.tobytes() == b.tobytes())
