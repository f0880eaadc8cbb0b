"""Servers: the client of a pool in one process. Sends rows as canonical requests, returns answers in order.

Requests are cut by the caller's array alone: ``batch`` rows each, the last one padded, one execution per request. So
what the model sees does not depend on how many servers there are, which of them answers, or how often one was asked.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from tritonclient.utils import InferenceServerException

from campaign.discovery.address import PoolAddress
from campaign.errors import InferenceError, ServerError
from campaign.inference import ragged
from campaign.inference.codec import Array, Codec, Part, batch_of, cut
from campaign.inference.connections import Connection, ConnectionPool
from campaign.inference.dispatcher import Dispatcher
from campaign.inference.kserve import (
    Arrays,
    ModelInfo,
    check_inputs,
    identity_refused,
    model_info,
    open_client,
    permanent,
)
from campaign.inference.local_model import LocalModels
from campaign.inference.ragged import Ragged
from campaign.inference.request import Request
from campaign.report.rungs import RUNGS
from campaign.util.messages import unknown

__all__ = ["RUNGS", "Pending", "PoolAddress", "Ragged", "Servers", "Shared", "Stream", "connect"]


def connect(address: PoolAddress) -> Servers:
    """A live handle on a pool, one per process (and never carried through a fork)."""
    return Servers(address)


@dataclass(frozen=True)
class RowSpan:
    """Rows ``start <= i < stop`` of a request's answer."""

    request: Request
    start: int
    stop: int


class Pending:
    """Requests under way; `result` waits for all of them and puts their answers together in order."""

    def __init__(self, dispatcher: Dispatcher, model: ModelInfo, spans: list[RowSpan], *, events: bool = False) -> None:
        self._dispatcher, self._model, self._spans, self._events = dispatcher, model, spans, events
        self._whole: dict[str, Any] | None = None

    def result(self) -> dict[str, Any]:
        """The outputs, one entry per row given, in the order given. May be asked for again.

        Raises:
            InferenceError: A request was refused, or could not be answered.
            ServerError: Nobody is left to ask.
        """
        if self._whole is None:
            self._whole = self._join()
            self._spans = []
        return self._whole

    def cancel(self) -> None:
        """Do not send what still waits for room."""
        unwanted = InferenceError("was given up before it was sent", where=f"model {self._model.name}")
        self._dispatcher.drop([span.request for span in self._spans], unwanted)

    def _join(self) -> dict[str, Any]:
        self._dispatcher.check_process()  # in a forked child even giving up would wait for a lock that nobody lets go
        try:
            answers = self._dispatcher.take([span.request for span in self._spans])
        except Exception:
            self.cancel()
            raise
        whole: dict[str, Any] = {}
        for tensor in self._model.outputs:
            found = [answer[tensor.name] for answer in answers]
            if self._events:
                whole[tensor.name] = ragged.joined(tensor, found)
            elif not self._model.batch:
                whole[tensor.name] = np.array(found[0])  # aligned, and without the rest of the answer
            elif found:
                try:
                    whole[tensor.name] = ragged.rows_of(
                        tensor, [a[span.start : span.stop] for a, span in zip(found, self._spans, strict=True)]
                    )
                except InferenceError as error:
                    error.where = f"model {self._model.name}, {error.where}"
                    raise
            else:
                whole[tensor.name] = np.empty([0, *(max(0, n) for n in tensor.shape[1:])], tensor.answer_dtype)
        for array in whole.values():
            # Several variations may be given the same answer.
            (array.flat if isinstance(array, Ragged) else array).setflags(write=False)
        return whole


