"""Submits another pilot in place of a lost one, as the next generation of its slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import (
    LONGEST_BACKOFF_S,
    ServerRecord,
    ServerState,
    backoff,
    name_of,
    new_record,
    newest,
    read_records,
)
from campaign.errors import CampaignError
from campaign.protocols import PilotHandle

LOST_S = 10.0  # at the least: a busy machine may let a pilot wait for some seconds
Carry = Callable[[Sequence[str]], list[PilotHandle]]


logger = logging.getLogger(__name__)


class Restarts:
    """Replaces pilots that are lost. It reads the records of a pool's servers again and again.

    A pilot replaces its own server, but a lost pilot cannot replace itself. Its server watchdog closes its record, or
    the pilot did so when the scheduler ended it. If the whole node is lost, the record stays open and its count stands
    still. Then this class closes the record, and a pilot that wakes up later finds the record closed and ends.

    Args:
        folder: The pool's folder.
        restarts: How often each slot may be filled again.
        lease_s: A pilot is lost if its record has stood still for twice as long, and for `LOST_S`.
        slow_s: The same before the server process is started. The pilot may read large files in this time.
        carry: Starts one pilot with these additional arguments.
        say: Takes progress lines.
        pool: Nonce of the pool.
    """

    def __init__(
        self, folder: Path, restarts: int, lease_s: float, slow_s: float, carry: Carry, say: Callable[[str], None],
        pool: str = "",
    ) -> None:  # fmt: skip
        self.folder, self.restarts, self.lease_s, self.carry, self.say = folder, restarts, lease_s, carry, say
        self.slow_s, self.pool = slow_s, pool
        self.dir = PoolDir(folder)
        self._beats: dict[str, tuple[int, float]] = {}
        self._due: dict[tuple[int, int], float] = {}
        self._carried: dict[tuple[int, int], list[PilotHandle]] = {}

    def look(self) -> None:
        """Read the records once, close those of lost pilots, and send pilots. May take as long as sending one."""
        for record in newest(read_records(self.folder, self.pool)):
            if record.state is not ServerState.ENDED:
                self._listen(record)
            elif record.restart_expected:
                self._replace(record.slot or 0, record.generation + 1, record.reason)

    def _listen(self, record: ServerRecord) -> None:
        """Close the record if it has stood still for too long."""
        now, name, beat = time.monotonic(), record.name, record.beat
        known, since = self._beats.get(name, (-1, now))
        if known != beat:
            self._beats[name] = (beat, now)
        elif now - since > (max(2 * self.lease_s, LOST_S) if record.server_pid else self.slow_s):
            self.dir.closed(name).touch()
            reason = f"{name}: nothing was heard of its pilot for {now - since:.0f} s: is the node lost?"
            self._close(record, reason)

    def _close(self, record: ServerRecord, reason: str) -> None:
        with suppress(OSError):  # the disk is full: the next look tries again
            record.ended(reason).write(self.dir.record(record.name))

    def _replace(self, slot: int, generation: int, reason: str) -> None:
        at, now = (slot, generation), time.monotonic()
        if at in self._carried:
            if all(c.poll() is not None for c in self._carried[at]):
                self._never_came(slot, generation)
            return
        if now < self._due.setdefault(at, now + backoff(generation)):
            return
        self.say(f"{reason}; a pilot for {name_of(slot, generation)} is sent")
        try:
            logger.info("slot %d: submitting generation %d: %s", slot, generation, reason)
            self._carried[at] = self.carry([f"--slot={slot}", f"--generation={generation}"])
        except (CampaignError, OSError) as error:
            self._due[at] = now + LONGEST_BACKOFF_S  # also if the disk is full and no record can be written
            self._close(self._new_record(slot, generation), str(error))

    def _never_came(self, slot: int, generation: int) -> None:
        path = self.dir.record(name_of(slot, generation))
        if not path.exists():  # a pilot that has come and gone has left its record
            self._close(self._new_record(slot, generation), f"{path.stem}: its pilot ended at its start")

    def _new_record(self, slot: int, generation: int) -> ServerRecord:
        return new_record(slot, generation, self.folder, self.restarts, self.pool)
