"""Dispatches requests: a queue refilled when an answer arrives, a deadline per request, failover to another server.

Whoever learns that a server has room sends it the next request: mostly the thread that brings the answers, so that
servers never wait for the thread that reads and fills. One more thread, alive while anything is out, does the rest:
it looks for servers, moves failed requests on, and gives up those that gRPC has forgotten.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tritonclient.utils import InferenceServerException

from campaign.discovery.records import Record
from campaign.errors import CampaignError, ServerError
from campaign.inference.codec import outcome
from campaign.inference.connections import Connection, ConnectionPool
from campaign.inference.kserve import identity_refused
from campaign.inference.quarantine import Quarantine
from campaign.inference.request import Request, died

OUT_BYTES = 256 << 20  # of requests in flight; a server without any is given one all the same
WAITING_BYTES = 64 << 20  # of requests that wait for room; who brings more waits too
PAUSE_S = 0.05
LINGER_S = 1.0
WATCHDOG_S = 5.0  # after the deadline: a channel that was broken by a fork never calls back


Last = Callable[[Request], "dict[str, Any] | None"]
"""Answers a request that no server will, or does not: arrays by output name, without padding. May take its time."""


class Dispatcher:
    """All requests of one process to one pool.

    Args:
        pool: The servers.
        last: Asked for the answer to a request that would be given up because no server is left and none is coming.

    Attributes:
        sent: Requests sent, by model.
        rows: Rows by the rung on which they were answered; those given up for lack of servers are ``parked``.
    """

    def __init__(self, pool: ConnectionPool, last: Last | None = None) -> None:
        self.pool, self.last = pool, last
        self._last_asked: ThreadPoolExecutor | None = None
        self._lasting: set[Request] = set()
        self.sent: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self._deadline_s = pool.address.request_deadline_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._room_made = threading.Condition(self._lock)
        self._trouble = threading.Condition(self._lock)
        self._quarantine = Quarantine(pool.address.folder)
        self._taking = threading.Lock()
        self._queue: deque[Request] = deque()
        self._again: list[Request] = []
        self._failed: list[tuple[Request, Connection, InferenceServerException]] = []
        self._moving: list[tuple[Request, Connection, InferenceServerException]] = []  # the driver watchdog's
        self._out: dict[Request, float] = {}
        self._waiting_bytes = self._out_bytes = 0
        self._driver_watchdog: threading.Thread | None = None
        self._closed = False
        self._sending = threading.local()
        self.waited_s = 0.0

    @property
    def forked(self) -> bool:
        """True if this process is a fork of the one that made it. Threads and channels belong to the parent."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Refuse a handle that was carried through a fork.

        Raises:
            ServerError: It was.
        """
        if self.forked:
            raise ServerError("this handle was made in another process", remedy="call connect(address) here")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds inside as waited for servers."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - start

    # What callers do.
    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests and send what there is room for; blocks while too many bytes wait for room already."""
        self.check_process()
        size = sum(r.size for r in requests)
        now = time.monotonic()
        with self._lock:
            with self.waiting():
                self._room_made.wait_for(
                    lambda: self._closed or not self._queue or self._waiting_bytes + size <= WAITING_BYTES
                )
            if self._closed:
                raise ServerError("this handle was closed", remedy="call connect(address) again")
            for request in requests:
                request.since, request.together = now, requests
            self._queue.extend(requests)
            self._waiting_bytes += size
            if self._driver_watchdog is None and requests:
                self._driver_watchdog = threading.Thread(target=self._keep, name="campaign-requests", daemon=True)
                self._driver_watchdog.start()
        self._pump()

    def take(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Wait for answers; of each its arrays by output name, without padding.

        Raises:
            InferenceError: One was refused, could not be had, or is not what the model's metadata says.
            ServerError: Nobody is left to ask.
        """
        self.check_process()
        with self.waiting():
            for request in reversed(requests):  # the last one first: woken once, not by every answer
                request.done.wait()
        return [self._taken(request) for request in requests]

    def _taken(self, request: Request) -> dict[str, Any]:
        if request.error is not None:
            raise request.error
        with self._taking:
            if request.taken is None:
                request.taken = request.codec.decode(request.answer, request.part)
                request.answer = b""
                self._count(request, request.rung)
        return request.taken

    def _count(self, request: Request, rung: str) -> None:
        self.rows[rung] += request.part.rows
        # Its inputs are not needed any more, and requests that name each other would wait for the collector.
        request.part, request.together = replace(request.part, pieces=()), ()

    def drop(self, requests: Collection[Request], error: CampaignError | None = None) -> set[Request]:
        """Take off those of the requests that still wait to be sent, and end them where there is an error.

        Returns:
            Them; the others go on.

        Raises:
            ServerError: This is another process.
        """
        self.check_process()
        with self._lock:
            queued = set(requests).intersection(self._queue)
            unwanted = queued | set(requests).intersection(self._again)
            self._queue = deque(r for r in self._queue if r not in queued)
            self._again = [r for r in self._again if r not in unwanted]
            self._waiting_bytes -= sum(r.size for r in queued)
            self._room_made.notify_all()
        for request in unwanted if error is not None else ():
            request.end(error)
        return unwanted

    def close(self) -> None:
        """Give up open requests."""
        with self._lock:
            self._closed = True
            driver_watchdog = self._driver_watchdog
            self._trouble.notify_all()
        self._abandon(ServerError("this handle was closed before the answer came", where="pool"))
        if driver_watchdog is not None:
            driver_watchdog.join()
        with self._lock:
            self._quarantine.close()
        if self._last_asked is not None:
            self._last_asked.shutdown(wait=True, cancel_futures=True)

    def _abandon(self, error: CampaignError) -> None:
        with self._lock:
            left = [*self._queue, *self._again, *self._out, *(r for r, _, _ in [*self._failed, *self._moving])]
            left += self._lasting
            self._lasting.clear()
            self._queue.clear()
            self._again, self._failed, self._waiting_bytes = [], [], 0
            for request in list(self._out):
                self._landed(request)
            self._room_made.notify_all()
        for request in left:
            request.end(error)

    # Sending.
    def _pump(self) -> None:
        """Send what there is room for."""
        if getattr(self._sending, "now", False):
            return  # called from within a send that ended at once: the loop below goes on
        self._sending.now = True
        try:
            while True:
                with self._lock:
                    found = self._next()
                if found is None:
                    return
                self._send(*found)
        finally:
            self._sending.now = False

    def _next(self) -> tuple[Request, Connection, int] | None:
        """The next request and the server with room for it."""
        if self._closed:
            return None
        now = time.monotonic()
        for request in sorted(self._again, key=lambda r: -len(r.alone)):  # who has been alone with a death is settled
            connection = self._room(request, now) if request.not_before <= now else None
            if connection is not None:
                self._again.remove(request)
                return self._launch(request, connection, now)
        connection = self._room(self._queue[0], now) if self._queue else None
        if connection is None:
            return None
        request = self._queue.popleft()
        self._waiting_bytes -= request.size
        self._room_made.notify_all()
        return self._launch(request, connection, now)

    def _room(self, request: Request, now: float) -> Connection | None:
        """The server with the fewest requests out, if it has room for one more."""
        if request.only is not None:
            known = self.pool.connections.get(request.only)
            connections = [known] if known else []
        else:
            connections = self.pool.usable(request.tried)
        if request.saw_die:
            return self._quarantine.place(request, connections, self.pool.connections, now)
        connections = [x for x in connections if x.fallen_until <= now or request.only is not None]
        connections = [x for x in connections if not self._quarantine.keeps(x)]
        fits = self._out_bytes + request.size <= OUT_BYTES
        connections = [x for x in connections if not x.outstanding or (fits and x.outstanding < x.window.size)]
        if not connections:
            return None
        least = min(x.outstanding for x in connections)
        return random.choice([x for x in connections if x.outstanding == least])

    def _launch(self, request: Request, connection: Connection, now: float) -> tuple[Request, Connection, int]:
        connection.outstanding += 1
        request.connection, request.turn = connection, request.turn + 1
        request.trial = connection.name if self._quarantine.keeps(connection) else ""
        self._out[request] = now
        self._out_bytes += request.size
        self.sent[request.codec.info.name] += 1
        return request, connection, request.turn

    def _send(self, request: Request, connection: Connection, turn: int) -> None:
        data = request.codec.encode(request.part)
        try:
            call = connection.infer.future(data, timeout=self._deadline_s, metadata=connection.metadata)
        except ValueError as error:  # the channel was closed, or a header is none
            self._arrived(
                request, connection, turn, b"", InferenceServerException(str(error), "StatusCode.UNAVAILABLE")
            )
            return
        call.add_done_callback(lambda done: self._arrived(request, connection, turn, *outcome(done)))

    def _arrived(
        self, request: Request, connection: Connection, turn: int, answer: bytes, error: InferenceServerException | None
    ) -> None:
        with self._lock:
            if request.turn != turn or request not in self._out:
                return  # given up already
            self._landed(request)
            if error is not None:
                if died(error):
                    connection.fallen_until = time.monotonic() + self.pool.address.settle_s
                self._failed.append((request, connection, error))
                self._trouble.notify_all()
            else:
                request.answer = answer
                connection.fallen_until = (
                    0.0 if connection.name in request.saw_die else connection.fallen_until
                )  # it was the channel
                connection.window.answered(time.monotonic(), more=bool(self._queue))
        try:
            self._pump()
        finally:
            if error is None:
                request.end()

    def _landed(self, request: Request) -> None:
        assert request.connection is not None
        del self._out[request]
        self._out_bytes -= request.size
        request.connection.outstanding -= 1
        self._quarantine.landed(request)

    # What the driver watchdog does.
    def _keep(self) -> None:
        try:
            busy = time.monotonic()
            while True:
                with self._lock:
                    self._trouble.wait_for(lambda: self._failed or self._closed, PAUSE_S)
                    failed, self._failed = self._failed, []
                    now = time.monotonic()
                    busy = now if failed or self._queue or self._again or self._out else busy
                    if self._closed or now - busy > LINGER_S:
                        self._driver_watchdog = None
                        self._quarantine.close()
                        return
                    self._moving += failed
                self._tend(now)
        except Exception as error:  # noqa: BLE001  thread boundary: callers that wait must be told
            with self._lock:
                self._driver_watchdog = None
            self._abandon(ServerError(f"{type(error).__name__}: {error}", where="pool"))

    def _tend(self, now: float) -> None:
        self._moving += self._forgotten(now)
        self.pool.look(now)
        while self._moving:
            self._move_on(*self._moving[0])
            del self._moving[0]
        self._strand(now)
        with self._lock:
            self._quarantine.tend(self.pool.connections, now)
        models = set(self.sent.copy())
        for connection in self.pool.connections.values():
            connection.measure(now, models)
        self._pump()

    def _forgotten(self, now: float) -> list[tuple[Request, Connection, InferenceServerException]]:
        """The calls whose deadline has passed and which gRPC still has not ended."""
        with self._lock:
            lost = [r for r, sent in self._out.items() if now - sent > self._deadline_s + WATCHDOG_S]
            for request in lost:
                self._landed(request)
        late = InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
        return [(r, r.connection, late) for r in lost if r.connection is not None]

    def _move_on(self, request: Request, connection: Connection, error: InferenceServerException) -> None:
        """Try where another try can help: the same server once more, then each other one, once."""
        if not request.failed(connection, error):
            assert request.said is not None
            if request.deadly:
                self._quarantine.excuse(request)
            request.end(request.said)
            self.drop(request.together, request.said)
            return
        if identity_refused(error, connection.record):
            self.pool.refuse(connection, str(error.message()))
        self.pool.failed(connection)
        again = request.same_again(connection, error)
        request.only = connection.name if again else None
        request.not_before = time.monotonic() + (PAUSE_S if again else 0.0)
        with self._lock:
            self._again.append(request)

    def _strand(self, now: float) -> None:
        """Give up requests for which there is no server and none will come.

        While a server may come in place of a lost one they wait. A request that a model has failed on waits for
        nobody: its servers are well.
        """
        connections = self.pool.connections
        with self._lock:
            for request in self._again:
                request.only = request.only if request.only in connections else None
                there = request.only is not None or bool(self.pool.usable(request.tried))
                request.stranded = 0.0 if there else request.stranded or now
            stranded = [r for r in self._again if r.stranded]
            queued = [] if connections else list(self._queue)
        for request in [*stranded, *queued]:
            request.homeless |= bool(self.pool.gone)
        if not stranded and not queued:
            return
        records = self.pool.newest()
        for request in stranded:
            if request.refused or not self.pool.hope(request.tried, request.stranded, records):
                with self._lock:
                    if request not in self._again:
                        continue  # somebody has just come
                    self._again.remove(request)
                self._give_up(request, request.said if connections and request.said else self.pool.nobody())
        if queued and not self._expected(queued[0], records):
            late = [r for r in queued if not self._expected(r, records)]
            error = self.pool.nobody()
            dropped = self.drop(late)
            for request in late:
                if request in dropped:  # else it has just been sent
                    self._give_up(request, error)

    def _expected(self, request: Request, records: Sequence[Record]) -> bool:
        return self.pool.hope((), max(request.since, self.pool.empty_since), records)

    def _give_up(self, request: Request, error: CampaignError) -> None:
        """Ask who is asked last, in a thread; without him the request is parked, and those given with it."""
        if request.refused:
            request.end(error)
            self.drop(request.together, error)
        elif self.last is None:
            dropped = self.drop(request.together, error)
            with self._taking:
                self.rows["parked"] += sum(r.part.rows for r in [request, *dropped])
            request.end(error)
        else:
            with self._lock:
                self._lasting.add(request)
                self._last_asked = self._last_asked or ThreadPoolExecutor(1, "campaign-last")
            self._last_asked.submit(self._ask_last, self.last, request, error)

    def _ask_last(self, last: Last, request: Request, error: CampaignError) -> None:
        found: dict[str, Any] | None = None
        try:
            found = last(request)
        except Exception as own:  # noqa: BLE001  thread boundary: the caller that waits must be told
            error = ServerError(f"{error.message}; asked last: {type(own).__name__}: {own}", where=error.where)
        with self._taking:
            if found is not None:
                request.taken = found
            self._count(request, "parked" if found is None else "local_twin")
        with self._lock:
            self._lasting.discard(request)
        request.end(error if found is None else None)
