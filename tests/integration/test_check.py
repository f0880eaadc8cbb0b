"""``campaign check`` finds what a run finds before servers, ``--try`` what stages and models do with a hundred rows."""

from __future__ import annotations

import json
import re

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml

from campaign import Campaign, cli
from campaign.errors import SpecError
from campaign.report.report import Report
from tests.conftest import PROJECT

STAGES = """
import numpy as np
from campaign import Histogram, Histograms
import hist

def select(batch, ctx):
    good = batch[batch.x > -10]
    return {"x": good.x, "wide": np.stack([good.x, good.x], 1), ctx.weight: good[ctx.weight]}

def fill(batch, ctx):
    h = Histogram(hist.axis.Regular(4, -2, 2, name="y"))
    return Histograms(y=h.fill(batch.y, weight=batch[ctx.weight]))

def drops(batch, ctx):
    return {"x": batch.x}

def one(batch):
    return {"x": batch.x}

def uneven(batch, ctx):
    return {"x": batch.x, "half": batch.x[::2]}

def misspelt(batch, ctx):
    return {"y": np.clip(batch.y, 0, upper), ctx.weight: batch[ctx.weight]}

def needs_many(batch, ctx):
    assert len(batch) > 1000, "too few rows"
    return {"x": batch.x, ctx.weight: batch[ctx.weight]}

def needs_numbers(batch, ctx):
    assert np.any(np.asarray(batch.y) > 0), "all scores are zero"
    return {"y": batch.y, ctx.weight: batch[ctx.weight]}

def total(merged, ctx):
    return {"sum": float(merged["d"]["y"].values().sum())}

def alone(merged):
    return {}
"""
GOOD = {
    "campaign": "case",
    "datasets": {"d": {"files": "*.root", "tree": "t"}},
    "servers": {"model_repository": str(PROJECT / "tests" / "models"), "models": {"batch_sensitive": {"batch": 16}}},
    "stages": {
        "select": {"use": "s.py:select"},
        "inf": {"use": "infer", "from": "select", "model": "batch_sensitive", "inputs": {"X": ["x"]},
                "outputs": {"y": "Y"}},
        "fil": {"use": "s.py:fill", "from": "inf"},
        "tot": {"use": "s.py:total", "reduce": "fil"},
    },
}  # fmt: skip


