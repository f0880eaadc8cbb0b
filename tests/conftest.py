"""What every test may use, and the law every test obeys: nothing of ours is left running or lying about."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uproot
import yaml
from hypothesis import HealthCheck, settings

import campaign
from campaign.util import grpc_fork  # noqa: F401  tests fork this process; as in workers
from tests.memory import limited

# The same examples each time, and no example fails because the machine is busy.
settings.register_profile("campaign", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("campaign")

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared" / "data"
OURS = (
    "tritonserver",
    "triton_python_backend_stub",
    "campaign.pool.pilot",
    "campaign.pool.sandbox",
    "campaign.supervision.server_watchdog",
    "campaign.supervision.driver_watchdog",
    "multiprocessing.forkserver",
    "multiprocessing.resource_tracker",
    "process_worker_pool",
    "interchange.py",
    "parsl: HTEX",  # what the interchange calls itself later
)


GONE_S = 5.0  # what ends by itself after a test may take so long
# In the environment of all that a session of tests starts: its own temporary directory, which is its mark too.
SESSION = "CAMPAIGN_TEST_SESSION"
_lookout: list[subprocess.Popen[str]] = []


def pytest_configure() -> None:
    """Give the session a temporary directory and a state directory that no other session or campaign uses.

    The path is short, for sockets lie in it. Pytest's own ``tmp_path`` stays where it is without us.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ[SESSION] = tempfile.mkdtemp(prefix="ct-")
    os.environ["XDG_STATE_HOME"] = str(home() / "state")


