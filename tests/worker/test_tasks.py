"""Laws of a batch on a worker: each task has its own error, and its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from campaign import Campaign, Dataset, StageSpec
from campaign.driver.check import check, job_of
from campaign.errors import StageError, TaskTimeout
from campaign.storage.receipts import parse
from campaign.storage.rundir import RunDir
from campaign.worker.job import BatchInputs, save_job
from campaign.worker.tasks import Answer, run_batch
from tests.conftest import write_tree

CODE = """
import sys
import time

import numpy as np
from campaign.stages.read import RootSource
from campaign import Counts


class Exits(RootSource):
    def __init__(self, url, tree, branches):
        if url.endswith("b.root"):
            sys.exit(3)
        super().__init__(url, tree, branches)


class Waits(RootSource):
    def read(self, start, stop):
        if self.url.endswith("b.root"):
            while True:
                time.sleep(0.01)
        return super().read(start, stop)


def count(batch, ctx):
    ctx.options["calls"] = ctx.options.get("calls", 0) + 1
    return Counts({"n": len(batch), "calls": ctx.options["calls"] if len(batch) else 0})
"""


def answer(folder: Path, reader: str, deadline_s: float = 60.0) -> Answer:
    """Run three files of 100 rows as one batch, in this process."""
    (folder / "s.py").write_text(CODE)
    for name in ("a", "b", "c"):
        write_tree(folder / f"{name}.root", n=100)
    datasets = {"d": Dataset(files="*.root", tree="events", reader=reader)}
    stages = {"n": StageSpec(use="s.py:count")}
    checked = check(
        Campaign(campaign="c", datasets=datasets, stages=stages, read_rows=50, task_deadline_s=deadline_s).at(folder)
    )
    (only,) = checked.plan.todo()
    rundir = RunDir(folder / "r")
    ticket = save_job(job_of(checked.plan), folder / "job")
    return run_batch(ticket, str(rundir.root), only.shape.tasks([0, 1, 2]), BatchInputs())


def contents(folder: Path, found: Answer) -> list[Any]:
    """The bytes of each partial."""
    receipts = [parse(line) for line in found.lines.splitlines(keepends=True)]
    packs = RunDir(folder / "r")
    return [packs.pack(r.pack).read_bytes()[r.offset : r.offset + r.size] for r in receipts if r is not None]


def test_a_reader_that_calls_sys_exit_fails_its_file_only(tmp_path: Path) -> None:
    """The worker goes on, and the error names the file."""
    found = answer(tmp_path, "s.py:Exits")
    assert list(found.done) == [0, 2]
    ((place, error),) = found.errors
    assert place == 1
    assert isinstance(error, StageError)
    assert error.message == "called sys.exit(3)"
    assert error.where.startswith(str(tmp_path / "b.root"))


def test_a_task_that_takes_too_long_fails_its_file_only(tmp_path: Path) -> None:
    """Its error is a `TaskTimeout`, wherever in the task the deadline interrupts it."""
    found = answer(tmp_path, "s.py:Waits", deadline_s=2.0)
    assert list(found.done) == [0, 2]
    ((place, error),) = found.errors
    assert place == 1
    assert isinstance(error, TaskTimeout)


def test_a_stage_that_changes_its_options_changes_them_for_its_task_only(tmp_path: Path) -> None:
    """Two ranges of one file see the same options. The next file begins with the campaign's options."""
    found = answer(tmp_path, "read")
    assert list(found.done) == [0, 1, 2]
    first, *others = contents(tmp_path, found)
    assert b"calls" in first
    assert others == [first, first]


def test_some_tasks_of_a_batch_take_their_own_inputs() -> None:
    """The artefacts' digests are divided like the tasks. Frozen values and marks are the same for all tasks."""
    whole = BatchInputs({("mean", "nominal"): ("p", "s")}, ("one", "two", "three"), ("m",))
    assert whole.pick([2, 0]) == BatchInputs(whole.frozen, ("three", "one"), ("m",))
    events = BatchInputs(marks=("m",))
    assert events.pick([1]) == events
