"""Nobody is let in: another user of the machine, another campaign of the same user, a client that wants too much."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import trustme
from cryptography import x509
from tritonclient.utils import InferenceServerException

from campaign import ServerPool, ServerSpec, connect
from campaign.errors import CampaignError, ModelError, ServerError
from campaign.inference.kserve import open_client
from campaign.pool.server_kind import make_kind
from campaign.util.hashing import file_digest
from campaign.worker.job import Job, save_job
from tests.conftest import (
    PROJECT,
    change,
    command,
    hashes,
    left,
    lying_about,
    ours,
    region,
    regions_of,
    report_of,
    start,
    wait_until,
    yaml_of,
)
from tests.integration import test_slurm
from tests.integration.test_reap import dead_driver

slurm = test_slurm.slurm  # a fixture
REPOSITORY = PROJECT / "tests" / "models"
MODELS = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}
NOBODY = 65534
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root; CI is root")
X = np.arange(100, dtype=np.float32).reshape(-1, 1)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as a run directory in a shared place is."""
    path = Path(tempfile.mkdtemp(prefix="open-", dir="/tmp"))  # others may not enter the session's own directory
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def long_lived_pool() -> Iterator[dict[str, ServerPool]]:
    """Two campaigns' pools of one user behind TLS, and one on sockets."""
    before = (set(ours()), lying_about())
    with (
        ServerPool(REPOSITORY, models=MODELS, count=2, listen="tls") as tls,
        ServerPool(REPOSITORY, models=MODELS, listen="tls") as other,
        ServerPool(REPOSITORY, models=MODELS) as socket,
    ):
        pools = {"tls": tls, "other": other, "socket": socket}
        for pool in pools.values():
            pool.wait_ready()
        yield pools
    assert wait_until(lambda: not left(before), 5), left(before)


def answers(pool: ServerPool, **changes: Any) -> Any:
    """A request through a handle of its own; how its rows were answered."""
    servers = connect(dataclasses.replace(pool.address, **changes))
    try:
        assert servers.infer("slow", {"X": X})["Y"].tobytes() == X.tobytes()
        return servers.rows
    finally:
        servers.close()


def intrude(**order: Any) -> dict[str, str]:
    """What another user of this machine gets."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "intruder.py"), json.dumps({"uid": NOBODY, **order})],
        capture_output=True, text=True, timeout=120, check=False, cwd=PROJECT, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    assert said.pop("who") == f"GOT uid {NOBODY}"
    return said


def family(record: dict[str, Any]) -> list[int]:
    """A pilot, its server and what that has started."""
    server = psutil.Process(record["server_pid"])
    return [record["pid"], server.pid, *(p.pid for p in server.children(recursive=True))]


@NEEDS_ROOT
def test_what_another_user_leaves_under_our_names_stops_nothing(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ``/dev/shm`` and ``/tmp`` he may use any name: a server starts and is swept all the same; his stays his."""
    open_folder.chmod(0o1777)  # as /tmp is
    monkeypatch.setenv("TMPDIR", str(open_folder))
    evil = open_folder / "campaign-evil"
    shared = Path("/nonexistent")
    pool = ServerPool(REPOSITORY, models=MODELS, folder=tmp_path / "pool")
    try:
        with pool:
            assert wait_until(lambda: any(r["shm_prefix"] for r in pool.records()), 60)
            record = pool.records()[0]
            shared = Path("/dev/shm", f"{record['shm_prefix']}evil")
            owner = {"mark": f"{'d' * 16}@{dead_driver()}", "holder": str(dead_driver()), "leader": "", "folders": []}
            said = intrude(leave=[(str(shared), ""), (str(evil / "owner.json"), json.dumps(owner))])
            assert set(said.values()) == {f"GOT {NOBODY}"}
            before = shared.lstat()
            pool.wait_ready()
            assert answers(pool)["first"] == len(X)
        (last,) = pool.records()
        assert last["state"] == "ended"
        assert not Path(record["place"]).exists()
        assert (shared.lstat().st_mode, shared.lstat().st_uid) == (before.st_mode, NOBODY)
        assert (evil / "owner.json").exists()
    finally:
        shared.unlink(missing_ok=True)


