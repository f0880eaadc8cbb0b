"""Ends the batch jobs that a dead campaign has left, for each class of provider that Parsl has.

Each function is registered under the class name of a provider in the entry points ``campaign.batch_jobs``. This module
does not import Parsl: a watchdog that must end jobs has no time for that.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from campaign.supervision.batch_jobs import EndedJobs
from campaign.supervision.run_registry import BatchJob

ASK_S = 30.0


def slurm(jobs: Sequence[BatchJob], campaign: str, dry_run: bool) -> EndedJobs:
    """End jobs in Slurm. Slurm is asked for all jobs of this user whose names hold the campaign's name.

    So a job is found even if its driver was killed before it could write down the number. Another job that has the
    number by now is left alone: number and name must both fit.
    """
    done = EndedJobs()
    listed = _run("squeue", "--noheader", "--me", "--format=%i|%T|%j")
    if listed is None:
        done.left += [f"job {j.number or j.name} of campaign {campaign}: squeue does not answer" for j in jobs]
        return done
    for line in listed.splitlines():
        fields = line.split("|", 2)
        if len(fields) != 3 or campaign not in fields[2]:
            continue
        number, state, name = fields
        text = f"job {number} ({state}, {name})"
        if not dry_run and _run("scancel", f"--name={name}", number) is None:
            done.left.append(f"{text} of campaign {campaign}: scancel failed")
        else:
            done.ended.append(text)
    return done


def pbs(jobs: Sequence[BatchJob], campaign: str, dry_run: bool) -> EndedJobs:
    """Name jobs in PBS, Torque, Grid Engine or Cobalt."""
    del dry_run
    return _by_hand(jobs, campaign, "qdel")


def lsf(jobs: Sequence[BatchJob], campaign: str, dry_run: bool) -> EndedJobs:
    """Name jobs in LSF."""
    del dry_run
    return _by_hand(jobs, campaign, "bkill")


def condor(jobs: Sequence[BatchJob], campaign: str, dry_run: bool) -> EndedJobs:
    """Name jobs in HTCondor."""
    del dry_run
    return _by_hand(jobs, campaign, "condor_rm")


def _by_hand(jobs: Sequence[BatchJob], campaign: str, command: str) -> EndedJobs:
    """Only the numbers are known, and batch systems use numbers again: the user is asked to end the jobs."""
    done = EndedJobs()
    for job in jobs:
        if job.number:
            done.left.append(
                f"job {job.number} of campaign {campaign}: if it is still called {job.name}, "
                f"end it with {command} {job.number}"
            )
        else:
            done.left.append(
                f"job {job.name} of campaign {campaign}: its number is not known; "
                f"if there is one of that name, end it with {command}"
            )
    return done


def _run(*argv: str) -> str | None:
    if not shutil.which(argv[0]):
        return None
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
