"""Does the work of a run with workers and servers, and stops them. A run and `campaign verify` both use it."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from campaign.driver.check import Checked, job_of
from campaign.driver.preflight import preflight
from campaign.driver.run_servers import RunServers
from campaign.driver.scheduler import Scheduler
from campaign.driver.work import Work
from campaign.errors import Interrupted
from campaign.pool.pool import ServerPool
from campaign.report.progress import Progress
from campaign.storage.rundir import RunDir
from campaign.supervision import driver_watchdog
from campaign.worker import stage_log
from campaign.worker.job import save_job

STOPPED = "stopped as asked; run again to resume"
LOOK_S = 0.5  # between two looks at the stop file


class Execution:
    """The execution of some work. Used as a context manager: leaving it removes what only workers needed.

    Args:
        checked: The campaign: stages, provider and server kind.
        work: The work.
        rundir: The run directory.
        shown: Progress.
        stop: Set when a signal asks the run to stop.
        passed: Called with the name of each point of the run that is reached: ``pool``, ``tasks``.

    Attributes:
        started: True once machines were asked for.
        printed: Number of logs of stages that are new, when it was left.
    """

    def __init__(
        self, checked: Checked, work: Work, rundir: RunDir, shown: Progress, stop: threading.Event,
        passed: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._checked, self._work, self._rundir = checked, work, rundir
        self._shown, self._stop, self._passed = shown, stop, passed
        self._logs = stage_log.logs(rundir.stage_logs)  # that earlier runs have left
        self._looked = 0.0
        self._servers: RunServers | None = None
        self.started = False
        self.printed = 0

    @property
    def pool(self) -> ServerPool | None:
        """The pool of servers; None: none was started."""
        return self._servers.pool if self._servers is not None else None

    @property
    def warnings(self) -> list[str]:
        """Sentences for the report."""
        return self._servers.warnings if self._servers is not None else []

    def __enter__(self) -> Execution:
        shutil.rmtree(self._rundir.workers, ignore_errors=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._rundir.job.unlink(missing_ok=True)
        self._rundir.late_job.unlink(missing_ok=True)
        shutil.rmtree(self._rundir.workers, ignore_errors=True)
        self.printed = stage_log.tidy(self._rundir.stage_logs, self._logs)

    def try_first(self) -> None:
        """Read one file of each dataset. Nothing is started yet.

        Raises:
            SpecError: A tree, a branch, a weight or a column is missing.
        """
        if self._work.todo:
            preflight(self._work.plan, self._work.todo, save_job(job_of(self._work.plan), self._rundir.job))

    def run(self) -> None:
        """Do all that can be done. Errors of single tasks are noted in the state.

        Raises:
            Interrupted: A signal or ``campaign stop`` asked the run to stop.
            CampaignError: The run cannot go on, for example because no server is left.
        """
        with ExitStack() as stack:
            scheduler = self._start(stack)
            self.started = True
            scheduler.run(self._look_around)
            self._passed("tasks")
            self._shown.say("servers and workers: stopping" if self.pool else "workers: stopping")

    def _start(self, stack: ExitStack) -> Scheduler:
        self._expect()
        self._rundir.logs.mkdir(parents=True, exist_ok=True)
        provider = stack.enter_context(self._checked.provider(self._checked.options, self._rundir.logs))
        self._servers = RunServers(
            self._checked, self._rundir, provider, self._shown, stack, self._look_for_stop, self._passed
        )
        self._servers.start(needed=self._work.needs_servers)
        return Scheduler(self._work, self._rundir, provider, self._servers, self._shown)

    def _expect(self) -> None:
        """Tell the progress display how many steps of each stage are to come."""
        per_stage = Counter(r.stage for r in self._work.reduces)
        for some in self._work.todo:
            for layer in some.shape.lines:
                per_stage[layer.stage] += len(some.places)
        for stage in self._work.plan.campaign.stages:
            self._shown.expect(stage, per_stage[stage])

    def _look_around(self) -> None:
        """Called several times a second.

        Raises:
            Interrupted: A signal or ``campaign stop`` asked the run to stop.
            CampaignError: The run cannot go on without servers.
        """
        if self._look_for_stop() and self._servers is not None:
            self._servers.look()

    def _look_for_stop(self) -> bool:
        """Returns True if it has looked at the stop file, which it does twice a second.

        Raises:
            Interrupted: A signal or ``campaign stop`` asked the run to stop.
        """
        if self._stop.is_set():
            raise Interrupted(STOPPED)
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        driver_watchdog.beat()
        if self._rundir.request_stop.exists():
            raise Interrupted(STOPPED)
        return True
