"""Many small tasks: readers of one's own, batches, packs, trees; what is complete stays, what is spoilt is redone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from campaign import load
from campaign.driver import merge_trees, task_queue
from campaign.driver.run import run
from campaign.report.report import Report
from tests.conftest import change, command, yaml_of

STAGES = """
import awkward as ak
import hist
import numpy as np
from campaign import Counts, Histogram
from campaign.errors import InputError


class Npz:
    def __init__(self, url, tree, branches):
        try:
            self.arrays = dict(np.load(url))
        except Exception as error:
            raise InputError.unreadable(url, error) from error
        self.entries = len(self.arrays["x"])

    def read(self, start, stop):
        return ak.Array({name: array[start:stop] for name, array in self.arrays.items()})

    def weight(self, expression, batch):
        return np.asarray(batch[expression])

    def close(self):
        self.arrays = {}


def count(batch, ctx):
    return Counts(n=len(batch), x=float(np.sum(batch.x)))


def fill(batch, ctx):
    return {"h": Histogram(hist.axis.Regular(10, -3, 3)).fill(ak.to_numpy(batch.x), weight=batch[ctx.weight])}


def keep(batch, ctx):
    return {"x": batch.x, ctx.weight: batch[ctx.weight]}


def mean(merged, ctx):
    return {name: m["x"] / m["n"] for name, m in merged.items()}


def above(batch, ctx):
    return Counts(n=int(np.sum(np.asarray(batch.x) > ctx.frozen["mean"]["d"])))
"""
FILES = 60


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """See `make_many`."""
    return make_many(tmp_path)


def make_many(tmp_path: Path) -> Path:
    """A campaign over many small files that are not ROOT: every kind of output, a barrier, a variation."""
    (tmp_path / "d").mkdir()
    for i in range(FILES):
        rng = np.random.default_rng(i)
        np.savez(tmp_path / "d" / f"{i:03}.npz", x=rng.normal(size=3 + i % 5), w=rng.lognormal(0, 5, size=3 + i % 5))
    (tmp_path / "s.py").write_text(STAGES)
    made = {
        "campaign": "many",
        "datasets": {"d": {"files": "d/*.npz", "tree": "none", "reader": "s.py:Npz"}},
        "workers": 2,
        "stages": {
            "count": {"use": "s.py:count"}, "fill": {"use": "s.py:fill"}, "keep": {"use": "s.py:keep", "keep": True},
            "mean": {"use": "s.py:mean", "reduce": "count"},
            "above": {"use": "s.py:above", "from": "keep", "with": "mean"},
        },
        "variations": {"up": {"weight": "w"}},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return tmp_path


def do(folder: Path, run_dir: str = "r") -> Report:
    """Run it here."""
    return run(load(folder / "c.yaml"), run_dir=folder / run_dir, progress=False)


def hashes(report: Report) -> dict[str, str]:
    """sha256 of every output."""
    return {name: o["sha256"] for name, o in report.outputs.items()}


def test_a_reader_of_ones_own_reads_other_files(many: Path) -> None:
    """`reader: file.py:Class` opens what is not ROOT, its rows are counted, and its code is part of the keys."""
    report = do(many)
    assert report.datasets == {"d": {"files": FILES, "events": sum(3 + i % 5 for i in range(FILES))}}
    x = np.concatenate([np.load(many / "d" / f"{i:03}.npz")["x"] for i in range(FILES)])
    counts = json.loads(Path(report.outputs["count/d/nominal"]["path"]).read_text())
    assert counts["n"] == len(x)
    above = json.loads(Path(report.outputs["above/d/nominal"]["path"]).read_text())
    assert above["n"] == int((x > counts["x"] / counts["n"]).sum())
    (many / "s.py").write_text((many / "s.py").read_text().replace("array[start:stop]", "array[start:stop] * 2"))
    other = do(many)
    assert other.tasks["reused"] == 0
    assert hashes(other)["count/d/nominal"] != hashes(report)["count/d/nominal"]


@pytest.mark.slow
def test_a_wrong_reader_is_refused_at_its_line(many: Path) -> None:
    """A reader that is not there, or is none, exits 2 with file, line, key and what it lacks."""
    for reader, said in (
        ("s.py:Nope", "'Nope' is not one of the functions of s.py"),
        ("s.py:count", "is no reader: it has no 'read', no"),
        ("infer", "is no reader"),
        ("zarr", "'zarr' is not one of the stages"),
    ):
        change(many, datasets={"d": yaml_of(many)["datasets"]["d"] | {"reader": reader}})
        done = command("check", "c.yaml", cwd=many)
        assert done.returncode == 2
        assert "c.yaml:" in done.stderr
        assert ": datasets.d.reader: " in done.stderr
        assert said in done.stderr


def test_batches_and_trees_do_not_show(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task per batch or many, merged at once or as a tree: the same sha256."""
    at_once = hashes(do(many, "at-once"))
    monkeypatch.setattr(task_queue, "BATCH_S", 0.0)
    monkeypatch.setattr(merge_trees, "LEAF", 7)
    assert hashes(do(many, "tree")) == at_once
    assert not [p for p in (many / "tree").rglob("*") if p.name.startswith(".") or p.parent.name == "leaves"]


