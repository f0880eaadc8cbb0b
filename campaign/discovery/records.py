"""ServerRecord: the record that a pilot publishes of its server, and its states.

A record is a JSON file in the pool's folder. Its pilot writes it again whenever something changes, and at least once
per second or so. A slot of a pool holds several servers, one after another: its generations.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from campaign.discovery.pooldir import PoolDir
from campaign.util.files import write_json

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
Count = Annotated[int, Field(ge=0)]


class ServerState(str, Enum):
    """The state of a server. A server passes through the states in this order; it may leave states out."""

    STARTING = "starting"
    """The pilot prepares the server, or the server has not given its known answers yet. Clients wait for it."""
    READY = "ready"
    """Every model of the server has given its known answer. Clients send requests."""
    STOPPING = "stopping"
    """The pilot ends the server. Clients send no new requests; requests under way may still be answered."""
    ENDED = "ended"
    """The server has ended. Clients give its requests to other servers."""

    @property
    def over(self) -> bool:
        """True if the server takes no more requests and never will."""
        return self in (ServerState.STOPPING, ServerState.ENDED)


class InvalidRecord(ValueError):
    """A file is not the record of the server that its name says."""


class ModelTimes(BaseModel):
    """The time that a server has spent on the requests of one model."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    computing_s: float
    queueing_s: float = 0.0


