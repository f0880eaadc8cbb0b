"""Calls to the pool from one process: canonical requests, a window, a deadline, another server on failure.

Requests are cut by the caller's array alone: ``batch`` rows each, the last one padded, one execution per request. So
what the model sees does not depend on how many servers there are, which of them answers, or how often one was asked.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from campaign.errors import InferenceError, ServerError
from campaign.kserve import (
    Arrays,
    ModelInfo,
    Part,
    as_input,
    check_inputs,
    cut,
    is_model_error,
    model_info,
    open_client,
    permanent,
    unpack,
)

RUNGS = ("first", "same_server", "other_server", "restarted_server", "local_twin", "parked")


@dataclass(frozen=True)
class PoolAddress:
    """Where a pool is found: a recipe that travels to workers; `connect` makes it live.

    Attributes:
        folder: Where pilots leave the records of their servers; empty for servers given by ``records``.
        batches: Rows per request by model; None: the model's ``max_batch_size``.
        window: Requests in flight per server and process.
        start_deadline_s: How long to wait for the first server.
        request_deadline_s: Deadline of one request.
        records: Servers that already run.
    """

    folder: str
    batches: Mapping[str, int | None]
    window: int = 8
    start_deadline_s: float = 120.0
    request_deadline_s: float = 60.0
    records: tuple[Mapping[str, Any], ...] = ()

    def servers(self) -> list[Mapping[str, Any]]:
        """Records of the pool's servers, whatever their state."""
        found: list[Mapping[str, Any]] = [dict(r) for r in self.records]
        if self.folder:
            for path in sorted(Path(self.folder).glob("server-*.json")):
                with suppress(OSError, ValueError):  # being replaced, or swept: the next look sees it
                    found.append(json.loads(path.read_text()))
        return found


def connect(address: PoolAddress) -> Servers:
    """A live handle on a pool, one per process (and never carried through a fork)."""
    return Servers(address)


class Link:
    """One server, seen from this process: a channel, and how many requests are out."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.name, self.url = str(record["name"]), str(record["url"])
        self.host = str(record.get("host", ""))
        self.headers = dict(record.get("headers") or {})
        self.outstanding = 0
        self.down_until = 0.0
        self.client = open_client(record)

    def close(self) -> None:
        """Close the channel."""
        with suppress(InferenceServerException):
            self.client.close()


@dataclass
class Request:
    """One request and what has become of it."""

    model: ModelInfo
    part: Part | None
    rows: int
    done: threading.Event = field(default_factory=threading.Event)
    link: Link | None = None
    answer: Any = None
    error: InferenceServerException | None = None
    sent: int = 0


class Pending:
    """Requests under way; `result` waits for all of them and puts their answers together in order."""

    def __init__(self, servers: Servers, model: ModelInfo, requests: list[Request]) -> None:
        self._servers, self._model, self._requests = servers, model, requests
        self._whole: dict[str, np.ndarray[Any, Any]] | None = None

    def result(self) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs, one entry per row given, in the order given. May be asked for again."""
        if self._whole is None:
            self._whole = self._join()
        return self._whole

    def _join(self) -> dict[str, np.ndarray[Any, Any]]:
        parts = [self._servers._settle(r) for r in self._requests]
        if not parts:
            return {o.name: np.empty([0, *o.shape[1:]], o.dtype) for o in self._model.outputs}
        whole = parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        for array in whole.values():
            array.setflags(write=False)  # several variations may be given the same answer
        return whole


