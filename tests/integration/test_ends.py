"""Outputs of large campaigns in ranges, and what earlier runs have left: the run goes on to the very end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from campaign.driver import merge_trees
from campaign.driver import run as engine
from campaign.report.report import Report
from campaign.spec import yaml_file
from tests.conftest import command, write_tree

STAGES = """
import pathlib, time
import awkward as ak

HERE = pathlib.Path(__file__).parent


def keep(batch, ctx):
    return {"y": batch.y, ctx.weight: batch[ctx.weight]}


def count(batch, ctx):
    tried = len(batch) <= 100  # before the run, on a few rows
    if not tried and ctx.metadata["name"] in (HERE / "bad.txt").read_text().split():
        end = time.monotonic() + 60  # the last of all
        while len(list((HERE / "r" / "partials").glob("leaves/*"))) < ctx.options.get("leaves", 0):
            if time.monotonic() > end:
                raise RuntimeError("no range was merged")
            time.sleep(0.01)
        raise ValueError("this file is bad")
    return {"n": float(ak.sum(batch.y))}
"""


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Report]:
    """Runs a campaign of a few files in this process."""
    for i in range(3):
        write_tree(tmp_path / "a" / f"a{i}.root", n=300 + i, seed=i)
    (tmp_path / "s.py").write_text(STAGES)
    (tmp_path / "bad.txt").write_text("")
    (tmp_path / "side.yaml").write_text(yaml.safe_dump({f"a/a{i}.root": {"name": f"a{i}"} for i in range(3)}))

    def run(stages: dict[str, object], **more: object) -> Report:
        dataset = {"files": "a", "tree": "events", "metadata": "side.yaml"}
        made = {"campaign": "small", "datasets": {"a": dataset}, "workers": 2, "stages": stages, **more}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
        campaign = yaml_file.load(tmp_path / "c.yaml", [])
        return engine.run(campaign, run_dir=tmp_path / "r", progress=False, raises=False)

    return run


def test_a_range_that_is_all_lost_and_last_ends_nothing_early(
    small: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file fails when all else is merged, and is all of its range: the output is still made without it."""
    monkeypatch.setattr(merge_trees, "LEAF", 2)
    (tmp_path / "bad.txt").write_text("a2")
    report = small({"count": {"use": "s.py:count", "options": {"leaves": 1}}}, errors={"max_failed_files": 1})
    assert report.status == "incomplete", report.errors
    assert [Path(f).name for f in report.outputs["count/a/nominal"]["missing"]["files"]] == ["a2.root"]


@pytest.mark.parametrize("leaf", [2, pytest.param(1000, marks=pytest.mark.faults)])
def test_an_altered_partial_of_the_same_size_is_not_merged_when_resumed(
    small: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaf: int
) -> None:
    """A byte flipped in columns of an earlier run, whose output is there or is gone: made again, to the same hash."""
    monkeypatch.setattr(merge_trees, "LEAF", leaf)
    stages = {"keep": {"use": "s.py:keep", "keep": True}}
    whole = small(stages)
    assert whole.status == "complete"
    for gone in (False, True):
        partial = sorted((tmp_path / "r" / "partials").glob("*/*.parquet"))[0]
        content = bytearray(partial.read_bytes())
        content[60] ^= 1
        partial.write_bytes(content)
        if gone:
            shutil.rmtree(tmp_path / "r" / "outputs")
        again = small(stages)
        assert again.status == "complete"
        assert again.tasks["done"] == 1
        assert {n: o["sha256"] for n, o in again.outputs.items()} == {n: o["sha256"] for n, o in whole.outputs.items()}
        content[60] ^= 1
        assert sorted((tmp_path / "r" / "partials").glob("*/*.parquet"))[0].read_bytes() == bytes(content)
        merged = [p.read_bytes() for p in (tmp_path / "r" / "outputs" / "keep" / "a" / "nominal").iterdir()]
        assert bytes(content) in merged
    assert small(stages).tasks["done"] == 0


@pytest.mark.slow
def test_what_was_made_without_files_is_gone_after_a_run_that_fails(
    small: Callable[..., Report], tmp_path: Path
) -> None:
    """One file may fail and does, then two do: the output of the first run does not lie there as if it were whole."""
    stages = {"count": {"use": "s.py:count"}}
    (tmp_path / "bad.txt").write_text("a1")
    assert small(stages, errors={"max_failed_files": 1}).status == "incomplete"
    assert [p for p in (tmp_path / "r" / "outputs").rglob("*") if p.is_file()]
    write_tree(tmp_path / "a" / "a2.root", n=310, seed=2)
    (tmp_path / "bad.txt").write_text("a1 a2")
    assert small(stages, errors={"max_failed_files": 1}).status == "failed"
    assert not [p for p in (tmp_path / "r" / "outputs").rglob("*") if p.is_file()]


@pytest.mark.parametrize("weight", ["2 * w", "misspelt"])
def test_a_sum_of_weights_is_what_the_expression_says_or_unknown(
    small: Callable[..., Report], tmp_path: Path, weight: str
) -> None:
    """Where the campaign says what is summed, the metadata's sum is something else; a wrong expression is told once."""
    side = {f"a/a{i}.root": {"name": f"a{i}", "sum_of_weights": 1000.0 + i} for i in range(3)}
    (tmp_path / "side.yaml").write_text(yaml.safe_dump(side))
    (tmp_path / "bad.txt").write_text("a1")
    (tmp_path / "a" / "a2.root").write_bytes(b"torn" * 100)
    report = small({"count": {"use": "s.py:count"}}, errors={"max_failed_files": 2, "weight": weight})
    found = {Path(x["file"]).name: x["sum_of_weights"] for x in report.lost}
    assert report.status == "incomplete", report.errors
    assert found["a2.root"] is None
    assert (found["a1.root"] is None) == (weight == "misspelt")
    assert found["a1.root"] != 1001.0
    told = [w for w in report.warnings if "errors.weight: 'misspelt' could not be evaluated" in w]
    assert len(told) == (weight == "misspelt")


def test_errors_of_files_are_told_by_a_run_that_is_stopped(small: Callable[..., Report], tmp_path: Path) -> None:
    """A file fails, then somebody asks the campaign to stop: the report says both."""
    (tmp_path / "bad.txt").write_text("a2")
    stop = '    if "a1" in ctx.metadata["name"]:\n        (HERE / "r" / "stop").touch()\n        time.sleep(5)\n'
    text = STAGES.replace('    return {"n": float', stop + '    return {"n": float')
    (tmp_path / "s.py").write_text(text)
    report = small({"count": {"use": "s.py:count"}}, workers=1)
    assert report.status == "interrupted"
    assert "this file is bad" in report.errors[0]
    assert "stopped as asked" in report.errors[-1]


class Killed(BaseException):
    """Ends a run as SIGKILL does, without a last word."""


@pytest.mark.slow
def test_a_run_that_never_came_to_its_end_has_no_report_of_an_earlier_one(
    small: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a complete run has said is not said of the next one, with other options, that was killed."""
    stages = {"count": {"use": "s.py:count", "options": {}}}
    assert small(stages).status == "complete"
    assert "not running; complete" in command("status", "r", cwd=tmp_path).stdout

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(engine.Scheduler, "run", killed)
        with pytest.raises(Killed):
            small({"count": stages["count"] | {"options": {"leaves": 1}}})
    assert "never came to its end" in command("status", "r", cwd=tmp_path).stdout
    told = command("report", "r", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert small(stages).status == "complete"
