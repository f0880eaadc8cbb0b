"""Who is let in, and who is believed: certificates, records, folders, and where secrets may stand."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tritonclient.utils import InferenceServerException

from campaign.discovery.address import Endpoint, PoolAddress
from campaign.discovery.credentials import Credentials
from campaign.driver.check import check
from campaign.errors import PartialError, ServerError, SpecError
from campaign.inference.codec import open_channel, outcome
from campaign.inference.connections import ConnectionPool
from campaign.inference.kserve import identity_refused, permanent
from campaign.pool import sandbox
from campaign.pool.certificates import LATE_S, PILOT, CampaignCA, CertificateClient, CertificateIssuer, _new_key, _pem
from campaign.servers.attach import Attach
from campaign.spec.models import ServerSpec
from campaign.spec.yaml_file import load
from campaign.util.ownership import door, make_private, unfit
from campaign.worker.job import Job, save_job

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user; CI is root")
PAST = -LATE_S - 60.0  # seconds of validity that are over


class Squatter(grpc.GenericRpcHandler):
    """Takes any request and counts it."""

    def __init__(self) -> None:
        self.requests = 0

    def service(self, _details: Any) -> Any:
        self.requests += 1
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


@dataclasses.dataclass
class Listening:
    """A real gRPC server."""

    url: str
    handler: Squatter


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start gRPC servers, with credentials or without."""
    running = []

    def start(credentials: Any = None, address: str = "127.0.0.1:0") -> Listening:
        handler, server = Squatter(), grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((handler,))
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        running.append(server)
        return Listening(address if address.startswith("unix:") else f"ipv4:127.0.0.1:{port}", handler)

    yield start
    for server in running:
        server.stop(0).wait()


def identity(ca: CampaignCA, name: str, valid_s: float = 3600.0) -> Any:
    """What a server of a campaign shows, demanding the same campaign's certificates of clients."""
    key = _new_key()
    cert = ca.sign(key.public_key(), name, server=True, valid_s=valid_s)
    return grpc.ssl_server_credentials([(_pem(key), cert)], root_certificates=ca.cert, require_client_auth=True)


def call(listening: Listening, secret: Credentials | None, name: str = "server-0") -> InferenceServerException | None:
    """One request by our own channel, as to the server of that name; what came of it."""
    channel = open_channel(Endpoint(name, listening.url, secret))
    try:
        pending = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(b"data", timeout=20)
        answer, error = outcome(pending)
        assert (error is None) is (answer == b"data")
        return error
    finally:
        channel.close()


@pytest.fixture(scope="module")
def ours() -> CampaignCA:
    """This campaign's authority."""
    return CampaignCA(3600)


@pytest.fixture(scope="module")
def theirs() -> CampaignCA:
    """Another campaign's."""
    return CampaignCA(3600)