class Servers:
    """A process's handle on the pool. Not to be pickled, not to be carried through a fork: send its `PoolAddress`.

    Args:
        address: Where the pool is.
    """

    def __init__(self, address: PoolAddress) -> None:
        self.address = address
        self.rows: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._pid = os.getpid()
        self._links: dict[str, Link] = {}
        self._gone: dict[str, str] = {}
        self._models: dict[str, ModelInfo] = {}
        self._free = threading.Condition()
        self._looked = 0.0
        self._random = random.Random()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Servers holds open channels and does not travel; send its .address and connect() there")

    # Public calls.
    def infer(self, model: str, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Infer rows.

        Args:
            model: Name of the model.
            inputs: Arrays by input name, of the model's dtypes. For a model that batches: shape (rows, ...), any
                number of rows, cut into requests of the campaign's ``batch`` rows, the last one padded. For one that
                does not (``max_batch_size: 0``): one request with the arrays as they are.

        Returns:
            Arrays by output name, shape (rows, ...).

        Raises:
            InferenceError: Wrong name, shape or dtype (said before anything is sent), or nobody answered.
        """
        return self.start(model, inputs).result()

    def start(self, model: str, inputs: Arrays) -> Pending:
        """Like `infer`, but returns as soon as the requests are out (or waiting for room in the window)."""
        info = self.model(model)
        arrays = check_inputs(info, inputs)
        pending = Pending(self, info, [Request(info, part, part.rows) for part in cut(info, arrays)])
        for request in pending._requests:
            self._send(request)
        return pending

    def infer_events(self, model: str, events: Iterable[Arrays]) -> list[dict[str, np.ndarray[Any, Any]]]:
        """One request per event, several in flight, answers in the order of the events.

        Args:
            model: Name of a model with variable-length inputs.
            events: Arrays by input name, event by event.
        """
        pending = [self.start(model, event) for event in events]
        return [p.result() for p in pending]

    def model(self, name: str) -> ModelInfo:
        """What is known of a model; asked once per process.

        Raises:
            InferenceError: The pool has no such model, or does not answer.
        """
        if name not in self._models:
            if self.address.batches and name not in self.address.batches:
                raise InferenceError(
                    f"there is no model '{name}' in the pool (it has: {', '.join(sorted(self.address.batches))})",
                    permanent=True,
                    remedy="name it under servers.models",
                )
            self._models[name] = self._ask(name)
        return self._models[name]

    def close(self) -> None:
        """Close all channels."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    # Finding servers.
    def _ask(self, name: str) -> ModelInfo:
        """Ask one server after the other, each once."""
        tried: set[str] = set()
        while True:
            link = self._wait_for_link(tried)
            try:
                return model_info(link.client, name, self.address.batches.get(name), link.headers)
            except InferenceServerException as error:
                tried.add(link.name)
                link.down_until = time.monotonic() + 2.0
                self._looked = 0.0
                self._look(time.monotonic())
                if not permanent(error) and set(self._links) - tried:
                    continue
                raise InferenceError(
                    f"cannot be asked for its metadata: {error.message()}",
                    where=f"model {name} on {link.name}",
                    permanent=permanent(error),
                ) from error

    def _look(self, now: float) -> None:
        """See which servers there are; at most ten times a second."""
        if now - self._looked < 0.1:
            return
        self._looked = now
        if os.getpid() != self._pid:
            raise ServerError("this handle was made in another process", remedy="call connect(address) here")
        here = socket.gethostname()
        for record in self.address.servers():
            name = str(record["name"])
            if record["state"] == "ready" and name not in self._links and name not in self._gone:
                if record.get("host", here) != here and str(record["url"]).startswith("unix:"):
                    continue  # another node's socket
                self._links[name] = Link(record)
            elif record["state"] == "stopping":
                self._links.pop(name, None)  # what is under way may still be answered; its channel is not closed
            elif record["state"] == "ended" and name not in self._gone:
                self._gone[name] = str(record.get("why", ""))
                link = self._links.pop(name, None)
                if link:
                    link.close()

    def _wait_for_link(self, avoid: set[str]) -> Link:
        """The server with the fewest requests out, none of ``avoid``; waits for the pool's first server.

        Raises:
            ServerError: No server is left, or none came up in time.
        """
        end = time.monotonic() + self.address.start_deadline_s
        while True:
            now = time.monotonic()
            self._look(now)
            with self._free:
                usable = [x for x in self._links.values() if x.name not in avoid]
            if usable:
                up = [x for x in usable if x.down_until <= now] or usable
                least = min(x.outstanding for x in up)
                return self._random.choice([x for x in up if x.outstanding == least])
            records = self.address.servers()
            # A record may have become "ready" since the look above: that, too, is worth waiting for.
            coming = not records or any(r["state"] != "ended" for r in records)
            if avoid or not coming or now > end:
                raise self._nobody(coming)
            time.sleep(0.02)

    def _nobody(self, late: bool) -> ServerError:
        said = "; ".join(f"{name}: {why}" for name, why in sorted(self._gone.items()))
        logs = [str(r.get("log", "")) for r in self.address.servers() if r.get("log")]
        what = f"no server was ready within {self.address.start_deadline_s:g} s" if late else "no server is left"
        return ServerError(
            what + (f" ({said})" if said else ""),
            where="pool",
            remedy=f"see {logs[0]}" if logs else "",
            log=_tail(logs),
        )

    # Sending.
    def _send(self, request: Request, avoid: set[str] | None = None) -> None:
        link = self._claim(avoid or set())
        assert request.part is not None
        arrays = request.part.arrays
        request.link, request.error, request.answer = link, None, None
        request.done.clear()
        request.sent += 1
        self.requests[request.model.name] += 1

        def arrived(result: Any, error: InferenceServerException | None) -> None:
            request.answer, request.error = result, error
            with self._free:
                link.outstanding -= 1
                self._free.notify()
            request.done.set()

        try:
            link.client.async_infer(
                request.model.name,
                [as_input(t, arrays[t.name]) for t in request.model.inputs],
                arrived,
                outputs=[grpcclient.InferRequestedOutput(t.name) for t in request.model.outputs],
                client_timeout=self.address.request_deadline_s,
                headers=link.headers,
            )
        except (InferenceServerException, ValueError) as error:
            arrived(
                None, error if isinstance(error, InferenceServerException) else InferenceServerException(str(error))
            )

    def _claim(self, avoid: set[str]) -> Link:
        end = time.monotonic() + self.address.request_deadline_s + self.address.start_deadline_s
        while True:
            link = self._wait_for_link(avoid)
            with self._free:
                if link.outstanding < self.address.window:
                    link.outstanding += 1
                    return link
                self._free.wait(timeout=0.1)
            if time.monotonic() > end:
                raise ServerError(
                    "no room in the window of any server", where="pool", remedy="the servers hang: see logs"
                )

    def _settle(self, request: Request) -> dict[str, np.ndarray[Any, Any]]:
        """Wait for one request; move it on where another try can help: same server, then each other one, once."""
        tried: list[str] = []
        while True:
            # A watchdog outside gRPC: a channel that was broken by a fork never calls back.
            if not request.done.wait(self.address.request_deadline_s + 5):
                request.error = InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
            assert request.link is not None
            if request.error is None:
                rung = "first" if not tried else "same_server" if tried[-1] == request.link.name else "other_server"
                self.rows[rung] += request.rows
                assert request.part is not None
                answer = unpack(request.model, request.answer, request.part)
                request.answer, request.part = None, None
                return answer
            link, error = request.link, request.error
            if permanent(error) or (is_model_error(error) and len(set(tried)) > 1):
                raise _failure(request.model.name, link, error)
            tried.append(link.name)
            self._again(request, link, error, tried)

    def _again(self, request: Request, link: Link, error: InferenceServerException, tried: list[str]) -> None:
        link.down_until = time.monotonic() + 2.0
        self._looked = 0.0
        self._look(time.monotonic())
        alive = link.name in self._links
        # Once more on the same server: its channel may have been reset. Not after a deadline: it hangs.
        if alive and tried.count(link.name) < 2 and "DEADLINE" not in str(error.status()):
            others = {name for name in self._links if name != link.name}
            time.sleep(0.05)
            self._send(request, avoid=others)
            return
        try:
            self._send(request, avoid=set(tried))
        except ServerError as nobody:
            if self._links:
                raise _failure(request.model.name, link, error) from nobody
            raise


def _tail(logs: Sequence[str], lines: int = 15) -> str:
    for log in logs:
        with suppress(OSError):
            return "\n".join(Path(log).read_text(errors="replace").splitlines()[-lines:])
    return ""


def _failure(model: str, link: Link, error: InferenceServerException) -> InferenceError:
    return InferenceError(
        f"{error.status()}: {error.message()}",
        permanent=permanent(error) or is_model_error(error),
        where=f"model {model} on {link.name}",
        remedy="see the server's log",
    )
