"""Turns the records of a pool's servers into the rows of a view: state, busy share, queue, restarts."""

from __future__ import annotations

import time
from collections.abc import Iterable

from campaign.discovery.records import ServerRecord, ServerState, newest
from campaign.report.progress import ServerProgress

OVER_S = 3.0  # busy shares are means over at least this time: records change about once a second


class ServersView:
    """Remembers the counters of servers, so that their growth gives busy shares."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float, float]] = {}
        self._shares: dict[str, tuple[float, float]] = {}

    def servers(self, records: Iterable[ServerRecord]) -> list[ServerProgress]:
        """The newest server of each slot.

        Args:
            records: Records of all servers of a pool.
        """
        now = time.monotonic()
        return [self._row(record, now) for record in newest(records)]

    def _row(self, record: ServerRecord, now: float) -> ServerProgress:
        name = record.name
        computing = sum(t.computing_s for t in record.times.values())
        queueing = sum(t.queueing_s for t in record.times.values())
        since, computed, queued = self._before.setdefault(name, (now, computing, queueing))
        if now - since >= OVER_S:
            grown = max(computing - computed, 0.0), max(queueing - queued, 0.0)  # known answers are taken off later
            self._shares[name] = grown[0] / (now - since), grown[1] / (now - since)
            self._before[name] = now, computing, queueing
        busy, queue = self._shares.get(name, (None, None)) if record.state is ServerState.READY else (None, None)
        reason = record.reason.partition("\n")[0]
        return ServerProgress(name, record.state.value, record.host, busy, queue, record.generation, reason)
