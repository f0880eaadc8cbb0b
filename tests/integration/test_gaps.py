"""A campaign that puts up with failed files: what it makes without them, what it says of them, and how it heals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from campaign.driver import run as engine
from campaign.driver.check import check
from campaign.report.report import Report
from campaign.spec import yaml_file
from tests.conftest import change, command, write_tree, yaml_of

STAGES = """
import json, os, pathlib, time
import awkward as ak
import numpy as np
import hist
from campaign import Histogram

HERE = pathlib.Path(__file__).parent


def note(what):
    with (HERE / "calls.txt").open("a") as log:
        log.write(what + "\\n")


def waited_for(what):
    end = time.monotonic() + 100
    while time.monotonic() < end and what not in (HERE / "calls.txt").read_text().splitlines():
        time.sleep(0.01)


def keep(batch, ctx):
    if ctx.metadata.get("name") in ctx.options.get("late", ()):
        waited_for("second " + ctx.metadata["name"])
        raise ValueError("this file is bad after all")
    if ctx.metadata.get("name") in (HERE / "bad.txt").read_text().split():
        note("keep " + ctx.metadata["name"])
        raise ValueError("this file is bad")
    return {"y": batch.y, "w": batch.w, ctx.weight: batch[ctx.weight]}


def fill(batch, ctx):
    h = Histogram(hist.axis.Regular(20, -4, 4))
    return {"h": h.fill(ak.to_numpy(batch.y), weight=ak.to_numpy(batch.w * batch[ctx.weight]))}


def mean(merged, ctx):
    note("mean " + json.dumps(ctx.missing))
    drawn = int.from_bytes(os.urandom(4), "big") if ctx.options.get("draws") else 0
    return {"v": np.array([m["h"].sum().value for m in merged.values()]), "drawn": drawn}


def second(batch, ctx):
    if ctx.metadata.get("name") in (HERE / "worse.txt").read_text().split():
        raise ValueError("this file is worse")
    frozen = ctx.frozen["mean"]
    note("second " + str(ctx.metadata.get("name")))
    return {"n": float(frozen["v"].sum()), "rows": len(batch.y), "drawn": frozen["drawn"] * len(batch.y)}
"""


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """Two datasets, six files, two passes; the second reads the events again. One file may fail."""
    for i in range(4):
        path = write_tree(tmp_path / "a" / f"a{i}.root", n=800 + i, seed=i)
        write_tree(path, "up", n=800 + i, seed=20 + i, mode="update")
    for i in range(2):
        write_tree(tmp_path / "b" / f"b{i}.root", n=500, seed=10 + i)
    side = {f"{n[0]}/{n}.root": {"name": n} for n in ("a0", "a1", "a2", "a3", "b0", "b1")}
    (tmp_path / "side.yaml").write_text(yaml.safe_dump(side))
    (tmp_path / "s.py").write_text(STAGES)
    (tmp_path / "bad.txt").write_text("")
    (tmp_path / "worse.txt").write_text("")
    made = {
        "campaign": "six",
        "datasets": {n: {"files": n, "tree": "events", "metadata": "side.yaml"} for n in "ab"},
        "workers": 2,
        "read_rows": 400,
        "errors": {"max_failed_files": "20 %"},
        "stages": {
            "keep": {"use": "s.py:keep", "keep": True},
            "fill": {"use": "s.py:fill", "from": "keep"},
            "mean": {"use": "s.py:mean", "reduce": "fill", "options": {}},
            "second": {"use": "s.py:second", "with": ["mean"]},
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return tmp_path


def run(folder: Path, name: str) -> Report:
    """The report of a run of the folder's campaign in this process."""
    return engine.run(yaml_file.load(folder / "c.yaml", []), run_dir=folder / name, progress=False, raises=False)


def sums(report: Report) -> dict[str, str]:
    return {name: o["sha256"] for name, o in report.outputs.items()}


def calls(folder: Path, what: str) -> list[str]:
    """What stages have noted since this was last asked."""
    path = folder / "calls.txt"
    found = [line for line in path.read_text().splitlines() if line.startswith(what)] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def without(folder: Path, *names: str) -> dict[str, str]:
    """Hashes of the campaign of which these files are no part."""
    given = yaml_of(folder)["datasets"]
    left = {d: {**s, "files": [f"{p}" for p in sorted((folder / d).glob("*.root")) if p.stem not in names]}
            for d, s in given.items()}  # fmt: skip
    change(folder, datasets=left)
    made = run(folder, "without-" + "-".join(names))
    assert made.status == "complete"
    change(folder, datasets=given)
    return sums(made)


def torn(path: Path) -> bytes:
    """Zeros in a basket of a file whose size and date stay, as when a disk goes bad. What it was before."""
    with uproot.open(path) as file:
        key = file["events"]["y"].basket_key(0)
        start, end = int(key.fSeekKey) + int(key.fKeylen), int(key.fSeekKey) + int(key.fNbytes)
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return whole


