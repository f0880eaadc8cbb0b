"""The pool as one step of a task sees it: the rows of a file are one stream, and equal requests are sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from campaign.inference.client import Pending, Ragged, Servers, Shared, Stream
from campaign.inference.client import StreamPending as Rows
from campaign.inference.ragged import events as as_events


class PendingAnswer(Protocol):
    """What `StageClient.start` returns."""

    def result(self) -> dict[str, Any]:
        """The answers; see `campaign.inference.client.Pending.result`."""


class Answer:
    """Rows of a stream. Asked for while some of them wait for company, it sends them as they are."""

    def __init__(self, stream: Stream, rows: Rows) -> None:
        self._stream, self._rows = stream, rows

    @property
    def sent(self) -> bool:
        """Whether all rows have gone into requests."""
        return self._rows.sent

    def result(self) -> dict[str, Any]:
        """See `campaign.inference.client.Pending.result`."""
        if not self._rows.sent:
            self._stream.flush()
        return self._rows.result()

    def cancel(self) -> None:
        """See `campaign.inference.client.Pending.cancel`."""
        self._rows.cancel()


class RangeServers:
    """The pool for one row range of a task.

    What a step starts joins the rows it started for the ranges before: requests are cut from the file's stream of
    rows, and only the last one of a file is padded. When an answer is asked for is a function of the file too, so
    what is sent because of it is the same in every run. Steps that differ in a weight alone make the same requests:
    each is sent once. Every step is cut by its own rows all the same, so that who else is in the task cannot show.

    Args:
        servers: Gives the process's handle on the pool.
        streams: The task's streams by step and model; those that begin are added.
        shared: Requests of the task under way, where several steps may make the same.
    """

    def __init__(
        self, servers: Callable[[], Servers], streams: dict[tuple[str, str], Stream], shared: Shared | None = None
    ) -> None:
        self._servers, self._streams, self._shared = servers, streams, shared
        self._asked: list[tuple[str, Mapping[str, Any], Answer | Pending]] = []

    @property
    def sent(self) -> bool:
        """Whether no row of this range waits for rows of the next one to fill its request."""
        return all(asked.sent for _, _, asked in self._asked if isinstance(asked, Answer))

    def cancel(self) -> None:
        """Do not send what still waits for room."""
        for _, _, asked in self._asked:
            asked.cancel()

    @property
    def handle(self) -> Servers:
        """The process's handle."""
        return self._servers()

    def of(self, step: str) -> StageClient:
        """As the step of this key sees it."""
        return StageClient(self, step)

    def start(self, step: str, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """See `StageClient.start`."""
        if not self.handle.model(model).batch or any(isinstance(given, Ragged) for given in inputs.values()):
            return self._start_whole(model, inputs)
        stream = self._streams.get((step, model))
        if stream is None:
            stream = self._streams[step, model] = self.handle.stream(model, self._shared)
        made = Answer(stream, stream.add(inputs))
        self._asked.append((model, {}, made))
        return made

    def _start_whole(self, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """One request with the arrays as they are, or one per event: nothing is cut."""
        for name, given, asked in self._asked:
            if name == model and given.keys() == inputs.keys() and all(same(given[k], inputs[k]) for k in inputs):
                return asked
        made = self.handle.start(model, inputs)
        self._asked.append((model, inputs, made))
        return made


class StageClient:
    """What a stage finds as ``ctx.servers``."""

    def __init__(self, range_: RangeServers, step: str) -> None:
        self._range, self._step = range_, step

    def start(self, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """Send rows, now or with those of the next range; what is returned has ``result()``.

        Raises:
            InferenceError: Wrong name, shape or dtype.
        """
        return self._range.start(self._step, model, inputs)

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Send rows and wait for their answers; see `campaign.inference.client.Servers.infer`."""
        return self.start(model, inputs).result()

    def infer_events(self, model: str, events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One request per event; see `campaign.inference.client.Servers.infer_events`."""
        asked = [self.start(model, event) for event in events]
        return [a.result() for a in asked]

    def infer_ragged(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One request per event of events in one buffer; see `campaign.inference.client.Servers.infer_ragged`."""
        return self.infer(model, as_events(self.model(model), inputs))

    def model(self, name: str) -> Any:
        """What is known of a model; see `campaign.inference.client.Servers.model`."""
        return self._range.handle.model(name)


def same(one: Any, other: Any) -> bool:
    """Whether two inputs are the same bytes: NaN is as good as any other number."""
    if isinstance(one, Ragged) or isinstance(other, Ragged):
        return isinstance(one, Ragged) and one.same(other)
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and (a is b or a.tobytes() == b.tobytes())
