"""Reads one file of each dataset before a server is started: its tree and branches must be there."""

from __future__ import annotations

import contextlib
import faulthandler
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.discovery.address import PoolAddress
from campaign.errors import CampaignError, InputError, SpecError
from campaign.planning.plan import PendingTasks, Plan, longest_first
from campaign.planning.task import Step, Task
from campaign.spec.models import NOMINAL
from campaign.supervision.forkserver import ask_child
from campaign.worker.job import JobTicket
from campaign.worker.stage_log import silent

if TYPE_CHECKING:
    from campaign.worker.try_stages import Tried

ROWS = 100
FILES = 5  # of one dataset, until one is readable and not empty
DEADLINE_S = 180.0
TAIL = 4000  # bytes of what was printed in an error


@dataclass
class PreflightReport:
    """What was looked at.

    Attributes:
        files: The file of each dataset, by ``dataset`` or ``dataset/variation``.
        notes: What could not be looked at, or may be wrong, one sentence each.
        broken: Of a dataset of which no file that was tried can be read: why, by dataset.
    """

    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def preflight(plan: Plan, todo: Iterable[PendingTasks], job: JobTicket) -> PreflightReport:
    """Look at one non-empty file per dataset and kind of variation, in a child process.

    The stages before the first inference are run on 100 rows, so that a branch they touch and the file does not
    have is found now. A file that cannot be read is passed over, and so is one that lacks what another one has: the run
    will name it.

    Returns:
        What was looked at, and what could not be.

    Raises:
        SpecError: A tree, a branch or a weight is missing; with the file and the key.
    """
    groups = [_largest(some) for some in todo if some.shape.artefact is None]
    if not groups:
        return PreflightReport()
    found = _ask(plan, _look_at, job, (groups,), "check: a stage that was tried")
    if isinstance(found, PreflightReport):
        return found
    raise _as_spec_error(plan, *found) if isinstance(found, tuple) else found


def try_out(
    plan: Plan,
    todo: Iterable[PendingTasks],
    job: JobTicket,
    signatures: Mapping[str, Any],
    address: PoolAddress | None = None,
) -> Tried:
    """Run all stages but those that need frozen values on 100 rows, with servers that answer zeros or with real ones.

    Args:
        plan: The plan.
        todo: The tasks, as groups.
        job: The job.
        signatures: What each model takes and gives.
        address: Real servers; None: those that answer zeros.

    Raises:
        SpecError: Something is wrong for certain; with the key.
    """
    groups = [_largest(some) for some in todo if some.shape.artefact is None]
    made = _ask(plan, _try, job, (groups, ROWS, dict(signatures), address), "check --try: a stage that was tried")
    if made.error is not None and made.task is not None:
        raise _as_spec_error(plan, made.error, made.task)
    return made  # type: ignore[no-any-return]


def _ask(plan: Plan, function: Callable[..., None], job: JobTicket, args: tuple[Any, ...], what: str) -> Any:
    """The answer of a child that runs stages; its notes lie beside the job, whose folder somebody removes.

    Raises:
        SpecError: A stage has ended the child, or hung.
    """
    notes = _Notes(Path(job.path))
    try:
        found = ask_child(function, (notes, job, *args), DEADLINE_S, what)
        if not isinstance(found, CampaignError):
            return found
        begun = notes.read()
        if begun is None:
            raise found
        found.log = notes.tail()
    finally:
        notes.remove()
    stage, url, dataset = begun
    raise plan.campaign.locate(
        SpecError(
            f"stage {stage} ({plan.code[stage].where}) does not return on the first {ROWS} rows of {url} "
            f"(dataset {dataset}): {found.message}", key=("stages", stage), log=found.log,
            remedy="run the stage on this file in a Python session of its own; the log shows the last lines it printed",
        )
    )  # fmt: skip


class _Notes:
    """What a child leaves for its parent, should it end: the stage it is in, and what was printed.

    Args:
        job: The file beside which they lie.
    """

    def __init__(self, job: Path) -> None:
        self._at, self.printed = job.with_name(f"{job.name}.at"), job.with_name(f"{job.name}.printed")

    def begins(self, task: Task, step: Step) -> None:
        """A stage is called."""
        self._at.write_text(json.dumps([step.stage, task.source.file.url, task.source.dataset]))

    def read(self) -> tuple[str, str, str] | None:
        """Stage, file and dataset; None if no stage was called."""
        with contextlib.suppress(OSError, ValueError):
            stage, url, dataset = json.loads(self._at.read_text())
            return stage, url, dataset
        return None

    def tail(self) -> str:
        """The last of what was printed."""
        with contextlib.suppress(OSError):
            return self.printed.read_bytes()[-TAIL:].decode(errors="replace")
        return ""

    def remove(self) -> None:
        """Nobody asks any more."""
        for path in (self._at, self.printed):
            path.unlink(missing_ok=True)


