"""``campaign check --try``: runs all stages on a few rows of a file per dataset, with stand-in servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from campaign.discovery.address import PoolAddress
from campaign.errors import CampaignError, InputError, StageError
from campaign.inference.client import Servers, connect
from campaign.inference.ragged import events
from campaign.inference.stand_in import NotAsked, Signature, StandInServers
from campaign.outputs.columns import Columns
from campaign.outputs.kinds import as_output
from campaign.planning.task import Step, Task
from campaign.protocols import TwoStepStage
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import Pipeline
from campaign.worker.preview import opened
from campaign.worker.stage_errors import MissingBranch, own_errors, reader_error


@dataclass
class Tried:
    """The result of trying groups of files.

    Attributes:
        error: An error that is certain. None: there is none.
        task: The task with this error.
        notes: One sentence for each stage that could not be tried.
        stages: Stages that ran to their end.
        taken: The first input arrays that each model was given, by model and input.
    """

    error: CampaignError | None = None
    task: Task | None = None
    notes: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)


class NotingServers:
    """A real pool that keeps the first input arrays of each model.

    Args:
        servers: The pool.

    Attributes:
        taken, calls: As in `campaign.inference.stand_in.StandInServers`.
    """

    stand_in = False

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.taken: dict[str, dict[str, Any]] = {}
        self.calls = 0

    def model(self, name: str) -> Any:
        """See `campaign.inference.client.Servers.model`."""
        return self._servers.model(name)

    def start(self, model: str, inputs: Mapping[str, Any]) -> Any:
        """See `campaign.inference.client.Servers.start`."""
        self.calls += 1
        self.taken.setdefault(model, dict(inputs))
        return self._servers.start(model, inputs)

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `campaign.inference.client.Servers.infer`."""
        return self.start(model, inputs).result()  # type: ignore[no-any-return]

    def infer_events(self, model: str, given: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `campaign.inference.client.Servers.infer_events`."""
        return [self.infer(model, event) for event in given]

    def infer_ragged(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `campaign.inference.client.Servers.infer_ragged`."""
        return self.infer(model, events(self.model(model), inputs))


AnyServers = StandInServers | NotingServers


def try_groups(
    pipe: Connection, begins: Callable[[Task, Step], None], job: JobTicket, groups: list[list[Task]], rows: int,
    signatures: Mapping[str, Signature], address: PoolAddress | None = None,
) -> None:  # fmt: skip
    """Try each group on its first readable file with rows, and send a `Tried`. Called in a child process.

    Args:
        pipe: The sending end of a pipe.
        begins: Called with the task and the step before each stage.
        job: The job.
        groups: The tasks of each group.
        rows: Number of rows that are read of each file.
        signatures: Inputs and outputs of each model, for stand-in servers that answer zeros.
        address: The pool of real servers, which is used instead. None: stand-in servers.
    """
    made = Tried()
    real = connect(address) if address is not None else None
    try:
        for tasks in groups:
            for task in tasks:
                servers: AnyServers = StandInServers(signatures) if real is None else NotingServers(real)
                if _try_task(made, job, task, rows, servers, begins) or made.error is not None:
                    break
            if made.error is not None:
                break
    finally:
        if real is not None:
            real.close()
    pipe.send(made)


def _try_task(
    made: Tried, job: JobTicket, task: Task, rows: int, servers: AnyServers, begins: Callable[[Task, Step], None]
) -> bool:
    """True if the file could be read and has rows."""
    try:
        chain, source = opened(job, task, begins)
    except InputError:
        return False  # the preflight has reported it, or the run will report it
    try:
        if not source.entries:
            return False
        with own_errors(reader_error):
            batch = chain.weighted(source, source.read(0, min(rows, source.entries)))
        _try_steps(made, chain, batch, servers)
    except CampaignError as error:
        made.error, made.task = error, task
    finally:
        source.close()
        for model, inputs in servers.taken.items():
            made.taken.setdefault(model, inputs)
    return True


def _try_steps(made: Tried, chain: Pipeline, batch: Any, servers: AnyServers) -> None:
    values: dict[str, Any] = {}
    guessed: set[str] = set()  # keys of steps whose input depends on stand-in answers
    for step in chain.task.steps:
        if step.frozen:
            note = f"stage {step.stage} was not tried: it needs frozen values of {', '.join(a[0] for a in step.frozen)}"
            made.notes += [note] if note not in made.notes else []
            continue
        if step.parent is not None and not isinstance(values.get(step.parent), Columns):
            continue
        if step.parent in guessed:
            guessed.add(step.key)
        calls = servers.calls
        try:
            values[step.key] = _call(chain, step, batch, values, servers)
        except NotAsked as error:
            note = f"stage {step.stage} was not tried: {error.message}"
            made.notes += [note] if note not in made.notes else []
            continue
        except CampaignError as error:
            if step.key not in guessed or isinstance(error, MissingBranch) or _is_certain(error):
                error.stage = error.stage or step.stage
                raise
            note = f"stage {step.stage} could not be tried on stand-in answers of zeros: {error.message}"
            made.notes += [note] if note not in made.notes else []
            continue
        if servers.stand_in and servers.calls > calls:
            guessed.add(step.key)
        if step.stage not in made.stages:
            made.stages.append(step.stage)


def _call(chain: Pipeline, step: Step, batch: Any, values: dict[str, Any], servers: AnyServers) -> Any:
    stage = chain.worker.stage(step.stage)
    given = chain.weighing.shown(step, chain.given(step, batch, values))
    ctx = chain.context(step, servers)
    if isinstance(stage, TwoStepStage):
        pending = chain.guard(step, stage.start, given, ctx)
        return as_output(chain.guard(step, stage.finish, pending), step.stage)
    return as_output(chain.guard(step, stage, given, ctx), step.stage)


def _is_certain(error: CampaignError) -> bool:
    """True if the stage fails on every input, not only on the zeros of the stand-in servers."""
    return isinstance(error, StageError) and error.independent_of_input
