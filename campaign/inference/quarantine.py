"""Retries requests that servers died with, one at a time, each on a server that has nothing else to do.

When a server dies, all that it was working on is suspect, of this process and of others. Only a death that a request
sees alone speaks against it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from campaign.inference.connections import Connection
from campaign.inference.request import Request

PATIENCE_S = 300.0  # with a process that keeps others' suspects from a server: it may have been stopped


class Quarantine:
    """Keeps a server free for each suspect request. Its methods are called one at a time.

    A process tries one at a time. Processes agree by a lock on a file per slot of the pool, held until the suspect is
    answered or condemned: it goes with the process. Where the pool has no folder, or its file system no locks, each
    process tries for itself.

    Args:
        folder: The pool's; empty: it has none.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None
        self._kept: tuple[Request, Connection] | None = None
        self._held: dict[str, tuple[int, Request, Connection]] = {}

    def keeps(self, connection: Connection) -> bool:
        """True if this server is kept free for a suspect request."""
        return self._kept is not None and self._kept[1] is connection

    def place(
        self, request: Request, fit: Collection[Connection], connections: Mapping[str, Connection], now: float
    ) -> Connection | None:
        """The server for a suspect, once it has nothing else to do; until then it is kept free as it empties.

        Args:
            request: The suspect.
            fit: Servers it may be sent to.
            connections: All servers.
            now: On a monotonic clock.
        """
        if self._kept is not None:
            mine = self._kept[0] is request
            if not self._stands(*self._kept, connections, now) or (mine and self._kept[1] not in fit):
                self._kept = None
        if self._kept is None:
            for connection in sorted(fit, key=lambda x: x.outstanding):
                if self._stands(request, connection, connections, now) and self._claim(request, connection, now):
                    self._kept = (request, connection)
                    break
        if self._kept is None or self._kept[0] is not request or self._kept[1].outstanding:
            return None
        return self._kept[1]

    def landed(self, request: Request) -> None:
        """It was answered, or its server has failed."""
        if self._kept is not None and self._kept[0] is request:
            self._kept = None

    def tend(self, connections: Mapping[str, Connection], now: float) -> None:
        """Let others have the slots of suspects that are settled; not while a server there is thought dead."""
        for slot, (fd, request, connection) in list(self._held.items()):
            fallen = connections.get(connection.name) is connection and connection.fallen_until > now
            if request.done.is_set() and not fallen:
                del self._held[slot]
                _unlock(fd)

    def excuse(self, request: Request) -> None:
        """Tell the pilots which of their servers a condemned request has ended alone: they do not count as lost."""
        for name in request.alone if self._folder else ():
            with suppress(OSError):
                (Path(self._folder or "") / f"excused-{name}").touch(0o600)

    def close(self) -> None:
        """Let go of everything."""
        while self._held:
            _unlock(self._held.popitem()[1][0])
        self._kept = None

    def _stands(
        self, request: Request, connection: Connection, connections: Mapping[str, Connection], now: float
    ) -> bool:
        well = connection.fallen_until <= now or request.only == connection.name
        return well and connections.get(connection.name) is connection and not request.done.is_set()

    def _claim(self, request: Request, connection: Connection, now: float) -> bool:
        slot = str(connection.record.get("slot", connection.name))
        if slot in self._held:
            fd, other, _ = self._held[slot]
            if other is not request and not other.done.is_set():
                return False
            self._held[slot] = (fd, request, connection)
            return True
        if self._folder is None:
            return True
        with suppress(OSError):
            fd = os.open(self._folder / f"trial-{slot}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return now - request.not_before > PATIENCE_S
            except OSError:
                os.close(fd)
                return True
            self._held[slot] = (fd, request, connection)
        return True


def _unlock(fd: int) -> None:
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)  # for a forked child too
    os.close(fd)
