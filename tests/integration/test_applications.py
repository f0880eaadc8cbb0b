"""Real models with known answers through the pool, several applications at once, and backends of one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import uproot
import yaml

from campaign import ServerPool, connect
from campaign.inference.client import Servers
from campaign.spec.models import ServerSpec
from campaign.supervision.cleanup import sweep
from campaign.supervision.env_folders import env_folders, made_by
from tests.conftest import PROJECT, change, command, left, lying_about, ours, report_of, wait_until

MODELS = PROJECT / "model_repository"


def trained_gnn(shared_data: Path, folder: Path) -> dict[str, Any]:
    """The track GNN with trained weights, named by the campaign, and the known answer that goes with them."""
    weights, canary = shared_data / "exatrkx" / "gnn_weights.npz", folder / "canary.npz"
    make = MODELS / "track_gnn" / "make_canary.py"
    subprocess.run([sys.executable, str(make), str(weights), str(canary)], check=True, capture_output=True)
    return {"files": {"weights.npz": str(weights)}, "canary": str(canary)}


@pytest.fixture(scope="module")
def long_lived_pool(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """Two servers, each with the tagger and the trained track GNN."""
    before = (set(ours()), lying_about())
    gnn = trained_gnn(shared_data, tmp_path_factory.mktemp("gnn"))
    with ServerPool(MODELS, models={"qg_tagger": {"batch": 512}, "track_gnn": gnn}, count=2) as pool:
        pool.wait_ready()
        yield pool
    assert wait_until(lambda: not left(before), 5), left(before)


def tracks(servers: Servers, event: Any, times: int) -> list[dict[str, Any]]:
    """The event through the GNN, several times at once."""
    one = {"FEATURES": event["spacepoints"], "EDGES": event["edges"]}
    return servers.infer_events("track_gnn", [one] * times)


def test_the_track_gnn_finds_37_tracks(shared_data: Path, long_lived_pool: ServerPool) -> None:
    """Served logits agree with the published service's within 5e-4; 457 edges and exactly 37 tracks."""
    with np.load(shared_data / "exatrkx" / "event_e1000.npz") as event:
        answer = tracks(long_lived_pool.servers(), event, 1)[0]
        assert np.abs(answer["LOGITS"] - event["gnn_logits"]).max() < 5e-4
        assert len(answer["LABELS"]) == len(event["spacepoints"])
    assert int((1 / (1 + np.exp(-answer["LOGITS"].astype(float))) > 0.75).sum()) == 457
    assert len(np.unique(answer["LABELS"])) == 37


@pytest.mark.slow
def test_two_applications_share_one_pool(shared_data: Path, long_lived_pool: ServerPool, tmp_path: Path) -> None:
    """A q/g campaign and a tracking program call the same servers at once; each gets what it gets alone."""
    from tests.conftest import write_tree

    write_tree(tmp_path / "a.root", n=4000)
    (tmp_path / "s.py").write_text(
        "import numpy as np\n"
        "def jets(batch, ctx):\n"
        "    x = np.asarray(batch.x, float)\n"
        "    return {'pt': 800 + 50 * x, 'n': 20 + x, 'w': 0.1 + 0*x, 'c': 0.2 + 0*x, ctx.weight: batch[ctx.weight]}\n"
    )
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "campaign": "shared",
                "datasets": {"d": {"files": "a.root", "tree": "events"}},
                "servers": {"kind": "attach", "urls": [r["url"] for r in long_lived_pool.records()],
                            "models": {"qg_tagger": {"batch": 512}}},
                "stages": {"jets": {"use": "s.py:jets"},
                           "tag": {"use": "infer", "from": "jets", "model": "qg_tagger",
                                   "inputs": {"X": ["pt", "n", "w", "c"]}, "outputs": {"score": "SCORE"}}},
            }
        )
    )  # fmt: skip
    over = threading.Event()
    found: list[int] = []

    def tracking() -> None:
        live = connect(long_lived_pool.address)
        with np.load(shared_data / "exatrkx" / "event_e1000.npz") as event:
            while not over.is_set():
                found.extend(len(np.unique(a["LABELS"])) for a in tracks(live, event, 4))
        live.close()

    thread = threading.Thread(target=tracking)
    thread.start()
    done = command("run", "c.yaml", "--run-dir", "r", cwd=tmp_path)
    over.set()
    thread.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(found) >= 4
    assert set(found) == {37}
    report = report_of(tmp_path / "r")
    assert report["rows"]["first"] == 4000
    assert command("run", "c.yaml", "--run-dir", "alone", cwd=tmp_path).returncode == 0
    assert (
        report["outputs"]["tag/d/nominal"]["sha256"]
        == report_of(tmp_path / "alone")["outputs"]["tag/d/nominal"]["sha256"]
    )


