"""Requests on their way: a queue that answers empty, a deadline, another server on failure.

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
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tritonclient.utils import InferenceServerException

from campaign.errors import CampaignError, InferenceError, ServerError
from campaign.kserve import identity_refused, is_model_error, permanent
from campaign.roster import Link, Roster
from campaign.wire import Codec, Part, outcome

OUT_BYTES = 256 << 20  # of requests in flight; a server without any is given one all the same
WAITING_BYTES = 64 << 20  # of requests that wait for room; who brings more waits too
PAUSE_S = 0.05
LINGER_S = 1.0
WATCHDOG_S = 5.0  # after the deadline: a channel that was broken by a fork never calls back


@dataclass(eq=False)
class Request:
    """One request and what has become of it."""

    codec: Codec
    part: Part
    done: threading.Event = field(default_factory=threading.Event)
    link: Link | None = None
    turn: int = 0
    tried: list[str] = field(default_factory=list)
    only: str | None = None
    since: float = 0.0
    not_before: float = 0.0
    answer: bytes = b""
    said: CampaignError | None = None  # by the last server that failed
    error: CampaignError | None = None
    taken: dict[str, Any] | None = None
    together: Sequence[Request] = ()  # those it was given with

    def __post_init__(self) -> None:
        self.size = self.part.size


class Flight:
    """All requests of one process to one pool.

    Args:
        roster: The servers.
    """

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.sent: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self._deadline_s = roster.address.request_deadline_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._room_made = threading.Condition(self._lock)
        self._trouble = threading.Condition(self._lock)
        self._taking = threading.Lock()
        self._queue: deque[Request] = deque()
        self._again: list[Request] = []
        self._failed: list[tuple[Request, Link, InferenceServerException]] = []
        self._moving: list[tuple[Request, Link, InferenceServerException]] = []  # the keeper's
        self._out: dict[Request, float] = {}
        self._waiting_bytes = self._out_bytes = 0
        self._keeper: threading.Thread | None = None
        self._closed = False
        self._sending = threading.local()
        self.waited_s = 0.0

    def check_process(self) -> None:
        """Refuse a handle that was carried through a fork.

        Raises:
            ServerError: It was.
        """
        if os.getpid() != self._pid:
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
            if self._keeper is None and requests:
                self._keeper = threading.Thread(target=self._keep, name="campaign-requests", daemon=True)
                self._keeper.start()
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
                self.rows[_rung(request)] += request.part.rows
                # Its inputs are not needed any more, and requests that name each other would wait for the collector.
                request.part, request.together = replace(request.part, pieces=()), ()
        return request.taken

    def drop(self, requests: Collection[Request], error: CampaignError) -> None:
        """End those of the requests that still wait for room; the others go on."""
        with self._lock:
            unwanted = set(requests).intersection(self._queue)
            self._queue = deque(r for r in self._queue if r not in unwanted)
            self._waiting_bytes -= sum(r.size for r in unwanted)
            self._room_made.notify_all()
        for request in unwanted:
            _end(request, error)

    def close(self) -> None:
        """Give up what is not answered."""
        with self._lock:
            self._closed = True
            keeper = self._keeper
            self._trouble.notify_all()
        self._abandon(ServerError("this handle was closed before the answer came", where="pool"))
        if keeper is not None:
            keeper.join()

    def _abandon(self, error: CampaignError) -> None:
        with self._lock:
            left = [*self._queue, *self._again, *self._out, *(r for r, _, _ in [*self._failed, *self._moving])]
            self._queue.clear()
            self._again, self._failed, self._waiting_bytes = [], [], 0
            for request in list(self._out):
                self._landed(request)
            self._room_made.notify_all()
        for request in left:
            _end(request, error)

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

    def _next(self) -> tuple[Request, Link, int] | None:
        """The next request and the server with room for it."""
        if self._closed:
            return None
        now = time.monotonic()
        for request in self._again:
            link = self._room(request, request.tried) if request.not_before <= now else None
            if link is not None:
                self._again.remove(request)
                return self._launch(request, link, now)
        link = self._room(self._queue[0], ()) if self._queue else None
        if link is None:
            return None
        request = self._queue.popleft()
        self._waiting_bytes -= request.size
        self._room_made.notify_all()
        return self._launch(request, link, now)

    def _room(self, request: Request, avoid: Collection[str]) -> Link | None:
        """The server with the fewest requests out, if it has room for one more."""
        if request.only is not None:
            known = self.roster.links.get(request.only)
            links = [known] if known else []
        else:
            links = self.roster.usable(avoid)
        fits = self._out_bytes + request.size <= OUT_BYTES
        links = [x for x in links if not x.outstanding or (fits and x.outstanding < x.window.size)]
        if not links:
            return None
        least = min(x.outstanding for x in links)
        return random.choice([x for x in links if x.outstanding == least])

    def _launch(self, request: Request, link: Link, now: float) -> tuple[Request, Link, int]:
        link.outstanding += 1
        request.link, request.turn = link, request.turn + 1
        self._out[request] = now
        self._out_bytes += request.size
        self.sent[request.codec.info.name] += 1
        return request, link, request.turn

    def _send(self, request: Request, link: Link, turn: int) -> None:
        data = request.codec.encode(request.part)
        try:
            call = link.infer.future(data, timeout=self._deadline_s, metadata=link.metadata)
        except ValueError as error:  # the channel was closed, or a header is none
            self._arrived(request, link, turn, b"", InferenceServerException(str(error), "StatusCode.UNAVAILABLE"))
            return
        call.add_done_callback(lambda done: self._arrived(request, link, turn, *outcome(done)))

    def _arrived(
        self, request: Request, link: Link, turn: int, answer: bytes, error: InferenceServerException | None
    ) -> None:
        with self._lock:
            if request.turn != turn or request not in self._out:
                return  # given up already
            self._landed(request)
            if error is not None:
                self._failed.append((request, link, error))
                self._trouble.notify_all()
            else:
                request.answer = answer
                link.window.answered(time.monotonic(), more=bool(self._queue))
        try:
            self._pump()
        finally:
            if error is None:
                request.done.set()

    def _landed(self, request: Request) -> None:
        assert request.link is not None
        del self._out[request]
        self._out_bytes -= request.size
        request.link.outstanding -= 1

    # What the keeper does.
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
                        self._keeper = None
                        return
                    self._moving += failed
                self._tend(now)
        except Exception as error:  # noqa: BLE001  thread boundary: callers that wait must be told
            with self._lock:
                self._keeper = None
            self._abandon(ServerError(f"{type(error).__name__}: {error}", where="pool"))

    def _tend(self, now: float) -> None:
        self._moving += self._forgotten(now)
        self.roster.look(now)
        while self._moving:
            self._move_on(*self._moving[0])
            del self._moving[0]
        self._strand(now)
        models = set(self.sent.copy())
        for link in self.roster.links.values():
            link.measure(now, models)
        self._pump()

    def _forgotten(self, now: float) -> list[tuple[Request, Link, InferenceServerException]]:
        """What gRPC should have given up by now and has not."""
        with self._lock:
            lost = [r for r, sent in self._out.items() if now - sent > self._deadline_s + WATCHDOG_S]
            for request in lost:
                self._landed(request)
        late = InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
        return [(r, r.link, late) for r in lost if r.link is not None]

    def _move_on(self, request: Request, link: Link, error: InferenceServerException) -> None:
        """Try where another try can help: the same server once more, then each other one, once."""
        tried = request.tried
        request.said = _failure(request, link, error)
        if permanent(error) or (is_model_error(error) and len(set(tried)) > 1):
            _end(request, request.said)
            self.drop(request.together, request.said)
            return
        tried.append(link.name)
        if identity_refused(error):
            self.roster.refuse(link, str(error.message()))
        self.roster.failed(link)
        # Once more on the same server: its channel may have been reset. Not after a deadline: it hangs.
        again = tried.count(link.name) < 2 and "DEADLINE" not in str(error.status())
        request.only = link.name if again else None
        request.not_before = time.monotonic() + (PAUSE_S if again else 0.0)
        with self._lock:
            self._again.append(request)

    def _strand(self, now: float) -> None:
        """Tell requests that nobody is there for them, or not any more."""
        links = self.roster.links
        with self._lock:
            for request in self._again:
                request.only = request.only if request.only in links else None
            stranded = [r for r in self._again if r.only is None and not self.roster.usable(r.tried)]
            self._again = [r for r in self._again if r not in stranded]
            queued = [] if links else list(self._queue)
        for request in stranded:
            error = request.said if links and request.said else self.roster.nobody()
            _end(request, error)
            self.drop(request.together, error)
        if queued:
            patience = self.roster.address.start_deadline_s if self.roster.coming() else 0.0
            late = [r for r in queued if now - r.since >= patience]
            if late:
                self.drop(late, self.roster.nobody())


def _rung(request: Request) -> str:
    if not request.tried or request.link is None:
        return "first"
    return "same_server" if request.tried[-1] == request.link.name else "other_server"


def _end(request: Request, error: CampaignError) -> None:
    request.error = error
    request.done.set()


def _failure(request: Request, link: Link, error: InferenceServerException) -> InferenceError:
    return InferenceError(
        f"{error.status()}: {error.message()}",
        permanent=permanent(error) or is_model_error(error),
        where=f"model {request.codec.info.name} on {link.name}",
        remedy="see the server's log",
    )
