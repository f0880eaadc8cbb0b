"""Follows a run from its files: the same view as the driver's, for a run that was started elsewhere."""

from __future__ import annotations

import time

from campaign.discovery.records import in_order
from campaign.driver.servers_view import ServersView
from campaign.planning.plan_file import progress_of
from campaign.report.progress import Progress
from campaign.report.report import Report
from campaign.storage.rundir import RunDir
from campaign.util.files import read_json

EVERY_S = 0.5  # between two looks, or ten times as long as a look takes


def watch(rundir: RunDir, shown: Progress) -> Report | None:
    """Show a run until it is over. Interrupting this changes nothing in the run.

    Args:
        rundir: The run directory, on any file system that this process can read.
        shown: The view.

    Returns:
        The report of the run; None if the run ended without one (its driver was killed).
    """
    view, seen = ServersView(), dict[str, int]()
    owner = rundir.owner()
    if owner:
        shown.say(f"running on {owner}")
    try:
        while owner:
            began = time.monotonic()
            _look(rundir, shown, view, seen)
            time.sleep(max(EVERY_S, 10 * (time.monotonic() - began)))
            owner = rundir.owner()
        if seen:
            _look(rundir, shown, view, seen)
    finally:
        shown.close()
    return Report.load(rundir.root)


def _look(rundir: RunDir, shown: Progress, view: ServersView, seen: dict[str, int]) -> None:
    total, done = progress_of(rundir)
    if total and not seen:
        for stage, count in total.items():
            shown.expect(stage, count, done.get(stage, 0))
            seen[stage] = done.get(stage, 0)
    for stage in total:
        if (more := done.get(stage, 0) - seen.get(stage, 0)) > 0:
            shown.add(stage, more)
            seen[stage] = done[stage]
    records = [r for p in rundir.servers.glob("server-*.json") if (r := read_json(p)) is not None and "state" in r]
    shown.show_servers(view.servers(in_order(dict(r) for r in records)))
