"""A server's slot in the pool's folder, as its pilot sees it: its order, its record, its stop file, its lease."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import blank, followed, found, name_of
from campaign.util.files import read_json, write_json
from campaign.util.ownership import read_own, unfit


class Lease:
    """A counter the submitter raises, aged by this machine's own monotonic clock: file times play no part.

    Args:
        path: ``NONCE PID COUNT``.
        lease_s: Its length.
        pool: The nonce of the pool; another's counter is no sign of life.
    """

    def __init__(self, path: Path, lease_s: float, pool: str) -> None:
        self.path, self.lease_s, self.pool = path, lease_s, pool
        self.seen, self.since = "", time.monotonic()

    def expired(self) -> bool:
        """True if the counter has not changed for the lease's length."""
        try:
            now = self.path.read_text()
        except OSError:
            now = self.seen
        if now != self.seen and now.startswith(f"{self.pool} "):
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > self.lease_s


class Slot:
    """One generation of a slot. Claimed when it is made; one that nobody wants any more ends the process with 0.

    What it is told decides which code it runs, so it is believed only if this user alone can have written it.

    Args:
        folder: The pool's folder, shared with the submitter.
        slot: The server's place in the pool; None: the first that nobody has claimed.
        generation: Which server of this slot it is, from 0.
        pool: The nonce of the pool it is for; empty: whichever is there.

    Attributes:
        order: What the submitter wants (``pilot.json``).
        name: The server's.
        log: The server's.
        lease: Of the submitter.
        recorded: When something was last published, monotonic.
    """

    def __init__(self, folder: Path, slot: int | None, generation: int, pool: str) -> None:
        self.folder, self.dir, self.pool = folder, PoolDir(folder), pool
        if pool and not self.wanted:
            raise SystemExit(0)
        try:
            why, told = unfit(folder), self._told()
        except OSError as error:
            raise SystemExit(f"{self.dir.order} cannot be believed: {error}") from None
        if why:
            raise SystemExit(f"{self.dir.order} cannot be believed: {why}")
        self.order: Mapping[str, Any] = told
        self.pool, self.restarts = str(self.order["pool"]), int(self.order["restarts"])
        self.slot, self.generation = self._claim(slot, generation), generation
        self.name = name_of(self.slot, generation)
        self.log, self.path = self.dir.server_log(self.name), self.dir.record(self.name)
        self.lease = Lease(self.dir.lease, float(self.order["lease_s"]), self.pool)
        self.recorded = 0.0
        self._beats = 0

    def _claim(self, slot: int | None, generation: int) -> int:
        for number in range(int(self.order["count"])) if slot is None else (slot,):
            claim = self.dir.claim(name_of(number, generation))
            with contextlib.suppress(FileExistsError):
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                return number
        raise SystemExit(0)  # more were started than are wanted

    # What it is told.
    @property
    def wanted(self) -> bool:
        """Whether the folder is still that of the pool this pilot was sent for."""
        try:
            return not unfit(self.folder) and bool(self._told()["pool"] == self.pool)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, LookupError, TypeError):
            return True  # a file system that falters says nothing

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_own(self.dir.order))
        return found

    @property
    def closed(self) -> bool:
        """Whether the submitter, who has heard nothing for long, has put another in its place."""
        return self.dir.closed(self.name).exists()

    @property
    def stopped(self) -> bool:
        """Whether the submitter has asked all to stop."""
        return self.dir.stop.exists()

    @property
    def idle(self) -> bool:
        """Whether it has said that no request can be under way."""
        with contextlib.suppress(OSError):
            return self.dir.stop.read_text().strip() == "idle"
        return False

    @property
    def on_trial(self) -> bool:
        """Whether a client tries, or has tried, a request of which servers may have died, with this slot alone."""
        return self.dir.trial(str(self.slot)).exists()

    @property
    def followed(self) -> bool:
        """Whether another may come after this server, unless the submitter has put one there already."""
        return not self.closed and followed(self.slot, self.generation, self.folder, self.restarts)

    @property
    def has_worked(self) -> bool:
        """Whether a server of this slot has ever been ready."""
        return any(r["slot"] == self.slot and r["ready_s"] is not None for r in found(self.folder, self.pool))

    # What it publishes.
    def publish(self, state: str, **told: Any) -> None:
        """Say what is known of the server, by atomic rename; nothing, where another is in its place."""
        self._beats, self.recorded = self._beats + 1, time.monotonic()
        if self.closed or not self.wanted:
            return
        with contextlib.suppress(OSError):  # the folder may be gone: then nobody reads it
            write_json(self.path, {**self._blank(self.generation), "state": state, "beat": self._beats, **told})

    def publish_next(self) -> Path | None:
        """Publish the next generation before this one's end, so that somebody is always seen to come; its record."""
        record = self._blank(self.generation + 1)
        path = self.dir.record(str(record["name"]))
        if self.wanted:
            with contextlib.suppress(OSError):
                write_json(path, {**record, "pid": os.getpid(), "started": time.time()})
                return path
        return None

    def withdraw_next(self, why: str) -> None:
        """The next generation does not come: the submitter decides whether there is one."""
        path = self.dir.record(name_of(self.slot, self.generation + 1))
        if self.wanted:
            with contextlib.suppress(OSError):
                write_json(path, {**(read_json(path) or {}), "state": "ended", "why": why, "told": True})

    def _blank(self, generation: int) -> dict[str, Any]:
        return dict(blank(self.slot, generation, self.folder, self.restarts, self.pool))