def digests(report):
    return {name: output["sha256"] for name, output in report["outputs"].items()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two files, the stages, and a way to run a command on the campaign with some keys changed."""
    rng = np.random.default_rng(0)
    (tmp_path / "s.py").write_text(STAGES)
    for name, n in (("a", 300), ("b", 20)):
        with uproot.recreate(tmp_path / f"{name}.root") as file:
            made = file.mktree("t", {"x": "float32", "w": "float64", "j": "var * float32"})
            x = rng.normal(size=n).astype(np.float32)
            made.extend({"x": x, "w": np.full(n, 2.0), "j": ak.unflatten(x, np.full(n, 1))})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(place, capsys):
    def do(command, changes=(), *options):
        campaign = json.loads(json.dumps(GOOD))
        for dotted, value in dict(changes).items():
            here, *_ = [campaign]
            *path, last = dotted.split("/")
            for part in path:
                here = here.setdefault(part, {})
            if value is None:
                here.pop(last)
            else:
                here[last] = value
        (place / "c.yaml").write_text(yaml.safe_dump(campaign))
        capsys.readouterr()
        code = cli.main([command, "c.yaml", *options])
        out = capsys.readouterr()
        assert not list(place.glob("runs")) or command in ("run", "canary", "plan")
        return code, out.out + out.err

    return do


def test_a_right_campaign_is_right(said):
    """``check`` looks at the files, and ``--try`` at every stage but those that need merged outputs."""
    code, text = said("check")
    assert code == 0
    assert "looked at up to 100 rows of" in text
    assert "a.root (d)" in text
    assert "tried the stages before the first inference; --try runs the others" in text
    code, text = said("check", {}, "--try")
    assert code == 0
    assert "ran on 100 rows, with zeros in place of models' answers: select, inf, fil" in text
    assert "not tried: tot" in text


def up(weight):
    return {"variations": {"up": {"datasets": ["d"], "weight": weight}}}


def infer(**changes):
    return {f"stages/inf/{key.rstrip('_')}": value for key, value in changes.items()}


WRONG = {  # what is changed, and what is said of it; found without --try
    "tree": ({"datasets/d/tree": "tt"}, "c.yaml:5: datasets.d.tree: 'tt' is not one of the trees; did you mean 't'?"),
    "weight": (up("ww"), "variations.up.weight: 'ww' is not one of the branches"),
    "drops": ({**up("w"), "stages/select/use": "s.py:drops"}, "drops the column ctx.weight"),
    "uneven": ({"stages/select/use": "s.py:uneven"}, "columns differ in length: 'x' has 100 entries, 'half' has 50"),
    "arity": ({"stages/select/use": "s.py:one"}, "s.py:one takes (batch), and a stage is called with (batch, ctx)"),
    "reduce": ({"stages/tot/use": "s.py:alone"}, "s.py:alone takes (merged), and a stage is called with (merged, ctx)"),
}
TRIED = {  # found with --try
    "no from": (infer(from_=None, inputs={"X": ["wide"]}), "add 'from: select'"),
    "column": (infer(inputs={"X": ["xx"]}), "'xx' is not one of the columns of the batch; did you mean 'x'?"),
    "width": (infer(inputs={"X": "wide"}), "expected shape (any, 1), got (100, 2) (in model batch_sensitive, input X)"),
    "jagged": (infer(from_=None, inputs={"X": ["j"]}), "the column 'j'"),
    "name": (
        {"stages/mid": {"use": "s.py:misspelt", "from": "inf"}},
        "stages.mid: raised NameError: name 'upper' is not defined",
    ),
    "later column": (infer(outputs={"z": "Y"}), "stages.fil: asks for 'y', which is not there"),
}


SECOND = ("jagged", "later column", "name")  # of a kind that is in the default run
MISTAKES = [pytest.param(m, marks=pytest.mark.slow) if m in SECOND else m for m in (*WRONG, *TRIED)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_anything_is_started(said, mistake):
    """At its key, with exit code 2; and a run finds without servers what ``check`` finds."""
    changes, text = (WRONG | TRIED)[mistake]
    code, found = said("check", changes, *(["--try"] if mistake in TRIED else []))
    assert text in found
    assert code == 2
    assert "c.yaml:" in found
    if mistake in TRIED:
        assert said("check", changes)[0] == 0


@pytest.mark.slow
def test_what_could_not_be_looked_at_is_said(said, place):
    """A file without rows is a note. Files that cannot be read are an error, where none may fail."""
    (place / "bad.root").write_bytes(b"root" + bytes(50))
    with uproot.recreate(place / "none.root") as file:
        file.mktree("t", {"x": "float32"})
    for name, why in (("bad", "cannot be read"), ("none", "it has no rows")):
        for options in ((), ("--try",)):
            changes = {"datasets/d/files": f"{name}.root"}
            if name == "bad":
                code, text = said("check", changes, *options)
                assert code == 2
                assert f"datasets.d.files: no file can be read ({place}/bad.root: cannot be read: " in text
                assert "  remedy: check or replace it; or let files fail: errors: {max_failed_files: N}" in text
                changes["errors"] = {"max_failed_files": 1}
            code, text = said("check", changes, *options)
            assert code == 0
            assert f"note: d: no file could be looked at ({place}/{name}.root: {why}" in text
            assert "looked at up to" not in text
            assert "ran on 100 rows" not in text


@pytest.mark.slow
def test_what_a_stage_raises_on_few_rows_is_a_note(said):
    """It may be right with all rows; ``--try`` calls it an error, with the lines of the stage."""
    code, text = said("check", {"stages/select/use": "s.py:needs_many"})
    assert code == 0
    assert (
        "note: d: on the first 100 rows, stage select (s.py:needs_many): raised AssertionError: too few rows (" in text
    )
    assert re.search(r"too few rows \(\S+/s\.py:\d+\)", text)
    code, text = said("check", {"stages/select/use": "s.py:needs_many"}, "--try")
    assert code == 2
    assert "c.yaml:24: stages.select: raised AssertionError: too few rows" in text


def test_servers_that_already_run_are_not_asked(said):
    """What their models take is not known before a run: that is said, and no error."""
    servers = {"kind": "attach", "urls": ["localhost:1"], "models": {"batch_sensitive": {"batch": 16}}}
    code, text = said("check", {"servers": servers}, "--try")
    assert code == 0
    assert "note: stage inf was not tried: servers that already run are not asked for their models" in text
    assert "not tried: inf, fil, tot" in text or "not tried: fil, inf, tot" in text


def test_what_stand_in_answers_cannot_tell_is_a_note(said):
    """A stage that fails on zeros may be right with the model's real answers."""
    code, text = said(
        "check", {"stages/mid": {"use": "s.py:needs_numbers", "from": "inf"}, "stages/fil/from": "mid"}, "--try"
    )
    assert code == 0
    assert (
        "note: stage mid could not be tried on stand-in answers of zeros: raised AssertionError: all scores are zero"
        in text
    )


@pytest.mark.slow
def test_a_limited_run_is_a_try_of_its_own(said, place):
    """Rows per file; its own folder and keys: nothing of it is taken for a result, not even in one folder."""
    code, text = said("run", {}, "--limit", "50", "--quiet")
    assert code == 0
    assert "A TRY     only the first 50 rows of each file were read" in text
    report = json.loads((place / "runs/case-limit-50/report.json").read_text())
    assert ": 0 tasks to do" in said("plan", {}, "--limit", "50")[1]
    assert Report.load(place / "runs/case-limit-50").limit == 50
    assert cli.main(["report", "runs/case-limit-50"]) == 0
    assert cli.main(["status", "runs/case-limit-50"]) == 0
    assert ": 2 tasks to do" in said("plan")[1]
    assert report["limit"] == 50
    assert report["datasets"] == {"d": {"files": 2, "events": 70}}
    assert said("run", {}, "--quiet")[0] == 0
    whole = json.loads((place / "runs/case/report.json").read_text())
    assert whole["limit"] is None
    assert whole["datasets"]["d"]["events"] == 320
    assert digests(whole) != digests(report)
    assert cli.main(["verify", "runs/case-limit-50", "--sample", "100%"]) == 0
    assert said("run", {}, "--quiet", "--limit", "50", "--run-dir", "runs/case")[0] == 0
    assert said("run", {}, "--quiet", "--run-dir", "runs/case")[0] == 0
    assert digests(json.loads((place / "runs/case/report.json").read_text())) == digests(whole)


@pytest.mark.parametrize("number", [0, -5, True, 2.5, "10"])
@pytest.mark.parametrize("name", ["limit", "workers", "servers"])
def test_a_number_that_is_none_is_refused_in_python_too(place, name, number):
    """``limit=0`` would be a run of no rows, in the folder of the whole run."""
    campaign = Campaign(campaign="c", datasets=GOOD["datasets"], stages={"select": {"use": "s.py:select"}})
    with pytest.raises(SpecError, match=f"{name}=: {number!r} is no number of {name}"):
        campaign.run(**{name: number}, progress=False)
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_a_canary_is_made_from_the_campaigns_own_rows(said, place, tmp_path):
    """The first rows that a stage would send, and the server's answers; never overwritten unasked."""
    changes = {"servers/models/batch_sensitive/canary": "mine.npz"}
    (place / "mine.npz").touch()
    code, text = said("canary", changes, "batch_sensitive")
    assert code == 2
    assert "mine.npz is there already" in text
    code, text = said("canary", changes, "batch_sensitive", "--force")
    assert code == 0, text
    assert "the answers of batch_sensitive to 32 rows of your own" in text
    with np.load(place / "mine.npz") as made, uproot.open(place / "a.root") as file:
        x = file["t"]["x"].array(library="np")
        assert made["input.X"].ravel().tolist() == x[x > -10][:32].tolist()
        assert made["output.Y"].shape == (32, 1)
    assert said("run", {**changes, "campaign": "held"}, "--quiet")[0] == 0
    with np.load(place / "mine.npz") as made:
        np.savez(place / "mine.npz", **{"input.X": made["input.X"], "output.Y": made["output.Y"] + 1})
    code, text = said("run", {**changes, "campaign": "other"}, "--quiet")
    assert code == 1
    assert "wrong answer: Y is" in text
    assert "'nope' is not one of the models of the campaign" in said("canary", changes, "nope")[1]
