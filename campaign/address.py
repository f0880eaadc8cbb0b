"""Where a pool is found, and how rows may be answered: what the driver needs to know of the client, and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RUNGS = ("first", "same_server", "other_server", "restarted_server", "local_twin", "parked")
"""The ladder that a request climbs until somebody answers."""


_NEEDED = ("name", "state", "url")


@dataclass(frozen=True)
class PoolAddress:
    """Where a pool is found: a recipe that travels to workers; `campaign.connect` makes it live.

    Attributes:
        folder: Where pilots leave the records of their servers; empty for servers given by ``records``.
        batches: Rows per request by model; None: the model's ``max_batch_size``.
        tails: Sizes that the last request of a file may have instead, by model, ascending.
        window: Requests in flight per server and process; "auto": as many as keep the server busy, by measurement.
        start_deadline_s: How long to wait for the first server.
        request_deadline_s: Deadline of one request, from when it is sent.
        records: Servers that already run.
    """

    folder: str
    batches: Mapping[str, int | None]
    tails: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    window: int | Literal["auto"] = "auto"
    start_deadline_s: float = 120.0
    request_deadline_s: float = 60.0
    records: tuple[Mapping[str, Any], ...] = ()

    def servers(self) -> list[Mapping[str, Any]]:
        """Records of the pool's servers, whatever their state."""
        found: list[Mapping[str, Any]] = [dict(r) for r in self.records]
        if self.folder:
            for path in sorted(Path(self.folder).glob("server-*.json")):
                with suppress(OSError, ValueError, RecursionError):  # being replaced, or swept: the next look sees it
                    record = json.loads(path.read_text())
                    if isinstance(record, dict) and all(isinstance(record.get(k), str) for k in _NEEDED):
                        found.append(record)
        return found
