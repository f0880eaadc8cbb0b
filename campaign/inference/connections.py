"""Keeps a connection to each ready server of a pool, by rereading the servers' records."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from campaign.discovery.address import PoolAddress
from campaign.discovery.records import Record, newest, on_the_way
from campaign.errors import ServerError
from campaign.inference.codec import SERVICE, open_channel
from campaign.inference.concurrency import ConcurrencyLimit

DOWN_S = 2.0  # how long a server that failed comes after the others
LOOK_S, SEARCH_S = 0.5, 0.05  # between two looks at the records: with servers to call, and without
ASK_S = 5.0  # between two questions for a server's own times


class Connection:
    """One server, seen from this process: a channel, and how many requests are out."""

    def __init__(self, record: Mapping[str, Any], window: int | None) -> None:
        self.record = record
        self.name = str(record["name"])
        self.generation = int(record.get("generation", 0))
        self.headers = dict(record.get("headers") or {})
        self.metadata = tuple((name.lower(), value) for name, value in self.headers.items())
        self.outstanding = 0
        self.down_until = 0.0
        self.fallen_until = 0.0  # it has died, it seems: until then its pilot will have replaced it
        self.window = ConcurrencyLimit(window)
        self._channel = open_channel(record)
        self.infer = self._channel.unary_unary(f"{SERVICE}ModelInfer", None, None)
        self._statistics = self._channel.unary_unary(
            f"{SERVICE}ModelStatistics",
            service_pb2.ModelStatisticsRequest.SerializeToString,
            service_pb2.ModelStatisticsResponse.FromString,
        )
        self._asked = 0.0

    def measure(self, now: float, models: Collection[str]) -> None:
        """Ask the server for its own time per request, where the window is to be found and it is worth asking."""
        if self.window.fixed is not None or not self.window.rate or now - self._asked < ASK_S:
            return
        self._asked = now

        def told(call: Any) -> None:
            if call.code().value[0] == 0:  # a proxy or a restricted server need not tell: then the rate must do
                stats = [s.inference_stats for s in call.result().model_stats if s.name in models]
                spent = sum(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns for s in stats)
                self.window.served(1e-9 * spent / max(1, sum(s.compute_infer.count for s in stats)))

        call = self._statistics.future(service_pb2.ModelStatisticsRequest(), timeout=2.0, metadata=self.metadata)
        call.add_done_callback(told)

    def close(self) -> None:
        """Close the channel and cancel its calls."""
        self._channel.close()


class ConnectionPool:
    """The pool's servers that can be called. `connections` is replaced, never changed, so that it can be read anywhere.

    Attributes:
        gone: Why servers have ended, by name.
        empty_since: Since when there is no connection, on a monotonic clock.
    """

    def __init__(self, address: PoolAddress) -> None:
        self.address = address
        self.connections: dict[str, Connection] = {}
        self.gone: dict[str, str] = {}
        self.refused: set[str] = set()
        self.empty_since = time.monotonic()
        self._elsewhere: set[str] = set()
        self._leaving: list[Connection] = []
        self._looked = 0.0
        self._lock = threading.Lock()

    def look(self, now: float) -> None:
        """See which servers there are, now and then: every look reads a file per server."""
        with self._lock:
            if now - self._looked < (LOOK_S if self.connections else SEARCH_S):
                return
            self._looked = now
            here, connections = socket.gethostname(), dict(self.connections)
            for record in self.address.servers():
                name, state = str(record["name"]), record["state"]
                if state == "ready" and name not in connections and name not in self.gone:
                    if record.get("host", here) != here and str(record["url"]).startswith("unix:"):
                        self._elsewhere.add(name)  # another node's socket
                        continue
                    connections[name] = Connection(
                        record, None if self.address.window == "auto" else self.address.window
                    )
                elif state == "stopping" and name in connections:
                    self._leaving.append(connections.pop(name))  # what is under way may still be answered
                elif state == "ended" and name not in self.gone:
                    self.gone[name] = str(record.get("why", ""))
                    if record.get("refused"):
                        self.refused.add(f"{name}: {self.gone[name]}")
                    self._leaving += [connections.pop(name)] if name in connections else []
                    for connection in [x for x in self._leaving if x.name == name]:
                        self._leaving.remove(connection)
                        connection.close()
            if self.connections and not connections:
                self.empty_since = now
            self.connections = connections

    def failed(self, connection: Connection) -> None:
        """Note that a request failed on a server: others come first for a while. Its record is reread now."""
        now = time.monotonic()
        connection.down_until = now + DOWN_S
        self._looked = 0.0
        self.look(now)

    def refuse(self, connection: Connection, said: str) -> None:
        """Drop a connection whose listener is not the server of its record."""
        with self._lock:
            self.gone[connection.name] = f"refused, it is not the server of this record: {said}"
            self.refused.add(f"{connection.name}: {self.gone[connection.name]}")
            if connection.name in self.connections:
                self.connections = {name: other for name, other in self.connections.items() if name != connection.name}
                self._leaving.append(connection)

    def usable(self, avoid: Collection[str]) -> list[Connection]:
        """Servers but those to avoid; of these the ones that did not just fail, if there are any."""
        connections = [connection for connection in self.connections.values() if connection.name not in avoid]
        now = time.monotonic()
        return [connection for connection in connections if connection.down_until <= now] or connections

    def wait(self, avoid: Collection[str] = ()) -> Connection:
        """A server that can be called; waits while one is coming.

        Raises:
            ServerError: No server is left, or none came up in time.
        """
        start = time.monotonic()
        while True:
            self.look(time.monotonic())
            connections = self.usable(avoid)
            if connections:
                return min(connections, key=lambda connection: connection.outstanding)
            if not self.hope(avoid, start, self.newest()):
                raise self.nobody()
            time.sleep(0.02)

    def newest(self) -> list[Record]:
        """The last record of each of the pool's servers, as they are now."""
        return newest(self.address.servers())

    def hope(self, tried: Collection[str], since: float, records: Sequence[Record]) -> bool:
        """True if a server may still come for a request that has waited since then and failed on these servers.

        One starts, or will be started, or has just become ready; or one that failed is not yet judged by its pilot:
        it may be replaced in a moment.
        """
        waited = time.monotonic() - since
        if waited > self.address.start_deadline_s:
            return False
        return not records or any(self._may_serve(r, tried, waited) for r in records)

    def _may_serve(self, record: Record, tried: Collection[str], waited: float) -> bool:
        if record["state"] == "ready" and record["name"] in self.gone:
            return False  # it was refused: it is not who it says
        if record["state"] == "ready" and record["name"] not in self._elsewhere:
            return record["name"] not in tried or waited < self.address.settle_s
        return on_the_way(record)

    def nobody(self) -> ServerError:
        """The error for a pool without any server to call."""
        said = "; ".join(f"{name}: {why}" for name, why in sorted(self.gone.items()))
        logs = [str(r.get("log", "")) for r in self.address.servers() if r.get("log")]
        late = f"no server was ready within {self.address.start_deadline_s:g} s"
        servers = [r for r in self.address.servers() if r["name"] not in self.gone]
        waiting = any(r["state"] == "ready" or on_the_way(r) for r in servers)
        what = late if waiting else "no server is left"
        return ServerError(
            what + (f" ({said})" if said else ""),
            where="pool",
            remedy=f"see {logs[0]}" if logs else "",
            log=_tail(logs),
        )

    def close(self) -> None:
        """Close all channels."""
        with self._lock:
            for connection in [*self.connections.values(), *self._leaving]:
                connection.close()
            self.connections, self._leaving = {}, []


def _tail(logs: Sequence[str], lines: int = 15) -> str:
    for log in logs:
        with suppress(OSError):
            return "\n".join(Path(log).read_text(errors="replace").splitlines()[-lines:])
    return ""
