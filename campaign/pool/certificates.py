"""Certificates of one campaign: the driver's certificate authority, and the certificates that it signs.

Only the driver has the authority's key, and the key is never written to a file. A server makes its own key on its node.
It asks for a certificate through a file in the pool's folder, where only this user can write. The certificate is valid
for one name: the name in the server's record, in this campaign. No other server and no other program on the same port
can show it.
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

PILOT = ".pilot"  # after a server's name: the certificate with which its pilot asks the server, as clients do
_REQUEST = re.compile(r"(server-\d{1,9}(?:\.\d{1,9})?)(\.pilot)?")
EARLY_S, LATE_S = 300, 600  # clocks of nodes differ; and requests that began in time may end
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
    """The certificate authority of one campaign. Its key exists only in this object.

    Args:
        valid_s: How long the authority and the certificates of clients are valid.

    Attributes:
        domain: Random text. The names in the certificates of this campaign's servers end with it.
        cert: Certificate of the authority, PEM. It is no secret.
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
        """Sign a certificate (PEM) for one server or one client. It is valid for no other purpose.

        Args:
            key: The public key.
            name: Name of the server in its record, or a name of the client.
            server: True for a server, False for a client.
            valid_s: How long the certificate is valid; never longer than the authority itself.
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
        """Sign a request (PEM). Only the key is taken from the request; its names and extensions are ignored.

        Raises:
            ValueError: This is no request, or it is not signed by its own key.
        """
        from cryptography import x509

        asked = x509.load_pem_x509_csr(request)
        if not asked.is_signature_valid:
            raise ValueError("the request is not signed by its own key")
        return self.sign(asked.public_key(), name, server=server, valid_s=valid_s)

    def client(self, name: str = "client", valid_s: float = float(10**9)) -> Credentials:
        """Make the key and the certificate of a client, in memory."""
        key = _new_key()
        cert = self.sign(key.public_key(), name, server=False, valid_s=valid_s)
        return Credentials(ca=self.cert, cert=cert, key=_pem(key), domain=self.domain)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class CertificateClient:
    """Asks the driver for a certificate, through the pool's folder. The key stays in this process.

    Args:
        folder: The pool's folder.
        name: Name of the server. For the certificate of its pilot: this name and `PILOT`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._dir, self.name = PoolDir(folder), name
        self._key = _new_key()

    def ask(self) -> None:
        """Write the request."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        made = x509.CertificateSigningRequestBuilder().subject_name(_subject(self.name))
        text = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with write_aside(self._dir.certificate_request(self.name)) as stream:
            stream.write(text)

    def answer(self) -> tuple[bytes, bytes] | None:
        """Certificate and key, PEM. None until the driver has answered."""
        try:
            return read_own(self._dir.certificate(self.name)), _pem(self._key)
        except FileNotFoundError:
            return None


class CertificateIssuer:
    """The driver's side: the certificate authority, and a thread that answers the requests of this pool's servers.

    Args:
        folder: The pool's folder. Only this user may enter it.
        valid_s: How long the clients' certificates are valid.
        server_s: How long a server's certificate is valid after its request: the walltime of its job.
    """

    def __init__(self, folder: Path, valid_s: float, server_s: float) -> None:
        self._dir, self._server_s = PoolDir(folder), server_s
        self._ca = CampaignCA(valid_s)
        self.secret = self._ca.client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="campaign-gate", daemon=True)

    @property
    def recipe(self) -> dict[str, str]:
        """Values that pilots need for their requests. They are no secret."""
        return {"folder": str(self._dir.root), "ca": self._ca.cert.decode(), "domain": self._ca.domain}

    def start(self) -> None:
        """Start to answer requests."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering requests."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        pause = LOOK_S
        while not self._over.wait(pause):
            pause = LOOK_S if self.look() else min(IDLE_S, 1.2 * pause)

    def look(self) -> int:
        """Answer all requests in the folder once. Returns the number of answers."""
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
            except OSError:  # another user's file, or a full disk: the server that waits reports it at its deadline
                continue
        return answered
