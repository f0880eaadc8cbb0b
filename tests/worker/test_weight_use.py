"""A variation's weight that a stage forgets: refused where that is certain, and else told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np
import pytest
import uproot
import yaml
from campaign.stages.fill import Fill

import campaign
from campaign import Histogram
from campaign.outputs import read_histograms
from campaign.planning.planner import plan
from campaign.planning.stage_code import resolve
from campaign.protocols import WEIGHT
from tests.conftest import command, report_of

STAGES = '''
import awkward as ak
import hist
import numpy as np

from campaign import Counts, Histogram, Histograms

AXIS = hist.axis.Regular(10, -3, 3, name="x")


def select(batch, ctx):
    """The rows with x above a cut, and the weight."""
    kept = batch[batch.x > -1]
    return {"x": kept.x, "w": kept.w, "k": kept.k, ctx.weight: kept[ctx.weight]}


def drop(batch, ctx):
    return {"x": batch.x}


def make_up(batch, ctx):
    return {"x": batch.x, ctx.weight: np.ones(len(batch))}


def short(batch, ctx):
    return {"x": batch.x, ctx.weight: ak.values_astype(batch[ctx.weight], np.float32)}


def fold(batch, ctx):
    """The weight goes into a column of its own."""
    return {"x": batch.x, "w": batch.w * batch[ctx.weight]}


def fill(batch, ctx):
    weight = batch.w * batch[ctx.weight]
    return Histograms(h=Histogram(AXIS).fill(batch.x, weight=weight))


def fill_w(batch, ctx):
    return Histograms(h=Histogram(AXIS).fill(batch.x, weight=batch.w))


def fill_none(batch, ctx):
    return {"h": hist.Hist(AXIS, storage=hist.storage.Weight()).fill(ak.to_numpy(batch.x), weight=None)}


def sometimes(batch, ctx):
    """Entries on purpose, and the weight only where there is a tail: in the second file."""
    tail = batch[batch.x > 3.08]
    histogram = Histogram(AXIS)
    if len(tail):
        histogram.fill(tail.x, weight=tail[ctx.weight])
    return Histograms(control=Histogram(AXIS).fill(batch.x), tail=histogram)


def fill_empty(batch, ctx):
    return Histograms(h=Histogram(AXIS))


def touch(batch, ctx):
    """It looks at the weight, and does not use it."""
    assert ak.sum(batch[ctx.weight]) != 0
    return Histograms(h=Histogram(AXIS).fill(batch.x, weight=batch.w))


def one_of_two(batch, ctx):
    weighted = Histogram(AXIS).fill(batch.x, weight=batch[ctx.weight])
    return Histograms(good=weighted, forgotten=Histogram(AXIS).fill(batch.x), nothing=Histogram(AXIS))


def count(batch, ctx):
    return Counts(n=len(batch))


class Own:
    """It has an option with the name of a key."""

    def __init__(self, weighted=True):
        self.weighted = weighted

    def __call__(self, batch, ctx):
        assert not self.weighted
        return fill(batch, ctx)


def reduced(merged, ctx):
    return {"sum": merged["d"]["sum"]}


def count_sum(batch, ctx):
    return Counts(n=len(batch), sum=float(ak.sum(batch[ctx.weight])))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of events with weights: ``k`` is not 1, ``one`` is, ``tail`` is but where x is below the cut."""
    (tmp_path / "s.py").write_text(STAGES)
    for i in range(2):
        rng = np.random.default_rng(i)
        x = rng.normal(size=300)
        with uproot.recreate(tmp_path / f"{i}.root") as file:
            file["t"] = {
                "x": x, "w": rng.random(300), "k": rng.random(300) + 0.5, "one": np.ones(300),
                "tail": np.where(x > -1, 1.0, 7.0),
            }  # fmt: skip
    return tmp_path


def write(folder: Path, stages: dict[str, Any], **variations: str) -> None:
    """A campaign of these stages, with a variation per weight."""
    made = {
        "campaign": "c", "datasets": {"d": {"files": "*.root", "tree": "t"}}, "workers": 1, "read_rows": 100,
        "stages": stages, "variations": {name: {"weight": weight} for name, weight in variations.items()},
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))


def ran(folder: Path, stages: dict[str, Any], **variations: str) -> Any:
    """The report of a run in this process."""
    write(folder, stages, **variations)
    return campaign.run(campaign.load(folder / "c.yaml"), run_dir=folder / "r", progress=False, raises=False)


