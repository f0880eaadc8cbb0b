"""Names of the product that meet names in files, columns, metadata and folders: none collides without a word."""

from __future__ import annotations

import json

import numpy as np
import pytest
import uproot
import yaml
from campaign.stages.infer import Infer

from campaign.errors import SpecError
from campaign.planner import plan
from campaign.spec import Campaign
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
    return columns if first else {**columns, "more": np.ones(len(batch))}
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
    assert done.returncode == 1
    assert "has a branch 'variation_weight', the name of the column ctx.weight" in done.stdout
    assert "datasets.d.branches: {file_weight: variation_weight}" in done.stdout
    done = run(tmp_path, FILL, branches={"file_weight": "variation_weight"})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/case/report.json").read_text())
    with uproot.open(report["outputs"]["f/d/nominal"]["root"]) as file:
        assert file["h"].values().tolist() == [400]


def test_files_whose_columns_differ_are_named_in_the_report(tmp_path):
    """Other programs cannot read them as one table without being told how: a warning says which columns, and how."""
    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    done = run(tmp_path, {"k": {"use": "s.py:keep", "keep": True}}, branches={"w": "variation_weight"})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs/case/report.json").read_text())
    (said,) = [w for w in report["warnings"] if "Parquet" in w]
    assert said.startswith(
        "k/d/nominal: its Parquet files differ in the type of x (int32, int64) and the columns more, which some lack"
    )
    folder = report["outputs"]["k/d/nominal"]["path"]
    assert "notes" not in report["outputs"]["k/d/nominal"]
    schema = pa.unify_schemas([pq.read_schema(p) for p in pads.dataset(folder).files], promote_options="permissive")
    assert pads.dataset(folder, schema=schema).to_table()["x"].to_pylist() == list(range(400))


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
