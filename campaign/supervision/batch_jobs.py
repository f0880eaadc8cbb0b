"""Ends the batch jobs that a dead campaign has left.

How to end a job depends on the batch system. The function for it is found among the entry points
``campaign.batch_jobs``, by the class name of the Parsl provider that has submitted the job. It is called with the jobs
(`campaign.supervision.run_registry.BatchJob`), the campaign's random name, and True if it must end nothing. It returns
`EndedJobs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from campaign.supervision.run_registry import Entry
from campaign.util import plugins


@dataclass
class EndedJobs:
    """A line of text for each job.

    Attributes:
        ended: Jobs that were ended, or would be.
        left: Jobs that were not ended, with the reason.
    """

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def end_jobs(entry: Entry, dry_run: bool) -> EndedJobs:
    """End the jobs of a dead campaign.

    Args:
        entry: The campaign's entry in the registry.
        dry_run: True: only say which jobs would be ended.
    """
    # A job is written down without a number before it is submitted, and again with its number.
    numbered = {(job.kind, job.name) for job in entry.jobs if job.number}
    known = [job for job in entry.jobs if job.number or (job.kind, job.name) not in numbered]
    done, campaign = EndedJobs(), entry.mark.campaign
    for kind in dict.fromkeys(job.kind for job in known):
        jobs = [job for job in known if job.kind == kind]
        reason = f"campaign reap cannot end jobs of {kind}; if it is still there, end it by hand"
        if kind in plugins.names(plugins.BATCH_JOBS):
            try:
                some = plugins.get(plugins.BATCH_JOBS, kind)(jobs, campaign, dry_run)
                done.ended += some.ended
                done.left += some.left
                continue
            except Exception as error:  # noqa: BLE001  a plug-in's error must not keep processes from being ended
                reason = f"{type(error).__name__}: {error}"
        done.left += [f"job {job.number or job.name} of campaign {campaign}: {reason}" for job in jobs]
    return done