def healed(path: Path, whole: bytes) -> None:
    stat = path.stat()
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_gap_is_named_and_all_else_is_as_without_the_file(six: Path) -> None:
    """Exit 0, ``incomplete``: every output says what it lacks, and has the hash of a campaign without that file."""
    torn(six / "a" / "a1.root")
    done = command("run", "c.yaml", "--run-dir", "r", cwd=six)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "incomplete" in done.stdout
    assert "fill/a/nominal: without 1 file" in done.stdout
    report = Report.load(six / "r")
    assert report is not None
    assert report.status == "incomplete"
    name = str(six / "a" / "a1.root")
    assert [(x["file"], x["dataset"], x["entries"], x["sum_of_weights"]) for x in report.lost] == [
        (name, "a", 801, None)
    ]
    for output in ("keep/a/nominal", "fill/a/nominal", "second/a/nominal"):
        assert report.outputs[output]["incomplete"] is True
        assert report.outputs[output]["missing"] == {"files": [name], "entries": 801, "sum_of_weights": None}
    assert report.outputs["mean/all/nominal"]["because"] == ["fill/a/nominal"]
    assert report.outputs["second/b/nominal"]["because"] == ["mean/all/nominal"]
    assert report.outputs["second/b/nominal"]["missing"]["files"] == []
    assert "incomplete" not in report.outputs["fill/b/nominal"]
    assert report.tasks["failed"] == 1, "what the first pass could not read the second does not try"
    assert sums(report) == without(six, "a1")


@pytest.mark.faults
def test_a_gap_that_is_healed_leaves_no_trace(six: Path) -> None:
    """The file again as it was, not even its date changed: the next run gives the hashes of a run that never broke."""
    whole = run(six, "whole")
    assert whole.status == "complete"
    was = torn(six / "a" / "a1.root")
    first = run(six, "r")
    assert first.status == "incomplete"
    calls(six, "")
    again = run(six, "r")
    assert (again.status, sums(again)) == ("incomplete", sums(first))
    assert (again.tasks["done"], again.tasks["reused"]) == (0, first.tasks["done"])
    assert calls(six, "mean") == [], "made from the same outputs: taken over"
    healed(six / "a" / "a1.root", was)
    last = run(six, "r")
    assert last.status == "complete"
    assert sums(last) == sums(whole)
    assert last.tasks["done"] == 1 + 6, "the file, and all that was made with a value from which it was missing"
    assert last.lost == []


def test_a_second_pass_is_made_with_the_value_in_force(six: Path) -> None:
    """A reduce stage that draws lots and loses its value: everything made with the old value is made again."""
    stages = yaml_of(six)["stages"]
    stages["mean"]["options"] = {"draws": True}
    change(six, stages=stages)
    first = run(six, "r")
    (six / "r" / "frozen" / "mean" / "nominal.json").unlink()
    second = run(six, "r")
    assert first.status == second.status == "complete"
    made = json.loads((six / "r" / "outputs" / "second" / "a" / "nominal.json").read_text())
    drawn = json.loads((six / "r" / "frozen" / "mean" / "nominal.json").read_text())["drawn"]
    assert made["drawn"] == drawn * made["rows"]
    assert sums(first)["mean/all/nominal"] != sums(second)["mean/all/nominal"]
    assert second.tasks["done"] == 6
    assert second.tasks["reused"] == 6
    third = run(six, "r")
    assert (third.tasks["done"], sums(third)) == (0, sums(second))


@pytest.mark.faults
def test_more_failures_than_tolerated_fail_as_ever(six: Path) -> None:
    """Two files where one may fail: exit 1, nothing incomplete is in the report or in the folder, the rest is done."""
    torn(six / "a" / "a1.root")
    torn(six / "a" / "a3.root")
    report = run(six, "r")
    assert report.status == "failed"
    assert set(report.outputs) == {"keep/b/nominal", "fill/b/nominal"}
    assert not (six / "r" / "outputs" / "fill" / "a").exists()
    assert [Path(x["file"]).name for x in report.lost] == ["a1.root", "a3.root"]
    assert any("2 files failed; errors.max_failed_files puts up with 1" in e for e in report.errors)
    assert all(sum(f"/{n}.root" in e for e in report.errors) == 1 for n in ("a1", "a3"))


@pytest.mark.faults
def test_what_was_put_up_with_is_withdrawn_when_more_fail(six: Path) -> None:
    """A second file that fails in the second pass: what the first pass made without the first file is taken back."""
    torn(six / "a" / "a1.root")
    (six / "worse.txt").write_text("b0")
    report = run(six, "r")
    assert report.status == "failed"
    assert set(report.outputs) == {"keep/b/nominal", "fill/b/nominal"}
    assert not list((six / "r" / "outputs" / "fill" / "a").glob("nominal*"))
    assert not (six / "r" / "outputs" / "keep" / "a" / "nominal").exists()
    (six / "worse.txt").write_text("")
    assert run(six, "r").status == "incomplete"


