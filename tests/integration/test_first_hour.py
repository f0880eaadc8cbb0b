"""The first hour of a user with a NanoAOD-like file and a model: twenty mistakes, each with its whole message."""

from __future__ import annotations

import json
import re
import shutil

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml

from campaign import cli
from campaign.report.report import Report
from tests.conftest import PROJECT, command

STAGES = """\
import numpy as np, hist, warnings
from campaign import Histogram, Histograms

def select(batch, ctx):
    return {"met": batch.MET_pt, "two": np.stack([batch.MET_pt, batch.MET_pt], 1), ctx.weight: batch[ctx.weight]}

def fill(batch, ctx):
    h = Histogram(hist.axis.Regular(4, 0, 4, name="met"))
    return Histograms(met=h.fill(batch.met, weight=batch[ctx.weight]))

def chatty(batch, ctx):
    warnings.warn("a cut is loose")
    for i in range(len(batch)):
        print("row", i)
    import os
    os.write(2, b"from C\\n")
    return fill(batch, ctx)

def missing(batch, ctx):
    return {"x": batch.MET_ptt}

def text(batch, ctx):
    return "done"

def half(batch, ctx):
    return {"met": batch.MET_pt, "half": batch.MET_pt[::2]}

def drops(batch, ctx):
    return {"met": batch.MET_pt}

def one(batch):
    return {"met": batch.MET_pt}

def imports(batch, ctx):
    import no_such_package

def leaves(batch, ctx):
    import sys
    sys.exit(3)

def aborts(batch, ctx):
    import os
    print("before the end")
    os._exit(7)

def dies(batch, ctx):
    import os
    print("before the end")
    if len(batch) > 100:
        os.kill(os.getpid(), 6)
    return fill(batch, ctx)

def mean(merged, ctx):
    print("a word of the reduce stage")
    return 1 / 0

def other(batch, ctx):
    return {"x": batch.mett}
"""
HELPERS = """\
def ratio(x):
    return x / 0

def divides(batch, ctx):
    return {"met": ratio(1)}
"""
GOOD = {
    "campaign": "mine",
    "datasets": {"d": {"files": "*.root", "tree": "Events"}},
    "servers": {"model_repository": "models", "models": {"batch_sensitive": {"batch": 64}}},
    "stages": {
        "select": {"use": "s.py:select"},
        "inf": {"use": "infer", "from": "select", "model": "batch_sensitive", "inputs": {"X": ["met"]},
                "outputs": {"y": "Y"}},
        "fil": {"use": "s.py:fill", "from": "select"},
    },
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two files with forty branches, a stage file, a model repository."""
    rng = np.random.default_rng(0)
    for name, n in (("a", 300), ("b", 200)):
        counts = rng.integers(0, 4, n)
        columns = {
            "MET_pt": rng.exponential(size=n).astype(np.float32), "genWeight": np.full(n, 2, np.float32),
            "Muon_pt": ak.unflatten(rng.exponential(size=counts.sum()).astype(np.float32), counts),
            "LHEPdfWeight": ak.unflatten(np.ones(3 * n, np.float32), np.full(n, 3)),
            **{f"HLT_path{i}": np.ones(n, bool) for i in range(40)},
        }  # fmt: skip
        types = {k: "var * float32" if isinstance(v, ak.Array) else v.dtype for k, v in columns.items()}
        with uproot.recreate(tmp_path / f"{name}.root") as file:
            file.mktree("Events", types).extend(columns)
            file["h"] = np.histogram([1.0])
    (tmp_path / "s.py").write_text(STAGES)
    (tmp_path / "my_errors.py").write_text(HELPERS)
    shutil.copytree(PROJECT / "tests/models/batch_sensitive", tmp_path / "models/batch_sensitive")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(changes):
    campaign = json.loads(json.dumps(GOOD))
    for dotted, value in changes.items():
        here = campaign
        *path, last = dotted.split("/")
        for part in path:
            here = here.setdefault(part, {})
        if value is None:
            here.pop(last)
        else:
            here[last] = value
    return yaml.safe_dump(campaign, sort_keys=False)


def plain(text, place):
    return text.replace(f"{place}/", "").replace(str(place), "HERE")


UP = {"datasets": ["d"], "weight": "genWeight"}
BEFORE = {  # what is changed: the whole message; nothing was started
    "wrong tree": ({"datasets/d/tree": "events"}, """\
campaign: c.yaml:5: datasets.d.tree: 'events' is not one of the trees; did you mean 'Events'? (known: Events) \
(in a.root)
  remedy: correct 'tree'
"""),
    "a histogram for a tree": ({"datasets/d/tree": "h"}, """\
campaign: c.yaml:5: datasets.d.tree: 'h' is a Model_TH1D_v3, not a tree (in a.root)
  remedy: correct 'tree'
"""),
    "wrong branch": ({"stages/select/use": "s.py:missing"}, """\
campaign: c.yaml:3: datasets.d: asks for 'MET_ptt', which is not there; did you mean 'MET_pt'? (in a.root, tree \
Events: stage select (s.py:missing))
  remedy: correct the name, or the tree, or map it under 'branches'
  log:
    |   File "s.py", line 20, in missing
    |     return {"x": batch.MET_ptt}
    | AttributeError: no field named 'MET_ptt'
"""),
    "wrong column": ({"stages/inf": None, "servers": None, "stages/fil/use": "s.py:other"}, """\
campaign: c.yaml:9: stages.fil: asks for 'mett', which is not there; did you mean 'met'? (in stage fil (s.py:other))
  remedy: correct the name, or return this column in stage select
  log:
    |   File "s.py", line 58, in other
    |     return {"x": batch.mett}
    | AttributeError: no field named 'mett'
"""),
    "wrong name under branches": ({"datasets/d/branches": {"met": "MET_ptt"}}, """\
campaign: c.yaml:7: datasets.d.branches.met: 'MET_ptt' is not one of the branches of Events; did you mean 'MET_pt'? \
(known: MET_pt, Muon_pt, nMuon_pt, HLT_path9, HLT_path8 and 41 more) (in a.root)
  remedy: correct 'branches'
"""),
    "wrong model": ({"stages/inf/model": "batch_sensitiv"}, """\
campaign: c.yaml:17: stages.inf.model: 'batch_sensitiv' is not one of the models under servers.models; did you mean \
'batch_sensitive'? (known: batch_sensitive)
"""),
    "no such model folder": ({"servers/models": {"nn": {}}}, """\
campaign: c.yaml:9: servers.models.nn: 'nn' is not one of the models of the repository (known: batch_sensitive)
"""),
    "wrong output": ({"stages/inf/outputs": {"y": "SCORE"}}, """\
campaign: c.yaml:22: stages.inf.outputs.y: 'SCORE' is not one of the outputs of batch_sensitive (known: Y)
"""),
    "no such function": ({"stages/fil/use": "s.py:fil"}, """\
campaign: c.yaml:24: stages.fil.use: 'fil' is not one of the functions of s.py; did you mean 'fill'? (known: aborts, \
chatty, dies, drops, fill, half, imports, leaves, mean, missing, one, other, select, text)
"""),
    "wrong arity": ({"stages/select/use": "s.py:one"}, """\
campaign: c.yaml:13: stages.select.use: s.py:one takes (batch), and a stage is called with (batch, ctx)
  remedy: write def NAME(batch, ctx)
"""),
    "wrong return": ({"stages/fil/use": "s.py:text"}, """\
campaign: c.yaml:23: stages.fil: returned a str (in stage fil)
  remedy: return a dict of equal-length arrays, Histograms or Counts
"""),
    "unequal lengths": ({"stages/select/use": "s.py:half"}, """\
campaign: c.yaml:12: stages.select: columns differ in length: 'met' has 100 entries, 'half' has 50 (in stage select)
  remedy: return one entry per row in every column
"""),
    "unknown key": ({"stages/inf/output": {"y": "Y"}}, """\
campaign: c.yaml:23: stages.inf.output: 'output' is not one of the keys of infer; did you mean 'outputs'? (known: \
model, inputs, outputs, cast, options, use, from, reduce, with, datasets, keep, weighted)
"""),
    "glob without a match": ({"datasets/d/files": "data/*.root"}, """\
campaign: c.yaml:4: datasets.d.files: no file matches data/*.root
  remedy: paths are relative to the campaign file; check it, or the pattern
"""),
    "dropped weight": ({"stages/select/use": "s.py:drops", "variations/up": UP}, """\
campaign: c.yaml:12: stages.select: drops the column ctx.weight, so variation 'up' could not differ from nominal (in \
stage select (s.py:drops))
  remedy: add batch[ctx.weight] to the columns that it returns, row by row
"""),
    "weight index": ({"variations/up": {**UP, "weight": "LHEPdfWeight[7]"}}, """\
campaign: c.yaml:30: variations.up.weight: [7] is out of range: 'LHEPdfWeight' has 3 entries per event (in weight \
'LHEPdfWeight[7]' in a.root)
  remedy: correct the index; the first entry is [0]
"""),
    "weight of one number": ({"variations/up": {**UP, "weight": "genWeight[0]"}}, """\
campaign: c.yaml:30: variations.up.weight: 'genWeight' has one number per event, and so no [0] (in weight \
'genWeight[0]' in a.root)
  remedy: write genWeight
"""),
    "a stage that ends the process": ({"stages/select/use": "s.py:aborts"}, """\
campaign: c.yaml:12: stages.select: stage select (s.py:aborts) does not return on the first 100 rows of a.root \
(dataset d): its process ended (exit code 7)
  remedy: run the stage on this file in a Python session of its own; the log shows the last lines it printed
  log:
    | before the end
"""),
    "a setting Triton would refuse": ({"servers/models/batch_sensitive": {"batch": 100000}}, """\
campaign: c.yaml:10: servers.models.batch_sensitive.batch: 100000 is more than the model's max_batch_size 1024
  remedy: use at most 1024
"""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BEFORE)
def test_a_mistake_is_told_whole_and_before_anything_is_started(place, capsys, mistake):
    """File, line, key, what was found, what is near, what to do; exit code 2; no server, no output."""
    changes, message = BEFORE[mistake]
    (place / "c.yaml").write_text(changed(changes))
    assert cli.main(["run", "c.yaml"]) == 2
    said = plain(capsys.readouterr().err, place)
    said = re.sub(r"    \| +[\^~]+\n", "", said)  # which Python from 3.11 on adds
    assert said == message
    assert not (place / "runs/mine/outputs").exists()
    assert not list(place.glob("runs/mine/job*"))
    assert not list(place.glob("runs/mine/servers/*"))


TEXTS = {
    "tab": ("  d:\n", "\td:\n", """\
campaign: c.yaml:3: a tab stands in this line: d:
  remedy: indent with spaces
"""),
    "no colon": ("tree: Events", "tree Events", """\
campaign: c.yaml:5: there is no colon after the key in this line: tree Events
  remedy: write 'key: value' with a colon and a space after each key; quote text that holds ': '
"""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TEXTS)
def test_yaml_that_is_none_shows_the_line(place, capsys, mistake):
    """The line itself, and what is to be written."""
    before, after, message = TEXTS[mistake]
    (place / "c.yaml").write_text(changed({}).replace(before, after))
    assert cli.main(["check", "c.yaml"]) == 2
    assert plain(capsys.readouterr().err, place) == message


@pytest.mark.parametrize("what", ["stop", "status", "report", "verify"])
def test_a_folder_that_is_no_run_is_a_wrong_request(place, capsys, what):
    """Exit code 2, for a folder and for nothing at all."""
    (place / "other").mkdir()
    (place / "other/plan.json").write_text("{}")  # of another tool
    for name, said in (
        ("models", "is no run directory"), ("other", "is no run directory"), ("nothing", "is not there"),
    ):  # fmt: skip
        assert cli.main([what, name]) == 2
        assert capsys.readouterr().err == (
            f"campaign: {name}: {said}\n  remedy: give the folder that 'campaign run' has made, runs/NAME for example\n"
        )


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--workers", "0", "argument --workers: '0' is not a whole number of at least 1"),
    ("--limit", "all", "argument --limit: 'all' is not a whole number of at least 1"),
])  # fmt: skip
def test_a_wrong_number_on_the_command_line_is_named(place, capsys, option, value, said):
    """What was given, and what is allowed; no name of a function of ours."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "c.yaml", option, value])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"campaign run: error: {said}"


def test_a_wrong_percentage_is_named(place, capsys):
    """More than all files cannot be read again."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "runs/mine", "--sample", "200"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "campaign verify: error: argument --sample: '200' is no percentage from 0 to 100"
    )


def errors_of(place, changes):
    (place / "c.yaml").write_text(changed(changes))
    done = command("run", "c.yaml", "--quiet", cwd=place)
    assert done.stderr == ""
    text = plain(done.stdout, place)
    found = [x.rstrip() for x in re.split(r"\n  (?=error: |report   )", text)[1:-1] if "error: missing" not in x]
    found = [re.sub(r"\n    \| +[\^~]+", "", x) for x in found]
    return done.returncode, [x.replace("b.root", "a.root").replace("200", "300") for x in found]  # which came first


RUN = {  # found by the run only, once for all files
    "wrong width": ({"stages/inf/inputs": {"X": "two"}}, """\
error: c.yaml:14: stages.inf: a.root: model batch_sensitive, input X: expected shape (any, 1), got (300, 2)
  and 1 more alike"""),
    "jagged column": ({"stages/inf/from": None, "stages/inf/inputs": {"X": ["Muon_pt"]}}, """\
error: c.yaml:14: stages.inf: a.root: stage inf: the column 'Muon_pt' of type 300 * var * float32 cannot be sent: its \
entries differ in length, and the model takes one shape per row
  remedy: take one value per row in the stage before (a maximum, the first entry); or send whole events to a \
model with max_batch_size: 0
  and 1 more alike"""),
    "error in a helper": ({"stages/select/use": "my_errors.py:divides"}, """\
error: a.root: stage select (my_errors.py:divides): raised ZeroDivisionError: division by zero
  log:
    |   File "my_errors.py", line 5, in divides
    |     return {"met": ratio(1)}
    |   File "my_errors.py", line 2, in ratio
    |     return x / 0
    | ZeroDivisionError: division by zero
  and 1 more alike"""),
    "sys.exit": ({"stages/fil/use": "s.py:leaves"}, """\
error: a.root: stage fil (s.py:leaves): called sys.exit(3)
  remedy: a stage returns its value or raises an exception; it does not end the process
  log:
    |   File "s.py", line 39, in leaves
    |     sys.exit(3)
    | SystemExit: 3
  and 1 more alike"""),
    "no such package": ({"stages/fil/use": "s.py:imports"}, """\
error: a.root: stage fil (s.py:imports): raised ModuleNotFoundError: No module named 'no_such_package'
  log:
    |   File "s.py", line 35, in imports
    |     import no_such_package
    | ModuleNotFoundError: No module named 'no_such_package'
  and 1 more alike"""),
}  # fmt: skip


SECOND = ("jagged column", "no such package", "sys.exit")  # of a kind that is in the default run


@pytest.mark.parametrize("mistake", [pytest.param(m, marks=pytest.mark.slow) if m in SECOND else m for m in RUN])
def test_a_mistake_that_only_the_run_shows_is_told_once_for_all_files(place, mistake):
    """With the line of the campaign or of the user's code, whatever the file of the code is called."""
    changes, message = RUN[mistake]
    code, found = errors_of(place, changes)
    assert code == 1
    assert found == [message]


def test_what_a_stage_prints_is_in_the_log_of_its_file(place):
    """Prints, warnings and what code in C writes: not on the terminal, ``--quiet`` or not; cut where it is too much."""
    (place / "c.yaml").write_text(changed({"stages/fil/use": "s.py:chatty", "stages/inf": None, "servers": None}))
    done = command("run", "c.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "row " not in done.stdout + done.stderr
    assert "loose" not in done.stdout + done.stderr
    assert f"  printed  by stages: 2 logs in {place}/runs/mine/logs/stages\n" in done.stdout
    logs = sorted((place / "runs/mine/logs/stages/d").glob("*.log"))
    assert [log.name.rpartition("-")[0] for log in logs] == ["a.root", "b.root"]
    text = logs[1].read_text().splitlines()
    assert text[0] == f"--- {place}/b.root: select/nominal, fil/nominal"
    assert [x for x in text if x.startswith("row ")] == [f"row {i}" for i in range(200)]
    assert any("s.py:12: UserWarning: a cut is loose" in x for x in text)
    assert "from C" in text
    assert sorted(p.name for p in (place / "runs/mine/logs/stages").iterdir()) == ["d"]
    report = Report.load(place / "runs/mine")
    assert str(report) == report.text()
    assert "campaign mine: complete" in str(report)


def test_what_is_printed_at_import_or_by_a_run_before_is_not_said_again(place):
    """A stage file is imported by the driver too: its prints are in the logs only. A run that did nothing says so."""
    (place / "s.py").write_text(STAGES + '\nprint("at import")\n')
    (place / "c.yaml").write_text(changed({"stages/inf": None, "servers": None}))
    done = command("run", "c.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "at import" not in done.stdout + done.stderr
    assert "  printed  by stages: " in done.stdout
    assert "at import" in "".join(p.read_text() for p in (place / "runs/mine/logs/stages/d").glob("*.log"))
    again = command("run", "c.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "printed  by stages" not in again.stdout


def test_an_error_names_the_log_of_what_was_printed_before(place):
    """Of a reduce stage that fails, and of a stage that ends its worker: the path stands in the error, and is there."""
    code, found = errors_of(place, {
        "stages/inf": None, "servers": None, "stages/mean": {"use": "s.py:mean", "reduce": "fil"},
    })  # fmt: skip
    assert code == 1
    log = "runs/mine/logs/stages/mean/nominal.log"
    assert found == [
        f"""\
error: stage mean, variation nominal (s.py:mean): raised ZeroDivisionError: division by zero
  log:
    |   File "s.py", line 55, in mean
    |     return 1 / 0
    | ZeroDivisionError: division by zero
    | printed output: {log}"""
    ]
    assert (place / log).read_text() == "--- stage mean, variation nominal\na word of the reduce stage\n"
    code, found = errors_of(place, {"stages/inf": None, "servers": None, "stages/fil/use": "s.py:dies"})
    assert code == 1
    named = re.findall(r"printed output: (\S+)", "\n".join(found))
    assert named, found
    assert "before the end" in (place / named[0]).read_text()


def test_status_counts_what_the_run_in_the_folder_makes(place, capsys):
    """Receipts of an earlier plan are not counted for this one: a run that has done nothing yet shows zeros."""
    from campaign.driver.check import check
    from campaign.planning.plan_file import note_start, progress_of
    from campaign.spec.yaml_file import load
    from campaign.storage.rundir import RunDir

    (place / "c.yaml").write_text(changed({"stages/inf": None, "servers": None}))
    assert cli.main(["run", "c.yaml", "--quiet"]) == 0
    rundir = RunDir(place / "runs/mine")
    assert progress_of(rundir) == ({"fil": 2}, {"fil": 2})
    other = check(load("c.yaml", ["read_rows=7"]))
    note_start(rundir, other.plan, other.plan.todo())
    assert progress_of(rundir) == ({"fil": 2}, {"fil": 0})
    capsys.readouterr()
    assert cli.main(["status", "runs/mine"]) == 0
    assert capsys.readouterr().out.startswith("not running; complete after")
