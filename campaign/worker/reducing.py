"""Runs a reduce stage inside a worker."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError
from campaign.outputs.merge import (
    LazyMerged,
    Merged,
)
from campaign.protocols import WEIGHT, Context
from campaign.storage.frozen_values import Frozen, freeze, fresh, thawed
from campaign.storage.rundir import RunDir
from campaign.util.hashing import file_digest
from campaign.worker.deadline import Deadline
from campaign.worker.job import JobTicket
from campaign.worker.process import Worker, worker_of
from campaign.worker.stage_errors import explain
from campaign.worker.stage_log import stage_log


@dataclass(frozen=True)
class Reduced:
    """A reduce stage's frozen value.

    Attributes:
        path: Where it lies.
        sha256: What it must be.
        artefacts: SHA-256 of its plots and tables, by name.
        rungs, refused: As in `Answer`.
    """

    path: str
    sha256: str
    artefacts: Mapping[str, str]
    rungs: Counter[str]
    refused: set[str]


@dataclass(frozen=True)
class ReduceCall:
    """Which reduce stage is called for which variation, with which frozen values."""

    stage: str
    variation: str
    frozen: tuple[tuple[str, str], ...]


def run_reduce(
    job: JobTicket, root: str, reduce: ReduceCall, merged: Mapping[str, Merged], frozen: Frozen,
    metadata: Mapping[str, Any], missing: Mapping[str, Any], call: str = "",
) -> Reduced | CampaignError:  # fmt: skip
    """Call a reduce stage on merged outputs and freeze what it returns; an error is returned."""
    rundir = RunDir(Path(root))
    where = f"stage {reduce.stage}, variation {reduce.variation}"
    log = stage_log(rundir.stage_logs, call)
    path = rundir.stage_logs / reduce.stage / f"{reduce.variation}.log"
    error: CampaignError
    try:
        worker = worker_of(job)
        made = _reduce(worker, rundir, reduce, merged, frozen, metadata, missing, call)
        if log is not None:
            log.move(path, where)
        return made
    except CampaignError as known:
        error = known
        error.where = f"{where}: {error.where}" if error.where else where
    except (Exception, SystemExit) as foreign:  # noqa: BLE001  process boundary: the user's code may raise anything
        code = worker.job.stages[reduce.stage].where if "worker" in locals() else ""
        error = explain(foreign, reduce.stage, code, where)
        error.where = f"{where} ({code})"
    if log is not None and log.move(path, where):
        error.log = f"{error.log}\nprinted output: {path}".strip("\n")
    return error


def _reduce(
    worker: Worker, rundir: RunDir, reduce: ReduceCall, merged: Mapping[str, Merged], frozen: Frozen,
    metadata: Mapping[str, Any], missing: Mapping[str, Any], call: str,
) -> Reduced:  # fmt: skip
    folder = rundir.artefacts(reduce.stage, reduce.variation)
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier version of the stage has left is not its work
    folder.mkdir(parents=True)
    stage = worker.stage(reduce.stage)
    before = Counter(worker.servers.rows) if worker.servers else Counter()
    ctx = Context(
        dataset="",
        metadata=metadata,
        variation=reduce.variation,
        weight=WEIGHT,
        options=fresh(worker.job.stages[reduce.stage].options),
        frozen={at[0]: thawed(*frozen[at]) for at in reduce.frozen},
        servers=worker.servers,
        artefacts=folder,
        missing=missing,
    )
    with Deadline(worker.job.deadline_s, rundir.workers, call) as deadline:
        deadline.start()
        value = stage(LazyMerged(merged), ctx)
        deadline.kept()
    path = rundir.frozen(reduce.stage, reduce.variation)
    sha256 = freeze(value, path)
    artefacts = {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    if not artefacts:
        folder.rmdir()
    rungs = Counter(worker.servers.rows) - before if worker.servers else before
    return Reduced(str(path), sha256, artefacts, rungs, worker.servers.refused if worker.servers else set())
