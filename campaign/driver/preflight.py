"""Reads one file of each dataset before a server is started, and refuses a campaign whose tree or branch is missing."""

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
from campaign.errors import CampaignError, InputError, MissingColumn, SpecError, WeightError
from campaign.planning.plan import PendingTasks, Plan, longest_first
from campaign.planning.task import Step, Task
from campaign.spec.models import NOMINAL
from campaign.supervision.forkserver import ask_child
from campaign.worker.job import JobTicket
from campaign.worker.stage_log import silent

if TYPE_CHECKING:
    from campaign.worker.try_stages import Tried

ROWS = 100
FILES = 5  # files of one dataset that are tried until one is readable and has rows
DEADLINE_S = 180.0
TAIL = 4000  # bytes of printed text that an error shows


@dataclass
class PreflightReport:
    """The result of the preflight.

    Attributes:
        files: The file that was read, by ``dataset`` or ``dataset/variation``.
        notes: One sentence for each dataset that could not be examined, and for each possible error.
        broken: The reason why no file of a dataset can be read, by dataset.
    """

    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def preflight(plan: Plan, todo: Iterable[PendingTasks], job: JobTicket) -> PreflightReport:
    """Read one file with rows per dataset and kind of variation, in a child process.

    The stages before the first inference run on 100 rows. So a branch that a stage uses and the file lacks is found
    now. A file that cannot be read is skipped, and so is a file that lacks a branch which another file has: the run
    will report them.

    Returns:
        The files that were read, and the datasets that could not be examined.

    Raises:
        SpecError: A tree, a branch or a weight is missing. The error names the file and the key.
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
    """Run all stages on 100 rows, except the stages that take frozen values.

    Args:
        plan: The plan.
        todo: The tasks, as groups.
        job: The job.
        signatures: Inputs and outputs of each model.
        address: The pool of real servers. None: stand-in servers that answer zeros.

    Raises:
        SpecError: The campaign is wrong for certain. The error names the key.
    """
    groups = [_largest(some) for some in todo if some.shape.artefact is None]
    made = _ask(plan, _try, job, (groups, ROWS, dict(signatures), address), "check --try: a stage that was tried")
    if made.error is not None and made.task is not None:
        raise _as_spec_error(plan, made.error, made.task)
    return made  # type: ignore[no-any-return]


def _ask(plan: Plan, function: Callable[..., None], job: JobTicket, args: tuple[Any, ...], what: str) -> Any:
    """Call a function in a child process that runs stages. Returns its answer.

    The notes of the child lie beside the job file. The caller removes this folder.

    Raises:
        SpecError: A stage ended the child, or did not return.
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
    """Two files that tell the parent why a child ended: the name of the stage, and the printed text.

    Args:
        job: The job file. The notes lie in the same folder.
    """

    def __init__(self, job: Path) -> None:
        self._at, self.printed = job.with_name(f"{job.name}.at"), job.with_name(f"{job.name}.printed")

    def begins(self, task: Task, step: Step) -> None:
        """Write the name of the stage that is called now."""
        self._at.write_text(json.dumps([step.stage, task.source.file.url, task.source.dataset]))

    def read(self) -> tuple[str, str, str] | None:
        """Stage, file and dataset. None if no stage was called."""
        with contextlib.suppress(OSError, ValueError):
            stage, url, dataset = json.loads(self._at.read_text())
            return stage, url, dataset
        return None

    def tail(self) -> str:
        """The last part of the printed text."""
        with contextlib.suppress(OSError):
            return self.printed.read_bytes()[-TAIL:].decode(errors="replace")
        return ""

    def remove(self) -> None:
        """Remove both files."""
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
        found = look(job, task, ROWS, notes.begins)
        if isinstance(found, Unseen):
            unseen.append(f"{task.source.file.url}: {found.why}")
            broken.append(found.broken)
        elif isinstance(found, CampaignError):
            wrong = wrong or (found, task)
        else:  # if another file lacks a branch that this file has, that file is at fault: the run will report it
            made.files[name] = task.source.file.url
            made.notes += [f"{name}: on the first {ROWS} rows, {found}"] if found else []
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
    if isinstance(error, WeightError):
        weighted = next((s.variation for s in task.steps if s.weight), varied)
        key = ("variations", str(weighted), "weight")
    if error.stage:
        key = ("stages", error.stage)
        spec = plan.campaign.stages[error.stage]
        first = [n for n, s in plan.campaign.stages.items() if n != error.stage and s.from_ is s.reduce is None]
        others = first if spec.from_ is None and isinstance(error, MissingColumn) else []
        if others:
            error.remedy = f"it takes the file's branches; if it should take a stage's columns, add 'from: {others[0]}'"
    where = f" (in {error.where})" if error.where else ""
    wrong = SpecError(f"{error.message}{where}", key=key, remedy=error.remedy, log=error.log)
    return plan.campaign.locate(wrong)