class ServerRecord(BaseModel):
    """The record of one server.

    Attributes:
        name: Name of the server (`name_of`); of a server that the pool has not started, its URL.
        state: State of the server.
        url: Address for gRPC; empty until the server is prepared.
        pool: Nonce of the pool.
        slot: Place in the pool; None: the pool has not started this server.
        generation: How many servers were in this slot before.
        restart_expected: True if another server takes the slot when this one ends. It is published in advance,
            because a pilot that is killed cannot publish anything.
        beat: Raised each time the pilot writes the record.
        host: Name of the pilot's node.
        pid: Process id of the pilot.
        server_pid: Process id of the server; None before it is started.
        private_dir: Folder of the server on its node.
        shm_prefix: The server's regions in ``/dev/shm`` have names that begin with this text.
        folders: Folders that the server has made elsewhere.
        log: File with the text that the server has printed.
        reason: Why the server stops or has ended.
        remedy: What the user can do about it.
        tail: End of the server's log, where the server has failed.
        stop_requested: True if the server ended because it was asked to, False if it failed.
        refused: True if clients do not believe the record; ``reason`` says why.
        warnings: Warnings about the server's models.
        statistics: Counts of requests and of executions by model.
        times: Times by model.
        started: Time of the start, seconds since 1970.
        ready_s: Seconds from the start until the server was ready; None: it has not been ready.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    name: str
    state: ServerState
    url: str
    pool: str = ""
    slot: Count | None = None
    generation: Count = 0
    restart_expected: bool = False
    beat: Count = 0
    host: str = ""
    pid: Count | None = None
    server_pid: Count | None = None
    private_dir: str = ""
    shm_prefix: str = ""
    folders: tuple[str, ...] = ()
    log: str = ""
    reason: str = ""
    remedy: str = ""
    tail: str = ""
    stop_requested: bool = False
    refused: bool = False
    warnings: tuple[str, ...] = ()
    statistics: dict[str, list[Count]] = {}
    times: dict[str, ModelTimes] = {}
    started: float = 0.0
    ready_s: float | None = None

    @property
    def server_expected(self) -> bool:
        """True if a server will be ready in this slot, as far as its newest record tells."""
        return self.state is ServerState.STARTING or (self.state.over and self.restart_expected)

    def ended(self, reason: str, *, stop_requested: bool = False) -> ServerRecord:
        """The record of the same server after its end, where the pilot itself cannot write it."""
        changes = {"state": ServerState.ENDED, "reason": reason, "stop_requested": stop_requested, "tail": ""}
        return self.model_copy(update=changes)

    def write(self, path: Path) -> None:
        """Replace the file.

        Raises:
            OSError: The file cannot be written.
        """
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def parse(cls, text: bytes | str, name: str) -> ServerRecord | None:
        """Read the content of a record's file; None if it is not JSON.

        Args:
            text: The content.
            name: The server that the file is named after.

        Raises:
            InvalidRecord: A field has a wrong type, or the record is of another server.
        """
        try:
            record = cls.model_validate_json(text)
        except ValidationError as error:
            if error.errors(include_url=False, include_context=False)[0]["type"] == "json_invalid":
                return None
            raise InvalidRecord("it is no record") from None
        if record.name != name:
            raise InvalidRecord(f"it says that it is {record.name!r}")
        if record.slot is not None and name_of(record.slot, record.generation) != name:
            raise InvalidRecord(f"it says that it is {name_of(record.slot, record.generation)!r}")
        return record


def name_of(slot: int, generation: int) -> str:
    """Name of a server: ``server-0`` for the first in its slot, then ``server-0.1``, ``server-0.2``."""
    return f"server-{slot}.{generation}" if generation else f"server-{slot}"


def new_record(slot: int, generation: int, folder: Path, restarts: int, pool: str = "") -> ServerRecord:
    """The record of a server before its pilot has done anything.

    Args:
        slot: Place in the pool.
        generation: How many servers were in this slot before.
        folder: The pool's folder.
        restarts: How often a slot may be filled again.
        pool: Nonce of the pool.
    """
    name = name_of(slot, generation)
    return ServerRecord(
        name=name,
        state=ServerState.STARTING,
        url="",
        pool=pool,
        slot=slot,
        generation=generation,
        restart_expected=restart_allowed(slot, generation, folder, restarts),
        host=socket.gethostname(),
        log=str(PoolDir(folder).server_log(name)),
        started=time.time(),
    )


def read_records(folder: Path, pool: str | None) -> list[ServerRecord]:
    """The valid records of a pool, in order.

    Args:
        folder: The pool's folder.
        pool: Nonce of the pool; None: of any pool. Pilots of an earlier pool may still run in the same folder; their
            records are ignored.
    """
    records = []
    for path in PoolDir(folder).records():
        with suppress(OSError, InvalidRecord):
            record = ServerRecord.parse(path.read_bytes(), path.stem)
            if record is not None and record.slot is not None and pool in (None, record.pool):
                records.append(record)
    return in_order(records)


def in_order(records: Iterable[ServerRecord]) -> list[ServerRecord]:
    """Sort records by slot and generation. Servers that the pool has not started keep their order."""
    return sorted(records, key=lambda r: (r.slot or 0, r.generation))


def newest(records: Iterable[ServerRecord]) -> list[ServerRecord]:
    """The record of the newest server in each slot."""
    return list({r.name if r.slot is None else r.slot: r for r in in_order(records)}.values())


def restart_allowed(slot: int, generation: int, folder: Path, restarts: int) -> bool:
    """Return True if another server may start in this slot.

    A server does not count if a request killed it and that request was then given up. At most ``2 * restarts`` servers
    are left out in this way. Otherwise a model that dies on every request would be restarted for ever.
    """
    if generation < restarts:
        return True
    return generation < restarts + min(2 * restarts, len(PoolDir(folder).excused_in_slot(slot)))


def backoff(generation: int) -> float:
    """Seconds to wait before a slot is filled again: twice as long each time, spread so that not all come at once."""
    spread: float = random.uniform(0.75, 1.25)
    return spread * float(min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(generation - 1, 10)))


def causes(records: Iterable[ServerRecord]) -> str:
    """Why servers have ended, same reasons together: ``the server ended by signal 9 (server-0, server-0.1)``."""
    found: dict[str, list[str]] = {}
    for record in in_order(records):
        found.setdefault(record.reason.removeprefix(f"{record.name}: "), []).append(record.name)
    return "; ".join(f"{reason} ({', '.join(names)})" for reason, names in found.items())
