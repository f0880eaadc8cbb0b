"""Jobs that a dead campaign has left in batch systems, as `campaign reap` names them; see test_slurm for a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.supervision.batch_jobs import EndedJobs, end_jobs
from campaign.supervision.identity import mark
from campaign.supervision.run_registry import BatchJob, Entry


def ended(*jobs: BatchJob) -> EndedJobs:
    """What becomes of the jobs of one campaign."""
    return end_jobs(Entry(mark(), Path("none"), jobs=list(jobs)), dry_run=True)


@pytest.mark.parametrize(
    ("kind", "command"),
    [("PBSProProvider", "qdel"), ("TorqueProvider", "qdel"), ("GridEngineProvider", "qdel"),
     ("CobaltProvider", "qdel"), ("LSFProvider", "bkill"), ("CondorProvider", "condor_rm")],
)  # fmt: skip
def test_where_numbers_are_used_again_the_user_is_told_the_command(kind: str, command: str) -> None:
    """A job is named once, by its number if that was written down, else by its name."""
    done = ended(BatchJob(kind, "", "a"), BatchJob(kind, "7", "a"), BatchJob(kind, "", "b"))
    campaign = mark().campaign
    assert done.ended == []
    assert done.left == [
        f"job 7 of campaign {campaign}: if it is still called a, end it with {command} 7",
        f"job b of campaign {campaign}: its number is not known; if there is one of that name, end it with {command}",
    ]


def test_jobs_of_an_unknown_batch_system_are_named() -> None:
    """No entry point is registered for this class of provider."""
    done = ended(BatchJob("KubernetesProvider", "pod-1", "a"))
    reason = "campaign reap cannot end jobs of KubernetesProvider; if it is still there, end it by hand"
    assert (done.ended, done.left) == ([], [f"job pod-1 of campaign {mark().campaign}: {reason}"])


def test_a_slurm_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine without Slurm's commands nothing is ended, and the job is named."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = ended(BatchJob("SlurmProvider", "7", "a"))
    assert (done.ended, done.left) == ([], [f"job 7 of campaign {mark().campaign}: squeue does not answer"])
