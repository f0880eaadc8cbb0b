"""Cancels jobs that a dead campaign left in Slurm, if their name still bears the campaign's random name."""

from __future__ import annotations

import shutil
import subprocess

from campaign.supervision.run_registry import Entry

ASK_S = 30.0
BY_HAND = {"PBSProProvider": "qdel", "TorqueProvider": "qdel", "GridEngineProvider": "qdel", "LSFProvider": "bkill",
           "CondorProvider": "condor_rm", "CobaltProvider": "qdel"}  # fmt: skip


def reap(entry: Entry, dry_run: bool, ended: list[str], left: list[str]) -> None:
    """End the jobs of a dead campaign.

    Slurm is asked for this user's jobs whose name bears the campaign's: also one whose number its driver was killed
    before it could write down, and never one that has its number by now. Of other schedulers' jobs only their
    numbers are known, and numbers are used again: they are named.

    Args:
        entry: What is written down of the campaign.
        dry_run: Only say what would be done.
        ended: Takes a line per job that was ended.
        left: Takes a line per job that was not, with the reason.
    """
    numbered = {(kind, name) for kind, number, name in entry.jobs if number}
    known = [j for j in entry.jobs if j[1] or (j[0], j[2]) not in numbered]
    slurm = [j for j in known if j[0] == "SlurmProvider"]
    if slurm:
        told = _run("squeue", "--noheader", "--me", "--format=%i|%T|%j")
        if told is None:
            left += [f"job {j[1] or j[2]} of campaign {entry.mark.campaign}: squeue does not answer" for j in slurm]
        else:
            _cancel([line.split("|", 2) for line in told.splitlines()], entry, dry_run, ended, left)
    for kind, number, name in known:
        if kind in BY_HAND and number:
            left.append(
                f"job {number} of campaign {entry.mark.campaign}: if it is still called {name}, "
                f"end it with {BY_HAND[kind]} {number}"
            )
        elif kind in BY_HAND:
            left.append(
                f"job {name} of campaign {entry.mark.campaign}: its number is not known; "
                f"if there is one of that name, end it with {BY_HAND[kind]}"
            )


def _cancel(rows: list[list[str]], entry: Entry, dry_run: bool, ended: list[str], left: list[str]) -> None:
    for row in rows:
        if len(row) != 3 or entry.mark.campaign not in row[2]:
            continue
        number, state, name = row
        text = f"job {number} ({state}, {name})"
        if not dry_run and _run("scancel", f"--name={name}", number) is None:  # both must fit
            left.append(f"{text} of campaign {entry.mark.campaign}: scancel failed")
        else:
            ended.append(text)


def _run(*argv: str) -> str | None:
    if not shutil.which(argv[0]):
        return None
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
