"""Reads and checks the records of servers. One slot of a pool holds several servers, one after another.

A record is a JSON object that its pilot rewrites all the time; `campaign.pool.pilot` says what stands in it.
"""

from __future__ import annotations

import json
import math
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from campaign.discovery.pooldir import PoolDir

Record = Mapping[str, Any]
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
STATES = ("starting", "ready", "stopping", "ended")
GOING = STATES[2:]  # it serves no more


def name_of(slot: int, generation: int) -> str:
    """``server-0`` for the first in its slot, then ``server-0.1``, ``server-0.2``."""
    return f"server-{slot}.{generation}" if generation else f"server-{slot}"


def found(folder: Path, pool: str) -> list[Record]:
    """The whole records in a pool's folder, in order.

    Args:
        folder: The pool's.
        pool: Its nonce: pilots of an earlier pool of that folder may still run, and what they write is not this one's.
    """
    records = []
    for path in PoolDir(folder).records():
        with suppress(OSError, ValueError, RecursionError):
            record = json.loads(path.read_text())
            if not wrong(record, path.stem) and blank(0, 0, folder, 0).keys() <= record.keys():
                records += [record] if record["pool"] == pool else []
    return in_order(records)


def wrong(record: object, name: str) -> str:
    """Why something is no record of the server of that name; nothing if it is one, though perhaps not a whole one."""
    if not isinstance(record, dict) or any(k not in record for k in ("name", "state", "url")):
        return "it is no record"
    if any(key in record and not fits(record[key]) for key, fits in _FIELDS.items()):
        return "it is no record"
    if record["name"] != name:
        return f"it says that it is {record['name']!r}"
    if "slot" in record and name_of(record["slot"], record.get("generation", 0)) != name:
        return f"it says that it is {name_of(record['slot'], record.get('generation', 0))!r}"
    return ""


def _text(given: object) -> bool:
    return isinstance(given, str)


def _flag(given: object) -> bool:
    return isinstance(given, bool)


def _count(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 0


def _seconds(given: object) -> bool:
    return _count(given) or (isinstance(given, float) and math.isfinite(given))


def _or_none(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda given: given is None or fits(given)


def _each(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda given: isinstance(given, list) and all(map(fits, given))


def _by_name(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda given: isinstance(given, dict) and all(map(fits, given.values()))


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("name", "pool", "url", "host", "place", "shm_prefix", "log", "why", "remedy", "tail"), _text),
    **dict.fromkeys(("slot", "generation", "beat"), _count),
    **dict.fromkeys(("heir", "told", "refused"), _flag),
    **dict.fromkeys(("pid", "server_pid"), _or_none(_count)),
    **dict.fromkeys(("folders", "warnings"), _each(_text)),
    "state": lambda given: given in STATES,
    "statistics": _by_name(_each(_count)),
    "times": _by_name(lambda given: _by_name(_seconds)(given) and isinstance(given, dict) and "computing_s" in given),
    "started": _seconds,
    "ready_s": _or_none(_seconds),
}


def in_order(records: Iterable[Record]) -> list[Record]:
    """By slot, and within it by generation; servers that somebody else has started keep their order."""
    return sorted(records, key=lambda r: (_number(r.get("slot")), _number(r.get("generation"))))


def _number(given: object) -> int:
    return given if isinstance(given, int) else 0  # a damaged record is no reason to fail


def newest(records: Iterable[Record]) -> list[Record]:
    """The last incarnation of each slot."""
    return list({r.get("slot", r["name"]): r for r in in_order(records)}.values())


def on_the_way(record: Record) -> bool:
    """Whether a slot whose newest record this is has somebody coming: it starts, or another will come after it.

    ``heir`` stands in the record before it is needed: a pilot that is killed can say nothing any more.
    """
    return record["state"] == "starting" or (record["state"] in ("stopping", "ended") and bool(record.get("heir")))


def followed(slot: int, generation: int, folder: Path, restarts: int) -> bool:
    """Whether another may come after a server of this slot.

    Servers that a request has ended which was condemned for it are not counted; up to twice the restarts, so that a
    model that dies of everything comes to an end.
    """
    if generation < restarts:
        return True
    return generation < restarts + min(2 * restarts, len(PoolDir(folder).excused_in_slot(slot)))


def backoff(generation: int) -> float:
    """Seconds to wait before a slot is filled again: twice as long each time, spread so that not all come at once."""
    spread: float = random.uniform(0.75, 1.25)
    return spread * float(min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(generation - 1, 10)))


def causes(records: Iterable[Record]) -> str:
    """Why servers have ended, alike ones together: ``the server ended by signal 9 (server-0, server-0.1)``."""
    found: dict[str, list[str]] = {}
    for record in in_order(records):
        name = str(record["name"])
        found.setdefault(str(record.get("why", "")).removeprefix(f"{name}: "), []).append(name)
    return "; ".join(f"{why} ({', '.join(names)})" for why, names in found.items())


def blank(slot: int, generation: int, folder: Path, restarts: int, pool: str = "") -> dict[str, Any]:
    """The record of a server of which nothing is known yet."""
    name = name_of(slot, generation)
    return {
        "name": name,
        "pool": pool,
        "slot": slot,
        "generation": generation,
        "state": "starting",
        "heir": followed(slot, generation, folder, restarts),
        "beat": 0,
        "url": "",
        "host": socket.gethostname(),
        "pid": None,
        "server_pid": None,
        "place": "",
        "shm_prefix": "",
        "folders": [],
        "log": str(PoolDir(folder).server_log(name)),
        "why": "",
        "told": False,
        "warnings": [],
        "statistics": {},
        "times": {},
        "started": time.time(),
        "ready_s": None,
    }