def pytest_sessionstart() -> None:
    """Watch the two places that all users of the machine share."""
    argv = [sys.executable, "-m", "tests.lookout", f"{SESSION}={home()}", region("").name]
    _lookout.append(subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert own_elsewhere() == set()


def pytest_unconfigure() -> None:
    """Leave nothing of the session."""
    for process in _lookout:
        process.communicate()
    shutil.rmtree(home(), ignore_errors=True)


def home() -> Path:
    """The temporary directory of the session: what lies there is the session's."""
    return Path(os.environ[SESSION])


def region(name: str) -> Path:
    """Shared memory that a test makes itself: this name is known for the session's."""
    return Path("/dev/shm", f"campaign_{home().name}_{name}")


def pytest_report_header() -> str:
    """Whether tests of memory that runs out do it, or only send the signal that the kernel would."""
    with limited() as procs:
        return "memory limits: real, by a control group" if procs else "memory limits: none can be set; SIGKILL alone"


def campaign_processes() -> Iterator[tuple[int, str, bool]]:
    """Pid, command line and whether it is ours, of every process of the kinds a campaign starts; zombies left out."""
    mark = f"{SESSION}={home()}".encode()
    for folder in Path("/proc").glob("[0-9]*"):  # psutil would take ten times as long, and every test looks twice
        with contextlib.suppress(OSError):  # it ended while we looked
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(name in line for name in OURS):
                yield int(folder.name), line, mark in (folder / "environ").read_bytes().split(b"\0")


def ours(before: set[int] | None = None) -> dict[int, str]:
    """Our processes, other than those that ran before."""
    return {pid: line[:160] for pid, line, mine in campaign_processes() if mine and pid not in (before or set())}


def own_elsewhere() -> set[str]:
    """Regions and folders that the session's servers have made in ``/dev/shm`` and ``/tmp``; they may be gone again."""
    (process,) = _lookout
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    return set(json.loads(process.stdout.readline()))


def lying_about() -> set[str]:
    """Our shared memory, private folders of servers, and the empty folders of Triton's Python backend."""
    found = {str(p) for pattern in ("campaign-*", "pymp-*") for p in home().glob(pattern)}
    return found | {p for p in own_elsewhere() if os.path.lexists(p)}


def regions_of(record: dict[str, Any]) -> list[Path]:
    """Shared memory of a server, in the ``/dev/shm`` that it sees."""
    return list(Path(f"/proc/{record['server_pid']}/root/dev/shm").glob(f"{record['shm_prefix']}*"))


def left(before: tuple[set[int], set[str]]) -> list[str]:
    """What is there now that was not there before."""
    return [f"{pid}: {line}" for pid, line in ours(before[0]).items()] + sorted(lying_about() - before[1])


def alive(pid: int) -> bool:
    """Whether a process has not ended; one that only waits for its parent to look has."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(law: Any, seconds: float = 5.0) -> bool:
    """Whether ``law()`` holds within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if law():
            return True
        time.sleep(0.05)
    return bool(law())


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no process, no shared memory, no private folder of ours that was not there before."""
    if "long_lived_pool" in request.fixturenames:  # a pool that several tests share; its module checks at its end
        yield
        return
    before = (set(ours()), lying_about())
    yield
    found: list[str] = []

    def gone() -> bool:
        found[:] = left(before)
        return not found

    assert wait_until(gone, GONE_S), f"left behind: {found}"


@pytest.fixture
def sole_reaper() -> Iterator[None]:
    """Keep ``campaign reap`` of other sessions away: it ends what any dead campaign of this user left, also ours."""
    place = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(place, fcntl.LOCK_EX)
    yield
    os.close(place)


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real inputs with known answers, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


def write_tree(path: Path, tree: str = "events", n: int = 1000, seed: int = 0, *, mode: str = "recreate") -> Path:
    """A ROOT file with a TTree of flat and jagged branches; ``n`` may be 0."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with getattr(uproot, mode)(path) as file:
        made = file.mktree(tree, {"x": "float32", "y": "float64", "w": "float64", "y_up": "float64", "k": "int32"})
        if n:
            y = rng.normal(size=n)
            made.extend(
                {
                    "x": rng.normal(size=n).astype(np.float32),
                    "y": y,
                    "w": rng.lognormal(0, 4, size=n),
                    "y_up": y + 0.1,
                    "k": rng.integers(0, 10, size=n, dtype=np.int32),
                }
            )
    return path


STAGES = '''
"""Stages of the tests' campaign."""
import awkward as ak
import numpy as np

from campaign import Histogram, Histograms
import hist


def select(batch, ctx):
    """x and y of the rows with y above a cut."""
    kept = batch[batch.y > -1]
    weight = kept.w if ctx.options.get("weighted", True) else np.ones(len(kept))
    return {"x": kept.x, "y": kept.y, "w": weight, ctx.weight: kept[ctx.weight]}


def fill(batch, ctx):
    """The prediction, weighted."""
    h = Histogram(hist.axis.Regular(20, -4, 4, name="p"))
    weight = np.asarray(batch.w) * np.asarray(batch[ctx.weight])
    return Histograms(p=h.fill(ak.to_numpy(batch.p), weight=weight))


def mean(merged, ctx):
    """One number of all datasets."""
    (ctx.artefacts / "note.txt").write_text(ctx.variation)
    return {"sum": {name: float(m["p"].sum(flow=True).value) for name, m in merged.items()}}


def second(batch, ctx):
    """Counts that depend on the frozen value."""
    total = sum(ctx.frozen["mean"]["sum"].values())
    return {"n": len(batch), "scaled": float(np.sum(np.asarray(batch.p, float)) / total)}
'''


def campaign_dict(model: str = "batch_sensitive", **changes: Any) -> dict[str, Any]:
    """A small campaign with two passes and every kind of variation, over ``data/``."""
    made: dict[str, Any] = {
        "campaign": "small",
        "datasets": {
            "mc": {"files": "data/mc/*.root", "tree": "events", "is_mc": True},
            "data": {"files": "data/data/*.root", "tree": "events"},
        },
        "servers": {
            "kind": "triton",
            "model_repository": str(PROJECT / "tests" / "models"),
            "models": {model: {"batch": 256}},
            "count": 1,
        },
        "workers": 2,
        "read_rows": 700,
        "stages": {
            "select": {"use": "stages.py:select"},
            "predict": {
                "use": "infer", "from": "select", "model": model, "inputs": {"X": ["x"]}, "outputs": {"p": "Y"},
                "keep": True,
            },
            "first": {"use": "stages.py:fill", "from": "predict", "datasets": ["mc"]},
            "mean": {"use": "stages.py:mean", "reduce": "first"},
            "second": {"use": "stages.py:second", "from": "predict", "with": ["mean"]},
        },
        "variations": {
            "tree_up": {"datasets": ["mc"], "tree": "events_up"},
            "branch_up": {"datasets": ["mc"], "branches": {"y": "y_up"}},
            "weight_up": {"datasets": ["mc"], "weight": "k / 5"},
        },
    }  # fmt: skip
    made.update(changes)
    return made


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small campaign of one's own."""
    return make_small(tmp_path)


def make_small(tmp_path: Path) -> Path:
    """A folder with a campaign file, its stages and its data: five files, one of them empty, one larger."""
    for i, n in enumerate((900, 0, 2500)):
        path = write_tree(tmp_path / "data" / "mc" / f"mc_{i}.root", n=n, seed=i)
        write_tree(path, "events_up", n=n, seed=100 + i, mode="update")
    for i, n in enumerate((1200, 300)):
        write_tree(tmp_path / "data" / "data" / f"data_{i}.root", n=n, seed=50 + i)
    (tmp_path / "stages.py").write_text(STAGES)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(campaign_dict(), sort_keys=False))
    return tmp_path


