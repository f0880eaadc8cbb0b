"""PoolAddress: the picklable address from which a worker connects to the pool."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from campaign.discovery.credentials import Credentials
from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import InvalidRecord, ServerRecord, ServerState
from campaign.util.ownership import read_own, unfit


@dataclass(frozen=True)
class Endpoint:
    """All that a client needs to open a channel to one server.

    Attributes:
        name: Name of the server.
        url: Address of the server.
        credentials: Certificates and headers; None: the server asks for none.
        in_private_dir: True if the URL is a socket in a folder that must belong to this user.
    """

    name: str
    url: str
    credentials: Credentials | None = None
    in_private_dir: bool = False


@dataclass(frozen=True)
class PoolAddress:
    """All that a worker needs to find the servers of a pool. It travels to workers; `campaign.connect` opens channels.

    Attributes:
        folder: Folder with the records of the servers. Empty: the servers are given by ``records``.
        batches: Rows per request by model. None: the model's ``max_batch_size``.
        tails: Sizes that the last request of a file may have instead, by model, ascending.
        window: Requests in flight per server and process. "auto": as many as keep the server busy, by measurement.
        start_deadline_s: How long to wait for the first server.
        request_deadline_s: Deadline of one request after it is sent.
        settle_s: If a request is not answered, the server's pilot knows after so many seconds whether the server is
            dead. 0: no pilots watch the servers.
        records: Servers that run already.
        secret: Certificates and headers of the client.
        twins: Models that a process may ask in its own memory when no server is left
            (`campaign.inference.local_model.LocalModel`).
        versions: Version of each model that answers. A model that is missing here: the newest version of its server.
        pool: Nonce of the pool. Records of other pools are ignored. Empty: records of all pools count.
    """

    folder: str
    batches: Mapping[str, int | None]
    tails: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    window: int | Literal["auto"] = "auto"
    start_deadline_s: float = 120.0
    request_deadline_s: float = 60.0
    settle_s: float = 0.0
    records: tuple[ServerRecord, ...] = ()
    secret: Credentials | None = field(default=None, repr=False, compare=False)
    twins: tuple[Any, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    pool: str = ""

    def servers(self) -> list[ServerRecord]:
        """Records of the pool's servers in any state. A record that is not believed is ``ENDED`` and ``refused``.

        A record is believed if only this user can have written it, and if its URL leads to a place where a server of
        this pool can be. With TLS this is a port: there the server must show the certificate that this campaign gave to
        the server of that name. Otherwise it is a socket in a folder of this user.
        """
        found = list(self.records)
        if not self.folder:
            return found
        folder, unsafe = Path(self.folder), ""
        with suppress(OSError):
            unsafe = unfit(folder)
        for path in PoolDir(folder).records():
            try:
                record = self._believed(path, unsafe)
            except InvalidRecord as error:
                reason = f"its record was refused: {error}"
                record = ServerRecord(name=path.stem, state=ServerState.ENDED, url="", reason=reason, refused=True)
            if record and (record.refused or record.pool == self.pool or not self.pool):
                found.append(record)
        return found

    def endpoint(self, record: ServerRecord) -> Endpoint:
        """How to reach the server of a record that `servers` gave."""
        return Endpoint(record.name, record.url, self.secret, in_private_dir=record not in self.records)

    def _believed(self, path: Path, unsafe: str) -> ServerRecord | None:
        """Read a record; None while it is being replaced.

        Args:
            path: Its file.
            unsafe: Why another user may have written into the folder; empty: only this user can.

        Raises:
            InvalidRecord: The record cannot be believed.
        """
        if unsafe:
            raise InvalidRecord(unsafe)
        try:
            text = read_own(path)
        except PermissionError as error:
            raise InvalidRecord(str(error)) from None
        except OSError:  # the file was removed meanwhile
            return None
        record = ServerRecord.parse(text, path.stem)
        wrong_place = self._wrong_place(record) if record and record.state is ServerState.READY else ""
        if wrong_place:
            raise InvalidRecord(wrong_place)
        return record

    def _wrong_place(self, record: ServerRecord) -> str:
        """Why a client must not connect to the URL of a record; empty: it may."""
        url = record.url
        if self.secret is not None and self.secret.domain:
            return "" if url.startswith(("ipv4:", "ipv6:")) else f"{url!r} cannot be reached through TLS"
        if not url.startswith("unix:/"):
            return f"{url!r} is no Unix socket"
        if record.host == socket.gethostname():
            with suppress(OSError):  # the folder was removed meanwhile
                return unfit(Path(url.removeprefix("unix:")).parent)
        return ""
