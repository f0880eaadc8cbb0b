"""Reduce stages that are called again: whatever happens meanwhile, no value, plot or table of theirs is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import load
from campaign.driver import scheduler
from campaign.driver.run import run
from campaign.errors import CampaignFailed, Interrupted
from campaign.report.report import COMPLETE, INCOMPLETE, Report
from tests.conftest import change, command, yaml_of
from tests.integration.test_scale import STAGES, hashes, make_many

AGAIN = """

import pathlib
from campaign.errors import InputError

HERE = pathlib.Path(__file__).parent


class Denied(Npz):
    def __init__(self, url, tree, branches):
        if url.endswith("007.npz") and (HERE / "armed").exists():
            raise InputError.unreadable(url, PermissionError("denied"))
        super().__init__(url, tree, branches)


def drawn(merged, ctx):
    if ctx.options.get("breaks"):
        raise ValueError("no value with these options")
    (ctx.artefacts / "plot.svg").write_text(f"<svg>{merged['d']['n']}</svg>")
    return {name: m["x"] / m["n"] for name, m in merged.items()}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Many small files; `mean` leaves a plot, and one file cannot be read as long as ``armed`` is there."""
    make_many(tmp_path)
    (tmp_path / "s.py").write_text(STAGES + AGAIN)
    datasets, stages = yaml_of(tmp_path)["datasets"], yaml_of(tmp_path)["stages"]
    datasets["d"]["reader"] = "s.py:Denied"
    stages["mean"]["use"] = "s.py:drawn"
    change(tmp_path, datasets=datasets, stages=stages, errors={"max_failed_files": 1})
    return tmp_path


def do(folder: Path, run_dir: str = "r") -> Report:
    """Run it here, as far as it comes."""
    return run(load(folder / "c.yaml"), run_dir=folder / run_dir, progress=False, raises=False)


def plot(folder: Path, run_dir: str = "r") -> Path:
    """What `mean` draws."""
    return folder / run_dir / "artefacts" / "mean" / "nominal" / "plot.svg"


def why(folder: Path) -> str:
    """What ``campaign plan`` says."""
    done = command("plan", "c.yaml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.faults
def test_a_driver_gone_before_a_new_value_is_written_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healed file changes what a value is made from, not its key; the new one is there, and nobody has said so."""
    (folder / "armed").touch()
    assert do(folder).status == INCOMPLETE
    frozen = next((folder / "r" / "frozen" / "mean").glob("nominal*"))
    before = frozen.read_bytes()
    (folder / "armed").unlink()
    with monkeypatch.context() as patch:

        def gone(*_: object) -> None:
            raise Interrupted("the driver is gone")

        patch.setattr(scheduler.Scheduler, "_reduced", gone)
        do(folder)
    assert frozen.read_bytes() != before, "the moment that this is about"
    assert "it was begun, and did not come to its end" in why(folder)
    again = do(folder)
    assert again.status == COMPLETE, again.errors
    assert hashes(again) == hashes(do(folder, "undisturbed"))
    assert plot(folder).read_text() == plot(folder, "undisturbed").read_text()


@pytest.mark.faults
def test_plots_are_there_after_a_reduce_stage_failed_with_other_options(folder: Path) -> None:
    """Other options remove the plots and give none; with the old ones they are drawn again."""
    first = do(folder)
    drawn = plot(folder).read_bytes()
    stages = yaml_of(folder)["stages"]
    change(folder, stages=stages | {"mean": stages["mean"] | {"options": {"breaks": True}}})
    with pytest.raises(CampaignFailed, match="no value with these options"):
        run(load(folder / "c.yaml"), run_dir=folder / "r", progress=False)
    assert not plot(folder).exists()
    change(folder, stages=stages)
    again = do(folder)
    assert again.status == COMPLETE
    assert plot(folder).read_bytes() == drawn
    assert hashes(again) == hashes(first)
    assert command("verify", "r", cwd=folder).returncode == 0


@pytest.mark.faults
@pytest.mark.parametrize("how", ["gone", "altered"])
def test_a_plot_that_is_not_what_was_drawn_is_drawn_again(folder: Path, how: str) -> None:
    """By the next run, and no task is done for it."""
    first = do(folder)
    drawn = plot(folder).read_bytes()
    plot(folder).unlink() if how == "gone" else plot(folder).write_bytes(b"another")
    assert "its plots and tables are not what they were" in why(folder)
    again = do(folder)
    assert plot(folder).read_bytes() == drawn
    assert again.tasks["done"] == 0
    assert hashes(again) == hashes(first)
    assert again.status == COMPLETE
