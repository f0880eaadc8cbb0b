"""`campaign plan` says why: what a key is made from now against what it was made from at the last run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from campaign import cli
from campaign.driver.explain import INPUTS_OPEN, INPUTS_OTHER, Explanations, as_json
from campaign.driver.failed_files import FailedFiles
from campaign.driver.partial_index import PartialIndex
from campaign.driver.state import State
from campaign.planning import plan_file
from campaign.planning.plan_file import PlanFile
from campaign.storage.receipts import FROZEN, Receipt, Receipts
from campaign.storage.rundir import RunDir
from tests.planning.test_plan import MODELS, YAML, edit, folder_of, make


@pytest.fixture
def folder(tmp_path):
    yield from folder_of(tmp_path)


def finished(made, rundir):
    """A run directory in which everything of a plan is said to be there, one pack per file."""
    plan_file.write(rundir, made)
    with Receipts(rundir.receipts) as log:
        for line in made.lines:
            for key, url in zip(line.keys, line.events.files.urls(), strict=True):
                if line.emit:
                    log.add(
                        Receipt(key, line.stage, line.events.dataset, line.variation, url, "counts", "", 1, 0, 0, "aa")
                    )
        for r in made.reduces:
            log.add(Receipt(r.key, r.stage, "all", r.variation, "", FROZEN, "", 1))
            rundir.frozen(r.stage, r.variation).parent.mkdir(parents=True, exist_ok=True)
            rundir.frozen(r.stage, r.variation).touch()
    rundir.pack("aa").parent.mkdir(parents=True)
    rundir.pack("aa").write_bytes(b"x")
    return rundir


def state_of(made, rundir):
    """What is there; frozen values count by their key, since nothing was really merged here."""
    index = PartialIndex(made, Receipts(rundir.receipts))
    index.read(rundir)
    state = State(index, FailedFiles(made))
    for r in made.reduces:
        at, path = (r.stage, r.variation), rundir.frozen(r.stage, r.variation)
        if path.exists() and at in index.frozen and index.frozen[at].key == r.key:
            state.frozen[at] = (str(path), "")
    return state


def why(made, rundir):
    """``{(stage, dataset, variation, file): reasons}`` of what would run, and of reduce stages."""
    state = state_of(made, rundir)
    reasons = Explanations(made, state, PlanFile.read(rundir), rundir)
    found = {}
    for some in made.todo(state.index.missing()):
        for group in reasons.groups(some):
            for url in group.urls:
                for name in group.writes:
                    found[(*name.split("/"), group.dataset, url.rpartition("/")[2])] = set(group.why)
    return found, {f"{r.stage}/{r.variation}": set(reasons.reduce(r)) for r in made.reduces if reasons.reduce(r)}


def test_what_is_done_needs_no_reason(folder, tmp_path):
    """With everything there nothing would run."""
    made = make(folder)
    assert why(made, finished(made, RunDir(tmp_path / "r"))) == ({}, {})


def test_a_new_directory_has_no_receipt(folder, tmp_path):
    """Where there was no run every task runs for want of a receipt."""
    tasks, reduces = why(make(folder), RunDir(tmp_path / "r"))
    assert len(tasks) > 20
    assert all(said == {"no receipt"} for said in [*tasks.values(), *reduces.values()])


def touch(folder):
    os.utime(folder / "mc/a.root", ns=(1, 1))


def grow(folder):
    (folder / "mc/a.root").write_bytes(b"longer than it was")
    os.utime(folder / "mc/a.root", ns=(10**18, 10**18))


def nothing(folder):
    pass


SELECT = "code of stage 'select' changed"
CASES = {
    "code": (edit("st.py", "scale(batch.pt)", "scale(batch.pt) + 1"), "", "first mc/a.root", SELECT),
    "helper": (edit("helpers.py", "/ 1000", "/ 1024"), "", "predict data/d.root", SELECT),
    "options": (
        nothing, "stages.predict.outputs.score=T", "predict mc/b.root", "options of 'predict' changed: outputs.score"
    ),
    "date": (touch, "", "first mc/a.root", "input changed (date)"),
    "size": (grow, "", "first mc/a.root", "input changed (size)"),
    "metadata": (nothing, "datasets.mc.metadata={lumi: 1}", "first mc/a.root", "metadata changed"),
    "tree": (nothing, "datasets.mc.tree=other", "first mc/a.root", "tree of dataset 'mc' changed"),
    "read_rows": (nothing, "read_rows=7", "raw data/d.root", "read_rows changed"),
    "new variation": (nothing, "variations.new={tree: N}", "raw data/d.root", "raw/data/new is new"),
    "new stage": (nothing, "stages.more={use: 'st.py:counts'}", "more mc/a.root", "stage 'more' is new"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_task_says_what_has_changed(folder, tmp_path, case):
    """Code, options, input, metadata, tree, range or a new name: the reason that is given is the one there is."""
    rundir = finished(make(folder), RunDir(tmp_path / "r"))
    do, change, at, reason = CASES[case]
    do(folder)
    tasks, _ = why(make(folder, YAML, *filter(None, [change])), rundir)
    said = [v for (s, _, d, f), v in tasks.items() if f"{s} {d}/{f}" == at]
    assert said
    assert any(reason in s for s in said), said
    assert not any("no receipt" in s for s in tasks.values())
    if case in ("date", "size"):
        assert {f for s, _, _, f in tasks if s == "first"} == {"a.root"}


def test_a_changed_model_is_named_with_its_file(folder, tmp_path):
    """Predictions and what follows run because a file of the model changed; the selection does not run for that."""
    models = {**MODELS, "tagger": {"batch": 8, "files": {"model.onnx": "1"}}}
    rundir = finished(make(folder, models=models), RunDir(tmp_path / "r"))
    after = {**MODELS, "tagger": {"batch": 8, "files": {"model.onnx": "2"}}}
    tasks, reduces = why(make(folder, models=after), rundir)
    assert {s for s, *_ in tasks} == {"predict", "first", "second"}
    assert all("model tagger changed: files.model.onnx" in said for said in tasks.values())
    assert reduces["factors/nominal"] == {"merged 'first' will be made again"}
    assert all("frozen 'factors' will be made again" in said for (s, *_), said in tasks.items() if s == "second")


def test_a_partial_that_is_not_what_its_receipt_says_is_a_reason(folder, tmp_path):
    """A pack that is gone or too short: its tasks say so; the same for a frozen value."""
    made = make(folder)
    rundir = finished(made, RunDir(tmp_path / "r"))
    rundir.pack("aa").write_bytes(b"")
    rundir.frozen("extract", "trk").unlink()
    tasks, reduces = why(made, rundir)
    assert all(said == {"its partial is missing or torn"} for (s, *_), said in tasks.items() if s != "predict")
    assert reduces == {"extract/trk": {"its frozen value is missing"}}


def test_every_task_is_in_the_json(folder, tmp_path):
    """For a program each task stands by itself, with what it leaves, its keys and its reasons."""
    made = make(folder)
    rundir = finished(made, RunDir(tmp_path / "r"))
    touch(folder)
    made = make(folder)
    state = state_of(made, rundir)
    todo = made.todo(state.index.missing())
    told = as_json(made, Explanations(made, state, PlanFile.read(rundir), rundir), todo)
    assert len(told["tasks"]) == sum(len(p.places) for p in todo)
    keys = [key for task in told["tasks"] for key in task["keys"]]
    assert sorted(keys) == sorted(x.keys[int(i)] for p in todo for x in p.shape.emits for i in p.places)
    assert {
        tuple(t["why"]) for t in told["tasks"] if t["file"].endswith("mc/a.root") and "first/nominal" in t["writes"]
    } == {("input changed (date)",)}


def test_a_group_names_a_few_files_and_counts_the_rest(folder, tmp_path):
    """A thousand files with one reason are one line."""
    for i in range(1000):
        (folder / f"data/e{i:03}.root").touch()
    made = make(folder)
    reasons = Explanations(made, state_of(made, RunDir(tmp_path / "none")), None, RunDir(tmp_path))
    lines = [g.text() for some in made.todo() for g in reasons.groups(some)]
    assert len(lines) < 20
    assert any(
        line.startswith("d.root, e000.root, e001.root and 998 more (data): predict/nominal, raw/nominal")
        for line in lines
    ), lines
    assert np.sum([len(g.places) for some in made.todo() for g in reasons.groups(some)]) == made.total


def test_what_was_made_with_another_frozen_value_says_so(folder, tmp_path):
    """Where a frozen value has another content than partials were made with, that is why they are made again."""
    made = make(folder)
    rundir = finished(made, RunDir(tmp_path / "r"))
    state = state_of(made, rundir)
    state.index.stale({line: "of another value" for line in made.lines if line.emit and line.needs})
    reasons = Explanations(made, state, PlanFile.read(rundir), rundir)
    groups = [g for some in made.todo(state.index.missing()) for g in reasons.groups(some)]
    assert {name.split("/")[0] for g in groups for name in g.writes} == {"second"}
    assert {g.why for g in groups} == {("it was made with another frozen value than there is now",)}


def planned(folder, run):
    """What ``campaign plan --json`` says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["plan", str(folder / "c.yaml"), "--run-dir", str(run), "--json"]) == 0
    return json.loads(said.getvalue())