def line_of(folder: Path, stage: str) -> str:
    """How the line of a stage is named."""
    number = 1 + (folder / "c.yaml").read_text().splitlines().index(f"  {stage}:")
    return f"{folder}/c.yaml:{number}: stages.{stage}"


SELECT = {"use": "s.py:select"}
BUILT_IN = {"use": "fill", "histograms": {"h": {"x": {"bins": 3, "range": [-1, 1]}}}}
ALL = {
    "select": SELECT,
    "fill": {"use": "s.py:fill", "from": "select"},
    "own": {"use": "s.py:Own", "from": "select", "options": {"weighted": False}},
    "touch": {"use": "s.py:touch", "from": "select"},
    "one_of_two": {"use": "s.py:one_of_two", "from": "select"},
    "sometimes": {"use": "s.py:sometimes", "from": "select"},
    "empty": {"use": "s.py:fill_empty", "from": "select"},
    "count": {"use": "s.py:count", "from": "select"},
    "entries": {"use": "s.py:count", "from": "select", "weighted": False},
    "unweighted": {"use": "s.py:fill_w", "from": "select", "weighted": False},
    "sums": {"use": "s.py:count_sum", "from": "select"},
    "fold": {"use": "s.py:fold", "from": "select"},
    "folded": {"use": "s.py:fill_w", "from": "fold"},
    "forgotten": {**BUILT_IN, "from": "fold"},
    "short": {"use": "s.py:short", "from": "select", "keep": True},
    "rounded": {**BUILT_IN, "from": "short"},
}


def test_what_a_stage_does_with_the_weight_is_told_once(folder: Path) -> None:
    """Nominal's bits in a variation of the weight are told: line, histogram and variation, where weights are not 1."""
    report = ran(folder, ALL, up="k", down="1 / k", one="one", tail="tail")
    same = "its output is nominal's, bit for bit, in variations down, up, though weights of its events are not 1; "
    expected = {
        "count": "counts without ctx.weight, also in variations down, up; write 'weighted: false' there if",
        "forgotten": f"{same}does it use ctx.weight? write 'weighted: false' there if it is meant to",
        "one_of_two": "of its histograms, forgotten are nominal's, bit for bit, in variations down, up, though",
        "short": "hands ctx.weight on with fewer digits than float64 has, in variations down, up",
        "sometimes": "of its histograms, control are nominal's, bit for bit, in variations down, up, though",
        "touch": f"{same}does it use ctx.weight?",
    }
    assert len(report.warnings) == len(expected)
    for told, (stage, text) in zip(report.warnings, sorted(expected.items()), strict=True):
        assert told.startswith(f"{line_of(folder, stage)}: {text}")
        assert told in report.text()
    assert report_of(folder / "r")["warnings"] == report.warnings
    assert not any("notes" in output for output in report.outputs.values())
    events = [uproot.open(folder / f"{i}.root")["t"].arrays() for i in range(2)]
    for variation, weight in (("nominal", lambda e: 1.0), ("up", lambda e: e.k), ("down", lambda e: 1 / e.k)):
        right = Histogram(hist.axis.Regular(10, -3, 3, name="x"))
        for e in events:
            kept = e[e.x > -1]
            right.fill(kept.x, weight=ak.to_numpy(kept.w * weight(kept)))
        for stage in ("fill", "own", "folded"):
            (found,) = read_histograms(Path(report.outputs[f"{stage}/d/{variation}"]["path"])).values()
            assert found.sha256() == right.sha256()
    again = campaign.run(campaign.load(folder / "c.yaml"), run_dir=folder / "r", progress=False)
    assert (again.tasks["done"], again.warnings) == (0, report.warnings)


def test_weighted_false_is_part_of_the_key(folder: Path) -> None:
    """What was let pass by ``weighted: false`` is looked at again when that is taken out; the outputs are the same."""
    write(folder, {"select": SELECT, "a": {**ALL["count"], "from": "select"}, "b": ALL["entries"]}, up="k")
    made = plan(campaign.load(folder / "c.yaml"), {})
    by_stage = {line.stage: line.keys.digest for line in made.lines if line.variation == "up"}
    assert by_stage["a"] != by_stage["b"]
    assert [line.weighs for line in made.lines if line.variation == "up"] == [True, True, False]