@pytest.mark.faults
def test_a_file_that_fails_late_in_its_first_pass_is_lost_to_the_second(six: Path) -> None:
    """However far the second pass has come by then: what is in an output does not depend on who was quicker."""
    stages = yaml_of(six)["stages"]
    stages["fill"]["datasets"] = ["a"]
    change(six, stages=stages)
    expected = without(six, "b1")
    stages["keep"]["options"] = {"late": ["b1"]}
    change(six, stages=stages)
    calls(six, "")
    (six / "calls.txt").touch()
    report = run(six, "r")
    assert report.status == "incomplete"
    assert [Path(x["file"]).name for x in report.lost] == ["b1.root"]
    assert "second b1" in calls(six, "second")
    assert report.outputs["second/b/nominal"]["missing"]["files"] == [str(six / "b" / "b1.root")]
    assert sums(report) == expected


@pytest.mark.faults
def test_a_reduce_stage_is_told_what_is_missing(six: Path) -> None:
    """``ctx.missing`` names files, entries and the sum of weights of a file that can still be read."""
    (six / "bad.txt").write_text("a2")
    change(six, errors={"max_failed_files": 1, "weight": "w * 2"})
    report = run(six, "r")
    assert report.status == "incomplete"
    noted = calls(six, "")
    assert [line for line in noted if line.startswith("keep")] == ["keep a2"], "once: nothing of it can heal"
    (told,) = [json.loads(line[5:]) for line in noted if line.startswith("mean")]
    weights = uproot.open(six / "a" / "a2.root")["events"]["w"].array(library="np")
    assert told == {"a": report.outputs["fill/a/nominal"]["missing"]}
    assert told["a"]["entries"] == 802
    assert np.isclose(told["a"]["sum_of_weights"], 2 * weights.sum(), rtol=1e-12)


@pytest.mark.faults
def test_a_sum_of_weights_is_a_files_own_or_unknown(six: Path) -> None:
    """What the side file says for one file alone is that file's; what it says for a whole sample is nobody's."""
    for pattern, known in (("a/a1.root", 12.5), ("a/*.root", None)):
        side = {"a/*.root": {"slice": 1}, "b/*.root": {}, **{f"a/a{i}.root": {"slice": 1} for i in range(4)}}
        side[pattern] = {**side[pattern], "sum_of_weights": 12.5}
        (six / "side.yaml").write_text(yaml.safe_dump(side))
        torn(six / "a" / "a1.root")
        report = run(six, f"r-{known}")
        assert report.status == "incomplete"
        assert [x["sum_of_weights"] for x in report.lost] == [known]


@pytest.mark.faults
def test_a_file_lost_in_one_variation_only_is_pointed_at(six: Path) -> None:
    """A variation's tree that is missing in one file: that output lacks it, nominal does not, and a note says so."""
    path = six / "a" / "a3.root"
    write_tree(path, n=803, seed=3)  # without the variation's tree
    change(six, variations={"up": {"datasets": ["a"], "tree": "up"}})
    report = run(six, "r")
    assert report.status == "incomplete", report.errors
    assert "incomplete" not in report.outputs["fill/a/nominal"]
    assert report.outputs["fill/a/up"]["missing"] == {"files": [str(path)], "entries": 803, "sum_of_weights": None}
    assert any("fill/a/up and fill/a/nominal lack different files" in w for w in report.warnings)
    assert report.outputs["mean/all/up"]["because"] == ["fill/a/up"]


@pytest.mark.faults
def test_a_disk_that_is_full_is_no_files_fault(six: Path) -> None:
    """The columns of one file that cannot be written are not put up with, however many files may fail."""
    change(six, errors={"max_failed_files": "100 %"}, stages={"keep": yaml_of(six)["stages"]["keep"]})
    key = check(yaml_file.load(six / "c.yaml", [])).plan.lines[0].keys[0]
    (six / "r" / "partials").mkdir(parents=True)
    (six / "r" / "partials" / key[:2]).write_text("in the way")
    report = run(six, "r")
    assert report.status == "failed"
    assert "cannot be written" in report.errors[0]
    (six / "r" / "partials" / key[:2]).unlink()
    assert run(six, "r").status == "complete"


@pytest.mark.faults
def test_a_disk_that_becomes_full_spoils_no_artefact(six: Path) -> None:
    """A pass that reads whole artefacts and cannot write what it makes of them does not have them made again."""
    (six / "s.py").write_text(STAGES + FULL)
    stages = {n: stage for n, stage in yaml_of(six)["stages"].items() if n != "second"}
    stages["full"] = {"use": "s.py:full", "from": "keep", "with": ["mean"]}
    change(six, errors={"max_failed_files": "100 %"}, stages=stages)
    report = run(six, "r")
    assert report.status == "failed"
    assert any("cannot be written" in e for e in report.errors), report.errors
    assert (report.tasks["done"], report.tasks["failed"]) == (6, 6)


FULL = """

def full(batch, ctx):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # no file of this process grows on
    return {f"n{i}": float(i) for i in range(500)}
"""
