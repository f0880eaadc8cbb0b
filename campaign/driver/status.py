"""Looks at a run from outside: what it is doing, what its result is; and stops it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from campaign.discovery.records import ServerRecord, read_records
from campaign.errors import CampaignError, SpecError
from campaign.planning.plan_file import progress_of
from campaign.report.report import Report
from campaign.storage.rundir import RunDir

STOP_S = 60.0  # for a run to stop in good order


def existing(path: Path) -> RunDir:
    """The run directory at a path.

    Raises:
        SpecError: There is none.
    """
    if not RunDir(path).begun:
        raise SpecError(
            "is no run directory" if path.exists() else "is not there",
            where=str(path),
            remedy="give the folder that 'campaign run' has made, runs/NAME for example",
        )
    return RunDir(path.resolve())


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        owner: Host and process that runs it. Empty: it is not running.
        report: Its report, if it is not running and came to its end.
        total: Number of partials of the run, by stage.
        done: Number of partials that are there, by stage.
        servers: Records of its servers.
    """

    owner: str
    report: Report | None = None
    total: Mapping[str, int] = field(default_factory=dict)
    done: Mapping[str, int] = field(default_factory=dict)
    servers: list[ServerRecord] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        if not self.owner:
            yield (
                f"not running; {self.report.status} after {self.report.wall_s:.0f} s: see 'campaign report'"
                if self.report
                else "not running, and never came to its end; run it again to resume"
            )
            return
        yield f"running on {self.owner}"
        for stage, n in self.total.items():
            yield f"  {stage:<16} {self.done.get(stage, 0)}/{n} files and variations"
        for record in self.servers:
            yield f"  {record.name:<16} {record.state.value} on {record.host} {record.reason}".rstrip()


def status(rundir: RunDir) -> Status:
    """The present state of the run in a directory."""
    owner = rundir.owner()
    if not owner:
        return Status("", Report.load(rundir.root))
    total, done = progress_of(rundir)
    return Status(owner, None, total, done, read_records(rundir.servers, None))


def stop(rundir: RunDir) -> str:
    """Stop a run in good order; it can be resumed.

    Returns:
        Host and process that ran it. Empty: it was not running.

    Raises:
        CampaignError: It does not stop.
    """
    owner = rundir.owner()
    if not owner:
        return ""
    rundir.request_stop.touch()
    end = time.monotonic() + STOP_S
    while rundir.owner():
        if time.monotonic() > end:
            raise CampaignError(f"{owner} does not stop", where=str(rundir.root), remedy="end that process")
        time.sleep(0.1)
    return owner
