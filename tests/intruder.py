"""Another user of the machine, who tries to get at a campaign: what he was refused, and what he got, as JSON.

    python tests/intruder.py '{"uid": 65534, "read": [...], ...}'

Everything is imported before the uid changes (he may not be able to read our environment), and gRPC is first used
after: its threads would keep the old one.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  a look at a host name wants it
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from campaign.discovery.address import PoolAddress
from campaign.errors import CampaignError
from campaign.inference.client import connect
from campaign.inference.codec import SERVICE

REFUSED = (OSError, grpc.RpcError, CampaignError)


def attempt(what: Callable[[], Any]) -> str:
    """``refused: ...``, or what came of it."""
    try:
        return f"GOT {str(what())[:200]}"
    except REFUSED as error:
        return f"refused: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def first_byte(path: str) -> bytes:
    """Of a file that has no end."""
    with Path(path).open("rb") as stream:
        return stream.read(1)


def leave(path: Path, text: str) -> Any:
    """Put a file of one's own under a name of ours, where everybody may put one."""
    if not path.parent.exists():
        path.parent.mkdir(0o755)
    path.write_text(text)
    return path.stat().st_uid


def plain(url: str) -> Any:
    """Speak gRPC to it, as it is."""
    with grpc.insecure_channel(url) as channel:
        return channel.unary_unary(f"{SERVICE}ServerReady")(b"", timeout=10)


def tls(url: str, ca: str) -> Any:
    """TLS without a certificate of one's own."""
    with grpc.secure_channel(url, grpc.ssl_channel_credentials(ca.encode() or None)) as channel:
        return channel.unary_unary(f"{SERVICE}ServerReady")(b"", timeout=10)


def forge(record: dict[str, Any]) -> Any:
    """A record in a folder of one's own that leads to somebody else's server."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # he may not enter that of the tests' session
        Path(folder, f"{record['name']}.json").write_text(json.dumps(record))
        servers = connect(PoolAddress(folder, {}, start_deadline_s=2, request_deadline_s=5))
        try:
            return servers.infer("slow", {"X": np.zeros((1, 1), np.float32)})
        finally:
            servers.close()


def squat(url: str) -> Any:
    """Listen on a port that is somebody's."""
    host, port = url.removeprefix("ipv4:").split(":")
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind((host, int(port)))
        return own.getsockname()


def main(order: dict[str, Any]) -> dict[str, str]:
    """All that is asked for, by name."""
    os.setgroups([])
    os.setresgid(order["uid"], order["uid"], order["uid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    said = {"who": f"GOT uid {os.getuid()}"}
    for path in order.get("read", ()):
        said[f"read {path}"] = attempt(lambda p=path: Path(p).read_bytes())
    for path in order.get("list", ()):
        said[f"list {path}"] = attempt(lambda p=path: list(Path(p).iterdir()))
    for path in order.get("write", ()):
        said[f"write {path}"] = attempt(lambda p=path: Path(p).write_text("{}"))
    for path, text in order.get("leave", ()):
        said[f"leave {path}"] = attempt(lambda p=path, t=text: leave(Path(p), t))
    for pid in order.get("pids", ()):
        said[f"kill {pid}"] = attempt(lambda p=pid: os.kill(p, 0))
        for name in ("environ", "mem", "maps"):
            said[f"read {name} of {pid}"] = attempt(lambda p=pid, n=name: first_byte(f"/proc/{p}/{n}"))
        for name in ("fd", "root/dev/shm"):
            said[f"list {name} of {pid}"] = attempt(lambda p=pid, n=name: list(Path(f"/proc/{p}/{n}").iterdir()))
    for url in order.get("urls", ()):
        said[f"call {url}"] = attempt(lambda u=url: plain(u))
    for url, ca in order.get("tls", ()):
        said[f"call {url} by TLS"] = attempt(lambda u=url, c=ca: tls(u, c))
        said[f"listen on {url}"] = attempt(lambda u=url: squat(u))
    for record in order.get("forge", ()):
        said[f"forge {record['url']}"] = attempt(lambda r=record: forge(r))
    return said


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
