"""Makes the address where a server listens: a Unix socket in its private folder, or a port with mutual TLS."""

from __future__ import annotations

import socket
from pathlib import Path

from campaign.errors import SpecError

Listening = tuple[socket.socket | None, str, list[str]]
"""A socket that holds the port until the server has it, the URL for clients, and the server's arguments."""

SOCKET_LIMIT = 107  # bytes of a Unix socket's path; Triton says "already in use" for a longer one


def on_socket(place: Path) -> Listening:
    """A Unix socket in the server's private folder.

    Raises:
        SpecError: Its path would be too long.
    """
    path = place / "t.sock"
    if len(f"{path}:0") > SOCKET_LIMIT:
        raise SpecError(f"{path} is too long for a Unix socket", remedy="set TMPDIR to a shorter folder")
    return None, f"unix:{path}:0", [f"--grpc-address=unix://{path}", "--grpc-port=0"]


def on_port(address: str | None, place: Path) -> Listening:
    """A port that is ours from now on: the socket returned holds it, and only this user's server can share it."""
    family, host = _own_address(address)
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, 0))
    except OSError as error:
        held.close()
        raise SpecError(
            f"{host} is no address of {socket.gethostname()}: {error.strerror}", key=("servers", "address")
        ) from error
    port, tls = held.getsockname()[1], place / "tls"
    shown, scheme = (f"[{host}]", "ipv6") if family == socket.AF_INET6 else (host, "ipv4")
    listen = [
        f"--grpc-address={shown}", f"--grpc-port={port}", "--reuse-grpc-port=true", "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true", f"--grpc-server-cert={tls}/cert.pem", f"--grpc-server-key={tls}/key.pem",
        f"--grpc-root-cert={tls}/ca.pem",
    ]  # fmt: skip
    return held, f"{scheme}:{shown}:{port}", listen


def _own_address(given: str | None) -> tuple[socket.AddressFamily, str]:
    """This node's address as other nodes see it: the first of its name that is not for itself alone."""
    name = given or socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SpecError(f"{name} has no address: {error}", key=("servers", "address")) from error
    found.sort(key=lambda one: (str(one[4][0]).startswith("127.") or one[4][0] == "::1", one[0] != socket.AF_INET))
    return found[0][0], str(found[0][4][0])
