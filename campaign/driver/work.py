"""Holds the work of a run: a plan, the tasks of it that are to be done, and what is done."""

from __future__ import annotations

from dataclasses import dataclass

from campaign.driver.state import State
from campaign.planning.plan import PendingTasks, Plan, Reduce


@dataclass
class Work:
    """The work of a run.

    Attributes:
        plan: The plan.
        todo: Its tasks that are to be done, in canonical order.
        state: What is done and what cannot be done. The run changes it.
    """

    plan: Plan
    todo: list[PendingTasks]
    state: State

    @property
    def tasks(self) -> int:
        """Number of tasks to do."""
        return sum(len(some.places) for some in self.todo)

    @property
    def reduces(self) -> list[Reduce]:
        """Calls of reduce stages whose frozen value is not there yet."""
        return [r for r in self.plan.reduces if (r.stage, r.variation) not in self.state.frozen]

    @property
    def complete(self) -> bool:
        """True if nothing is left to do: no task, no merge, no reduce stage."""
        return not self.todo and not self.reduces and all(o.name in self.state.merged for o in self.plan.outputs)

    @property
    def needs_servers(self) -> bool:
        """True if a stage that calls a model is still to run."""
        stages = {layer.stage for some in self.todo for layer in some.shape.lines} | {r.stage for r in self.reduces}
        return self.plan.campaign.servers is not None and any(map(self.plan.infers, stages))
