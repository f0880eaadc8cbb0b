"""Finds and ends all that a dead campaign has left on this machine and in batch systems. Names play no part.

A process belongs to a campaign if its environment holds the campaign's mark. Only the user can read the environment. A
campaign is dead if the driver that the mark names has ended. Another process with the same process id does not count.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from campaign.supervision import batch_jobs, run_registry
from campaign.supervision.cleanup import clear
from campaign.supervision.identity import OWNER, ROLE, SERVER_WATCHDOG, VARIABLE, Identity, Mark, environment_of, send
from campaign.util.files import read_json

ORDERLY_S = 7.0  # a pilot gives a busy server 6 s
GUARDIANS_S = 3.0


@dataclass(frozen=True)
class Found:
    """A process that bears a mark.

    Attributes:
        who: The process.
        mark: The mark of its campaign.
        parent: Process id of its parent.
        what: Text that names it to the user.
        sweeps: True for a server watchdog. It removes files of others, so it is ended last.
    """

    who: Identity
    mark: Mark
    parent: int
    what: str
    sweeps: bool

    def __str__(self) -> str:
        return f"process {self.who.pid} ({self.what})"


@dataclass
class ReapReport:
    """A line of text for each process, folder and job.

    Attributes:
        ended: Ended or removed; in a dry run: would be.
        left: Could not be ended, or nothing is known of its campaign on this machine.
        live: Belongs to a campaign that runs.
    """

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)


def processes(campaign: str = "") -> list[Found]:
    """Find this user's processes on this machine that carry the mark of ``campaign``. Empty: the mark of any campaign.

    This process is left out.
    """
    import psutil  # not at the top: a pilot imports this module at its start, and never calls this

    found = []
    for pid in psutil.pids():
        environment = environment_of(pid) if pid != os.getpid() else {}
        mark = Mark.parse(environment.get(VARIABLE, ""))
        if mark is None or (campaign and mark.campaign != campaign):
            continue
        with contextlib.suppress(OSError, psutil.Error):  # it ended while we looked
            process = psutil.Process(pid)
            what = _short(" ".join(process.cmdline()))
            sweeps = environment.get(ROLE) == SERVER_WATCHDOG
            found.append(Found(Identity.of(pid), mark, process.ppid(), what, sweeps))
    return found


def _short(line: str) -> str:
    words = line.split()
    name = words[words.index("-m") + 1] if "-m" in words[:-1] else Path(words[0]).name if words else "?"
    return f"{name}, {words[-1]}" if name == "campaign.pool.pilot" else name


def end(look: Callable[[], list[Found]]) -> list[Found]:
    """End processes: by SIGTERM, then by SIGKILL. Server watchdogs are killed last.

    Args:
        look: Finds the processes to end. It is called until it finds none, because new ones may have started.

    Returns:
        Processes that did not end.
    """
    asked: set[Identity] = set()

    def ask(found: list[Found]) -> None:
        bearers = {f.who.pid for f in found}
        for f in found:
            if f.parent not in bearers and f.who not in asked:  # its parent ends it
                send(f.who, signal.SIGTERM)
                asked.add(f.who)

    _wait(look, ORDERLY_S, ask)
    for f in look():
        if not f.sweeps:
            send(f.who, signal.SIGKILL)
    _wait(look, GUARDIANS_S)
    for f in look():
        send(f.who, signal.SIGKILL)
    _wait(look, 2.0)
    return look()


def _wait(look: Callable[[], list[Found]], seconds: float, do: Callable[[list[Found]], None] | None = None) -> None:
    until = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < until:
        if do:
            do(found)
        time.sleep(0.1)


def owned(roots: set[Path]) -> Iterator[tuple[Path, Mark, dict[str, object]]]:
    """Private folders of this user's campaigns, each with its mark and with the content of its owner's file."""
    for root in sorted(roots):
        try:
            folders = sorted(p for p in root.iterdir() if p.name.startswith("campaign-"))
        except OSError:
            continue
        for folder in folders:
            path = folder / OWNER
            try:  # the folder first: files of other users are not read
                ours = all(p.lstat().st_uid == os.geteuid() and not p.is_symlink() for p in (folder, path))
            except OSError:  # removed meanwhile
                continue
            told = read_json(path) if ours else None
            mark = Mark.parse(str((told or {}).get("mark", "")))
            if told is not None and mark is not None:
                yield folder, mark, dict(told)


def roots() -> set[Path]:
    """Folders in which private folders may lie."""
    recorded = {Path(e.temporary) for e in run_registry.entries() if e.temporary}
    return {Path(tempfile.gettempdir()), Path("/tmp"), *recorded}  # noqa: S108


def clear_folder(folder: Path, told: dict[str, object]) -> None:
    """End all processes of the server whose private folder this is, and remove its files."""
    clear({"leader": "", "shm_prefix": "", "folders": [], **told, "place": str(folder)})


def abandoned() -> None:
    """Remove what pilots of this user have left that were killed on this node together with their server watchdogs.

    If a job does not end in time, a batch system kills all its processes at once. Then no process is left to clean up.
    """
    for folder, _, told in owned({Path(tempfile.gettempdir())}):
        holder = Identity.parse(str(told.get("holder", "")))
        if holder is not None and holder.alive() is False:
            with contextlib.suppress(Exception):  # one that cannot be swept must not stop the pilot that looked
                clear_folder(folder, told)


def reap(*, dry_run: bool = False, only: Mark | None = None) -> ReapReport:
    """End and remove all that dead campaigns of this user have left, jobs first.

    Args:
        dry_run: Only say what would be ended and removed.
        only: Only for this campaign, whose driver has ended.
    """
    said = ReapReport()

    def dead(mark: Mark) -> bool:
        return mark.campaign == only.campaign if only else mark.driver.alive() is False

    entries = [e for e in run_registry.entries() if dead(e.mark)]
    for entry in entries:
        jobs = batch_jobs.end_jobs(entry, dry_run)
        said.ended += jobs.ended
        said.left += jobs.left

    def look() -> list[Found]:
        return [f for f in processes(only.campaign if only else "") if dead(f.mark)]

    found = look()
    if not dry_run and found:
        for f in end(look):
            said.left.append(f"{f}: does not end, not even by SIGKILL")
    said.ended += [f"{f} of campaign {f.mark.campaign}" for f in found]
    for folder, mark, told in owned(roots()):
        if dead(mark):
            text = f"folder {folder} of campaign {mark.campaign}"
            try:
                if not dry_run:
                    clear_folder(folder, told)
                said.ended.append(text)
            except Exception as error:  # noqa: BLE001  the others go all the same
                said.left.append(f"{text}: {type(error).__name__}: {error}")
    for folder in [Path(p) for entry in entries for p in entry.secrets]:
        with contextlib.suppress(OSError):  # gone with its driver, as it should
            if stat.S_ISDIR(folder.lstat().st_mode) and folder.lstat().st_uid == os.geteuid():
                said.ended.append(f"keys in {folder}")
                if not dry_run:
                    shutil.rmtree(folder)
    if not only:
        others = [(str(f), f.mark) for f in processes() if not dead(f.mark)]
        others += [(f"folder {p}", m) for p, m, _ in owned(roots()) if not dead(m)]
        for what, mark in others:
            (said.live if mark.driver.alive() else said.left).append(f"{what}: {_why(mark)}")
    if not dry_run:
        for entry in entries:
            if not any(entry.mark.campaign in line for line in said.left):
                entry.path.unlink(missing_ok=True)
    return said


def _why(mark: Mark) -> str:
    driver = mark.driver
    if driver.alive():
        return f"its campaign's driver runs (pid {driver.pid})"
    return f"its campaign's driver is on {driver.host} (pid {driver.pid}): ask there, or in its container"
