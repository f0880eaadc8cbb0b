"""Says what a run in a directory would do, and why: ``campaign plan``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from campaign.driver.check import Checked
from campaign.driver.explain import Explanations, as_json
from campaign.driver.failed_files import FailedFiles
from campaign.driver.partial_index import PartialIndex
from campaign.driver.state import State
from campaign.driver.work import Work
from campaign.planning.free_values import as_taken
from campaign.planning.plan_file import PlanFile
from campaign.storage.receipts import Receipts
from campaign.storage.rundir import RunDir
from campaign.util.messages import counted


@dataclass(frozen=True)
class Forecast:
    """The tasks and reduce stages that a run would do, with reasons.

    Attributes:
        checked: The campaign.
        work: The tasks that a run would do now.
        reasons: Why each of them is to be done.
    """

    checked: Checked
    work: Work
    reasons: Explanations

    def to_json(self) -> dict[str, Any]:
        """Every task, for a program."""
        return as_json(self.work.plan, self.reasons, self.work.todo)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        plan = self.work.plan
        least = "at least " if self.work.state.open else ""  # a frozen value that is made again may differ
        yield f"plan {plan.digest[:16]}: {least}{counted(self.work.tasks, 'task')} to do"
        for some in self.work.todo:
            for group in self.reasons.groups(some):
                yield f"  {group.text()}"
        for reduce in plan.reduces:
            why = "; ".join(self.reasons.reduce(reduce))
            todo = f"to do: {why}" if why else "done"
            inputs = ", ".join(o.name for o in reduce.inputs.values())
            yield f"  {reduce.stage}/{reduce.variation}: {todo}, from {inputs}"
        taken = as_taken(plan.campaign, plan, self.checked.models)
        yield from ["values as they were read (text stands in quotes):", *taken] if taken else [""]


def forecast(checked: Checked, rundir: RunDir) -> Forecast:
    """Compare a plan with the receipts of a run directory. Nothing is changed.

    Args:
        checked: The campaign.
        rundir: The run directory. It may not exist yet.
    """
    plan = checked.plan
    index = PartialIndex(plan, Receipts(rundir.receipts))
    index.read(rundir)
    state = State(index, FailedFiles(plan))
    state.remember(plan, rundir)  # forgets partials that were made with other frozen values
    work = Work(plan, plan.todo(index.missing()), state)
    return Forecast(checked, work, Explanations(plan, state, PlanFile.read(rundir), rundir))
