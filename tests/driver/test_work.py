"""The work of a run: which tasks are left, when it is complete, and whether it needs servers."""

from __future__ import annotations

import pytest

from campaign.driver.failed_files import FailedFiles
from campaign.driver.partial_index import PartialIndex
from campaign.driver.state import State
from campaign.driver.work import Work
from campaign.outputs.merged import Merged
from campaign.storage.receipts import Receipts
from tests.planning.test_plan import folder_of, make


@pytest.fixture
def folder(tmp_path):
    yield from folder_of(tmp_path)


@pytest.fixture
def plan(folder):
    return make(folder)


def work(plan, root) -> Work:
    """All of a plan, of which nothing is done."""
    state = State(PartialIndex(plan, Receipts(root / "receipts.jsonl")), FailedFiles(plan))
    return Work(plan, plan.todo(state.index.missing()), state)


def test_work_is_complete_when_tasks_outputs_and_frozen_values_are_there(plan, tmp_path):
    """Tasks, merged outputs and frozen values all count: with one of them missing there is work."""
    made = work(plan, tmp_path)
    assert (made.tasks, made.complete) == (plan.total, False)
    made.todo = []
    assert not made.complete
    made.state.merged = {o.name: Merged(o.name, "", tmp_path, "") for o in plan.outputs}
    assert [(r.stage, r.variation) for r in made.reduces] == [(r.stage, r.variation) for r in plan.reduces]
    assert not made.complete
    made.state.frozen = {(r.stage, r.variation): ("", "") for r in plan.reduces}
    assert made.complete
    del made.state.merged[plan.outputs[0].name]
    assert not made.complete


def test_servers_are_needed_while_a_task_calls_a_model(plan, tmp_path):
    """The stages of waiting tasks decide: without those that call a model no server is started."""
    made = work(plan, tmp_path)
    assert made.needs_servers
    made.todo = [some for some in made.todo if not any(plan.infers(layer.stage) for layer in some.shape.lines)]
    assert made.needs_servers is any(plan.infers(r.stage) for r in plan.reduces)


def test_a_plan_without_outputs_has_the_same_tasks(plan):
    """Its tasks have the same keys; nothing is merged or reduced, and the plan itself stays as it is."""
    bare = plan.without_outputs()
    assert [t.id for t in bare.tasks] == [t.id for t in plan.tasks]
    assert (bare.outputs, bare.reduces) == ([], [])
    assert plan.outputs
    assert plan.reduces