def test_a_certificate_is_for_one_name_one_use_and_a_time(ours: CampaignCA) -> None:
    """A server's names that server of this campaign alone and cannot be a client's; none outlives the authority."""
    key = _new_key().public_key()
    server = x509.load_pem_x509_certificate(ours.sign(key, "server-0.1", server=True, valid_s=10))
    client = x509.load_pem_x509_certificate(ours.client(valid_s=10).cert)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"server-0.1.{ours.domain}"]
    uses = [list(c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for c in (server, client)]
    assert uses == [[ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH]]
    long = x509.load_pem_x509_certificate(ours.sign(key, "server-0", server=True, valid_s=1e9))
    authority = x509.load_pem_x509_certificate(ours.cert)
    assert long.not_valid_after_utc == authority.not_valid_after_utc
    assert (server.not_valid_after_utc - server.not_valid_before_utc).total_seconds() < 1000
    assert ours.domain != CampaignCA(1).domain


def test_secrets_do_not_travel_by_chance_and_show_nothing(ours: CampaignCA) -> None:
    """The authority refuses to be pickled; a secret's text, alone or in what carries it, holds nothing of it."""
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(ours)
    secret = dataclasses.replace(ours.client(), headers=(("token", "sesame"),))
    address = PoolAddress("/nowhere", {}, secret=secret)
    for shown in (repr(secret), str(secret), repr(address), f"{address}"):
        assert not any(word in shown for word in ("KEY", "CERTIFICATE", "sesame"))
    assert pickle.loads(pickle.dumps(address)).secret == secret


def test_our_server_lets_our_clients_in(ours: CampaignCA, serve: Any) -> None:
    """Client and server of one campaign, by the name of the record: answered."""
    listening = serve(identity(ours, "server-0"))
    assert call(listening, ours.client()) is None
    assert listening.handler.requests == 1


@pytest.mark.parametrize("who", ["no certificate", "no TLS", "another campaign's", "expired", "a server's"])
def test_nobody_else_is_let_in(ours: CampaignCA, theirs: CampaignCA, serve: Any, who: str) -> None:
    """Without a certificate, with a foreign or expired one, or with a server's: refused, and no request is seen."""
    listening = serve(identity(ours, "server-0"))
    right, key = ours.client(), _new_key()
    as_server = ours.sign(key.public_key(), "server-1", server=True, valid_s=100)
    given = {
        "no certificate": dataclasses.replace(right, cert=b"", key=b""),
        "no TLS": None,
        "another campaign's": dataclasses.replace(theirs.client(), ca=right.ca, domain=right.domain),
        "expired": ours.client(valid_s=PAST),
        "a server's": dataclasses.replace(right, cert=as_server, key=_pem(key)),
    }[who]
    error = call(listening, given)
    assert error is not None
    assert "UNAVAILABLE" in str(error.status())
    assert listening.handler.requests == 0
    assert call(listening, right) is None


@pytest.mark.parametrize("who", ["another campaign's server", "another server of ours", "expired", "no TLS"])
def test_whoever_else_listens_is_told_nothing(ours: CampaignCA, theirs: CampaignCA, serve: Any, who: str) -> None:
    """A squatter on the port, another campaign's server, or another of ours: refused before anything is sent.

    The error is one of identity: that server is not asked again, and others may be.
    """
    listening = serve(
        {
            "another campaign's server": identity(theirs, "server-0"),
            "another server of ours": identity(ours, "server-1"),
            "expired": identity(ours, "server-0", valid_s=PAST),
            "no TLS": None,
        }[who]
    )
    error = call(listening, ours.client())
    assert error is not None
    assert identity_refused(error, ours.client()), error
    assert not permanent(error)
    assert listening.handler.requests == 0


def test_a_server_that_died_is_no_stranger(ours: CampaignCA) -> None:
    """Nobody on the port is no refusal: the server may come back."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    error = call(Listening(f"ipv4:127.0.0.1:{port}", Squatter()), ours.client())
    assert error is not None
    assert not identity_refused(error)


def test_the_driver_answers_requests_of_its_pools_servers_only(tmp_path: Path) -> None:
    """A server's request and its pilot's are answered, each for its use; others, and forged ones, are removed."""
    folder = tmp_path / "servers"
    assert not make_private(folder)
    gate = CertificateIssuer(folder, 3600, 600)
    asked = {name: CertificateClient(folder, name) for name in ("server-0", "server-0.2", "server-0" + PILOT, "other")}
    for one in asked.values():
        one.ask()
    text = bytearray((folder / "server-0.csr").read_bytes())
    at = text.index(b"\n") + 80
    text[at] = ord("B") if text[at] == ord("A") else ord("A")
    (folder / "server-7.csr").write_bytes(bytes(text))
    assert gate.look() == 3
    assert not list(folder.glob("*.csr"))
    assert asked["other"].answer() is None
    assert not (folder / "server-7.crt").exists()
    uses = {}
    for name in ("server-0", "server-0.2", "server-0" + PILOT):
        found = asked[name].answer()
        assert found is not None
        uses[name] = x509.load_pem_x509_certificate(found[0]).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert [next(iter(u.value)) == ExtendedKeyUsageOID.CLIENT_AUTH for u in uses.values()] == [False, False, True]
    assert "PRIVATE" not in "".join(p.read_text() for p in folder.iterdir()), "no key lies on the disk"


def test_a_gate_that_is_stopped_answers_nobody(tmp_path: Path) -> None:
    """Its thread ends; until then requests are answered as they come."""
    gate = CertificateIssuer(tmp_path, 3600, 600)
    before = threading.active_count()
    gate.start()
    asked = CertificateClient(tmp_path, "server-3")
    asked.ask()
    while asked.answer() is None:
        assert gate._thread.is_alive()
    gate.stop()
    assert threading.active_count() == before


def test_a_socket_is_reached_through_the_folder_that_was_looked_at(tmp_path: Path, serve: Any) -> None:
    """Somebody who makes a folder and a socket of that name anew is not found by a channel that was open before."""
    folder = tmp_path / "campaign-x"
    folder.mkdir(mode=0o700)
    url = f"unix:{folder}/t.sock:0"
    first = serve(address=url)
    channel = open_channel(Endpoint("server-0", url, in_private_dir=True))
    ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    assert ask(b"data", timeout=20) == b"data"
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    second = serve(address=url)
    first.handler.requests = 0
    with open_channel(Endpoint("server-0", url, in_private_dir=True)) as fresh:
        assert fresh.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"new", timeout=20) == b"new"
    path = Path(door(url)[0].removeprefix("unix:"))
    assert path.exists()
    channel.close()
    assert (first.handler.requests, second.handler.requests) == (0, 1)


@pytest.mark.parametrize(
    "how",
    [
        "writable by others",
        "absent",
        pytest.param("another user's", marks=NEEDS_ROOT),
        pytest.param("a link to another user's", marks=NEEDS_ROOT),
    ],
)
def test_a_folder_that_is_not_ours_alone_leads_nowhere(tmp_path: Path, serve: Any, how: str) -> None:
    """Nothing is sent to a socket in a folder that others own or may write to."""
    folder = tmp_path / "campaign-x"
    folder.mkdir(mode=0o700)
    listening = serve(address=f"unix:{folder}/t.sock:0")
    url = listening.url
    if how == "writable by others":
        folder.chmod(0o777)
    elif how == "absent":
        url = f"unix:{tmp_path}/none/t.sock:0"
    else:
        os.chown(folder, 65534, 65534)
        (tmp_path / "link").symlink_to(folder)
        url = url.replace("campaign-x", "link") if how.startswith("a link") else url
    with open_channel(Endpoint("server-0", url, in_private_dir=True)) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"data", timeout=20)
    assert listening.handler.requests == 0


def record(folder: Path, **changes: Any) -> Path:
    """A record as a pilot writes it."""
    place = folder / "place"
    place.mkdir(exist_ok=True, mode=0o700)
    path = folder / "server-0.json"
    usual = {"name": "server-0", "state": "ready", "url": f"unix:{place}/t.sock:0", "host": socket.gethostname()}
    path.write_text(json.dumps(usual | changes))
    return path


def refusal(folder: Path, secret: Credentials | None = None) -> str:
    """Why the folder's only record is not believed; empty where it is."""
    (found,) = PoolAddress(str(folder), {}, secret=secret).servers()
    assert found.state in ("ready", "ended")
    return "" if found.state == "ready" else found.reason


def test_a_pilots_record_is_believed(tmp_path: Path, ours: CampaignCA) -> None:
    """What a pilot of this user says, in a folder of his own, leads to a channel."""
    record(tmp_path)
    assert refusal(tmp_path) == ""
    record(tmp_path, url="ipv4:127.0.0.1:1")
    assert refusal(tmp_path, ours.client()) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "ipv4:10.0.0.1:8001"}, "is no Unix socket"),
        ({"url": "elsewhere:8001"}, "is no Unix socket"),
        ({"url": "unix:/tmp/t.sock:0"}, "others may write to /tmp"),
        ({"url": 5}, "it is no record"),
        ({"name": "server-1"}, "it says that it is 'server-1'"),
        ({"state": None}, "it is no record"),
    ],
)
def test_a_record_that_leads_elsewhere_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """A pool on one node has sockets in folders of its own, and nothing else."""
    record(tmp_path, **changes)
    assert said in refusal(tmp_path)


