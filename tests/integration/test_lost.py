"""Workers that are lost, stages that misbehave, artefacts that were touched: what is said, and what is still right."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from campaign import ServerPool
from tests.conftest import PROJECT, campaign_dict, change, command, hashes, report_of, write_tree, yaml_of

STAGES = """
import os, pathlib, signal, time
import awkward as ak
import numpy as np
import hist
from campaign import Histogram


def fill(batch, ctx):
    time.sleep(0.05)
    if ctx.options.get("kill") and ctx.metadata.get("bad") and os.getppid() != 1:
        mark = pathlib.Path(ctx.options["kill"])
        if ctx.options.get("always") or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    h = Histogram(hist.axis.Regular(20, -4, 4))
    return {"h": h.fill(ak.to_numpy(batch.y), weight=ak.to_numpy(batch.w))}


def mean(merged, ctx):
    return {"v": np.array([m["h"].sum().value for m in merged.values()]), "d": {"n": [1.0]}}


def second(batch, ctx):
    if ctx.options.get("spoil"):
        ctx.frozen["mean"]["d"]["n"].append(1.0)
        n = len(ctx.frozen["mean"]["d"]["n"])
        return {"n": n, "rows": len(batch.y)}
    values = ctx.frozen["mean"]["v"]
    if ctx.options.get("in_place"):
        values *= 2
    return {"n": float(values.sum()), "rows": len(batch.y)}


def hang(batch, ctx):
    time.sleep(60)
    return {"n": len(batch)}
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A campaign without servers: two datasets, six files, a second pass that reads the events again."""
    for i in range(4):
        write_tree(tmp_path / "a" / f"a{i}.root", n=800, seed=i)
    for i in range(2):
        write_tree(tmp_path / "b" / f"b{i}.root", n=500, seed=10 + i)
    (tmp_path / "side.yaml").write_text('a3.root: {bad: true}\n"*": {}\n')
    (tmp_path / "s.py").write_text(STAGES)
    made = {
        "campaign": "plain",
        "datasets": {
            "a": {"files": "a", "tree": "events", "metadata": "side.yaml"},
            "b": {"files": "b", "tree": "events"},
        },
        "workers": 2,
        "read_rows": 400,
        "stages": {
            "fill": {"use": "s.py:fill", "options": {}},
            "mean": {"use": "s.py:mean", "reduce": "fill"},
            "second": {"use": "s.py:second", "with": ["mean"], "options": {}},
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return tmp_path


def options(folder: Path, stage: str, **given: object) -> None:
    """Change a stage's options."""
    stages = yaml_of(folder)["stages"]
    stages[stage]["options"] = given
    change(folder, stages=stages)


@pytest.mark.parametrize("provider", ["local", pytest.param("parsl", marks=pytest.mark.slow)])
def test_a_worker_killed_once_changes_no_byte(plain: Path, provider: str) -> None:
    """What was under way with it, merges and reduce stages too, is done again, though no retry is allowed at all."""
    change(plain, retries=0)
    assert command("run", "c.yaml", "--run-dir", "whole", cwd=plain).returncode == 0
    options(plain, "fill", kill=str(plain / "once"))
    done = command("run", "c.yaml", "--run-dir", "r", "--provider", provider, cwd=plain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (plain / "once").exists(), "a worker was killed"
    assert hashes(plain / "r") == hashes(plain / "whole")


@pytest.mark.faults
def test_a_file_that_kills_its_workers_is_named_and_no_other(plain: Path) -> None:
    """Of all that was lost together, only the cause is held guilty; the rest is done."""
    options(plain, "fill", kill=str(plain / "each"), always=True)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=plain)
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(plain / "r")
    lost = [e for e in report["errors"] if "workers were lost" in e]
    assert len(lost) == 1
    assert "a3.root" in lost[0]
    assert report["tasks"]["failed"] == 1
    assert "fill/b/nominal" in report["outputs"]


@pytest.mark.slow
def test_a_frozen_value_cannot_be_changed_by_a_stage(plain: Path) -> None:
    """Its arrays are read-only, and what a stage does to a mapping or list no other task sees."""
    options(plain, "second", in_place=True)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=plain)
    assert done.returncode == 1
    assert "read-only" in report_of(plain / "r")["errors"][0]
    options(plain, "second", spoil=True)
    counts = {}
    for workers in ("1", "2"):
        assert command("run", "c.yaml", "--run-dir", f"w{workers}", "--workers", workers, cwd=plain).returncode == 0
        counts[workers] = hashes(plain / f"w{workers}")
    assert counts["1"] == counts["2"]


@pytest.mark.slow
def test_a_change_that_is_taken_back_is_no_tampering(plain: Path) -> None:
    """Other bins, and back again: derived anew each time, the first outputs again at the end."""
    text = (plain / "s.py").read_text()
    found = []
    for bins in ("20,", "30,", "20,"):
        (plain / "s.py").write_text(text.replace("Regular(20,", f"Regular({bins}"))
        done = command("run", "c.yaml", "--run-dir", "r", cwd=plain)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(hashes(plain / "r"))
    assert found[0] == found[2] != found[1]