COUNTING = """
def count(batch, ctx):
    return {"n": len(batch), "lumi": ctx.metadata["lumi"]}


def total(merged, ctx):
    (ctx.artefacts / "t.txt").write_text("x")
    return {"n": float(merged["d"]["n"])}


def share(batch, ctx):
    return {"part": len(batch) / ctx.frozen["total"]["n"]}
"""


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run under ``r``, of two passes and without servers; who spoils what it was made from mends it."""
    folder = tmp_path_factory.mktemp("counted")
    for i in range(3):
        write_tree(folder / "d" / f"{i}.root", n=20 * i, seed=i)
    (folder / "side.yaml").write_text(yaml.safe_dump({f"{i}.root": {"lumi": i} for i in range(3)}))
    (folder / "s.py").write_text(COUNTING)
    made = {
        "campaign": "c",
        "datasets": {"d": {"files": "d", "tree": "events", "metadata": "side.yaml"}},
        "workers": 1,
        "stages": {
            "count": {"use": "s.py:count"},
            "total": {"use": "s.py:total", "reduce": "count"},
            "share": {"use": "s.py:share", "with": ["total"]},
        },
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(made))
    campaign.run(campaign.load(folder / "c.yaml"), run_dir=folder / "r", progress=False)
    return folder


def yaml_of(folder: Path) -> dict[str, Any]:
    """The folder's campaign as data."""
    return dict(yaml.safe_load((folder / "c.yaml").read_text()))


def change(folder: Path, **changes: Any) -> None:
    """Change top-level keys of the folder's campaign."""
    path = folder / "c.yaml"
    data = yaml.safe_load(path.read_text())
    data.update(changes)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def command(*args: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command ``campaign`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "campaign.cli", *args],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, **more},
    )  # fmt: skip


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command ``campaign`` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "campaign.cli", *args],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def report_of(run_dir: Path) -> dict[str, Any]:
    """The run's report."""
    return dict(json.loads((run_dir / "report.json").read_text()))


def hashes(run_dir: Path) -> dict[str, str]:
    """sha256 of every output."""
    return {name: o["sha256"] for name, o in report_of(run_dir)["outputs"].items()}


def unload(record: dict[str, Any], model: str) -> None:
    """Take a model out of a server; where that is restricted, with the word from the server's command line."""
    import tritonclient.grpc as grpcclient

    line = Path(f"/proc/{record['server_pid']}/cmdline").read_text().split("\0")
    words = [re.fullmatch(r"--grpc-restricted-protocol=.*model-repository.*:(.+)=(.+)", a) for a in line]
    headers = {f"triton-grpc-protocol-{m[1]}": m[2] for m in words if m}
    client = grpcclient.InferenceServerClient(record["url"])
    client.unload_model(model, headers=headers)
    client.close()