@pytest.mark.slow
def test_the_z_mass_is_met(shared_data: Path, tmp_path: Path) -> None:
    """The example on real di-muon events: served mass equals the stored one to 3e-8 GeV; the fit meets its numbers."""
    data = shared_data / "root" / "uproot-Zmumu.root"
    done = command(
        "run", str(PROJECT / "examples/zmumu/campaign.yaml"), "--run-dir", "r", "--set", f"datasets.zmumu.files={data}",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(tmp_path / "r")
    assert report["datasets"]["zmumu"] == {"files": 1, "events": 2304}
    name = next(n for n, o in report["outputs"].items() if o["kind"] == "frozen")
    fit = json.loads(Path(report["outputs"][name]["path"]).read_text())
    assert abs(fit["parameters"]["mu"] - 90.711) < 0.005
    assert abs(fit["parameters"]["sigma"] - 2.263) < 0.005
    assert abs(fit["errors"]["mu"] - 0.065) < 0.002
    assert abs(fit["errors"]["sigma"] - 0.061) < 0.002
    assert any(p.endswith(".png") for p in report["artefacts"])


def test_backends_of_ones_own_are_served_as_they_are(tmp_path: Path) -> None:
    """A C backend and a Python backend from ``backend_directories`` serve beside the Python backend."""
    backends = tmp_path / "backends"
    shutil.copytree(PROJECT / "tests" / "backends", backends)
    built = backends / "identity_c" / "libtriton_identity_c.so"
    source = backends / "identity_c" / "identity.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-fPIC", "-shared", "-o", str(built), str(source)], check=True)
    models = ["uses_identity_c", "uses_identity_py", "batch_sensitive"]
    with ServerPool(PROJECT / "tests/models", models=models, backend_directories=str(backends)) as pool:
        pool.wait_ready()
        x = np.random.default_rng(0).normal(size=(1500, 1)).astype(np.float32)
        for model in models[:2]:
            assert pool.servers().infer(model, {"X": x})["Y"].tobytes() == x.tobytes()


def test_servers_elsewhere_are_reached_through_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind ``attach`` with certificate, key and header reaches a server that demands them; without, it is refused."""
    from campaign.servers.environment import environment
    from campaign.servers.triton import Triton

    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("server", "client"):
        cert = ca.issue_cert("localhost", "127.0.0.1")
        cert.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        cert.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    spec = ServerSpec(models={"batch_sensitive": {"batch": 64}}, model_repository=str(PROJECT / "tests/models"))
    place = Path(tempfile.mkdtemp(prefix="campaign-"))
    launch = Triton.launch(Triton(spec, tmp_path).prepare(print), place, "elsewhere")
    port = free_port()
    argv = [a for a in launch.argv if not a.startswith("--grpc-")]
    argv += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", "--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true",
             f"--grpc-server-cert={tmp_path}/server.pem", f"--grpc-server-key={tmp_path}/server.key",
             f"--grpc-root-cert={tmp_path}/ca.pem",
             "--grpc-restricted-protocol=metadata,model-config,inference:pool=sesame"]  # fmt: skip
    assert environment().server.exists()
    before = env_folders()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(argv, env=dict(launch.env), stdout=log, stderr=log, start_new_session=True)
    try:
        tls = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
        wait_until(lambda: f":{port}" in (tmp_path / "log").read_text(), 20)
        x = np.ones((10, 1), np.float32)
        monkeypatch.setenv("POOL_TOKEN", "sesame")
        headers = {"triton-grpc-protocol-pool": "$POOL_TOKEN"}
        given = {"kind": "attach", "models": {"batch_sensitive": {"batch": 64}}, "urls": f"localhost:{port}"}
        with ServerPool(ServerSpec(**given, tls=tls, headers=headers), base=tmp_path) as pool:
            assert pool.servers().infer("batch_sensitive", {"X": x})["Y"].tobytes() == np.zeros((10, 1), "f4").tobytes()
        for wrong in ({"headers": headers}, {"headers": headers, "tls": {"ca": "ca.pem"}}, {"tls": tls}):
            with (
                ServerPool(ServerSpec(**given, **wrong, request_deadline_s=3), base=tmp_path) as pool,
                pytest.raises(Exception, match=r"(?i)socket closed|unavailable|connect|restricted"),
            ):
                pool.servers().infer("batch_sensitive", {"X": x})
    finally:
        import signal

        folders = made_by(server.pid, env_folders() - before)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        sweep(str(place), launch.shm_prefix, folders)


def free_port() -> int:
    """A port nobody listens on now."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