@NEEDS_ROOT
@pytest.mark.parametrize("kind", ["socket", "tls"])
def test_another_user_gets_nothing(long_lived_pool: dict[str, ServerPool], open_folder: Path, kind: str) -> None:
    """Sockets, ports, shared memory, records, environments, memory, signals: all refused to another uid."""
    pool = long_lived_pool[kind]
    record = pool.records()[0]
    place, url, folder = Path(record["place"]), str(record["url"]), pool.folder
    assert regions_of(record)
    pids = family(record)
    save_job(Job({}, {}, pool.address, 1, 1.0), open_folder / "job.pickle")
    order: dict[str, Any] = {
        "read": [str(open_folder / "job.pickle"), *map(str, folder.iterdir()), *map(str, regions_of(record))],
        "list": [str(folder), str(place), *([str(place / "tls")] if kind == "tls" else [])],
        "write": [str(folder / "server-9.json"), str(folder / "stop"), str(place / "models" / "x")],
        "pids": pids,
        "urls": [url],
        "forge": [{**record, "name": "server-0"}],
    }
    if kind == "tls":
        ca = json.loads((folder / "pilot.json").read_text())["recipe"]["tls"]["ca"]
        order["tls"] = [(url, ""), (url, ca)]
    said = intrude(**order)
    assert len(said) > 5 * len(pids)
    assert {k: v for k, v in said.items() if not v.startswith("refused")} == {}
    assert answers(pool)["first"] == len(X)
    visible = [p.name for p in Path("/dev/shm").iterdir() if p.name.startswith(record["shm_prefix"])]
    assert visible == [], "no name of a region is to be seen in the node's /dev/shm"


@NEEDS_ROOT
def test_without_a_shared_memory_of_its_own_a_servers_regions_are_closed() -> None:
    """Where the kernel forbids the private one: regions lie in the node's, others cannot read them, and it is said."""
    with ServerPool(REPOSITORY, models=MODELS, private_shm=False) as pool:
        pool.wait_ready()
        (record,) = pool.records()
        regions = list(Path("/dev/shm").glob(f"{record['shm_prefix']}*"))
        assert regions
        assert [r for r in regions if r.stat().st_mode & 0o077] == []
        said = intrude(read=list(map(str, regions)))
        assert all(v.startswith("refused: PermissionError") for v in said.values())
        assert "node's /dev/shm" in record["warnings"][-1]
        assert answers(pool)["first"] == len(X)


def test_regions_are_closed_as_they_appear() -> None:
    """The watcher beside such a server takes others' right to read, and ends with the server."""
    from campaign.pool.sandbox import _watch

    prefix = region("").name
    pid = os.fork()
    if pid == 0:
        _watch(prefix)
        signal.pause()
    shared, foreign = region("x"), Path("/dev/shm", f"no_{prefix}")
    try:
        assert wait_until(lambda: psutil.Process(pid).children(), 10)
        (watcher,) = psutil.Process(pid).children()
        foreign.touch(0o644)

        def closed() -> bool:
            shared.unlink(missing_ok=True)
            shared.touch(0o644)
            return wait_until(lambda: shared.stat().st_mode & 0o077 == 0, 0.2)

        assert wait_until(closed, 10)
        assert foreign.stat().st_mode & 0o077
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert wait_until(lambda: not watcher.is_running() or watcher.status() == psutil.STATUS_ZOMBIE, 10)
    finally:
        shared.unlink(missing_ok=True)
        foreign.unlink(missing_ok=True)


@NEEDS_ROOT
def test_an_unprivileged_user_gets_a_shared_memory_of_his_own() -> None:
    """Without any privilege the mounts are made, stay closed to others, keep the uid, and are nobody else's to see."""
    from campaign.pool.sandbox import own_mounts

    mine = region("mine")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after exec: /proc/self is one's own again
        try:
            own_mounts(["/dev/shm"])
            mine.touch()
            found = f"{os.getuid()} {Path('/dev/shm').stat().st_mode & 0o777:o} {mine.stat().st_uid}"
        except OSError as error:
            found = str(error)
        os.write(write, found.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(pid, 0)
    assert said == f"{NOBODY} 700 {NOBODY}"
    assert not mine.exists()


@pytest.mark.parametrize("kind", ["socket", "tls"])
def test_who_is_let_in_can_infer_and_nothing_else(long_lived_pool: dict[str, ServerPool], kind: str) -> None:
    """No client loads or unloads models, registers shared memory, or reads or changes logs and traces."""
    pool = long_lived_pool[kind]
    record = next(r for r in pool.address.servers() if r["name"] == "server-0")
    client = open_client(record)
    forbidden: dict[str, Callable[[], Any]] = {
        "load": lambda: client.load_model("slow"),
        "unload": lambda: client.unload_model("slow"),
        "index": client.get_model_repository_index,
        "register": lambda: client.register_system_shared_memory("x", "/x", 8),
        "status": client.get_system_shared_memory_status,
        "unregister": client.unregister_system_shared_memory,
        "cuda": client.get_cuda_shared_memory_status,
        "logs": client.get_log_settings,
        "log": lambda: client.update_log_settings({"log_verbose_level": 9}),
        "traces": client.get_trace_settings,
        "trace": lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    }
    for ask in forbidden.values():
        with pytest.raises(InferenceServerException, match="restricted"):
            ask()
    given = grpcclient.InferInput("X", [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), np.float32))
    assert client.infer("slow", [given]).as_numpy("Y").tolist() == [[1.0]]
    client.close()


