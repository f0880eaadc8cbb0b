"""Says in three sentences what a run has done, what has bound it, and what to do about it."""

from __future__ import annotations

from typing import Any

from campaign.report.profile import Profile
from campaign.report.report import COMPLETE, FAILED, INCOMPLETE, INTERRUPTED, Report
from campaign.util.messages import counted

_LIMITS = {
    "reading": "reading the input files",
    "CPU": "the work of the stages on the CPU",
    "servers": "the servers",
    "start-up": "its own start-up: for most of the time the workers had nothing to do",
}
_ADVICE = {
    "reading": "Copy the input files to a faster disk, or give more workers (`--workers`) if the disk can serve more.",
    "CPU": "Give more workers (`--workers N`); the stage at the top of the table below is the one to make faster.",
    "servers": "Give more servers (`--servers N`), or let `campaign tune FILE` propose a batch and a window.",
    "start-up": "More workers or servers would not help; more files in one run would share the start-up.",
}


def summary(report: Report) -> list[str]:
    """Three sentences: what was done, bound by what, what to do about it."""
    profile = Profile.from_json(report.profile) if report.profile else Profile()
    return [_done(report), _bound(profile), _advice(report, profile)]


def _done(report: Report) -> str:
    files = sum(d["files"] for d in report.datasets.values())
    events = sum(d["events"] for d in report.datasets.values())
    t = report.tasks
    how = {
        COMPLETE: "is complete", INCOMPLETE: "is complete but for files that failed", FAILED: "has failed",
        INTERRUPTED: "was interrupted",
    }[report.status]  # fmt: skip
    said = (
        f"The campaign {report.campaign} {how}: in {duration(report.wall_s)} it did {counted(t['done'], 'task')} on "
        f"{counted(files, 'file')} with {counted(events, 'event')}"
    )
    reused = f" (it took over {counted(t['reused'], 'task')} of earlier runs)" if t["reused"] else ""
    tried = (
        f", of which only the first {report.limit:,} rows of each file were read" if report.limit is not None else ""
    )
    return f"{said}{tried}{reused}, and has {counted(len(report.outputs), 'output')}."


def _bound(profile: Profile) -> str:
    if not profile.tasks_s:
        return "Nothing bound it: no task was left to do."
    bound, sums = profile.bound_by, profile.sums()
    whole = max(profile.workers * profile.span_s, sum(sums.values()), 1e-9)
    shares = sorted(((seconds / whole, name) for name, seconds in sums.items()), reverse=True)
    said = ", ".join(f"{name} {share:.0%}" for share, name in shares[:3] if share >= 0.005)
    return (
        f"It was bound by {_LIMITS.get(bound, bound)}: of the {duration(whole)} that "
        f"{counted(profile.workers, 'worker')} had together, the largest parts were {said}."
    )


def _advice(report: Report, profile: Profile) -> str:
    if report.status == INTERRUPTED:
        return "Run the campaign again: it takes over what is done."
    if report.status == FAILED:
        where = "see the failures below" if report.errors else "see what is missing below"
        return f"Mend what has failed ({where}) and run the campaign again: it takes over what is done."
    if report.status == INCOMPLETE:
        return (
            f"Replace the {counted(len(report.lost), 'file')} that failed, and run the campaign again to complete it."
        )
    if not profile.tasks_s:
        return "There is nothing to do; `campaign verify` compares this run with its manifest."
    idle = profile.sums()["idle"] / max(profile.workers * profile.span_s, 1e-9)
    if profile.bound_by == "CPU" and idle > 0.3:
        return (
            f"More workers would help little, because they were idle for {idle:.0%} of the time: make the stage at the "
            "top of the table below faster, and the merges and reduce stages that workers wait for."
        )
    return _ADVICE.get(profile.bound_by, "There is nothing to change.")


def duration(seconds: float) -> str:
    """A time in the unit that suits it: ``12.3 s``, ``4.5 min``, ``3.2 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def hours(seconds: float) -> str:
    """Seconds as hours."""
    return f"{seconds / 3600:.3g} h"


def hours_table(profile: dict[str, Any], servers: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Busy and idle seconds of the workers' CPUs, and of each server.

    Args:
        profile: As in the report.
        servers: Name, seconds that it was ready, seconds that it computed.
    """
    made = Profile.from_json(profile) if profile else Profile()
    sums = made.sums()
    waiting = sums["servers"] + sums["start-up"] + sums["idle"]
    whole = made.workers * made.span_s
    rows = [("CPU (workers)", max(0.0, whole - waiting), min(whole, waiting))]
    return [*rows, *((name, min(busy, ready), max(0.0, ready - busy)) for name, ready, busy in servers)]