PARSL_SCRIPT = """
import numpy as np
import parsl
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from campaign import ServerPool

htex = HighThroughputExecutor(address="127.0.0.1", provider=LocalProvider())
parsl.load(parsl.Config(run_dir="RUN_DIR", executors=[htex]))
inputs = [np.random.default_rng(0).uniform(0, 1, (3000, 4)).astype(np.float32)] * 3
BLOCK
assert all((s == scores[0]).all() for s in scores)
print("scored", scores[0].shape)
parsl.dfk().cleanup()
"""


@pytest.mark.slow
def test_the_readmes_pool_in_someones_own_parsl_script(tmp_path: Path) -> None:
    """README's block, to the letter and under ten lines, beside a user's own `parsl.load`."""
    text = (PROJECT / "README.md").read_text()
    section = text[text.index("## Only the pool") :]
    block = section[section.index("```python\n") + 10 :]
    block = block[: block.index("```")]
    assert len([line for line in block.splitlines() if line.strip()]) < 10
    (tmp_path / "s.py").write_text(PARSL_SCRIPT.replace("BLOCK", block).replace("RUN_DIR", str(tmp_path / "runinfo")))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as temp:  # the user's own Parsl leaves empty folders in it, whatever we do
        done = subprocess.run(
            [sys.executable, str(tmp_path / "s.py")], cwd=PROJECT, capture_output=True, text=True, check=False,
            timeout=120, env={**os.environ, "PATH": path, "TMPDIR": temp},
        )  # fmt: skip
        assert not list(Path(temp).glob("campaign-*"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "scored (3000, 1)\n"


@pytest.mark.slow
def test_files_over_http_are_read_like_any_others(small: Path) -> None:
    """A campaign over a local HTTP server gives the histograms it gives over local paths."""
    import functools
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(small))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        change(small, variations={})
        assert command("run", "c.yaml", "--run-dir", "here", cwd=small).returncode == 0
        base = f"http://127.0.0.1:{server.server_address[1]}/data"
        urls = {
            name: sorted(f"{base}/{name}/{p.name}" for p in (small / "data" / name).iterdir())
            for name in ("mc", "data")
        }
        for name, found in urls.items():
            (small / f"{name}.txt").write_text("\n".join(found) + "\n")
        change(small, datasets={n: {"files": f"{n}.txt", "tree": "events", "is_mc": n == "mc"} for n in urls})
        done = command("run", "c.yaml", "--run-dir", "there", cwd=small)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.shutdown()
        server.server_close()
    here, there = report_of(small / "here"), report_of(small / "there")
    assert {n: o["sha256"] for n, o in here["outputs"].items()} == {n: o["sha256"] for n, o in there["outputs"].items()}
    with uproot.open(there["outputs"]["first/mc/nominal"]["root"]) as file:
        assert file["p"].values().sum() > 0
