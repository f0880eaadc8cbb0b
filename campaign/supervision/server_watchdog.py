"""The server watchdog: a process that ends a server and sweeps its files when its pilot has ended.

    python -m campaign.supervision.server_watchdog IDENTITY_OF_THE_PILOT

It acts when the pilot ends without having said that all is in order, and when the pilot stops or hangs.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from campaign.supervision.cleanup import _close_record, clear
from campaign.supervision.identity import VARIABLE, Identity, own
from campaign.supervision.watchdog import DetachedProcess, listen


class ServerWatchdog(DetachedProcess):
    """The pilot's side of the pipe. Killed, the server watchdog is started again with all it knew.

    Args:
        handed: What `hand_over` gave in this process before an ``exec``.
        pool: The nonce of the pilot's pool: only a record of that one is closed in the pilot's place.
    """

    def __init__(self, handed: str = "", pool: str = "") -> None:
        super().__init__("campaign.supervision.server_watchdog", handed=handed)
        self._pool = pool

    def guard(
        self,
        server: int,
        place: str,
        shm_prefix: str,
        folders: Iterable[str] = (),
        record: Path | None = None,
        patience_s: float = math.inf,
    ) -> None:
        """Say what is to be ended and swept when this process ends, or is silent for ``patience_s``.

        Args:
            server: Pid of the server, which leads its process group; 0 before there is one.
            place: Its private folder.
            shm_prefix: Names in ``/dev/shm`` that begin with it are the server's.
            folders: Folders it made elsewhere, to be removed where empty.
            record: What is published of the server; closed in the pilot's place.
            patience_s: `beat` is called more often than that.
        """
        try:
            leader = str(Identity.of(server)) if server else ""
        except ProcessLookupError:  # it has ended already
            leader = ""
        known = {"leader": leader, "place": place, "shm_prefix": shm_prefix, "folders": list(folders)}
        if place:
            own(Path(place), os.environ.get(VARIABLE, ""), holder=str(Identity.of(os.getpid())), **known)
        self.tell(**known, record=str(record or ""), pool=self._pool, patience_s=patience_s)


def main() -> None:
    """Entry point of ``python -m campaign.supervision.server_watchdog``."""
    heard = listen(sys.argv[1:])
    if heard is None:
        return
    _, known = heard
    clear(known)
    if known.get("record"):
        _close_record(Path(known["record"]), str(known["pool"]))


if __name__ == "__main__":
    main()
