"""Names of the product that meet names in files, columns, metadata and folders: none collides without a word."""

from __future__ import annotations

import json

import awkward as ak
import hist
import numpy as np
import polars as pl
import pyarrow.dataset as pads
import pytest
import uproot
import yaml
from campaign.stages.infer import Infer

from campaign import Histogram
from campaign.errors import OutputError, SpecError
from campaign.histogram.root_file import write_root
from campaign.outputs.columns import Columns, ColumnsPartial, read_columns
from campaign.outputs.histograms import Histograms
from campaign.outputs.kinds import Counts, as_output
from campaign.planning.planner import plan
from campaign.spec.models import Campaign
from tests.conftest import command

STAGES = """
import numpy as np
from campaign import Histogram, Histograms
import hist

def fill(batch, ctx):
    h = Histogram(hist.axis.Regular(1, -1, 1000, name="x"))
    return Histograms(h=h.fill(batch.x, weight=batch[ctx.weight]))

def keep(batch, ctx):
    first = bool(batch.x[0] < 100)
    columns = {"x": np.asarray(batch.x).astype("int32" if first else "int64"), ctx.weight: batch[ctx.weight]}
    return columns if first or ctx.options.get("alike") else {**columns, "more": np.ones(len(batch))}
"""


def run(root, stages, **dataset):
    (root / "s.py").write_text(STAGES)
    for name, start in (("a", 0), ("b", 200)):
        with uproot.recreate(root / f"{name}.root") as file:
            made = file.mktree("t", {"x": "float32", "variation_weight": "float32"})
            made.extend(
                {"x": np.arange(start, start + 200, dtype=np.float32), "variation_weight": np.full(200, 3, np.float32)}
            )
    campaign = {"campaign": "case", "datasets": {"d": {"files": "*.root", "tree": "t", **dataset}}, "stages": stages}
    (root / "c.yaml").write_text(yaml.safe_dump(campaign))
    return command("run", "c.yaml", "--workers", "1", cwd=root)


FILL = {"f": {"use": "s.py:fill"}}


def test_a_branch_called_as_the_weight_column_is_refused_with_the_way_through(tmp_path):
    """``variation_weight`` in a file would triple the nominal histogram; read under another name, it does not."""
    done = run(tmp_path, FILL)
    assert done.returncode == 2
    assert "has a branch 'variation_weight', the name of the column ctx.weight" in done.stderr
    assert "datasets.d.branches: {file_weight: variation_weight}" in done.stderr
    done = run(tmp_path, FILL, branches={"variation_weight": "x"})
    assert done.returncode == 2
    assert "c.yaml:" in done.stderr
    assert (
        "datasets.d.branches.variation_weight: 'variation_weight' is the name of the column ctx.weight" in done.stderr
    )
    done = run(tmp_path, FILL, branches={"file_weight": "variation_weight"})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/case/report.json").read_text())
    with uproot.open(report["outputs"]["f/d/nominal"]["root"]) as file:
        assert file["h"].values().tolist() == [400]


KEEP = {"k": {"use": "s.py:keep", "keep": True}}


def test_files_whose_columns_differ_are_named_in_the_report(tmp_path):
    """Where a file lacks a column no value is made up: a warning says which output, and which column."""
    done = run(tmp_path, KEEP, branches={"w": "variation_weight"})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/case/report.json").read_text())
    (said,) = [w for w in report["warnings"] if "Parquet" in w]
    assert said.startswith("k/d/nominal: its Parquet files differ in the columns more, which some lack")


@pytest.mark.slow
def test_files_of_two_types_are_kept_as_one_table_and_verify_holds(tmp_path):
    """int32 and int64 become int64, which the report says; a second run and verify find it as it was left."""
    stages = {"k": {"use": "s.py:keep", "keep": True, "options": {"alike": True}}}
    done = run(tmp_path, stages, branches={"w": "variation_weight"})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/case/report.json").read_text())
    output = report["outputs"]["k/d/nominal"]
    assert output["notes"] == ["one schema for files that differ: x (int32, int64: int64)"]
    for table in (pads.dataset(output["path"]).to_table(), pl.read_parquet(output["path"])):
        assert list(map(int, table["x"].to_numpy())) == list(range(400))
    assert ak.to_list(ak.from_parquet(output["path"]).x) == list(range(400))
    done = command("verify", "runs/case", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = command("run", "c.yaml", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "runs/case/report.json").read_text())["outputs"]["k/d/nominal"]
    assert again == output
    rewritten = tmp_path / "runs/case/outputs/k/d/nominal/000000.parquet"
    rewritten.write_bytes(rewritten.read_bytes()[:-9] + b"x" + rewritten.read_bytes()[-8:])
    done = command("verify", "runs/case", cwd=tmp_path)
    assert done.returncode == 1
    assert "000000.parquet" in done.stdout + done.stderr


