"""The ``ctx.servers`` of a stage: joins the rows of a file into one stream, and sends equal requests once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from campaign.inference.client import Pending, Ragged, Servers, Shared, Stream
from campaign.inference.client import StreamPending as Rows
from campaign.inference.ragged import events as as_events


class PendingAnswer(Protocol):
    """The value that `StageClient.start` returns."""

    def result(self) -> dict[str, Any]:
        """The answers; see `campaign.inference.client.Pending.result`."""


class Answer:
    """The answer to some rows of a stream. `result` sends the rows that still wait for more rows to fill a request."""

    def __init__(self, stream: Stream, rows: Rows) -> None:
        self._stream, self._rows = stream, rows

    @property
    def sent(self) -> bool:
        """True if all rows are in requests."""
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

    The rows of a step follow the rows that the same step sent for earlier ranges. Requests are cut from this stream of
    rows, and only the last request of a file is padded. The moments at which a stage waits for an answer depend on the
    file alone, so every run sends the same requests.

    Steps that differ only in a weight make the same requests, and each request is sent once. Each step is still cut by
    its own rows, so its requests do not depend on the other steps of the task.

    Args:
        servers: Gives the process's connection to the pool.
        streams: The task's streams by step and model. New streams are added.
        shared: Requests of the task that are under way, if several steps may make the same ones.
        rows_sent: Called with the model and its inputs before rows join a stream.
    """

    def __init__(
        self,
        servers: Callable[[], Servers],
        streams: dict[tuple[str, str], Stream],
        shared: Shared | None = None,
        rows_sent: Callable[[str, Mapping[str, Any]], None] = lambda _model, _inputs: None,
    ) -> None:
        self._servers, self._streams, self._shared, self._rows_sent = servers, streams, shared, rows_sent
        self._asked: list[tuple[str, Mapping[str, Any], Answer | Pending]] = []

    @property
    def sent(self) -> bool:
        """True if no row of this range waits for rows of the next range to fill a request."""
        return all(asked.sent for _, _, asked in self._asked if isinstance(asked, Answer))

    def cancel(self) -> None:
        """Do not send the requests that still wait for room."""
        for _, _, asked in self._asked:
            asked.cancel()

    @property
    def handle(self) -> Servers:
        """The process's connection to the pool."""
        return self._servers()

    def of(self, step: str) -> StageClient:
        """The ``ctx.servers`` of the step with this key."""
        return StageClient(self, step)

    def start(self, step: str, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """See `StageClient.start`."""
        if not self.handle.model(model).batch or any(isinstance(given, Ragged) for given in inputs.values()):
            return self._start_whole(model, inputs)
        stream = self._streams.get((step, model))
        if stream is None:
            stream = self._streams[step, model] = self.handle.stream(model, self._shared)
        self._rows_sent(model, inputs)
        made = Answer(stream, stream.add(inputs))
        self._asked.append((model, {}, made))
        return made

    def _start_whole(self, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """Send the arrays as one request, or one request per event. Nothing is cut."""
        for name, given, asked in self._asked:
            if name == model and given.keys() == inputs.keys() and all(same(given[k], inputs[k]) for k in inputs):
                return asked
        made = self.handle.start(model, inputs)
        self._asked.append((model, inputs, made))
        return made


class StageClient:
    """The object that a stage finds as ``ctx.servers``."""

    def __init__(self, range_: RangeServers, step: str) -> None:
        self._range, self._step = range_, step

    def start(self, model: str, inputs: Mapping[str, Any]) -> PendingAnswer:
        """Send rows, now or together with rows of the next range. The returned object has ``result()``.

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
        """One request per event, for events in one buffer; see `campaign.inference.client.Servers.infer_ragged`."""
        return self.infer(model, as_events(self.model(model), inputs))

    def model(self, name: str) -> Any:
        """Inputs and outputs of a model; see `campaign.inference.client.Servers.model`."""
        return self._range.handle.model(name)


def same(one: Any, other: Any) -> bool:
    """True if two inputs are the same bytes. So NaN equals NaN."""
    if isinstance(one, Ragged) or isinstance(other, Ragged):
        return isinstance(one, Ragged) and one.same(other)
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and (a is b or a.tobytes() == b.tobytes())
