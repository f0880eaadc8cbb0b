"""Stages that are defined in cells, the live view of a run in the foreground, and the magic, in a real kernel."""

from __future__ import annotations

import pytest

from campaign.errors import SpecError
from campaign.notebook.magic import of_cell
from tests.notebook.conftest import CELLS
from tests.notebook.kernel import CellError, kernel

YAML = """campaign: magic
datasets: {d: {files: "d/*.root", tree: events}}
workers: 1
stages:
  count: {use: "__main__:count"}
"""
TASKS = "r = cells.run()\nprint({n: o['sha256'] for n, o in r.outputs.items()}['count/d/nominal'], r.tasks)"


@pytest.mark.slow
def test_an_edited_cell_redoes_its_followers(cells):
    """Stages of cells run; unchanged cells redo nothing; a changed helper redoes its followers, and that is said."""
    with kernel(cells) as k:
        k.run(CELLS)
        first = k.run(TASKS)
        assert "'done': 3, 'reused': 0" in first
        assert "[####################] 3/3" in k.view()["text/plain"]
        k.run(CELLS)  # the cells again, as they were: functions are others, their code is not
        assert "'done': 0, 'reused': 3" in k.run(TASKS)
        assert "done before    3 tasks" in k.view()["text/plain"]
        k.run("def scaled(x):\n    return 3 * x")
        again = k.run(TASKS)
        assert "'done': 3, 'reused': 0" in again
        assert again.split()[0] == first.split()[0]
        shown = k.view()["text/plain"]
        assert "to do: fill: code of stage 'select' changed (3 tasks)" in shown
        lines = [line.split()[0] for line in shown.splitlines() if "3/3" in line]
        assert lines == ["select", "fill"]  # and not count
        views = len(k.views)
        assert "'done': 0" in k.run(TASKS.replace("run()", "run(progress=False)"))
        assert len(k.views) == views


@pytest.mark.slow
def test_the_view_is_one_output_that_is_replaced(cells):
    """run() shows one view below its cell; it is updated under its id, and holds no script."""
    with kernel(cells) as k:
        k.run(CELLS)
        k.run("report = cells.run()")
        (versions,) = k.views.values()
        assert len(versions) > 1
        assert "running" in versions[0]["text/plain"]
        assert "complete" in versions[-1]["text/plain"]
        assert "<table>" in versions[-1]["text/html"]
        assert not any("<script" in v["text/html"] for v in versions)


@pytest.mark.slow
def test_the_magic_runs_the_yaml_of_a_cell(cells):
    """``%%campaign`` runs a cell, takes functions of the notebook, and is short about what is wrong."""
    with kernel(cells) as k:
        k.run(CELLS)
        k.run("%load_ext campaign")
        assert "Report of magic: complete" in k.run(f"%%campaign --run-dir here\n{YAML}")
        assert (cells / "here" / "report.json").exists()
        k.run(f"%%campaign --background\n{YAML}")
        assert k.run("print(_.wait().status)") == "complete\n"
        with pytest.raises(CellError, match=r"UsageError: campaign: cell:5: wrongs"):
            k.run("%%campaign\n" + YAML.replace("stages:", "wrongs: 1\nstages:"))
        with pytest.raises(CellError, match="--nope"):
            k.run(f"%%campaign --nope\n{YAML}")


def test_errors_of_a_cell_name_its_lines(tmp_path, monkeypatch):
    """The line counts from the magic's own; a function that the notebook lacks is named; paths start here."""
    monkeypatch.chdir(tmp_path)

    def count(batch, ctx):
        return {"n": len(batch)}

    made = of_cell(YAML, {"count": count})
    assert made.stages["count"].use is count
    assert made.base == tmp_path
    with pytest.raises(SpecError, match="the notebook has no 'count'"):
        of_cell(YAML, {})
    with pytest.raises(SpecError, match=r"cell:4: worker.*workers"):
        of_cell(YAML.replace("workers", "worker"), {"count": count})
    with pytest.raises(SpecError, match="cell:1"):
        of_cell("", {})