def test_is_mc_in_metadata_is_refused(tmp_path):
    """The dataset gives it to the stages: of two answers one would be lost."""
    (tmp_path / "a.root").touch()
    (tmp_path / "side.yaml").write_text("'*': {is_mc: true}\n")
    for metadata in ({"is_mc": True}, "side.yaml"):
        campaign = Campaign.model_validate({
            "campaign": "c", "datasets": {"d": {"files": "a.root", "tree": "t", "metadata": metadata}},
            "stages": {"s": {"use": "fill", "histograms": {"h": {"x": {"edges": [0, 1]}}}}},
        }).at(tmp_path)  # fmt: skip
        with pytest.raises(SpecError, match=r"has the key 'is_mc'(?s:.*)datasets.d.is_mc"):
            plan(campaign, {})


def test_an_output_of_a_model_cannot_take_the_weights_name():
    """It would be multiplied into every fill."""
    with pytest.raises(ValueError, match=r"ctx\.weight's; give the output another name"):
        Infer("m", {"X": "x"}, {"variation_weight": "Y"})


def test_a_name_that_is_no_text_is_refused():
    """In JSON 1 and "1" are one name: counts of one would be added to those of the other, or take their place."""
    for made in ({1: 2}, Counts({1: 2}), Histograms({2: Histogram(hist.axis.Regular(1, 0, 1))}), {True: np.ones(2)}):
        with pytest.raises(OutputError, match="is no text"):
            as_output(made, "s")


def test_a_histogram_under_a_name_of_the_root_file_is_the_one_of_that_name(tmp_path):
    """``a;1`` cannot be a name in ROOT; it must not stand where ``a_1`` is looked for."""
    names = ["", "a;1", "a_1", "..", "A", "a", " a", "é", "b/c;2"]
    filled = {
        name: Histogram(hist.axis.Regular(1, 0, 1)).fill(np.full(i + 1, 0.5)).to_hist() for i, name in enumerate(names)
    }
    path, left_out = write_root(filled, tmp_path / "nominal.hists.npz")
    with uproot.open(path) as file:
        for name in ("a_1", "A", "a", " a", "é"):
            assert file[name].values().sum() == names.index(name) + 1, name
        assert file["b/c_2"].values().sum() == len(names)
    assert left_out == ["histogram a;1: ROOT already has a_1 or what it lies in, see the lossless file"]
    assert [p.name for p in tmp_path.iterdir()] == ["nominal.root"]


def test_a_variation_called_as_another_ones_file_is_refused(tmp_path):
    """Counts of ``up`` have the file ``up.exact.json``; so would those of a variation ``up.exact``."""
    (tmp_path / "a.root").touch()
    campaign = Campaign.model_validate({
        "campaign": "c", "datasets": {"d": {"files": "a.root", "tree": "t"}},
        "stages": {"s": {"use": "fill", "histograms": {"h": {"x": {"edges": [0, 1]}}}}},
        "variations": {"up": {"tree": "u"}, "up.exact": {"tree": "v"}},
    }).at(tmp_path)  # fmt: skip
    with pytest.raises(SpecError, match=r"up\.exact: the counts of 'up' have a file up\.exact\.json"):
        plan(campaign, {})


def test_columns_of_any_name_are_kept_and_read_by_that_name(tmp_path):
    """Dots, slashes, none at all, names that differ in case alone: Parquet has each column once, and so do readers."""
    names = ["a.b", "", "x/y", "é", "A", "a", "list.element", "index", "__index_level_0__", ".x", "schema"]
    columns = {name: np.arange(3) + 10 * i for i, name in enumerate(names)}
    partial = ColumnsPartial(tmp_path / "0.parquet")
    partial.add(Columns(columns))
    partial.write(tmp_path / "0.parquet")
    want = {name: column.tolist() for name, column in columns.items()}
    assert pads.dataset(tmp_path).to_table().to_pydict() == want
    assert pl.read_parquet(tmp_path).to_dict(as_series=False) == want
    for read in (read_columns(tmp_path), ak.from_parquet(tmp_path)):
        assert {name: ak.to_list(read[name]) for name in read.fields} == want