def _try(pipe: Connection, notes: _Notes, *args: Any) -> None:
    from campaign.worker.try_stages import try_groups

    with silent(notes.printed):
        faulthandler.enable(2)
        try_groups(pipe, notes.begins, *args)


def _largest(some: PendingTasks) -> list[Task]:
    sizes = np.frombuffer(some.shape.events.files.sizes, np.int64)
    batch = some.shape.tasks(longest_first(some.places, sizes)[:FILES].tolist())
    return [batch.task(i) for i in range(len(batch))]


def _look_at(pipe: Connection, notes: _Notes, job: JobTicket, groups: list[list[Task]]) -> None:
    with silent(notes.printed):
        faulthandler.enable(2)
        pipe.send(_first_wrong(job, groups, notes))


def _first_wrong(
    job: JobTicket, groups: list[list[Task]], notes: _Notes
) -> tuple[CampaignError, Task] | PreflightReport:
    made = PreflightReport()
    for tasks in groups:
        wrong = _look_at_group(job, tasks, made, notes)
        if wrong is not None:
            return wrong
    return made


def _look_at_group(
    job: JobTicket, tasks: list[Task], made: PreflightReport, notes: _Notes
) -> tuple[CampaignError, Task] | None:
    from campaign.worker.preview import Unseen, look

    wrong: tuple[CampaignError, Task] | None = None
    unseen: list[str] = []
    broken: list[bool] = []
    name = _group(tasks[0])
    for task in tasks:
        told = look(job, task, ROWS, notes.begins)
        if isinstance(told, Unseen):
            unseen.append(f"{task.source.file.url}: {told.why}")
            broken.append(told.broken)
        elif isinstance(told, CampaignError):
            wrong = wrong or (told, task)
        else:  # what one file has and another has not is that file's fault: the run will name it
            made.files[name] = task.source.file.url
            made.notes += [f"{name}: on the first {ROWS} rows, {told}"] if told else []
            return None
    if wrong is None:
        tried = f"none of {len(unseen)} files" if len(unseen) > 1 else "no file"
        made.notes.append(f"{name}: {tried} could be looked at ({unseen[0]})")
        if all(broken):
            those = "no file" if len(unseen) == 1 else f"none of {len(unseen)} files that were tried"
            made.broken[tasks[0].source.dataset] = f"{those} can be read ({unseen[0]})"
    return wrong


def _group(task: Task) -> str:
    varied = next((s.variation for s in task.steps if s.variation != NOMINAL), "")
    nominal = not varied or any(s.variation == NOMINAL for s in task.steps)
    return task.source.dataset if nominal else f"{task.source.dataset}/{varied}"


def _as_spec_error(plan: Plan, error: CampaignError, task: Task) -> SpecError:
    varied = next((s.variation for s in task.steps if s.variation != "nominal"), None)
    d = task.source
    nominal = plan.campaign.datasets[d.dataset]
    key: tuple[str, ...] = ("datasets", d.dataset)
    if varied and (d.tree != nominal.tree or d.branches != tuple(sorted(nominal.branches.items()))):
        key = ("variations", varied)
    if isinstance(error, InputError):
        key = (*key, *error.key)
    if error.where.startswith("weight "):
        weighted = next((s.variation for s in task.steps if s.weight), varied)
        key = ("variations", str(weighted), "weight")
    if error.stage:
        key = ("stages", error.stage)
        spec = plan.campaign.stages[error.stage]
        first = [n for n, s in plan.campaign.stages.items() if n != error.stage and s.from_ is s.reduce is None]
        others = first if spec.from_ is None and "is not one of the columns" in error.message else []
        if others:
            error.remedy = f"it takes the file's branches; if it should take a stage's columns, add 'from: {others[0]}'"
    where = f" (in {error.where})" if error.where else ""
    told = SpecError(f"{error.message}{where}", key=key, remedy=error.remedy, log=error.log)
    return plan.campaign.locate(told)
