"""Slot: the pilot's view of the pool's folder. It reads the order and requests to stop, and writes the record."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import (
    InvalidRecord,
    ServerRecord,
    name_of,
    new_record,
    read_records,
    restart_allowed,
)
from campaign.util.ownership import read_own, unfit


class StopCause(Enum):
    """Why a pilot ends a server that works."""

    SIGNAL = "signal"
    """The pilot got a signal: the batch system or a user ends it."""
    REQUESTED = "requested"
    """The driver asks all pilots to stop."""
    LEASE_EXPIRED = "lease expired"
    """The driver does not raise the lease's counter any more: it has ended, and no request can be under way."""
    GIVEN_UP = "given up"
    """The driver had no sign of life of this pilot for long, and has closed its record."""
    POOL_GONE = "pool gone"
    """The folder belongs to another pool by now, or is removed."""


@dataclass(frozen=True)
class StopRequest:
    """A reason to end a server that works.

    Attributes:
        cause: Which reason.
        reason: Text for the server's record.
    """

    cause: StopCause
    reason: str


class Lease:
    """A counter that the driver raises as long as it lives.

    The pilot measures with its own monotonic clock how long the counter has stood still. Dates of files are not used.

    Args:
        path: A file with ``NONCE PID COUNT``.
        lease_s: The lease ends if the counter stands still for so long.
        pool: Nonce of the pool. The counter of another pool is ignored.
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
    """One generation of a slot. The constructor claims it; if no pilot is needed, it ends the process with exit code 0.

    The order decides which code the pilot runs. So the pilot believes it only if this user alone can have written it.

    Args:
        folder: The pool's folder, shared with the driver.
        slot: Place in the pool. None: the first place that no pilot has claimed.
        generation: How many servers were in this slot before.
        pool: Nonce of the pool that the pilot was sent for. Empty: the pool in the folder.

    Attributes:
        dir: Paths of the pool's folder.
        order: Content of ``pilot.json``.
        name: Name of the server.
        log: Log of the server.
        path: Record of the server.
        lease: Lease of the driver.
        recorded: When the record was last written, on the monotonic clock.
    """

    def __init__(self, folder: Path, slot: int | None, generation: int, pool: str) -> None:
        self.folder, self.dir, self.pool = folder, PoolDir(folder), pool
        if pool and not self.wanted:
            raise SystemExit(0)
        try:
            unsafe, order = unfit(folder), self._read_order()
        except OSError as error:
            raise SystemExit(f"{self.dir.order} cannot be believed: {error}") from None
        if unsafe:
            raise SystemExit(f"{self.dir.order} cannot be believed: {unsafe}")
        self.order: Mapping[str, Any] = order
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
        raise SystemExit(0)  # there are more pilots than slots

    # What the driver asks for.
    @property
    def wanted(self) -> bool:
        """True if the folder still belongs to the pool that this pilot was sent for."""
        try:
            return not unfit(self.folder) and bool(self._read_order()["pool"] == self.pool)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, LookupError, TypeError):
            return True  # the file system does not answer now: go on

    def _read_order(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_own(self.dir.order))
        return found

    @property
    def closed(self) -> bool:
        """True if the driver has given up this pilot, because its record stood still for too long."""
        return self.dir.closed(self.name).exists()

    @property
    def stopped(self) -> bool:
        """True if the driver has asked all pilots to stop."""
        return self.dir.stop.exists()

    def stop_request(self) -> StopRequest | None:
        """The request to end the server, if the driver has asked for it or has ended."""
        if self.stopped:
            return StopRequest(StopCause.REQUESTED, "asked to stop")
        if self.lease.expired():
            return StopRequest(StopCause.LEASE_EXPIRED, "the lease ran out: the submitter is gone")
        return None

    def lost_request(self) -> StopRequest | None:
        """The request to end the server, if its place in the pool is lost. Then no other server follows it."""
        if self.closed:
            return StopRequest(StopCause.GIVEN_UP, "the submitter heard nothing of it for long")
        if not self.wanted:
            return StopRequest(StopCause.POOL_GONE, "its pool has ended")
        return None

    @property
    def idle(self) -> bool:
        """True if the driver has said that no request can be under way."""
        with contextlib.suppress(OSError):
            return self.dir.stop.read_text().strip() == "idle"
        return False

    @property
    def on_trial(self) -> bool:
        """True if a client tries a suspect request on this slot alone, or has done so."""
        return self.dir.trial(str(self.slot)).exists()

    @property
    def restart_allowed(self) -> bool:
        """True if another server may follow in this slot, and the driver has not sent one already."""
        return not self.closed and restart_allowed(self.slot, self.generation, self.folder, self.restarts)

    @property
    def has_worked(self) -> bool:
        """True if a server of this slot has been ready."""
        return any(r.slot == self.slot and r.ready_s is not None for r in read_records(self.folder, self.pool))

    # What the pilot publishes.
    def new_record(self, generation: int) -> ServerRecord:
        """The record of a server of this slot before its pilot has done anything."""
        return new_record(self.slot, generation, self.folder, self.restarts, self.pool)

    def publish(self, record: ServerRecord) -> None:
        """Replace the server's record. Publish nothing if the driver has sent another pilot for this slot."""
        self._beats, self.recorded = self._beats + 1, time.monotonic()
        if self.closed or not self.wanted:
            return
        with contextlib.suppress(OSError):  # the folder may be gone: then nobody reads it
            record.model_copy(update={"beat": self._beats}).write(self.path)

    def publish_next(self) -> Path | None:
        """Publish the record of the next server before this server's record ends: clients always see one coming.

        Returns:
            The file of the record; None if it could not be written.
        """
        record = self.new_record(self.generation + 1)
        path = self.dir.record(record.name)
        if self.wanted:
            with contextlib.suppress(OSError):
                record.model_copy(update={"pid": os.getpid()}).write(path)
                return path
        return None

    def withdraw_next(self, reason: str) -> None:
        """Close the record of the next server. The driver decides whether it sends a pilot for it."""
        path = self.dir.record(name_of(self.slot, self.generation + 1))
        if self.wanted:
            with contextlib.suppress(OSError, InvalidRecord):
                record = ServerRecord.parse(path.read_bytes(), path.stem) or self.new_record(self.generation + 1)
                record.ended(reason, stop_requested=True).write(path)