@pytest.mark.faults
def test_another_campaign_of_the_same_user_is_refused(long_lived_pool: dict[str, ServerPool]) -> None:
    """Its certificate opens nothing here; and its server under our server's name is told nothing."""
    mine, other = long_lived_pool["tls"], long_lived_pool["other"]
    assert mine.address.secret is not None
    assert other.address.secret is not None
    assert answers(mine)["first"] == len(X)
    foreign = dataclasses.replace(other.address.secret, ca=mine.address.secret.ca, domain=mine.address.secret.domain)
    for secret in (other.address.secret, foreign, dataclasses.replace(mine.address.secret, cert=b"", key=b"")):
        with pytest.raises(CampaignError):
            answers(mine, secret=secret, request_deadline_s=5, start_deadline_s=5)


def test_a_request_goes_to_the_right_server_where_a_record_leads_to_another(
    long_lived_pool: dict[str, ServerPool], tmp_path: Path
) -> None:
    """A record that leads to another campaign's server, or to another of ours, is dropped; the rows are answered."""
    mine, other = long_lived_pool["tls"], long_lived_pool["other"]
    real, second = mine.records()
    asked = other.records()[0]["statistics"]
    for slot, url in ((1, other.records()[0]["url"]), (2, second["url"])):
        forged = {**real, "name": f"server-{slot}", "slot": slot, "url": url}
        (tmp_path / f"server-{slot}.json").write_text(json.dumps(forged))
    address = dataclasses.replace(mine.address, folder=str(tmp_path), request_deadline_s=20)
    servers = connect(address)
    with pytest.raises(ServerError, match="refused, it is not the server of this record"):
        servers.infer("slow", {"X": X})
    servers.close()
    (tmp_path / "server-0.json").write_text(json.dumps(real))
    servers = connect(address)
    assert servers.infer("slow", {"X": X})["Y"].tobytes() == X.tobytes()
    assert set(servers._connections.connections) == {"server-0"}
    servers.close()
    assert other.records()[0]["statistics"] == asked


def test_a_model_that_changed_since_it_was_planned_is_not_served(tmp_path: Path) -> None:
    """One byte of a model's file, after the plan and before the server: refused where it is served, by name."""
    shutil.copytree(REPOSITORY / "slow", tmp_path / "repository" / "slow")
    (tmp_path / "weights").write_text("some")
    models = {"slow": {**MODELS["slow"], "files": {"weights": "weights"}}}
    spec = ServerSpec(model_repository="repository", models=models)
    touched = {
        "1/model.py": tmp_path / "repository" / "slow" / "1" / "model.py",
        "weights": tmp_path / "weights",
        "canary.npz": tmp_path / "repository" / "slow" / "canary.npz",
    }
    for path in touched.values():
        kind = make_kind(spec, tmp_path)
        kind.identity("slow")
        kind.prepare(lambda _text: None)
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with ServerPool(spec, base=tmp_path, kind=kind) as pool:
            with pytest.raises(ServerError, match=f"{path} has changed") as caught:
                pool.wait_ready()
            assert "model slow" in str(caught.value)
            assert pool.records()[0]["server_pid"] is None
        path.write_bytes(before)
    touched["weights"].unlink()
    with ServerPool(spec, base=tmp_path, kind=kind) as pool, pytest.raises(ServerError, match="cannot be read"):
        pool.wait_ready()