def test_a_fill_that_forgets_the_weight_is_refused(folder: Path) -> None:
    """Before anything runs: stage, variation, remedy, and the line of the stage; where weights are 1 all is well."""
    stages = {"select": SELECT, "fill_w": {"use": "s.py:fill_w", "from": "select"}}
    write(folder, stages, up="k")
    done = command("run", "c.yaml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 2
    assert f"{line_of(folder, 'fill_w').removeprefix(f'{folder}/')}: fills histograms without ctx.weight" in done.stderr
    assert "variation 'up' are nominal's" in done.stderr
    assert "'weighted: false' under stages.fill_w" in done.stderr
    report = ran(folder, stages, one="one", tail="tail")
    assert (report.status, report.warnings) == ("complete", [])


def test_a_fill_in_a_later_pass_is_refused_too(folder: Path) -> None:
    """What reads a kept artefact is not tried beforehand: the run fails, and names the line."""
    stages = {
        "select": {**SELECT, "keep": True}, "sums": ALL["sums"], "number": {"use": "s.py:reduced", "reduce": "sums"},
        "fill_none": {"use": "s.py:fill_none", "from": "select", "with": ["number"]},
    }  # fmt: skip
    report = ran(folder, stages, up="k")
    assert (report.status, "fill_none/d/nominal" in report.outputs) == ("failed", True)
    (told,) = [e for e in report.errors if "ctx.weight" in e]
    assert told.startswith(line_of(folder, "fill_none"))
    assert "stage fill_none (s.py:fill_none): fills histograms without ctx.weight" in told


LOST = {
    "at once": (
        {"select": {"use": "s.py:drop"}, "fill_w": {"use": "s.py:fill_w", "from": "select"}},
        "select",
        "drops",
    ),
    "later": ({"select": SELECT, "drop": {"use": "s.py:drop", "from": "select"}}, "drop", "drops"),
    "ones": ({"select": SELECT, "drop": {"use": "s.py:make_up", "from": "select"}}, "drop", "makes up"),
}


@pytest.mark.parametrize("how", [pytest.param("at once", marks=pytest.mark.slow), "later", "ones"])
def test_a_stage_that_loses_the_weight_on_the_way_is_refused(folder: Path, how: str) -> None:
    """Dropped, or replaced by ones: the stage is named by its line, wherever in the chain it stands."""
    stages, stage, verb = LOST[how]
    with pytest.raises(campaign.SpecError, match=f"{verb} the column ctx.weight, so variation 'up' could not") as told:
        ran(folder, {**stages, "last": {**BUILT_IN, "from": stage}}, up="k")
    assert told.value.where == line_of(folder, stage)


def test_the_built_in_fill_multiplies_once() -> None:
    """``weight`` that names the variation's own column is refused: fill multiplies by it anyhow."""
    with pytest.raises(ValueError, match=r"would multiply by ctx\.weight twice"):
        Fill(BUILT_IN["histograms"], weight=WEIGHT)


def test_a_class_with_an_option_of_that_name_is_told_where_to_write_it(folder: Path) -> None:
    """``weighted`` beside a class that has an option ``weighted`` may mean either: refused, with the way out."""
    write(folder, {"own": {"use": "s.py:Own", "weighted": False}}, up="k")
    with pytest.raises(campaign.SpecError, match=r"'weighted' is a key of every stage, and one of s\.py:Own"):
        plan(campaign.load(folder / "c.yaml"), {})


WORDS = {
    "return batch.w * batch[ctx.weight]": True,
    "w = ctx.weight; return batch[w]": True,
    "return helper(batch, ctx)": True,
    f"return batch['{WEIGHT}']": True,
    "return getattr(ctx, 'weight') if batch.x else helper2(ctx)": True,
    "return batch.weight": False,
    "return batch['weight'], ctx.options": False,
    "jets = batch.jets; return jets.weight * len(ctx.dataset)": False,
    "return helper2(ctx)": False,
    "return batch.weight, helper2(ctx)": False,
}
HELPERS = "def helper(b, c):\n    return b[c.weight]\n\n\ndef helper2(c):\n    return c.dataset\n\n\n"


@pytest.mark.parametrize("body", WORDS)
def test_whether_code_may_ask_for_the_weight(folder: Path, body: str) -> None:
    """It may if it says ``ctx.weight``, whatever that is called, or hands ctx to code that says ``.weight``."""
    for batch, ctx in (("batch", "ctx"), ("events", "c")):
        text = body.replace("batch", batch).replace("ctx", ctx)
        (folder / "s.py").write_text(
            f"{HELPERS}def f({batch}, {ctx}):\n    {text}\n\n\nclass C:\n    def __call__(self, {batch}, {ctx}):\n"
            f"        {text}\n"
        )
        for name in "fC":
            write(folder, {name: {"use": f"s.py:{name}"}})
            assert resolve(campaign.load(folder / "c.yaml"), name).may_weigh == WORDS[body], (name, batch)
