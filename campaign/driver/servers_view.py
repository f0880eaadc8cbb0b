"""Turns the records of a pool's servers into the rows of a view: state, busy share, queue, restarts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from campaign.discovery.records import newest
from campaign.report.progress import ServerProgress

OVER_S = 3.0  # busy shares are means over at least this time: records change about once a second


class ServersView:
    """Remembers the counters of servers, so that their growth gives busy shares."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float, float]] = {}
        self._shares: dict[str, tuple[float, float]] = {}

    def servers(self, records: Iterable[Mapping[str, Any]]) -> list[ServerProgress]:
        """The newest server of each slot.

        Args:
            records: Records of all servers of a pool.
        """
        now = time.monotonic()
        return [self._row(dict(record), now) for record in newest([dict(r) for r in records])]

    def _row(self, record: Mapping[str, Any], now: float) -> ServerProgress:
        name = str(record["name"])
        times = record.get("times", {}).values()
        computing = sum(float(t.get("computing_s", 0.0)) for t in times)
        queueing = sum(float(t.get("queueing_s", 0.0)) for t in times)
        since, computed, queued = self._before.setdefault(name, (now, computing, queueing))
        if now - since >= OVER_S:
            grown = max(computing - computed, 0.0), max(queueing - queued, 0.0)  # known answers are taken off later
            self._shares[name] = grown[0] / (now - since), grown[1] / (now - since)
            self._before[name] = now, computing, queueing
        state = str(record["state"])
        busy, queue = self._shares.get(name, (None, None)) if state == "ready" else (None, None)
        restarts, reason = int(record.get("generation", 0)), str(record.get("why", "")).partition("\n")[0]
        return ServerProgress(name, state, str(record.get("host", "")), busy, queue, restarts, reason)
