"""Runs a reduce stage inside a worker, and freezes the value that it returns."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError
from campaign.outputs.merged import LazyMerged, Merged
from campaign.storage.frozen_values import Frozen, freeze
from campaign.storage.rundir import RunDir
from campaign.util.hashing import file_digest
from campaign.worker.contexts import Contexts
from campaign.worker.deadline import Deadline
from campaign.worker.job import JobTicket
from campaign.worker.process import AnsweredRows, Worker, worker_of
from campaign.worker.stage_errors import explain, own_errors
from campaign.worker.stage_log import stage_log


@dataclass(frozen=True)
class Reduced:
    """The frozen value of a reduce stage.

    Attributes:
        path: Its file.
        sha256: SHA-256 of the file.
        artefacts: SHA-256 of the plots and tables that the stage wrote, by name.
        rungs, refused: As in `campaign.worker.tasks.Answer`.
    """

    path: str
    sha256: str
    artefacts: Mapping[str, str]
    rungs: Counter[str]
    refused: set[str]


@dataclass(frozen=True)
class ReduceCall:
    """One call of a reduce stage for one variation, with all its inputs. It travels to the worker.

    Attributes:
        stage, variation: Names.
        merged: The merged outputs that the stage takes, by dataset.
        frozen: Path and SHA-256 of the frozen values that the stage takes.
        metadata: Metadata of the datasets, by dataset.
        missing: For each dataset, the files that the merged output lacks; see `campaign.protocols.Context`.
    """

    stage: str
    variation: str
    merged: Mapping[str, Merged]
    frozen: Frozen
    metadata: Mapping[str, Any]
    missing: Mapping[str, Any]

    @property
    def place(self) -> str:
        """The name of this call in errors and logs."""
        return f"stage {self.stage}, variation {self.variation}"


def run_reduce(job: JobTicket, root: str, reduce: ReduceCall, call: str = "") -> Reduced | CampaignError:
    """Call a reduce stage on merged outputs and freeze the value that it returns.

    Args:
        job: From `save_job`.
        root: The run directory.
        reduce: The stage and its inputs.
        call: See `campaign.worker.tasks.run_batch`.

    Returns:
        The frozen value, or an error. It does not raise.
    """
    rundir = RunDir(Path(root))
    log = stage_log(rundir.stage_logs, call)
    path = rundir.stage_logs / reduce.stage / f"{reduce.variation}.log"
    try:
        made = _explained(job, rundir, reduce, call)
        if log is not None:
            log.move(path, reduce.place)
        return made
    except CampaignError as error:
        if log is not None and log.move(path, reduce.place):
            error.log = f"{error.log}\nprinted output: {path}".strip("\n")
        return error


def _explained(job: JobTicket, rundir: RunDir, reduce: ReduceCall, call: str) -> Reduced:
    """Call the stage. Each error names the stage and the variation."""
    code = ""

    def convert(error: Exception | SystemExit) -> CampaignError:
        place = f"{reduce.place} ({code})"
        return explain(error, reduce.stage, code, place, place=place)

    with own_errors(convert):
        try:
            worker = worker_of(job)
            code = worker.job.stages[reduce.stage].where
            return _reduce(worker, rundir, reduce, call)
        except CampaignError as error:
            error.where = f"{reduce.place}: {error.where}" if error.where else reduce.place
            raise


def _reduce(worker: Worker, rundir: RunDir, reduce: ReduceCall, call: str) -> Reduced:
    folder = rundir.artefacts(reduce.stage, reduce.variation)
    shutil.rmtree(folder, ignore_errors=True)  # an earlier version of the stage may have left files there
    folder.mkdir(parents=True)
    stage = worker.stage(reduce.stage)
    rows = AnsweredRows(worker.servers)
    ctx = Contexts(worker.job.stages, [reduce], reduce.frozen).of(
        reduce,
        dataset="",
        metadata=reduce.metadata,
        servers=worker.servers,
        artefacts=folder,
        missing=reduce.missing,
    )
    with Deadline(worker.job.deadline_s, rundir.workers, call) as deadline:
        deadline.start()
        value = stage(LazyMerged(reduce.merged), ctx)
        deadline.kept()
    path = rundir.frozen(reduce.stage, reduce.variation)
    sha256 = freeze(value, path)
    artefacts = {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    if not artefacts:
        folder.rmdir()
    return Reduced(str(path), sha256, artefacts, rows.rungs, rows.refused)
