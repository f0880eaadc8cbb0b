"""Runs the stages on the first rows of a file, without servers, before a campaign starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import BranchError, CampaignError, InputError, OutputError, StageError
from campaign.outputs.columns import Columns
from campaign.outputs.kinds import as_output
from campaign.planning.task import Step, Task
from campaign.protocols import WEIGHT, TwoStepStage
from campaign.storage.rundir import RunDir
from campaign.worker.job import JobTicket
from campaign.worker.pipeline import Pipeline
from campaign.worker.process import worker_of
from campaign.worker.stage_errors import MissingBranch


@dataclass(frozen=True)
class Unseen:
    """Why a file cannot tell whether the campaign is right.

    Attributes:
        why: In words.
        broken: The file cannot be read, and will not be readable if it is tried again.
    """

    why: str
    broken: bool = False


def look(
    job: JobTicket, task: Task, rows: int, begins: Callable[[Task, Step], None] = lambda _task, _step: None
) -> CampaignError | Unseen | str:
    """Try the stages before the first inference on a few rows, in a process of its own.

    Args:
        job: The job.
        task: The task.
        rows: How many.
        begins: Called before each stage.

    Returns:
        What is missing; or that this file cannot tell; or what else a stage has raised, empty if nothing.
    """
    try:
        worker = worker_of(job)
        chain = Pipeline(worker, RunDir(Path("/nonexistent")), task, {})
        chain.begins = lambda step: begins(task, step)
        source = worker.open(task)
    except InputError as error:
        return error if error.key else Unseen(error.message, error.permanent)
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  a reader of the user's own; the run will tell
        return Unseen(f"{type(error).__name__}: {error}")
    try:
        if not source.entries:
            return Unseen("it has no rows")
        batch = chain.weighted(source, source.read(0, min(rows, source.entries)))
        return _try_steps(chain, batch) or ""
    except InputError as error:
        known = isinstance(error, BranchError) or error.where.startswith("weight ")
        return error if known else Unseen(error.message)
    except MissingBranch as error:
        if error.stage:  # a column of another stage
            return error
        error.where = f"{task.source.file.url}, tree {task.source.tree}: {error.where}"
        return error
    except OutputError as error:
        return error
    except CampaignError as error:
        at = f" ({error.line})" if isinstance(error, StageError) and error.line else ""
        return f"{error.where}: {error.message}{at}"  # a few rows may be to blame: the run will tell with all of them
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
