"""Decides whether a run goes on when a file fails for good, and learns what it can of that file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from campaign.driver.failed_files import FailedFile
from campaign.driver.state import State
from campaign.driver.worker_calls import WorkerCall, WorkerCalls
from campaign.errors import CampaignError, PartialError, TaskTimeout
from campaign.planning.plan import Plan, TaskTemplate
from campaign.util.lazy import LazyModule
from campaign.worker.job import JobTicket

if TYPE_CHECKING:
    from campaign.worker import file_facts
else:
    file_facts = LazyModule("campaign.worker.file_facts")


class FailurePolicy:
    """Takes note of them.

    Args:
        plan: The plan.
        state: What is done; loses what was made without too many files.
        calls: Asks a worker what can still be learned of a file.
        job: From `campaign.worker.job.save_job`.
        root: The run directory.
        name: Gives each call its name.
    """

    def __init__(
        self, plan: Plan, state: State, calls: WorkerCalls, job: JobTicket, root: str, name: Callable[[], str]
    ) -> None:
        self._plan, self._state, self._calls = plan, state, calls
        self._job, self._root, self._name = job, root, name

    def failed(self, shape: TaskTemplate, place: int, error: CampaignError) -> None:
        """A task has failed for good.

        What later passes were to read of the same events they will not: it would be in their outputs and not in what
        their frozen values were made from. And a file that cannot be read is not tried once more by each pass.
        """
        state = self._state
        later = [x for x in state.index.emits if shape.emits[0] in state.index.before[x]]
        state.index.lose(later, np.array([place]))
        # What could not be written is the run directory's fault, whatever was read.
        source = shape.tasks([place]).task(0).source
        lost = state.gaps.add(source, error, tolerable=not isinstance(error, PartialError))
        if state.gaps.exceeded:
            self._withdraw()
        elif lost is not None:
            self._ask(lost, shape, place, hung=isinstance(error, TaskTimeout))

    def _ask(self, lost: FailedFile, shape: TaskTemplate, place: int, *, hung: bool) -> None:
        events, weight = shape.events, self._plan.campaign.errors.weight
        nominal = self._state.gaps.nominal(events)
        if nominal is not None:
            lost.entries = int(self._state.index.events[events.dataset][place]) or None
        if hung or (lost.entries is not None and weight is None):
            lost.known = True
            return
        nominal, name = nominal or events, self._name()
        batch = replace(shape.tasks([place]), tree=nominal.tree, branches=nominal.branches)

        def learned(found: tuple[int | None, float | None]) -> None:
            lost.known = True
            lost.entries = lost.entries if found[0] is None else found[0]
            lost.sum_of_weights = lost.sum_of_weights if found[1] is None else found[1]

        args = (self._job, self._root, batch, weight, name)
        self._calls.submit(
            WorkerCall(lost.file, learned, lambda _: learned((None, None)), file_facts.run_facts, args, id=name)
        )

    def _withdraw(self) -> None:
        """More files have failed than the campaign puts up with: nothing made without them is to be taken for whole."""
        state = self._state
        if not state.lacking and not state.shaky:
            return
        for output in self._plan.outputs:
            if state.incomplete(output):
                state.failed.add(output.name)
                if output.name in state.merged:
                    state.merged.pop(output.name).remove()
        for stage, variation in state.shaky:
            del state.frozen[stage, variation]
            state.failed.add(f"{stage}/{variation}")
        state.lacking.clear()
        state.shaky.clear()
