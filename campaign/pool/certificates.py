"""Certificates of one campaign: the driver's authority in memory, and the certificates it signs.

Nobody but the driver has the authority's key, and it is written nowhere. A server makes its key where it runs and asks
for a certificate through a file in the pool's folder, into which only this user can write. The certificate is for one
name, that of the server's record in this campaign: no other server, and nobody on its port, can show it.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from campaign.discovery.credentials import Credentials
from campaign.discovery.pooldir import PoolDir
from campaign.util.files import write_aside
from campaign.util.ownership import read_own

PILOT = ".pilot"  # behind a server's name: the certificate of the pilot, which asks that server as clients do
_REQUEST = re.compile(r"(server-\d{1,9}(?:\.\d{1,9})?)(\.pilot)?")
EARLY_S, LATE_S = 300, 600  # clocks differ between nodes; and what began in time may end
LOOK_S, IDLE_S = 0.05, 1.0  # between two looks for requests: after one came, and after a while without any


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    made: bytes = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    return made


def _subject(name: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name[:64])])


class CampaignCA:
    """The authority of one campaign. Its key lives as long as this object, and nowhere else.

    Args:
        valid_s: How long it, and the clients it lets in, are good for.

    Attributes:
        domain: Random; what the names of this campaign's servers end with.
        cert: Its certificate, PEM. No secret.
    """

    def __init__(self, valid_s: float) -> None:
        from cryptography import x509

        self._key = _new_key()
        self.domain = f"{secrets.token_hex(8)}.campaign"
        self._until = _now() + dt.timedelta(seconds=valid_s + LATE_S)
        self._name = _subject(self.domain)
        made = self._certificate(self._name, self._key.public_key(), self._until)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "encipher_only", "decipher_only"), False)  # fmt: skip
        made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        self.cert = self._signed(made)

    def __reduce__(self) -> Any:
        raise TypeError("the authority's key does not travel")

    def _certificate(self, subject: Any, key: Any, until: dt.datetime) -> Any:
        from cryptography import x509

        own = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - dt.timedelta(seconds=EARLY_S))
            .not_valid_after(min(until, self._until))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )

    def _signed(self, made: Any) -> bytes:
        from cryptography.hazmat.primitives import hashes, serialization

        done: bytes = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return done

    def sign(self, key: Any, name: str, *, server: bool, valid_s: float) -> bytes:
        """A certificate, PEM, for the server called ``name``, or for a client, and good for nothing else.

        Args:
            key: The public key.
            name: The server's name in its record; what a client calls itself.
            server: Whose it is.
            valid_s: For how long from now; never longer than the authority itself.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        full = f"{name}.{self.domain}"
        made = self._certificate(_subject(full), key, _now() + dt.timedelta(seconds=valid_s + LATE_S))
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        return self._signed(made.add_extension(x509.SubjectAlternativeName([x509.DNSName(full)]), critical=False))

    def answer(self, request: bytes, name: str, *, server: bool, valid_s: float) -> bytes:
        """Sign a request (PEM). What it says of itself is passed over: only its key is taken.

        Raises:
            ValueError: It is no request, or whoever made it does not have its key.
        """
        from cryptography import x509

        asked = x509.load_pem_x509_csr(request)
        if not asked.is_signature_valid:
            raise ValueError("the request is not signed by its own key")
        return self.sign(asked.public_key(), name, server=server, valid_s=valid_s)

    def client(self, name: str = "client", valid_s: float = float(10**9)) -> Credentials:
        """A client that is let in, made here in memory."""
        key = _new_key()
        cert = self.sign(key.public_key(), name, server=False, valid_s=valid_s)
        return Credentials(ca=self.cert, cert=cert, key=_pem(key), domain=self.domain)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class CertificateClient:
    """Asks the driver for a certificate, through the pool's folder. Its key stays in this process.

    Args:
        folder: The pool's folder.
        name: Of the server, or of its pilot (the server's and `PILOT`).
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._dir, self.name = PoolDir(folder), name
        self._key = _new_key()

    def ask(self) -> None:
        """Leave the request."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        made = x509.CertificateSigningRequestBuilder().subject_name(_subject(self.name))
        text = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with write_aside(self._dir.certificate_request(self.name)) as stream:
            stream.write(text)

    def answer(self) -> tuple[bytes, bytes] | None:
        """Certificate and key, PEM; None until the driver has answered."""
        try:
            return read_own(self._dir.certificate(self.name)), _pem(self._key)
        except FileNotFoundError:
            return None


class CertificateIssuer:
    """The driver's side: the authority, and a thread that answers the requests of this pool's servers.

    Args:
        folder: The pool's folder; only this user may enter it.
        valid_s: How long clients are let in.
        server_s: How long a server's certificate is good for, from when it asks: its walltime.
    """

    def __init__(self, folder: Path, valid_s: float, server_s: float) -> None:
        self._dir, self._server_s = PoolDir(folder), server_s
        self._ca = CampaignCA(valid_s)
        self.secret = self._ca.client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="campaign-gate", daemon=True)

    @property
    def recipe(self) -> dict[str, str]:
        """What pilots must know; no secret."""
        return {"folder": str(self._dir.root), "ca": self._ca.cert.decode(), "domain": self._ca.domain}

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        pause = LOOK_S
        while not self._over.wait(pause):
            pause = LOOK_S if self.look() else min(IDLE_S, 1.2 * pause)

    def look(self) -> int:
        """Answer the requests that are there; how many there were."""
        answered = 0
        for path in self._dir.certificate_requests():
            known = _REQUEST.fullmatch(path.stem)
            try:
                if known:
                    cert = self._ca.answer(read_own(path), path.stem, server=known[2] is None, valid_s=self._server_s)
                    with write_aside(self._dir.certificate(path.stem)) as stream:
                        stream.write(cert)
                    answered += 1
                path.unlink(missing_ok=True)
            except ValueError:  # no request
                path.unlink(missing_ok=True)
            except OSError:  # somebody else's, or a full disk: whoever needs it says so by its deadline
                continue
        return answered