def test_a_record_of_a_pool_behind_tls_leads_to_a_port(tmp_path: Path, ours: CampaignCA) -> None:
    """There a Unix socket, or a name that a resolver would have to be asked for, is refused."""
    for url in ("unix:/tmp/t.sock:0", "dns:elsewhere:1", "elsewhere:1"):
        record(tmp_path, url=url)
        assert "cannot be reached through TLS" in refusal(tmp_path, ours.client())


def test_what_a_record_says_of_secrets_is_passed_over(tmp_path: Path) -> None:
    """Certificates and headers come with the address, never from a file."""
    record(tmp_path, headers={"token": "x"}, secret="x", own=False)
    address = PoolAddress(str(tmp_path), {})
    (found,) = address.servers()
    assert address.endpoint(found) == Endpoint("server-0", found.url, None, in_private_dir=True)


@NEEDS_ROOT
@pytest.mark.parametrize("forged", ["file", "link", "folder", "place"])
def test_what_another_user_has_written_is_refused(tmp_path: Path, forged: str) -> None:
    """A record, the folder it lies in, or the socket's folder that belongs to another uid: nobody is asked."""
    path = record(tmp_path)
    if forged == "file":
        os.chown(path, 65534, 65534)
    elif forged == "link":
        path.rename(tmp_path / "real")
        path.symlink_to(tmp_path / "real")
        (found,) = [*PoolAddress(str(tmp_path), {}).servers(), None]
        assert found is None, "a link is not followed"
        return
    else:
        os.chown(tmp_path if forged == "folder" else tmp_path / "place", 65534, 65534)
    assert "belongs to uid 65534" in refusal(tmp_path)
    roster = ConnectionPool(PoolAddress(str(tmp_path), {}, start_deadline_s=0.1))
    with pytest.raises(ServerError, match="its record was refused"):
        roster.wait()
    roster.close()