def test_what_is_complete_starts_nothing_and_is_taken_as_it_is(many: Path) -> None:
    """Run again: no worker, no merge, no file written but report and manifest; the same hashes, paths and notes."""
    first = do(many)
    shutil.rmtree(many / "r" / "logs")  # a provider that is entered makes it anew
    before = {p: p.stat().st_mtime_ns for p in (many / "r").rglob("*") if p.is_file()}
    again = do(many)
    assert again.outputs == first.outputs
    assert again.datasets == first.datasets
    assert again.tasks["done"] == 0
    assert again.tasks["reused"] == again.tasks["total"] == first.tasks["total"]
    assert not (many / "r" / "logs").exists()
    changed = {p.name for p, t in before.items() if not p.exists() or p.stat().st_mtime_ns != t}
    assert changed <= {"report.json", "manifest.json", "lock"}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["counts", *(pytest.param(k, marks=SLOW) for k in ("histograms", "root", "columns"))])
def test_a_spoilt_output_is_merged_again(many: Path, kind: str) -> None:
    """A merged file that was altered, cut or lost is made again by the next run; no task is done for it."""
    first = do(many)
    if kind == "columns":
        folder = Path(first.outputs["keep/d/nominal"]["path"])
        (folder / f"{FILES - 1:06d}.parquet").unlink()
    else:
        output = first.outputs["count/d/nominal" if kind == "counts" else "fill/d/up"]
        path = Path(output["root" if kind == "root" else "path"])
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes(20))
    again = do(many)
    assert again.tasks["done"] == 0
    assert hashes(again) == hashes(first)
    if kind == "columns":
        assert len(list(folder.iterdir())) == FILES
    elif kind != "root":  # a ROOT file holds the time at which it was written
        assert path.read_bytes() == whole
    assert do(many).outputs == first.outputs


@pytest.mark.parametrize("how", ["altered", *(pytest.param(h, marks=SLOW) for h in ("cut", "lost"))])
def test_spoilt_partials_are_made_anew(many: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs that are not what receipts say: found by size or by digest, and only their tasks are done again."""
    monkeypatch.setattr(task_queue, "LARGEST", 5)
    first = do(many)
    packs = sorted((many / "r" / "partials").rglob("*.pack"))
    assert len(packs) > 4
    for pack in packs[:2]:
        whole = pack.read_bytes()
        if how == "altered":
            pack.write_bytes(whole[:10] + bytes(b ^ 1 for b in whole[10:20]) + whole[20:])
        elif how == "cut":
            pack.write_bytes(whole[:-1])
        else:
            pack.unlink()
    shutil.rmtree(many / "r" / "outputs")  # so that everything is merged again
    again = do(many)
    assert hashes(again) == hashes(first)
    assert 0 < again.tasks["done"] < first.tasks["done"]
    assert again.tasks["done"] + again.tasks["reused"] == again.tasks["total"]
