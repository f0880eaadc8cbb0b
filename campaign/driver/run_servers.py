"""Starts the servers of a run when they are needed, tells workers where they are, and says why they cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from campaign.discovery.address import PoolAddress
from campaign.discovery.records import ServerState
from campaign.driver.check import Checked, job_of
from campaign.driver.servers_view import ServersView
from campaign.errors import CampaignError
from campaign.pool.pool import ServerPool
from campaign.protocols import Provider
from campaign.report.progress import Progress
from campaign.storage.rundir import RunDir
from campaign.worker.job import JobTicket, save_job

logger = logging.getLogger(__name__)


class RunServers:
    """The servers of one run.

    Args:
        checked: The campaign.
        rundir: The run directory.
        provider: Lends the machines.
        shown: Progress.
        stack: Stops the pool when it is closed.
        look: Called several times a second while the pool starts. It raises if the run is to stop.
        passed: Called with ``pool`` when the pool has started.

    Attributes:
        pool: The pool; None: not started.
        ticket: What each call to a worker carries, after `start`. It leads to the job, which holds the pool's address.
        warnings: Sentences for the report.
    """

    def __init__(
        self, checked: Checked, rundir: RunDir, provider: Provider, shown: Progress, stack: ExitStack,
        look: Callable[[], object], passed: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._checked, self._rundir, self._provider = checked, rundir, provider
        self._shown, self._stack, self._look, self._passed = shown, stack, look, passed
        self._job = job_of(checked.plan)
        self._said_ready = self._said_lost = False
        self._view = ServersView()
        self.pool: ServerPool | None = None
        self.ticket: JobTicket
        self.warnings: list[str] = []

    def start(self, *, needed: bool) -> None:
        """Write the job for workers; if tasks need servers, start the pool first."""
        address = self._start_pool() if needed else None
        self.ticket = save_job(replace(self._job, servers=address), self._rundir.job)

    def start_late(self) -> JobTicket:
        """Start the pool if it is not there, because tasks are repeated that need it; returns the ticket for them."""
        if self.pool is None and self._checked.campaign.servers is not None:
            late = replace(self._job, servers=self._start_pool())
            self.ticket = save_job(late, self._rundir.late_job)  # workers may still have to read the first job
        return self.ticket

    def _start_pool(self) -> PoolAddress:
        campaign = self._checked.campaign
        spec = campaign.servers
        assert spec is not None
        self.pool = ServerPool(
            spec, provider=self._provider, folder=self._rundir.servers, base=campaign.base, say=self._shown.say,
            kind=self._checked.kind, look=self._look,
        )  # fmt: skip
        self._stack.enter_context(self.pool)
        self._passed("pool")
        if self.pool.kind.managed:
            logger.info("starting %d servers of kind %s", spec.count, spec.kind)
            self._shown.say(f"servers   starting {spec.count} of kind {spec.kind}")
        return self.pool.address

    def failure(self) -> CampaignError | None:
        """The error that must end the run because its servers failed. None: the run can go on.

        The run also goes on without servers if every model has a local model and a server was ready once. The user is
        then told once, and the report gets a warning. If no server was ever ready, the campaign itself is at fault.
        """
        failure = self.pool.failure() if self.pool else None
        if failure is None or self.pool is None or len(self.pool.twins) < len(self.pool.spec.models):
            return failure
        if not any(r.ready_s is not None for r in self.pool.records()):
            return failure
        if not self._said_lost:
            self._said_lost = True
            self._shown.say("servers   none is left: the models' local twins answer")
            self.warnings.append(f"no server was left ({failure.where}: {failure.message})")
        return None

    def look(self) -> None:
        """Show the servers, and tell the user once that all of them are ready.

        Raises:
            CampaignError: The run cannot go on without servers.
        """
        failure = self.failure()
        if failure is not None:
            raise failure
        if self.pool and self.pool.kind.managed:
            self._shown.show_servers(self._view.servers(self.pool.records()))
            if not self._said_ready:
                self._say_ready(self.pool)

    def _say_ready(self, pool: ServerPool) -> None:
        records = pool.current()
        if len(records) == pool.spec.count and all(r.state is ServerState.READY for r in records):
            self._said_ready = True
            slowest = max(r.ready_s or 0.0 for r in records)
            without = [
                name for name in pool.spec.models if any(f"model {name} has no" in str(r.warnings) for r in records)
            ]
            known = "known answers given" if not without else f"no known answer of {', '.join(without)}"
            logger.info("%d servers ready after %.1f s, %s", len(records), slowest, known)
            self._shown.say(f"servers   {len(records)} ready, {known}, after {slowest:.1f} s")
