"""Runs a campaign: remembers earlier runs, executes the work, writes report and manifest."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from campaign.driver import manifest, report_page, summary
from campaign.driver.check import Checked, check, default_run_dir, override
from campaign.driver.execution import STOPPED, Execution
from campaign.driver.explain import in_short
from campaign.driver.failed_files import FailedFiles
from campaign.driver.partial_index import PartialIndex
from campaign.driver.signals import signals
from campaign.driver.state import State
from campaign.driver.work import Work
from campaign.errors import CampaignError, CampaignFailed, Interrupted, SpecError
from campaign.planning import plan_file
from campaign.report import report
from campaign.report.profile import Profile
from campaign.report.progress import Progress, to_terminal
from campaign.report.report import Report
from campaign.spec.models import Campaign, campaign_workers
from campaign.storage.receipts import Receipts
from campaign.storage.rundir import RunDir
from campaign.supervision import driver_watchdog
from campaign.supervision.forkserver import stop_fork_server
from campaign.util.logs import log_to
from campaign.util.os_errors import in_words, no_room

logger = logging.getLogger(__name__)


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
    """Run a campaign. In an existing run directory, only missing results are computed.

    Args:
        campaign: The campaign.
        run_dir: The run directory; None: ``./runs/<campaign>/``.
        workers: Number of worker processes; None: as the campaign says.
        servers: Number of servers; None: as the campaign says.
        provider: Name of a registered provider; None: as the campaign says.
        limit: Rows of each file, for a quick try; see `campaign.spec.models.Campaign`.
        progress: Show progress on standard error.
        raises: Raise an error if the run does not end complete. Otherwise only the report's ``status`` says so.

    Returns:
        The report.

    Raises:
        SpecError: The request is wrong; nothing was started.
        CampaignFailed: A result is missing at the end (``raises``); carries the report.
        Interrupted: INT, TERM or HUP came, or ``campaign stop`` (``raises``).
    """
    campaign = override(campaign, workers=workers, servers=servers, provider=provider, limit=limit)
    shown = progress if isinstance(progress, Progress) else (to_terminal() if progress else Progress())
    rundir = RunDir(Path(run_dir).resolve() if run_dir else default_run_dir(campaign))
    checked = check(campaign)
    try:
        with (
            rundir.owned(), log_to(rundir.driver_log), signals() as stop,
            driver_watchdog.hold(rundir.root, say=shown.say),
        ):  # fmt: skip
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
    """One run, from the receipts of earlier runs to the report and the manifest.

    Args:
        checked: The campaign.
        rundir: The run directory.
        shown: Progress.
        stop: Set when a signal asks the run to stop.
    """

    def __init__(self, checked: Checked, rundir: RunDir, shown: Progress, stop: threading.Event) -> None:
        self.checked, self.rundir, self.shown, self.stop = checked, rundir, shown, stop
        self.report = Report(checked.campaign.campaign, str(rundir.root), limit=checked.campaign.limit)
        self.profile = Profile(began=time.time())
        self.clock = time.monotonic()  # nobody sets this one
        self.receipts = Receipts(rundir.receipts)
        state = State(PartialIndex(checked.plan, self.receipts), FailedFiles(checked.plan))
        self.work = Work(checked.plan, [], state)
        self.execution = Execution(checked, self.work, rundir, shown, stop, self._passed)
        self.hashes = manifest.InputHashes(checked.plan, {})
        shown.at(rundir.root, checked.campaign.campaign)

    def run(self) -> Report:
        """Do it and write the report, however it ends.

        Raises:
            SpecError: The request is wrong; nothing was started.
        """
        self.rundir.request_stop.unlink(missing_ok=True)
        try:
            with self.receipts, self.execution:
                self._do()
        except CampaignError as error:
            if isinstance(error, SpecError) and not self.execution.started:
                raise
            # A signal also reaches what was started in this terminal; what fails then fails because of it.
            asked = self.stop.is_set() or isinstance(error, Interrupted)
            self.report.status = report.INTERRUPTED if asked else report.FAILED
            self.report.errors += [*summary.failures(self.work.state), STOPPED if asked else str(error)]
            self.report.errors += no_room(self.report.errors, self.rundir.root)
        self._fill()
        self._sign()
        self.report.wall_s = round(time.monotonic() - self.clock, 3)
        if self.execution.started or not self.rundir.page.exists():  # else it shows the run that did the work
            report_page.finish(self.report, self.work.plan, self.work.state, self.rundir)
        self.report.save()
        if self.execution.started:  # a run with nothing to do writes no log
            logger.info("%s after %.1f s: %s", self.report.status, self.report.wall_s, self.report.tasks)
        self.shown.close()
        return self.report

    def _do(self) -> None:
        self._remember()
        self.execution.try_first()
        if self.shown.explains:
            self._explain()
        plan_file.write(self.rundir, self.work.plan)
        if not self.work.complete:
            plan_file.note_start(self.rundir, self.work.plan, self.work.todo)
        self._passed("checked")
        self._hash_inputs()
        if not self.work.complete:
            logger.info(
                "plan %s: %d tasks to do", self.work.plan.digest[:16], sum(len(some.places) for some in self.work.todo)
            )
            self.execution.run()
            self._passed("stopped")
        summary.judge(self.report, self.work)
        self.report.errors += no_room(self.report.errors, self.rundir.root)

    def _explain(self) -> None:
        plan, todo = self.work.plan, self.work.todo
        reused = plan.total - sum(len(some.places) for some in todo)
        self.shown.why(in_short(plan, self.work.state, self.rundir, todo), reused)

    def _passed(self, point: str) -> None:
        self.profile.timeline[point] = time.monotonic() - self.clock

    def _remember(self) -> None:
        """Find what earlier runs of this directory have left and this plan still wants."""
        state, plan = self.work.state, self.work.plan
        state.index.read(self.rundir)
        self.rundir.sweep(state.index.packs)
        state.remember(plan, self.rundir)
        state.withdraw(plan, self.rundir)
        self.work.todo = plan.todo(state.index.missing())

    def _hash_inputs(self) -> None:
        """Hash inputs beside the work. An old manifest and report are wrong from now on, unless there is no work."""
        try:
            known = manifest.read(self.rundir)["inputs"]["hashed"]
        except CampaignError:
            known = {}
        if not self.work.complete:
            self.rundir.manifest.unlink(missing_ok=True)
            self.rundir.report.unlink(missing_ok=True)
            self.rundir.page.unlink(missing_ok=True)
        self.hashes = manifest.InputHashes(self.work.plan, known)
        self.hashes.start()

    def _fill(self) -> None:
        pool = self.execution.pool
        self.report.printed = self.execution.printed
        self.report.warnings += self.execution.warnings
        summary.fill(self.report, self.work, self.rundir, self.checked.kind, pool)
        self.profile.workers = campaign_workers(self.checked.campaign)
        self.report.profile = summary.profiled(self.profile, self.work.plan, self.work.state, pool).to_json()

    def _sign(self) -> None:
        """Write the manifest of a complete run. It comes from receipts: a corrupt file stays corrupt."""
        if self.report.status != report.COMPLETE:
            self.hashes.stop()
            return
        while self.hashes.is_alive():
            if self.stop.is_set() or self.rundir.request_stop.exists():
                self.hashes.stop()  # all else is there: fewer inputs are known by content
                break  # it may be in the middle of a large one
            self.hashes.join(0.2)
        state, versions = self.work.state, {**self.report.versions, "reproducible": str(self.report.reproducible)}
        done = manifest.Done(
            self.checked.campaign, self.work.plan, self.checked.models, state.merged, state.frozen, state.index,
            versions, dict(self.hashes.found),
        )  # fmt: skip
        try:
            manifest.write(self.rundir, done)
        except OSError as error:
            self.report.status = report.FAILED
            self.report.errors.append(f"{self.rundir.manifest}: cannot be written: {error.strerror}")
            self.report.errors += no_room(self.report.errors, self.rundir.root)