def test_a_pool_whose_servers_were_refused_is_not_late(tmp_path: Path) -> None:
    """Who listened was not the server of its record: nobody was waited for, and the error does not say so."""
    record(tmp_path)
    roster = ConnectionPool(PoolAddress(str(tmp_path), {}))
    roster.refuse(roster.wait(), "another name")
    with pytest.raises(ServerError, match=r"pool: no server is left .server-0: refused, .*: another name"):
        roster.wait()
    roster.close()


def test_a_pools_folder_is_closed_or_refused(tmp_path: Path) -> None:
    """One that others may read is closed; one that they may have written to cannot be a pool's."""
    folder = tmp_path / "servers"
    assert make_private(folder) == ""
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert make_private(folder) == ""
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert "others may write" in make_private(folder)
    (tmp_path / "file").touch()
    assert "is no folder" in unfit(tmp_path / "file")


def test_a_job_on_disk_holds_no_secret_and_is_the_drivers(tmp_path: Path, ours: CampaignCA) -> None:
    """Certificates and headers travel beside the job; a job that is not what the driver has written is not loaded."""
    secret = dataclasses.replace(ours.client(), headers=(("token", "sesame"),))
    job = Job({}, {}, PoolAddress("/nowhere", {"m": 1}, secret=secret), 7, 1.0)
    path = tmp_path / "job.pickle"
    ticket = save_job(job, path)
    data = path.read_bytes()
    assert not any(word in data for word in (b"KEY", b"CERTIFICATE", b"sesame"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "sesame" not in repr(ticket)
    arrived = pickle.loads(pickle.dumps(ticket))
    assert arrived.job() == job
    assert arrived.job().servers.secret == secret
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(PartialError, match="not what this run's driver has written"):
        arrived.job()


def test_secrets_of_attached_servers_are_in_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header named by its variable and the PEM files' content go into the secret, read once by the driver."""
    monkeypatch.setenv("POOL_TOKEN", "sesame")
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(f"{name} text")
    given = {"urls": "host:1", "headers": {"h": "$POOL_TOKEN"}, "tls": {n: n for n in ("ca", "cert", "key")}}
    kind = Attach(ServerSpec(kind="attach", models=["m"], **given), tmp_path)
    assert "sesame" not in json.dumps(kind.addresses())
    assert " text" not in json.dumps(kind.addresses())
    assert kind.secret() == Credentials(b"ca text", b"cert text", b"key text", (("h", "sesame"),))
    assert Attach(ServerSpec(kind="attach", models=["m"], urls="host:1"), tmp_path).secret() is None


def test_a_header_with_a_line_break_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out, or come from the environment, or no text at all: the key is named, the value is not."""
    data = {"campaign": "x", "datasets": {"d": {"files": "*.root", "tree": "t"}}, "stages": {"s": {"use": "s.py:s"}}}
    monkeypatch.setenv("POOL_TOKEN", "Bearer sesame\n")
    (tmp_path / "s.py").write_text("def s(batch, ctx):\n    return {}\n")
    (tmp_path / "d.root").touch()
    for value in ("Bearer sesame\n", "$POOL_TOKEN", ["Bearer sesame"]):
        attach = {"kind": "attach", "urls": ["h:1"], "models": ["m"], "headers": {"authorization": value}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**data, "servers": attach}))
        with pytest.raises(SpecError) as refused:
            check(load(tmp_path / "c.yaml"))
        assert "servers.headers" in str(refused.value)
        assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", id="a balancer without servers"),
        pytest.param(bytes([21, 3, 3, 0, 2, 2, 80]), id="alert internal_error"),
    ],
)
def test_a_handshake_that_fails_refuses_only_servers_of_ours(ours: CampaignCA, said: bytes) -> None:
    """Behind a name that somebody else looks after, what is no certificate's fault may pass: it is asked again."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    channel, _ = listening.accept()
                    with channel:
                        channel.recv(9000)
                        channel.sendall(said)
                        channel.recv(9000)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        mine = ours.client()
        url = f"ipv4:127.0.0.1:{listening.getsockname()[1]}"
        error = call(Listening(url, Squatter()), mine)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert error is not None
    assert "handshake failed" in str(error).lower()
    assert identity_refused(error, mine)
    assert not identity_refused(error, dataclasses.replace(mine, domain=""))
    assert not permanent(error)


@pytest.mark.parametrize("ca", ["", "a certificate"])
def test_a_key_that_lies_on_the_node_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ca: str) -> None:
    """Where the kernel refuses a place of one's own, whoever starts the server learns it: of a key, if there is one."""

    def refuse(_places: list[str]) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(sandbox, "own_mounts", refuse)
    monkeypatch.setattr(sandbox, "_watch", lambda _prefix: None)
    places = ["/dev/shm", *([str(tmp_path / "tls")] if ca else [])]
    sandbox._enclose({"shm": "auto", "prefix": "p", "place": str(tmp_path), "ca": ca}, places)
    assert sandbox.unmounted(tmp_path) is bool(ca)