def test_a_file_too_large_to_be_copied_is_looked_at_and_linked_to(tmp_path: Path) -> None:
    """Whatever its size, a file is held against its hash; a small one is served as the copy that was looked at."""
    from campaign.servers.layout import COPIED, lay_out, tree

    folder = tmp_path / "m"
    (folder / "1" / "sub").mkdir(parents=True)
    (folder / "1" / "sub" / "small").write_text("small")
    with (folder / "1" / "large").open("wb") as stream:
        stream.truncate(COPIED + 1)
    files = {f"1/{name}": path for name, path in tree(folder / "1")}
    entries = {name: [str(path), file_digest(path)] for name, path in files.items()}
    what = {"version": 1, "config": "", "files": entries, "canary": None}
    lay_out(tmp_path / "a", "m", what, "embedded")
    assert (tmp_path / "a" / "1" / "large").is_symlink()
    assert not (tmp_path / "a" / "1" / "sub" / "small").is_symlink()
    with (folder / "1" / "large").open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(ModelError, match="large has changed"):
        lay_out(tmp_path / "b", "m", what, "embedded")


def live(campaign: Path, driver: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Records once every server is ready and has a request in flight."""

    def found() -> list[dict[str, Any]]:
        made = [json.loads(p.read_text()) for p in (campaign / "r" / "servers").glob("server-*.json")]
        return [r for r in made if r["state"] == "ready" and (campaign / "in-flight" / str(r["server_pid"])).exists()]

    assert wait_until(found, 60), driver.communicate(timeout=60)
    return found()


@pytest.fixture
def behind_tls(small: Path) -> Path:
    """The small campaign behind TLS, with a model that takes its time."""
    (small / "in-flight").mkdir()
    model = {"batch": 256, "parameters": {"delay_s": 0.05, "mark": str(small / "in-flight")}}
    servers = yaml_of(small)["servers"] | {"listen": "tls", "models": {"slow": model}}
    stages = yaml_of(small)["stages"]
    stages["predict"]["model"] = "slow"
    change(small, servers=servers, stages=stages, variations={})
    return small


def spoken(pids: set[int]) -> bytes:
    """Command lines and environments of processes."""
    return b"".join(Path(f"/proc/{p}/{name}").read_bytes() for p in pids for name in ("cmdline", "environ"))


def written(folder: Path) -> bytes:
    """Every byte of every file below a folder."""
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


KEY = b"PRIVATE KEY"


@pytest.mark.faults
def test_a_campaign_behind_tls_gives_the_same_and_writes_no_secret(behind_tls: Path) -> None:
    """The outputs' hashes are those over a socket; no key stands in a file, a command line, an environment, a log."""
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=behind_tls)
    (record,) = live(behind_tls, driver)
    assert record["url"].startswith("ipv4:")
    pids = {driver.pid, *ours()} - {os.getpid()}
    assert record["server_pid"] in pids
    assert KEY not in spoken(pids)
    assert b"grpc-server-key" in spoken(pids), "the server's command line was looked at"
    assert (behind_tls / "r" / "job.pickle").exists()
    assert KEY not in written(behind_tls / "r")
    assert KEY not in written(Path(record["place"])), "the server's key lies where the server alone can see it"
    assert KEY in (Path(f"/proc/{record['server_pid']}/root{record['place']}") / "tls" / "key.pem").read_bytes()
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    assert KEY not in written(behind_tls / "r") + output.encode()
    done = command("run", "c.yaml", "--run-dir", "s", "--set", "servers.listen=socket", cwd=behind_tls)
    assert done.returncode == 0, done.stderr
    assert hashes(behind_tls / "r") == hashes(behind_tls / "s")


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["server", "pilot", "driver"])
def test_nothing_of_a_campaign_behind_tls_is_left(behind_tls: Path, victim: str) -> None:
    """SIGKILL: no process, no region, no folder, no port, and with them no key; a server that is lost is replaced."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--set", "servers.lease_s=3", cwd=behind_tls)
    (record,) = live(behind_tls, driver)
    port = int(record["url"].rsplit(":", 1)[1])
    os.kill({"server": record["server_pid"], "pilot": record["pid"], "driver": driver.pid}[victim], signal.SIGKILL)
    output, _ = driver.communicate(timeout=120)
    if victim != "driver":
        assert driver.returncode == 0, output
        later = report_of(behind_tls / "r")["servers"]
        assert [s["name"] for s in later] == ["server-0", "server-0.1"], "replaced, with a certificate of its own"

    def gone() -> bool:
        used = any(c.laddr and c.laddr.port == port for c in psutil.net_connections("tcp") if c.status == "LISTEN")
        return not used and not Path(record["place"]).exists() and not set(ours()) & {record["server_pid"]}

    assert wait_until(gone, 15)
    assert KEY not in written(behind_tls / "r")


@pytest.mark.faults
def test_through_parsl_too_and_a_header_stands_nowhere(long_lived_pool: dict[str, ServerPool], small: Path) -> None:
    """Parsl's own channel is closed to others; a secret header of attached servers stands in no file."""
    record = long_lived_pool["socket"].records()[0]
    servers = {
        "kind": "attach", "urls": [record["url"]], "models": {"slow": {"batch": 256}},
        "headers": {"x-pool": "$POOL_TOKEN"},
    }  # fmt: skip
    stages = yaml_of(small)["stages"]
    stages["predict"]["model"] = "slow"
    change(small, servers=servers, stages=stages, provider="parsl", variations={})
    os.environ["POOL_TOKEN"] = "a-word-told-to-nobody"
    try:
        done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    finally:
        del os.environ["POOL_TOKEN"]
    assert done.returncode == 0, done.stderr
    assert b"a-word-told-to-nobody" not in written(small / "r")
    assert re.search(rb"--cert_dir \S+/certificates ", written(small / "r" / "logs"))
    assert not list((small / "r").rglob("*.key_secret")), "nobody has a use for them any more"


