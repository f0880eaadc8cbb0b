"""The example notebook, executed as a user would, and its conversion to a page."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from campaign.storage.receipts import parse
from tests.conftest import PROJECT, ours, wait_until

pytestmark = pytest.mark.slow  # a whole calibration


def test_the_example_notebook_runs(tmp_path):
    """All cells run; scale factors are plotted; the edited cell redoes its own stage; the page needs no script."""
    ignored = shutil.ignore_patterns("data", "runs", "__pycache__")
    shutil.copytree(PROJECT / "examples", tmp_path / "examples", ignore=ignored)
    shutil.copytree(PROJECT / "model_repository", tmp_path / "model_repository", ignore=ignored)
    notebook = nbformat.read(tmp_path / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # in the checkout it holds no results
    client = NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path / "examples")}})
    client.execute()
    assert wait_until(lambda: not ours(), 10), ours()

    cells = {cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}
    figures = next(cell for source, cell in cells.items() if "scale_factors_{flavour}" in source)
    assert sum("image/png" in o.get("data", {}) for o in figures.outputs) == 2
    started = next(cell for source, cell in cells.items() if source.startswith("handle = campaign.start()"))
    (view,) = (o["data"]["text/plain"] for o in started.outputs if "data" in o)
    assert view.startswith("Campaign notebook: complete")  # the waiting cell has updated it
    assert "qg_tagger" not in view or "ready" in view
    edited = next(cell for source, cell in cells.items() if source.startswith("def spectrum") and "again" in source)
    told = edited.outputs[0]["data"]["text/plain"]
    assert "to do: spectrum: code of stage 'spectrum' changed" in told
    todo = re.findall(r"to do: (.*)", told)
    assert [line for line in todo if "it is kept if" not in line] == todo[:1]
    lines = (tmp_path / "examples" / "runs" / "notebook" / "receipts.jsonl").read_bytes().splitlines()
    receipts = [receipt for line in lines if (receipt := parse(line)) is not None]
    assert sum(r.stage == "scale_factors" for r in receipts) == 1  # and it was kept
    assert {r.stage for r in receipts[-21:] if r.kind == "histograms"} == {"spectrum"}
    assert "<svg" in edited.outputs[1]["data"]["text/html"]
    last = notebook.cells[-1].outputs
    assert any("Report of notebook-count: complete" in o.get("data", {}).get("text/plain", "") for o in last)

    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    assert page.count('class="campaign-card"') >= 5
    assert page.count("<svg") >= 3
    cards = re.findall(r'<div class="campaign-card">.*?</div>\n', page, flags=re.DOTALL)
    assert cards
    assert not any("<script" in card for card in cards)
