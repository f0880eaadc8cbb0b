"""``campaign check --try``: runs all stages on a few rows of a file per dataset, with stand-in servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from campaign.discovery.address import PoolAddress
from campaign.errors import CampaignError, InputError
from campaign.inference.client import Servers, connect
from campaign.inference.ragged import events
from campaign.inference.stand_in import NotAsked, Signature, StandInServers
from campaign.outputs.columns import Columns
from campaign.outputs.kinds import as_output
from campaign.planning.task import Step, Task
from campaign.protocols import TwoStepStage
from campaign.storage.rundir import RunDir
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import Pipeline
from campaign.worker.process import worker_of
from campaign.worker.stage_errors import MissingBranch


@dataclass
class Tried:
    """What a try of one group of files has shown.

    Attributes:
        error: What is certainly wrong, None if nothing is.
        task: Where it showed.
        notes: What could not be told, one sentence each.
        stages: Stages that ran to their end.
        taken: What each model was given first, by input.
    """

    error: CampaignError | None = None
    task: Task | None = None
    notes: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)


class NotingServers:
    """A real pool that remembers what each model was given first.

    Args:
        servers: The pool.

    Attributes:
        taken, calls: As of `StandInServers`.
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
    """Try each group on its first file that can be read and is not empty; sends a `Tried`. In a child process.

    Args:
        pipe: Where to.
        begins: Called before each stage.
        job: The job.
        groups: Tasks.
        rows: Of each file.
        signatures: What each model takes and gives, for servers that answer zeros.
        address: Real servers, in their place.
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
    """Whether the file could tell."""
    try:
        worker = worker_of(job)
        chain = Pipeline(worker, RunDir(Path("/nonexistent")), task, {})
        chain.begins = lambda step: begins(task, step)
        source = worker.open(task)
    except InputError:
        return False  # the look at the files has said so, or the run will
    try:
        if not source.entries:
            return False
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
    guessed: set[str] = set()  # steps whose input holds stand-in answers
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
            if step.key not in guessed or isinstance(error, MissingBranch) or _is_call(error):
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
    ctx = replace(chain.context(step, None), servers=servers)
    if isinstance(stage, TwoStepStage):
        pending = chain.guard(step, stage.start, given, ctx)
        return as_output(chain.guard(step, stage.finish, pending), step.stage)
    return as_output(chain.guard(step, stage, given, ctx), step.stage)


def _is_call(error: CampaignError) -> bool:
    """Whether no value that a stage was given can be to blame: it cannot be called, or its code has a wrong name."""
    if error.message.startswith(("raised NameError", "raised ImportError", "raised ModuleNotFoundError")):
        return True
    return "raised TypeError" in error.message and "positional argument" in error.message
