"""Data and cells that the notebook tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_tree

CELLS = """
from campaign import Campaign, Dataset, Histogram, Histograms, StageSpec
import hist, numpy as np, os, time

def scaled(x):
    return 2 * x

def select(batch, ctx):
    return {"x": scaled(batch.x)}

def fill(batch, ctx):
    return Histograms(x=Histogram(hist.axis.Regular(20, -4, 4, name="x")).fill(np.asarray(batch.x)))

def count(batch, ctx):
    return {"n": len(batch)}

def slow(batch, ctx):
    while len(batch) > 100 and not os.path.exists(ctx.options["gate"]):  # the check before the run has 100 rows
        open(ctx.options["gate"] + ".begun", "a").close()
        time.sleep(0.05)
    return {"n": len(batch)}

data = {"d": Dataset(files="d/*.root", tree="events")}
cells = Campaign(campaign="cells", datasets=data, workers=2, stages={
    "select": StageSpec(use=select), "fill": StageSpec(use=fill, from_="select"), "count": StageSpec(use=count)})
gate = os.path.abspath("gate")
gated = Campaign(campaign="gated", datasets=data, workers=2,
    stages={"slow": StageSpec(use=slow, options={"gate": gate})})
"""


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A folder with three small files; a kernel runs there, and `CELLS` is its first cell."""
    for i in range(3):
        write_tree(tmp_path / "d" / f"{i}.root", n=500, seed=i)
    return tmp_path
