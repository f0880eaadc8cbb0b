"""Every fault that files and stages have: named once, tried as often as that can help, and no harm to the others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from campaign.outputs import read_histograms
from tests.conftest import change, command, hashes, report_of, write_tree, yaml_of
from tests.memory import EXHAUST, limited

STAGES = """
import contextlib, ctypes, os, pathlib, signal, time
import awkward as ak
import numpy as np
import hist
from campaign import Histogram
from campaign.stages.read import RootSource

HERE = pathlib.Path(__file__).parent


def note(what):
    with (HERE / "opened.txt").open("a") as log:
        log.write(what + "\\n")


class Noting(RootSource):
    def __init__(self, url, tree, branches):
        note(pathlib.Path(url).name)
        super().__init__(url, tree, branches)


def misbehave(how):
    if how == "raises":
        raise ValueError("this file is bad")
    if how == "memory":
        raise MemoryError
    if how == "segfaults":
        ctypes.string_at(0)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exhausts memory":
        exhaust((HERE / "limited").read_text())
    if how == "hangs":
        time.sleep(3600)
    if how == "hangs in C":  # holds the interpreter's lock and lets no signal through
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.PyDLL(None).sleep(3600)
    if how == "swallows":
        while True:
            try:
                time.sleep(3600)
            except Exception:
                pass
    if how == "goes on":
        with contextlib.suppress(Exception):
            time.sleep(3600)
    if how == "is written again":
        path = HERE / "d" / "is_written_again.root"
        path.write_bytes(path.read_bytes())
    if how == "grows":
        with (HERE / "d" / "grows.root").open("ab") as file:
            file.write(b"more")
    if how == "goes":
        (HERE / "d" / "goes.root").unlink()


def fill(batch, ctx):
    if ctx.metadata.get("how") and os.getppid() != 1 and (HERE / "armed").exists():
        misbehave(ctx.metadata["how"])
    h = Histogram(hist.axis.Regular(20, -4, 4))
    kept = batch[batch.y > ctx.options.get("above", -100)]
    return {"h": h.fill(ak.to_numpy(kept.y), weight=ak.to_numpy(kept.w))}


def rows(batch, ctx):
    kept = batch[batch.y > ctx.options.get("above", -100)]
    return {"y": kept.y, "x": kept.x}
"""

FALTERS = """

class Faltering(Noting):
    def read(self, start, stop):
        if "good1" in self.url and not (HERE / "faltered").exists():
            (HERE / "faltered").touch()
            try:
                raise ConnectionResetError("the connection was reset")
            except ConnectionResetError as why:
                raise ValueError("no chunk") from why
        return super().read(start, stop)
