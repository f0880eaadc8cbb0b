"""PoolAddress: the picklable address from which a worker connects to the pool."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from campaign.discovery.credentials import Credentials
from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import wrong
from campaign.util.ownership import read_own, unfit


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
        settle_s: Within so many seconds a pilot knows whether its server, of which a request was not answered, is dead;
            0 where no pilots look after the servers.
        records: Servers that already run.
        secret: What lets clients in: certificates, headers.
        twins: Models that a process may ask in its own memory when no server is left
            (`campaign.inference.local_model.LocalModel`).
        versions: The version of each model that answers; a model that is not there: the newest its server has.
        pool: The nonce of the pool: records of another are passed over; empty: of none.
    """

    folder: str
    batches: Mapping[str, int | None]
    tails: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    window: int | Literal["auto"] = "auto"
    start_deadline_s: float = 120.0
    request_deadline_s: float = 60.0
    settle_s: float = 0.0
    records: tuple[Mapping[str, Any], ...] = ()
    secret: Credentials | None = field(default=None, repr=False, compare=False)
    twins: tuple[Any, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    pool: str = ""

    def servers(self) -> list[Mapping[str, Any]]:
        """Records of the pool's servers, whatever their state; one that cannot be believed is ``ended``, with a reason.

        A record is believed if only this user can have written it and it leads where a server of this pool can be: to
        a socket in a folder of this user's own, or, with TLS, to a port, where the server must show the certificate
        that this campaign gave to the server of that name.
        """
        given = {"secret": self.secret, "headers": dict(self.secret.headers) if self.secret else {}}
        found: list[Mapping[str, Any]] = [{**r, **given} for r in self.records]
        if self.folder:
            folder, why = Path(self.folder), ""
            with suppress(OSError):
                why = unfit(folder)
            for path in PoolDir(folder).records():
                with suppress(FileNotFoundError):  # swept meanwhile
                    record, refused = self._believed(path) if not why else ({}, why)
                    if refused:
                        why_not = f"its record was refused: {refused}"
                        record = {"name": path.stem, "state": "ended", "url": "", "told": False, "log": "",
                                  "why": why_not, "refused": True}  # fmt: skip
                    if record and (refused or record.get("pool", "") == self.pool or not self.pool):
                        found.append({**record, **given, "own": True})
        return found

    def _believed(self, path: Path) -> tuple[dict[str, Any], str]:
        """What a record says; nothing while it is being replaced. And why it is refused, if it is."""
        try:
            record = json.loads(read_own(path))
        except PermissionError as error:
            return {}, str(error)
        except (OSError, ValueError, RecursionError):
            return {}, ""
        why = wrong(record, path.stem)
        if why:
            return {}, why
        return record, self._astray(record) if record["state"] == "ready" else ""

    def _astray(self, record: Mapping[str, Any]) -> str:
        """Why nobody may be asked where a record leads."""
        url = str(record["url"])
        if self.secret is not None and self.secret.domain:
            return "" if url.startswith(("ipv4:", "ipv6:")) else f"{url!r} cannot be reached through TLS"
        if not url.startswith("unix:/"):
            return f"{url!r} is no Unix socket"
        if record.get("host") == socket.gethostname():
            with suppress(OSError):  # swept meanwhile
                return unfit(Path(url.removeprefix("unix:")).parent)
        return ""