class Servers:
    """A process's handle on the pool. Not to be pickled, not to be carried through a fork: send its `PoolAddress`.

    Args:
        address: Where the pool is.

    Attributes:
        rows: Rows answered, by rung of the ladder (see `RUNGS`).
        requests: Requests sent, by model; one sent twice counts twice.
    """

    def __init__(self, address: PoolAddress) -> None:
        self.address = address
        self._connections = ConnectionPool(address)
        self._twins = LocalModels(address.twins)
        self._dispatcher = Dispatcher(self._connections, self._twins.answer if address.twins else None)
        self._codecs: dict[str, Codec] = {}
        self.rows: Counter[str] = self._dispatcher.rows
        self.requests: Counter[str] = self._dispatcher.sent

    def __reduce__(self) -> NoReturn:
        raise TypeError("Servers holds open channels and does not travel; send its .address and connect() there")

    @property
    def refused(self) -> set[str]:
        """Servers that were not believed, and why: others' records, others behind our servers' names."""
        return set(self._connections.refused)

    @property
    def waited_s(self) -> float:
        """Seconds callers have waited: for answers, for room, for the first server."""
        return self._dispatcher.waited_s

    def infer(self, model: str, inputs: Arrays) -> dict[str, Any]:
        """Infer rows.

        Args:
            model: Name of the model.
            inputs: Arrays by input name, of the model's dtypes (text of any kind for BYTES, floats for BF16; optional
                inputs may be left out). For a model that batches: shape (rows, ...), any
                number of rows, cut into requests of the campaign's ``batch`` rows, the last one padded. For one that
                does not (``max_batch_size: 0``): one request with the arrays as they are; or, where an array is
                `Ragged`, one request per event.

        Returns:
            Arrays by output name, shape (rows, ...); `Ragged` where answers differ in the length of one axis. Text
            comes as objects of type bytes, BF16 as float32. For events see `infer_ragged`.

        Raises:
            InferenceError: Wrong name, shape or dtype (said before anything is sent), or nobody answered.
        """
        return self.start(model, inputs).result()

    def start(self, model: str, inputs: Arrays) -> Pending:
        """Like `infer`, but returns as soon as the requests are queued; they are sent as servers have room for them.

        It blocks only while more than 64 MiB of requests wait for room.
        """
        codec = self._codec(model)
        info = codec.info
        if any(isinstance(given, Ragged) for given in inputs.values()):
            return self._start_events(codec, inputs)
        requests = [Request(codec, part) for part in cut(info, check_inputs(info, inputs))]
        self._dispatcher.submit(requests)
        return Pending(self._dispatcher, info, [RowSpan(r, 0, r.part.rows) for r in requests])

    def infer_events(self, model: str, events: Iterable[Arrays]) -> list[dict[str, Any]]:
        """One request per event, several in flight, answers in the order of the events.

        Args:
            model: Name of a model with variable-length inputs.
            events: Arrays by input name, event by event.
        """
        pending = [self.start(model, event) for event in events]
        return [p.result() for p in pending]

    def infer_ragged(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One request per event for events that lie in one buffer; nothing is made or copied per event but its bytes.

        Args:
            model: Name of a model that does not batch (``max_batch_size: 0``).
            inputs: By input name, of the model's dtypes: an awkward array of one entry per event, a pair
                ``(flat, counts)`` of all events' elements and their lengths, an array of shape (events, ...), or
                a `Ragged`.

        Returns:
            By output name: `Ragged` where the output has a variable axis, else an array of shape (events, ...).

        Raises:
            InferenceError: As `infer`.
        """
        return self.infer(model, ragged.events(self.model(model), inputs))

    def _start_events(self, codec: Codec, inputs: Arrays) -> Pending:
        info = codec.info
        if info.batch:
            raise InferenceError(
                "batches rows (max_batch_size > 0); events go to a model that does not",
                where=f"model {info.name}",
                permanent=True,
            )
        requests = [Request(codec, part) for part in ragged.parts(info, ragged.events(info, inputs))]
        self._dispatcher.submit(requests)
        return Pending(self._dispatcher, info, [RowSpan(r, 0, 1) for r in requests], events=True)

    def stream(self, model: str, shared: Shared | None = None) -> Stream:
        """Rows that come in several arrays and are cut as if they came in one; see `Stream`."""
        return Stream(self._dispatcher, self._codec(model), shared)

    def model(self, name: str) -> ModelInfo:
        """The metadata of a model, asked from a server once per process.

        Raises:
            InferenceError: The pool has no such model, or does not answer.
        """
        return self._codec(name).info

    def close(self) -> None:
        """Give up open requests and close all channels. A forked child leaves them to its parent."""
        if self._dispatcher.forked:
            return
        self._dispatcher.close()
        self._connections.close()

    def _codec(self, name: str) -> Codec:
        self._dispatcher.check_process()
        if name not in self._codecs:
            if self.address.batches and name not in self.address.batches:
                raise InferenceError(
                    unknown(name, sorted(self.address.batches), "models of the pool"),
                    permanent=True,
                    remedy="name it under servers.models",
                )
            self._codecs[name] = Codec(self._ask(name))
        return self._codecs[name]

    def _ask(self, name: str) -> ModelInfo:
        """Ask one server after the other, each once; those that come in place of lost ones too."""
        tried: set[str] = set()
        start = time.monotonic()
        while True:
            try:
                with self._dispatcher.waiting():
                    connection = self._connections.wait(tried)
            except ServerError:
                known = self._twins.info(name)
                if known is not None:
                    return known
                raise
            try:
                return self._ask_one(connection, name)
            except InferenceServerException as error:
                if identity_refused(error, connection.record):
                    self._connections.refuse(connection, str(error.message()))
                    continue  # another server, or the connection pool says that there is none
                tried.add(connection.name)
                self._connections.failed(connection)
                if not permanent(error) and (set(self._connections.connections) - tried or self._waits(tried, start)):
                    continue
                raise InferenceError(
                    f"cannot be asked for its metadata: {error.message()}",
                    where=f"model {name} on {connection.name}",
                    permanent=permanent(error),
                ) from error

    def _waits(self, tried: set[str], start: float) -> bool:
        return self._connections.hope(tried, start, self._connections.newest())

    def _ask_one(self, connection: Connection, name: str) -> ModelInfo:
        with closing(open_client(connection.record)) as client:
            info = model_info(
                client, name, self.address.batches.get(name), connection.headers, self.address.versions.get(name)
            )
            return replace(info, tails=tuple(t for t in self.address.tails.get(name, ()) if t < info.batch))


Shared: TypeAlias = WeakValueDictionary[bytes, Request]
"""Requests that somebody still waits for, by their content."""


def _content(model: str, part: Part) -> bytes:
    content = hashlib.sha256(f"{model} {part.names} {part.shapes}".encode())
    for tensor in part.pieces:
        for piece in tensor:
            content.update(piece)
    return content.digest()


class Stream:
    """Rows of one model given in several arrays: full batches are cut across them, and only the end is padded.

    So what the model sees is a function of the rows alone, wherever one array ends and the next begins (the row ranges
    a file is read in, say), and no request but the last one carries padding. Not for several threads at once::

        stream = servers.stream("qg_tagger")
        first, second = stream.add({"X": x1}), stream.add({"X": x2})
        stream.end()
        first.result(), second.result()

    A model that does not batch gets one request per array.

    Args:
        flight, codec: The process's queue, and the model's bytes.
        shared: Requests of other streams; an equal one is not sent again. Each stream is cut by its own rows alone.
    """

    def __init__(self, dispatcher: Dispatcher, codec: Codec, shared: Shared | None = None) -> None:
        self._dispatcher, self._codec, self._shared = dispatcher, codec, shared
        self._rest: list[tuple[dict[str, Array], StreamPending]] = []
        self._rows = 0
        self._over = False

    def add(self, inputs: Arrays) -> StreamPending:
        """The next rows. What fills batches is sent; the answer to the others needs the next `add`, or `end`.

        Raises:
            InferenceError: Wrong name, shape or dtype.
        """
        if self._over:
            raise InferenceError("the stream has ended", where=f"model {self._codec.info.name}", permanent=True)
        info = self._codec.info
        arrays = check_inputs(info, inputs)
        pending = StreamPending(self._dispatcher, info, [])
        if not info.batch:
            requests = [Request(self._codec, part) for part in cut(info, arrays)]
            pending._spans = [RowSpan(r, 0, 1) for r in requests]
            self._dispatcher.submit(requests)
            return pending
        rows = len(next(iter(arrays.values())))
        if self._rest and self._rest[0][0].keys() != arrays.keys():
            self.flush()  # a request gives the same inputs for each of its rows
        if rows:
            self._rest.append((arrays, pending))
            self._rows += rows
            pending._missing = rows
        self._flush(self._rows // info.batch)
        return pending

    def flush(self) -> None:
        """Send the rows that wait, padded; more may come."""
        self._flush(1 if self._rows else 0)

    def end(self) -> None:
        """No more rows: the last request is padded and sent. Asked for again, it does nothing."""
        if not self._over:
            self._over = True
            self.flush()

    def _flush(self, batches: int) -> None:
        made = [self._next_batch() for _ in range(batches)]
        self._dispatcher.submit([request for request, is_new in made if is_new])

    def _next_batch(self) -> tuple[Request, bool]:
        """Take up to a batch of rows off the front. Returns the request, and whether it must be sent."""
        info, first = self._codec.info, next(iter(self._rest[0][0]))
        chunks: list[dict[str, Array]] = []
        owners: list[tuple[StreamPending, int, int]] = []
        filled = 0
        while self._rest and filled < info.batch:
            arrays, pending = self._rest[0]
            n = min(len(arrays[first]), info.batch - filled)
            chunks.append({name: a[:n] for name, a in arrays.items()})
            owners.append((pending, filled, filled + n))
            filled += n
            if n == len(arrays[first]):
                self._rest.pop(0)
            else:
                self._rest[0] = ({name: a[n:] for name, a in arrays.items()}, pending)
        self._rows -= filled
        part = batch_of(info, chunks)
        key, request = b"", None
        if self._shared is not None:
            key = _content(info.name, part)
            request = self._shared.get(key)
        is_new = request is None
        if request is None:
            request = Request(self._codec, part)
            if self._shared is not None:
                self._shared[key] = request
        for pending, start, stop in owners:
            pending._spans.append(RowSpan(request, start, stop))
            pending._missing -= stop - start
        return request, is_new


class StreamPending(Pending):
    """Like `Pending`; some of its rows may still wait for the rows that fill their batch up."""

    def __init__(self, dispatcher: Dispatcher, model: ModelInfo, spans: list[RowSpan]) -> None:
        super().__init__(dispatcher, model, spans)
        self._missing = 0

    @property
    def sent(self) -> bool:
        """True if all of its rows are in requests, so that `result` can be called."""
        return not self._missing

    def result(self) -> dict[str, Any]:
        """As `Pending.result`.

        Raises:
            RuntimeError: Rows wait for the next ``add`` or ``end`` of their stream.
        """
        if self._missing:
            raise RuntimeError(f"{self._missing} rows wait for their stream's next add(), or for its end()")
        return super().result()
