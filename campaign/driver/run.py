"""Runs a campaign: check, plan, pool, tasks, merge, teardown, report."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.discovery.address import PoolAddress
from campaign.driver import manifest, summary
from campaign.driver.check import Checked, check, default_run_dir, job_of, override
from campaign.driver.explain import in_short
from campaign.driver.failed_files import FailedFiles
from campaign.driver.partial_index import PartialIndex
from campaign.driver.preflight import preflight
from campaign.driver.scheduler import Scheduler
from campaign.driver.servers_view import ServersView
from campaign.driver.signals import signals
from campaign.driver.state import State
from campaign.errors import CampaignError, CampaignFailed, Interrupted, SpecError
from campaign.planning import plan_file
from campaign.planning.plan import PendingTasks, Reduce
from campaign.pool.pool import ServerPool
from campaign.protocols import Provider
from campaign.report import report
from campaign.report.profile import Profile
from campaign.report.progress import Progress, to_terminal
from campaign.report.report import Report
from campaign.spec.models import Campaign, campaign_workers
from campaign.storage.receipts import Receipts
from campaign.storage.rundir import RunDir
from campaign.supervision import driver_watchdog
from campaign.supervision.forkserver import stop_fork_server
from campaign.util.os_errors import in_words, no_room
from campaign.worker import stage_log
from campaign.worker.job import JobTicket, save_job

if TYPE_CHECKING:
    pass


def run(
    campaign: Campaign,
    *,
    run_dir: Path | str | None = None,
    workers: int | None = None,
    servers: int | None = None,
    provider: str | None = None,
    limit: int | None = None,
    progress: bool | Progress = True,
    raises: bool = True,
) -> Report:
    """Run a campaign; on an existing run directory, what is missing of it.

    Args:
        campaign: The campaign.
        run_dir: Where everything goes; None: ``./runs/<campaign>/``.
        workers: Worker processes, in place of the campaign's own number.
        servers: Servers in the pool, in place of the campaign's own number.
        provider: A registered provider's name, in place of the campaign's own.
        limit: Rows of each file, for a quick try; see `campaign.spec.models.Campaign`.
        progress: Whether to show progress on standard error.
        raises: Raise if it does not end complete; otherwise only the report's ``status`` says so.

    Returns:
        The report.

    Raises:
        SpecError: The request is wrong; nothing was started.
        CampaignFailed: Something is missing at the end (``raises``); carries the report.
        Interrupted: INT, TERM or HUP came, or ``campaign stop`` (``raises``).
    """
    campaign = override(campaign, workers=workers, servers=servers, provider=provider, limit=limit)
    shown = progress if isinstance(progress, Progress) else (to_terminal() if progress else Progress())
    rundir = RunDir(Path(run_dir).resolve() if run_dir else default_run_dir(campaign))
    checked = check(campaign)
    try:
        with rundir.owned(), signals() as stop, driver_watchdog.hold(rundir.root, say=shown.say):
            made = Run(checked, rundir, shown, stop).run()
    except OSError as error:
        raise in_words(error, rundir.root) from error
    finally:
        stop_fork_server()  # it looked at the files, whoever did the work
        shown.close()
    if raises and made.status == report.INTERRUPTED:
        raise Interrupted("stopped as asked; run again to resume", where=str(rundir.root))
    if raises and made.exit_code:
        raise CampaignFailed("\n".join(made.errors) or made.status, report=made, where=campaign.campaign)
    return made


class Run:
    """One run from start to report."""

    def __init__(self, checked: Checked, rundir: RunDir, shown: Progress, stop: threading.Event) -> None:
        self.campaign, self.plan, self.checked = checked.campaign, checked.plan, checked
        self.rundir, self.shown, self.stop = rundir, shown, stop
        self.report = Report(self.campaign.campaign, str(rundir.root), limit=self.campaign.limit)
        self.logs = stage_log.logs(rundir.stage_logs)  # that earlier runs have left
        self.profile = Profile(began=time.time())
        self.clock = time.monotonic()  # nobody sets this one
        self.receipts = Receipts(rundir.receipts)
        self.state = State(PartialIndex(self.plan, self.receipts), FailedFiles(self.plan))
        self.todo: list[PendingTasks] = []
        self.pool: ServerPool | None = None
        self.hashes = manifest.InputHashes(self.plan, {})
        self.looked = 0.0
        self.told_ready = self.told_lost = False
        self.view = ServersView()
        shown.at(rundir.root, self.campaign.campaign)

    def run(self) -> Report:
        """Do it and write the report, however it ends."""
        self.rundir.request_stop.unlink(missing_ok=True)
        started = False
        try:
            self._remember()
            self._prepare()
            self._passed("checked")
            self._hash_inputs()
            if not self._complete:
                with ExitStack() as stack:
                    scheduler = self._start(stack)
                    started = True
                    scheduler.run(self._look_around)
                    self._passed("tasks")
                    self.shown.say("servers and workers: stopping" if self.pool else "workers: stopping")
                self._passed("stopped")
            summary.judge(self.report, self.plan, self.state)
            self.report.errors += no_room(self.report.errors, self.rundir.root)
        except CampaignError as error:
            if isinstance(error, SpecError) and not started:
                raise
            # A signal also reaches what was started in this terminal; what fails then fails because of it.
            asked = self.stop.is_set() or isinstance(error, Interrupted)
            self.report.status = report.INTERRUPTED if asked else report.FAILED
            self.report.errors += [*summary.failures(self.state), _ASKED if asked else str(error)]
        finally:
            self.receipts.close()
            self.rundir.job.unlink(missing_ok=True)
            self.rundir.late_job.unlink(missing_ok=True)
            shutil.rmtree(self.rundir.workers, ignore_errors=True)
            self.report.printed = stage_log.tidy(self.rundir.stage_logs, self.logs)
        summary.fill(self.report, self.plan, self.state, self.rundir, self.checked.kind, self.pool, self.tasks_to_do)
        self.profile.workers = campaign_workers(self.campaign)
        self.report.profile = summary.profiled(self.profile, self.plan, self.state, self.pool).to_json()
        self._sign()
        self.report.wall_s = round(time.monotonic() - self.clock, 3)
        self.report.save()
        self.shown.close()
        return self.report

    def _passed(self, point: str) -> None:
        self.profile.timeline[point] = time.monotonic() - self.clock

    def _remember(self) -> None:
        """What earlier runs of this directory have left, as far as it is still what this plan wants."""
        shutil.rmtree(self.rundir.workers, ignore_errors=True)
        self.state.index.read(self.rundir)
        self.rundir.sweep(self.state.index.packs)
        self.state.remember(self.plan, self.rundir)
        self.state.withdraw(self.plan, self.rundir)
        self.todo = self.plan.todo(self.state.index.missing())

    @property
    def tasks_to_do(self) -> int:
        """Number of tasks that were to be done when the run began."""
        return sum(len(some.places) for some in self.todo)

    @property
    def _complete(self) -> bool:
        """Whether everything is there already."""
        return (
            not self.todo
            and all(o.name in self.state.merged for o in self.plan.outputs)
            and all((r.stage, r.variation) in self.state.frozen for r in self.plan.reduces)
        )

    def _prepare(self) -> None:
        self.job = job_of(self.plan)
        if self.todo:
            preflight(self.plan, self.todo, save_job(self.job, self.rundir.job))
        if self.shown.explains:
            self.shown.why(in_short(self.plan, self.state, self.rundir, self.todo), self.plan.total - self.tasks_to_do)
        plan_file.write(self.rundir, self.plan)
        if not self._complete:
            plan_file.note_start(self.rundir, self.plan, self.todo)

    def _hash_inputs(self) -> None:
        """Beside the work. From now on an old manifest and an old report are wrong, unless there is nothing to do."""
        try:
            known = manifest.read(self.rundir)["inputs"]["hashed"]
        except CampaignError:
            known = {}
        if not self._complete:
            self.rundir.manifest.unlink(missing_ok=True)
            self.rundir.report.unlink(missing_ok=True)
        self.hashes = manifest.InputHashes(self.plan, known)
        self.hashes.start()

    def _sign(self) -> None:
        """Write the manifest, if all is there. What it says comes from receipts: what is spoilt stays so."""
        if self.report.status != report.COMPLETE:
            self.hashes.stop()
            return
        while self.hashes.is_alive():
            if self.stop.is_set() or self.rundir.request_stop.exists():
                self.hashes.stop()  # all else is there: fewer inputs are known by content
                break  # it may be in the middle of a large one
            self.hashes.join(0.2)
        done = manifest.Done(
            self.campaign, self.plan, self.checked.models, self.state.merged, self.state.frozen, self.state.index,
            {**self.report.versions, "reproducible": str(self.report.reproducible)}, dict(self.hashes.found),
        )  # fmt: skip
        try:
            manifest.write(self.rundir, done)
        except OSError as error:
            self.report.status = report.FAILED
            self.report.errors.append(f"{self.rundir.manifest}: cannot be written: {error.strerror}")
            self.report.errors += no_room(self.report.errors, self.rundir.root)

    def _start(self, stack: ExitStack) -> Scheduler:
        waiting = [r for r in self.plan.reduces if (r.stage, r.variation) not in self.state.frozen]
        self._expect(waiting)
        self.rundir.logs.mkdir(parents=True, exist_ok=True)
        provider = stack.enter_context(self.checked.provider(self.checked.options, self.rundir.logs))
        address = self._start_pool(stack, provider) if self._needs_servers(waiting) else None
        ticket = save_job(replace(self.job, servers=address), self.rundir.job)

        def with_servers() -> JobTicket:
            nonlocal ticket
            if self.pool is None and self.campaign.servers is not None:
                late = replace(self.job, servers=self._start_pool(stack, provider))
                ticket = save_job(late, self.rundir.late_job)  # workers may still have to read the other one
            return ticket

        return Scheduler(
            self.plan, self.todo, self.state, self.rundir, self.receipts, provider, campaign_workers(self.campaign),
            self.campaign.retries, ticket, self.shown, self._pool_failure, with_servers,
        )  # fmt: skip

    def _needs_servers(self, waiting: list[Reduce]) -> bool:
        stages = {line.stage for some in self.todo for line in some.shape.lines} | {r.stage for r in waiting}
        return self.campaign.servers is not None and any(map(self.plan.infers, stages))

    def _start_pool(self, stack: ExitStack, provider: Provider) -> PoolAddress:
        spec = self.campaign.servers
        assert spec is not None
        self.pool = ServerPool(
            spec, provider=provider, folder=self.rundir.servers, base=self.campaign.base, say=self.shown.say,
            kind=self.checked.kind, look=self._look_for_stop,
        )  # fmt: skip
        stack.enter_context(self.pool)
        self._passed("pool")
        if self.pool.kind.managed:
            self.shown.say(f"servers   starting {spec.count} of kind {spec.kind}")
        return self.pool.address

    def _expect(self, waiting: list[Reduce]) -> None:
        per_stage = Counter(r.stage for r in waiting)
        for some in self.todo:
            for line in some.shape.lines:
                per_stage[line.stage] += len(some.places)
        for stage in self.campaign.stages:
            self.shown.expect(stage, per_stage[stage])

    def _look_around(self) -> None:
        """Several times a second.

        Raises:
            Interrupted: A signal came, or ``campaign stop``.
            ServerError: The pool is of no use any more.
        """
        if self._look_for_stop():
            return
        failure = self._pool_failure()
        if failure is not None:
            raise failure
        if self.pool and self.pool.kind.managed:
            self.shown.show_servers(self.view.servers(self.pool.records()))
            if not self.told_ready:
                self._tell_ready(self.pool)

    def _look_for_stop(self) -> bool:
        """Whether it was only a glance.

        Raises:
            Interrupted: See `_look_around`.
        """
        if self.stop.is_set():
            raise Interrupted(_ASKED)
        now = time.monotonic()
        if now - self.looked < 0.5:
            return True
        self.looked = now
        driver_watchdog.beat()
        if self.rundir.request_stop.exists():
            raise Interrupted(_ASKED)
        return False

    def _pool_failure(self) -> CampaignError | None:
        """Why the run cannot go on for want of servers; it can where every model has a twin and servers have proved it.

        A pool that never came up is an error all the same: what is wrong then is wrong in the campaign.
        """
        failure = self.pool.failure() if self.pool else None
        if failure is None or self.pool is None or len(self.pool.twins) < len(self.pool.spec.models):
            return failure
        if not any(r["ready_s"] is not None for r in self.pool.records()):
            return failure
        if not self.told_lost:
            self.told_lost = True
            self.shown.say("servers   none is left: the models' local twins answer")
            self.report.warnings.append(f"no server was left ({failure.where}: {failure.message})")
        return None

    def _tell_ready(self, pool: ServerPool) -> None:
        records = pool.current()
        if len(records) == pool.spec.count and all(r["state"] == "ready" for r in records):
            self.told_ready = True
            slowest = max(float(r["ready_s"]) for r in records)
            without = [
                name for name in pool.spec.models if any(f"model {name} has no" in str(r["warnings"]) for r in records)
            ]
            known = "known answers given" if not without else f"no known answer of {', '.join(without)}"
            self.shown.say(f"servers   {len(records)} ready, {known}, after {slowest:.1f} s")


_ASKED = "stopped as asked; run again to resume"