"""

IN_STAGE = (
    "raises", "memory", "segfaults", "is killed", "exhausts memory", "hangs", "hangs in C", "swallows", "goes on",
    "is written again", "grows", "goes",
)  # fmt: skip
OF_FILE = ("truncated", "no bytes", "not ROOT", "no tree", "no branch", "denied")
SAYS = {
    "raises": "this file is bad", "memory": "MemoryError", "segfaults": "Segmentation fault", "is killed": "SIGKILL",
    "exhausts memory": "SIGKILL",
    "hangs": "ran longer than 2 s", "hangs in C": "ran longer than 2 s", "swallows": "ran longer than 2 s",
    "goes on": "ran longer than 2 s",
    "is written again": "changed while the campaign ran: it was written again",
    "grows": "changed while the campaign ran",
    "goes": "changed while the campaign ran: it is gone", "truncated": "cannot be read", "no bytes": "cannot be read",
    "not ROOT": "cannot be read", "no tree": "'events' is not one of the trees", "no branch": "asks for 'w'",
    "denied": "Permission denied",
}  # fmt: skip


def named(how: str) -> str:
    return how.replace(" ", "_") + ".root"


def spoil(folder: Path, how: str) -> None:
    """Put a file with a fault among the good ones."""
    path = write_tree(folder / "d" / named(how), n=700, seed=len(how))
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "no bytes":
        os.truncate(path, 0)
    elif how == "not ROOT":
        path.write_bytes(b"this is no ROOT file\n" * 100)
    elif how == "no tree":
        write_tree(path, "event", n=700)
    elif how == "no branch":
        with uproot.recreate(path) as file:
            file["events"] = {"x": np.zeros(700, np.float32), "y": np.zeros(700)}
    elif how == "denied":
        path.chmod(0)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A campaign without servers: three good files in ``d``, to which bad ones are added, and two in ``e``."""
    for i in range(3):
        write_tree(tmp_path / "d" / f"good{i}.root", n=800, seed=i)
    for i in range(2):
        write_tree(tmp_path / "e" / f"e{i}.root", n=500, seed=10 + i)
    side = {"*": {}, **{named(how): {"how": how} for how in IN_STAGE}}
    (tmp_path / "side.yaml").write_text(yaml.safe_dump(side))
    (tmp_path / "s.py").write_text(STAGES + EXHAUST)
    (tmp_path / "armed").touch()
    dataset = {"tree": "events", "reader": "s.py:Noting", "metadata": "side.yaml"}
    made = {
        "campaign": "faults",
        "datasets": {"d": {"files": "d", **dataset}, "e": {"files": "e", **dataset}},
        "workers": 2,
        "read_rows": 400,
        "task_deadline_s": 2,
        "stages": {"fill": {"use": "s.py:fill", "options": {}}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    with limited() as procs:
        (tmp_path / "limited").write_text(procs)
        yield tmp_path


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the campaign as somebody whom permissions bind, even where the tests are run by root."""
    (folder / "opened.txt").unlink(missing_ok=True)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*bound, sys.executable, "-m", "campaign.cli", "run", "c.yaml", *args],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def opened(folder: Path, name: str) -> int:
    """How often a file was opened by tasks; the look before the run may have opened it once more."""
    return (folder / "opened.txt").read_text().split().count(name)


def only_good(folder: Path) -> dict[str, str]:
    """Hashes of the campaign of the good files alone."""
    datasets = yaml_of(folder)["datasets"]
    for name in ("d", "e"):
        datasets[name]["files"] = f"{name}/{'good*' if name == 'd' else '*'}.root"
    change(folder, datasets=datasets)
    assert command("run", "c.yaml", "--run-dir", "good", cwd=folder).returncode == 0
    return hashes(folder / "good")


@pytest.mark.faults
def test_every_faulty_file_is_named_once_and_hurts_no_other(files: Path) -> None:
    """All faults at once: each is named, exit 1, and the rest is done."""
    every = (*OF_FILE, *IN_STAGE)
    for how in every:
        spoil(files, how)
    done = run(files, "--run-dir", "r", "--set", "retries=3")
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(files / "r")
    assert {Path(x["file"]).name for x in report["lost"]} == set(map(named, every))
    for lost in report["lost"]:
        how = next(h for h in every if named(h) == Path(lost["file"]).name)
        assert SAYS[how] in lost["error"] or any(SAYS[how] in e and named(how) in e for e in report["errors"]), lost
    assert report["tasks"]["failed"] == len(every)
    assert report["tasks"]["done"] == 5
    assert set(report["outputs"]) == {"fill/e/nominal"}
    most = {"segfaults": 3, "is killed": 12, "exhausts memory": 12}  # a lost worker is not yet the file's fault
    for how in every:
        if how == "denied" or how in OF_FILE:
            assert opened(files, named(how)) <= 2, how  # tried once, and looked at before the run
        elif how not in most:
            assert opened(files, named(how)) <= 2 + 4, how  # once more for each other task that killed its worker


@pytest.mark.slow
def test_every_faulty_file_is_left_out_where_that_is_tolerated(files: Path) -> None:
    """All faults at once, within what the campaign puts up with: exit 0, and outputs as without these files."""
    every = (*OF_FILE, *IN_STAGE)
    for how in every:
        spoil(files, how)
    change(files, errors={"max_failed_files": 20})
    done = run(files, "--run-dir", "t")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(files / "t")
    assert report["status"] == "incomplete"
    assert len(report["outputs"]["fill/d/nominal"]["missing"]["files"]) == len(every)
    assert hashes(files / "t") == only_good(files)


@pytest.mark.parametrize(
    "how",
    ["denied", *(pytest.param(h, marks=pytest.mark.faults) for h in ("no branch", "no tree", "is written again"))],
)
def test_a_permanent_fault_is_tried_once(files: Path, how: str) -> None:
    """However many retries there are: the file is opened by one task, and by the look before the run at most."""
    spoil(files, how)
    done = run(files, "--run-dir", "r", "--set", "retries=5", "--set", "errors.max_failed_files=1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(files / "r")
    (lost,) = report["lost"]
    assert named(how) in lost["file"]
    assert any(SAYS[how] in e for e in report["errors"])
    # The look before the run, the task, and one more look for what is lost with it.
    assert opened(files, named(how)) <= 3
    assert report["tasks"] == {"total": 6, "done": 5, "reused": 0, "failed": 1}


@pytest.mark.parametrize(
    ("how", "provider"),
    [
        pytest.param("hangs in C", "local", marks=pytest.mark.faults),
        pytest.param("hangs in C", "parsl", marks=pytest.mark.slow),
        pytest.param("swallows", "local", marks=pytest.mark.slow),
    ],
)
def test_what_no_exception_can_end_is_ended_by_force(files: Path, how: str, provider: str) -> None:
    """A stage in C that heeds nothing: its file alone is held to be the cause, tried once, and the others are done."""
    spoil(files, how)
    change(files, errors={"max_failed_files": 1}, task_deadline_s=1, retries=0)
    done = run(files, "--run-dir", "r", "--provider", provider)
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(files / "r")
    (error,) = report["errors"]
    assert named(how) in error
    assert "ran longer than 1 s" in error
    assert "in misbehave" in error, "the log says where it stood"
    assert opened(files, named(how)) <= 2, "a hang is not tried again, and nothing is asked of its file"
    assert hashes(files / "r") == only_good(files)


@pytest.mark.parametrize(
    ("how", "provider"),
    [
        pytest.param("segfaults", "local", marks=pytest.mark.faults),
        pytest.param("is killed", "local", marks=pytest.mark.faults),
        pytest.param("exhausts memory", "local", marks=pytest.mark.faults),
        pytest.param("segfaults", "parsl", marks=pytest.mark.slow),  # Parsl looks after its workers every 30 s
    ],
)
def test_what_kills_its_workers_is_found_without_spending_the_others(files: Path, how: str, provider: str) -> None:
    """With no retries at all, everything but the file that kills its workers is done."""
    spoil(files, how)
    change(files, errors={"max_failed_files": 1}, retries=0)
    done = run(files, "--run-dir", "r", "--provider", provider)
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(files / "r")
    (error,) = report["errors"]
    assert named(how) in error
    assert "2 workers were lost" in error
    if how == "segfaults":
        assert "Segmentation fault" in error
        assert "in misbehave" in error
    elif provider == "local":
        assert "SIGKILL" in error
    assert hashes(files / "r") == only_good(files)


@pytest.mark.slow
def test_what_is_returned_after_the_deadline_is_not_kept(files: Path) -> None:
    """A stage, and a reduce stage, that catch what ends them and go on: what they return then is no result."""
    spoil(files, "goes on")
    change(files, errors={"max_failed_files": 1}, task_deadline_s=1, retries=0)
    done = run(files, "--run-dir", "r")
    assert done.returncode == 0, done.stdout + done.stderr
    (error,) = report_of(files / "r")["errors"]
    assert named("goes on") in error
    assert "ran longer than 1 s" in error
    assert hashes(files / "r") == only_good(files)
    total = "\n\ndef total(merged, ctx):\n    misbehave('goes on')\n    return {'n': 1}\n"
    (files / "s.py").write_text((files / "s.py").read_text() + total)
    stages = yaml_of(files)["stages"]
    change(files, stages={**stages, "total": {"use": "s.py:total", "reduce": "fill"}})
    done = run(files, "--run-dir", "r")
    assert done.returncode == 1
    assert any("stage total" in e and "ran longer than 1 s" in e for e in report_of(files / "r")["errors"])


@pytest.mark.faults
def test_a_reduce_stage_that_hangs_is_ended_too(files: Path) -> None:
    """A reduce stage beyond the deadline of a task, in C: it is named, and what does not need it is there."""
    (files / "s.py").write_text(
        (files / "s.py").read_text() + "\n\ndef total(merged, ctx):\n    misbehave('hangs in C')\n"
    )
    stages = yaml_of(files)["stages"]
    change(files, stages={**stages, "total": {"use": "s.py:total", "reduce": "fill"}}, task_deadline_s=1)
    done = run(files, "--run-dir", "r")
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(files / "r")
    assert any("total/nominal: ran longer than 1 s" in e and "in misbehave" in e for e in report["errors"])
    assert set(report["outputs"]) == {"fill/d/nominal", "fill/e/nominal"}
    assert report["lost"] == []


@pytest.mark.faults
@pytest.mark.parametrize("retries", [1, 0])
def test_only_what_can_heal_is_tried_again(files: Path, retries: int) -> None:
    """A network that falters, said by a reader in its own words: read again as often as is allowed, else named."""
    write_tree(files / "d" / "good1.root", n=100, seed=1)  # not the one that is looked at before the run
    with (files / "s.py").open("a") as text:
        text.write(FALTERS)
    datasets = yaml_of(files)["datasets"]
    datasets["d"]["reader"] = "s.py:Faltering"
    change(files, retries=retries, datasets=datasets)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=files)
    assert done.returncode == 1 - retries, done.stdout + done.stderr
    assert [Path(x["file"]).name for x in report_of(files / "r")["lost"]] == ([] if retries else ["good1.root"])
    assert opened(files, "good1.root") == 1 + retries


def test_odd_numbers_and_empty_selections_are_no_errors(files: Path) -> None:
    """NaN and infinite features, files without entries and without selected ones go through; no row is lost."""
    n = 300
    y = np.array([np.nan, np.inf, -np.inf, *np.linspace(-3, 3, n - 3)])
    with uproot.recreate(files / "d" / "odd.root") as file:
        file["events"] = {"x": np.full(n, np.nan, np.float32), "y": y, "w": np.r_[np.ones(n - 1), np.nan]}
    write_tree(files / "d" / "empty.root", n=0)
    with uproot.recreate(files / "d" / "none.root") as file:
        file["events"] = {"x": np.zeros(9, np.float32), "y": np.full(9, -200.0), "w": np.ones(9)}
    stages = yaml_of(files)["stages"]
    change(files, stages={**stages, "rows": {"use": "s.py:rows", "options": {}}})
    done = run(files, "--run-dir", "r")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(files / "r")
    assert report["status"] == "complete"
    assert report["datasets"]["d"]["events"] == 3 * 800 + n + 9
    assert any("no numbers" in note for note in report["outputs"]["fill/d/nominal"]["notes"])
    (h,) = read_histograms(Path(report["outputs"]["fill/d/nominal"]["path"])).values()
    assert h.to_hist().sum(flow=True).value is not None
    import pyarrow.parquet as pq

    parts = sorted(Path(report["outputs"]["rows/d/nominal"]["path"]).glob("*.parquet"))
    counted = [pq.read_metadata(p).num_rows for p in parts]  # empty, good 0 to 2, none, odd
    # Selected are rows above -100: NaN and -inf are not, which is the stage's own doing.
    assert counted == [0, 800, 800, 800, 0, n - 2]