def test_a_task_beyond_its_deadline_is_given_up_by_name(plain: Path) -> None:
    """A stage that hangs ends with its file named; the campaign does not hang with it."""
    stages = yaml_of(plain)["stages"]
    stages["fill"]["use"] = "s.py:hang"
    change(plain, stages={"fill": stages["fill"]}, task_deadline_s=1, datasets={"b": yaml_of(plain)["datasets"]["b"]})
    (plain / "b" / "b1.root").unlink()
    text = (plain / "s.py").read_text().replace("time.sleep(60)", "time.sleep(60 if len(batch) > 100 else 0)")
    (plain / "s.py").write_text(text)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=plain)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "b0.root" in report_of(plain / "r")["errors"][0]
    assert "ran longer than 1 s" in report_of(plain / "r")["errors"][0]


@pytest.mark.slow
def test_an_artefact_that_was_touched_is_not_read_as_if_it_were_whole(small: Path) -> None:
    """Bits of a kept column flipped: the pass that reads it has it made again, and all is as if it were whole."""
    change(small, variations={})
    assert command("run", "c.yaml", "--run-dir", "r", cwd=small).returncode == 0
    receipt = next(p for p in (small / "r" / "partials").rglob("*.parquet") if p.stat().st_size > 4000)
    whole = bytearray(receipt.read_bytes())
    for place in range(600, len(whole) - 600, 97):
        whole[place] ^= 1
    receipt.chmod(0o644)
    receipt.write_bytes(bytes(whole))
    (small / "stages.py").write_text((small / "stages.py").read_text().replace("Regular(20,", "Regular(40,"))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "since it was written" in done.stderr or "since they were written" in done.stderr, (
        "by the merge or by the pass that reads it, whichever is first"
    )
    assert command("run", "c.yaml", "--run-dir", "whole", cwd=small).returncode == 0
    assert hashes(small / "r") == hashes(small / "whole")
    assert command("verify", "r", "--sample", "0", cwd=small).returncode == 0, "in the merged output too"


@pytest.mark.faults
def test_missing_values_are_not_made_up_for_a_model(small: Path) -> None:
    """A column with missing entries is refused by name, not sent as NaN."""
    text = (small / "stages.py").read_text()
    (small / "stages.py").write_text(text.replace('return {"x": kept.x,', 'return {"x": ak.mask(kept.x, kept.x > 0),'))
    change(small, variations={})
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1
    assert "the column 'x' cannot be sent" in report_of(small / "r")["errors"][0]


@pytest.mark.faults
def test_one_attached_server_serves_a_campaign(small: Path) -> None:
    """Kind ``attach`` with a single URL, for longer than a look around takes; it is left running."""
    models = {"slow": {"batch": 256, "parameters": {"delay_s": 0.1}}}
    with ServerPool(PROJECT / "tests" / "models", models=models) as pool:
        pool.wait_ready()
        made = campaign_dict("slow", variations={})
        made["servers"] = {"kind": "attach", "urls": pool.records()[0].url, "models": {"slow": {"batch": 256}}}
        (small / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
        done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
        assert done.returncode == 0, done.stdout + done.stderr
        assert pool.records()[0].state == "ready"


def test_a_pool_removes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """A folder given to a pool keeps what lay in it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    with ServerPool(PROJECT / "tests" / "models", models=["batch_sensitive"], folder=tmp_path) as pool:
        pool.wait_ready()
        x = np.zeros((4, 1), np.float32)
        assert hashlib.sha256(pool.servers().infer("batch_sensitive", {"X": x})["Y"]).hexdigest()
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "sub").is_dir()


def test_the_order_of_files_is_recorded(plain: Path) -> None:
    """`plan.json` holds every dataset's files in canonical order, whatever order they were listed in."""
    import json

    change(plain, stages={"fill": yaml_of(plain)["stages"]["fill"]})
    datasets = yaml_of(plain)["datasets"]
    datasets["a"]["files"] = ["a/a2.root", "a/a0.root", "a/a3.root", "a/a1.root"]
    change(plain, datasets=datasets)
    assert command("run", "c.yaml", "--run-dir", "r", cwd=plain).returncode == 0
    files = json.loads((plain / "r" / "plan.json").read_text())["files"]
    assert [Path(f[0]).name for f in files["a"]] == ["a0.root", "a1.root", "a2.root", "a3.root"]
    assert list(files) == ["a", "b"]


HANGS = """
import time
import awkward as ak
import numpy as np


class Hangs:
    entries = 1000

    def __init__(self, url, tree, branches):
        self.touched = {"x"}

    def read(self, start, stop):
        if start >= 400:
            time.sleep(3600)
        return ak.Array({"x": np.zeros(stop - start)})

    def weight(self, expression, batch):
        return np.ones(len(batch))

    def close(self):
        pass


def count(batch, ctx):
    return {"n": len(batch)}
"""


@pytest.mark.faults
def test_a_read_that_hangs_ahead_of_its_stages_is_given_up(tmp_path: Path) -> None:
    """A range that is read in the background and never comes ends its task at the deadline; nothing is left of it."""
    (tmp_path / "h.py").write_text(HANGS)
    (tmp_path / "some.root").write_text("")
    campaign = {
        "campaign": "hangs", "workers": 1, "read_rows": 200, "task_deadline_s": 2,
        "datasets": {"d": {"files": "some.root", "tree": "t", "reader": "h.py:Hangs"}},
        "stages": {"count": {"use": "h.py:count"}},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(campaign))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert "ran longer than 2 s" in done.stdout + done.stderr
