"""The server watchdog: a process that ends a server and sweeps its files when its pilot has ended.

    python -m campaign.supervision.server_watchdog IDENTITY_OF_THE_PILOT

It acts when the pilot ends without a message that it ended in order, and when the pilot is stopped or hangs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.supervision.cleanup import clear
from campaign.supervision.identity import ROLE, SERVER_WATCHDOG, VARIABLE, Identity, own
from campaign.supervision.watchdog import DetachedProcess, listen
from campaign.util.files import read_json, write_json
from campaign.util.logs import keep_log


@dataclass(frozen=True)
class Closing:
    """How the server watchdog closes the server's record if the pilot could not do so.

    Attributes:
        record: The record's file, a JSON object.
        only_if: Keys that the record must have with these values; otherwise it is another pool's.
        changes: Keys that are replaced, unless the record has the same ``state`` already.
    """

    record: Path
    only_if: Mapping[str, Any]
    changes: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For the pipe."""
        return {"record": str(self.record), "only_if": dict(self.only_if), "changes": dict(self.changes)}


logger = logging.getLogger("campaign.supervision.server_watchdog")  # __name__ is "__main__" in the process


class ServerWatchdog(DetachedProcess):
    """The pilot's end of the pipe to its server watchdog. A server watchdog that is killed is started again.

    Args:
        handed: What `hand_over` gave in this process before an ``exec``.
    """

    def __init__(self, handed: str = "") -> None:
        env = {**os.environ, ROLE: SERVER_WATCHDOG}
        super().__init__("campaign.supervision.server_watchdog", env, handed)

    def guard(
        self,
        server: int,
        place: str,
        shm_prefix: str,
        folders: Iterable[str] = (),
        closing: Closing | None = None,
        patience_s: float = math.inf,
    ) -> None:
        """Tell the watchdog what to end and to remove when this process ends, or is silent for ``patience_s``.

        Args:
            server: Process id of the server, which leads its process group. 0: there is none yet.
            place: Private folder of the server.
            shm_prefix: The server's regions in ``/dev/shm`` have names that begin with this text.
            folders: Folders that the server has made elsewhere. They are removed if empty.
            closing: How to close the server's record in the pilot's place.
            patience_s: The longest time between two calls of `beat`.
        """
        try:
            leader = str(Identity.of(server)) if server else ""
        except ProcessLookupError:  # it has ended already
            leader = ""
        known = {"leader": leader, "place": place, "shm_prefix": shm_prefix, "folders": list(folders)}
        if place:
            own(Path(place), os.environ.get(VARIABLE, ""), holder=str(Identity.of(os.getpid())), **known)
        self.tell(**known, closing=closing.as_json() if closing else None, patience_s=patience_s)


def main() -> None:
    """Entry point of ``python -m campaign.supervision.server_watchdog``."""
    import psutil  # noqa: F401  now, because the file system with the library may be away when it is needed

    heard = listen(sys.argv[1:])
    if heard is None:
        return
    _, known = heard
    if known.get("closing"):
        keep_log(Path(known["closing"]["record"]).with_name("watchdog.log"))
    logger.info("the pilot of %s ended or is silent: ending the server %s", known.get("place"), known.get("leader"))
    clear(known)
    if known.get("closing"):
        _close_record(**known["closing"])


def _close_record(record: str, only_if: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    now = read_json(Path(record)) or {}
    ours = all(now.get(key) == value for key, value in only_if.items())
    if now and ours and now.get("state") != changes["state"]:
        with contextlib.suppress(OSError):  # the folder is gone, or the disk is full
            write_json(Path(record), {**now, **changes})


if __name__ == "__main__":
    main()