@pytest.mark.faults
def test_a_squatter_is_told_nothing_and_named_in_the_report(behind_tls: Path) -> None:
    """A record that leads to somebody's own gRPC server: not one request reaches it, the outputs are whole."""
    ca, seen = trustme.CA(), []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            seen.append(details.method)

    cert = ca.issue_cert("server-9.campaign")
    credentials = grpc.ssl_server_credentials([(cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes())])
    squatter = grpc.server(ThreadPoolExecutor(1))
    squatter.add_generic_rpc_handlers((Handler(),))
    port = squatter.add_secure_port("127.0.0.1:0", credentials)
    squatter.start()
    try:
        slower = "servers.models.slow.parameters.delay_s=0.3"  # so that clients look again while it runs
        driver = start(
            "run", "c.yaml", "--run-dir", "r", "--set", "servers.lease_s=600", "--set", slower, cwd=behind_tls
        )
        (record,) = live(behind_tls, driver)
        forged = {**record, "name": "server-9", "slot": 9, "heir": False, "url": f"ipv4:127.0.0.1:{port}"}
        aside = behind_tls / "r" / "servers" / ".aside"
        aside.write_text(json.dumps(forged))
        aside.rename(aside.with_name("server-9.json"))
        output, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, output
    finally:
        squatter.stop(0).wait()
    assert seen == []
    warnings = report_of(behind_tls / "r")["warnings"]
    assert any(w.startswith("server-9: refused, it is not the server of this record") for w in warnings)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("sole_reaper")
def test_between_jobs_of_a_scheduler_it_is_tls_by_itself(slurm: None, small: Path) -> None:
    """Servers and tasks as jobs of a real Slurm: behind TLS unasked, certificates to the walltime, the same outputs."""
    provider = {
        "class": "SlurmProvider", "nodes_per_block": 1, "init_blocks": 0, "max_blocks": 1, "exclusive": False,
        "walltime": "00:10:00", "cmd_timeout": 30, "scheduler_options": "#SBATCH --no-requeue",
        "launcher": {"class": "SingleNodeLauncher"},
    }  # fmt: skip
    change(small, variations={})
    here = command("run", "c.yaml", "--run-dir", "here", cwd=small)
    assert here.returncode == 0, here.stderr
    change(small, provider={"kind": "parsl", "provider": provider, "address": "127.0.0.1"})
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=small)
    path = small / "r" / "servers" / "server-0.json"
    assert wait_until(lambda: path.exists() and json.loads(path.read_text())["state"] == "ready", 120)
    record = json.loads(path.read_text())
    cert = x509.load_pem_x509_certificate((small / "r" / "servers" / "server-0.crt").read_bytes())
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    assert record["url"].startswith("ipv4:")
    assert 600 < (cert.not_valid_after_utc - cert.not_valid_before_utc).total_seconds() < 1800
    assert hashes(small / "r") == hashes(small / "here")
    assert KEY not in written(small / "r")
    # A scheduler may kill a block of workers with its server watchdog: what it leaves is for `reap`.
    assert command("reap", cwd=small).returncode == 0
