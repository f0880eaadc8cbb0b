"""The credentials with which a client reaches the servers of a pool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Credentials:
    """Certificates and headers of a client. They travel with tasks in memory. They are not written to files or texts.

    Attributes:
        ca: PEM of the authority that signed the servers' certificates. Empty: no TLS.
        cert: PEM of the client's certificate. Empty: the client has none.
        key: PEM of the client's key.
        headers: Sent with every request, ``(name, value)``.
        domain: A server's certificate must be for ``NAME.domain``. Empty: for the host in its URL.
    """

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    domain: str = ""

    def __repr__(self) -> str:
        return "Secret()"

    def identity(self, name: str) -> str:
        """The name that the certificate of this server must be for. Empty: the name of its host."""
        return f"{name}.{self.domain}" if self.domain else ""
