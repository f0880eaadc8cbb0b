"""The credentials with which a client reaches the servers of a pool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Credentials:
    """What lets a client in. It travels with tasks, in memory only: never written down, and it shows nothing of itself.

    Attributes:
        ca: PEM of the authority that signed the servers; empty: no TLS.
        cert: PEM of the client's certificate; empty: the client has none.
        key: PEM of its key.
        headers: Sent with every request, ``(name, value)``.
        domain: A server's certificate must be for ``NAME.domain``; empty: for the host in its URL.
    """

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    domain: str = ""

    def __repr__(self) -> str:
        return "Secret()"

    def identity(self, name: str) -> str:
        """The name that the certificate of the server called ``name`` must be for; empty: the host's."""
        return f"{name}.{self.domain}" if self.domain else ""
