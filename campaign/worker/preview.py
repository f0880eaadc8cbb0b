"""Runs the stages on the first rows of a file, without servers, before a campaign starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import BranchError, CampaignError, InputError, OutputError, StageError, WeightError
from campaign.outputs.columns import Columns
from campaign.outputs.kinds import as_output
from campaign.planning.task import Step, Task
from campaign.protocols import WEIGHT, Source, TwoStepStage
from campaign.storage.rundir import RunDir
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import Hooks, Pipeline
from campaign.worker.process import worker_of
from campaign.worker.stage_errors import MissingBranch, own_errors, reader_error


@dataclass(frozen=True)
class Unseen:
    """The reason why the stages could not be tried on a file.

    Attributes:
        why: The reason in words.
        broken: True if the file cannot be read, and another try cannot succeed.
    """

    why: str
    broken: bool = False


def opened(job: JobTicket, task: Task, begins: Callable[[Task, Step], None]) -> tuple[Pipeline, Source]:
    """The pipeline of a task that is only tried, and its open file. Nothing is written: the run directory is none.

    Args:
        job: From `save_job`.
        task: The task.
        begins: Called before each step, so that a stage that ends the process can be named.

    Raises:
        InputError: The file cannot be read.
        CampaignError: A stage cannot be loaded.
    """
    with own_errors(reader_error):
        worker = worker_of(job)
        hooks = Hooks(stage_begins=lambda step: begins(task, step))
        chain = Pipeline(worker, RunDir(Path("/nonexistent")), task, hooks=hooks)
        return chain, worker.open(task)


def look(
    job: JobTicket, task: Task, rows: int, begins: Callable[[Task, Step], None] = lambda _task, _step: None
) -> CampaignError | Unseen | str:
    """Try the stages before the first inference on a few rows. Called in a process that runs nothing else.

    Args:
        job: The job.
        task: The task.
        rows: Number of rows.
        begins: Called with the task and the step before each stage.

    Returns:
        An error if the campaign is wrong for certain. `Unseen` if the stages could not be tried on this file. Else a
        sentence about an error that the few rows may have caused. Empty: there was no error.
    """
    try:
        chain, source = opened(job, task, begins)
    except InputError as error:
        return error if error.key else Unseen(error.message, error.permanent)
    except CampaignError as error:
        return error
    try:
        if not source.entries:
            return Unseen("it has no rows")
        with own_errors(reader_error):
            batch = chain.weighted(source, source.read(0, min(rows, source.entries)))
        return _try_steps(chain, batch) or ""
    except (BranchError, WeightError) as error:
        return error
    except InputError as error:
        return Unseen(error.message)
    except MissingBranch as error:
        if error.stage:  # the stage uses a column of another stage, not a branch
            return error
        error.where = f"{task.source.file.url}, tree {task.source.tree}: {error.where}"
        return error
    except OutputError as error:
        return error
    except CampaignError as error:
        at = f" ({error.line})" if isinstance(error, StageError) and error.line else ""
        return f"{error.where}: {error.message}{at}"  # the few rows may be the cause; the run uses all rows
    finally:
        source.close()


def _try_steps(chain: Pipeline, batch: Any) -> CampaignError | None:
    values: dict[str, Any] = {}
    for step in chain.task.steps:
        known = step.parent is None or isinstance(values.get(step.parent), Columns)
        stage = chain.worker.stage(step.stage)
        if (
            not known
            or step.frozen
            or isinstance(stage, TwoStepStage)
            or chain.worker.job.stages[step.stage].uses_servers
        ):
            continue
        given, ctx = chain.weighing.shown(step, chain.given(step, batch, values)), chain.context(step, None)
        value = as_output(chain.guard(step, stage, given, ctx), step.stage)
        values[step.key] = value
        chain.weighing.returned(step, value)
        if step.weight is not None and step.weighs and isinstance(value, Columns) and WEIGHT not in value:
            return OutputError(
                f"drops the column ctx.weight, so variation '{step.variation}' could not differ from nominal",
                where=f"stage {step.stage}",
                remedy="add batch[ctx.weight] to the columns that it returns, row by row",
            )
        chain.weighing.notes(step, value)
    return None