def test_a_frozen_value_that_is_open_is_to_do_and_tasks_are_at_least(counted, tmp_path):
    """What it was made from is made again or differs: the value is not said to be done, nor the tasks to be all."""
    run = RunDir(Path(shutil.copytree(counted / "r", tmp_path / "r")))
    told = planned(counted, run.root)
    assert (told["tasks"], told["reduces"], told["at_least"]) == ([], [], False)
    run.output("count", "d", "nominal", "counts").unlink()
    told = planned(counted, run.root)
    assert told["reduces"] == [{"name": "total/nominal", "why": [INPUTS_OPEN]}]
    assert told["at_least"]
    with Receipts(run.receipts) as log:
        old = next(r for r in log if r.kind == FROZEN)
        log.add(replace(old, more=json.dumps({"made_from": "of a gap", "artefacts": {}})))
    shutil.copytree(counted / "r/outputs", run.root / "outputs", dirs_exist_ok=True)
    told = planned(counted, run.root)
    assert told["reduces"] == [{"name": "total/nominal", "why": [INPUTS_OTHER]}]
    assert told["at_least"]
    assert not planned(counted, tmp_path / "new")["at_least"]


def test_a_plan_that_was_torn_is_written_anew(folder, tmp_path):
    """``plan.json`` is left alone where it says just this plan; torn, altered or longer it is written again."""
    made, rundir = make(folder), RunDir(tmp_path / "r")
    plan_file.write(rundir, made)
    whole, inode = rundir.plan_file.read_bytes(), rundir.plan_file.stat().st_ino
    assert json.loads(whole)["plan"] == made.digest
    plan_file.write(rundir, made)
    assert rundir.plan_file.stat().st_ino == inode
    for torn in (whole[:-40], whole[:-9] + b"x" + whole[-8:], whole + b"x", b""):
        rundir.plan_file.write_bytes(torn)
        plan_file.write(rundir, made)
        assert rundir.plan_file.read_bytes() == whole
