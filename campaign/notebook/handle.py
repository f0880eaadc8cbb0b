"""A run as an object: its state, waiting for it, stopping it. The run itself goes on in a thread or another process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from campaign.driver.check import default_run_dir
from campaign.driver.run import run
from campaign.driver.watch import watch
from campaign.errors import CampaignError, CampaignFailed, Interrupted, SpecError
from campaign.report import report
from campaign.report.live import LiveView
from campaign.report.progress import Progress, to_terminal
from campaign.report.report import Report
from campaign.spec.models import Campaign
from campaign.storage.rundir import RunDir
from campaign.util.card import Card, Shown
from campaign.util.notebook import in_kernel
from campaign.util.threads import aside

LOOK_S = 0.2  # between two looks whether a run is over
STOP_S = 60.0  # for a run to stop in good order
EXIT_S = 10.0  # the same, when the kernel shuts down: Jupyter kills it soon


class RunHandle(Shown):
    """A run of a campaign.

    Attributes:
        run_dir: Its run directory.
    """

    run_dir: Path

    @property
    @abstractmethod
    def status(self) -> str:
        """``running``, or how it ended: ``complete``, ``incomplete``, ``failed``, ``interrupted``, ``refused``."""

    @property
    @abstractmethod
    def report(self) -> Report | None:
        """The report; None while it runs, or where it has left none."""

    @property
    def running(self) -> bool:
        """True while the run goes on."""
        return self.status == "running"

    def wait(self, timeout_s: float | None = None) -> Report:
        """Show the run and wait until it is over. A keyboard interrupt ends the wait, and not the run.

        Args:
            timeout_s: Longest time to wait. None: until the run is over.

        Returns:
            The report.

        Raises:
            TimeoutError: The run still goes on after ``timeout_s``.
            CampaignFailed: The run failed or is incomplete. The error carries the report.
            Interrupted: The run was stopped.
            SpecError: The campaign or a setting is wrong.
            CampaignError: The run left no report, for example because it was killed.
        """
        self._show()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._goes_on():
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{self.run_dir} still runs after {timeout_s:g} s")
            time.sleep(LOOK_S if end is None else min(LOOK_S, max(0.0, end - time.monotonic())))
        return self._result()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Stop the run in good order, and wait until it has stopped. What is done is kept: run again to resume.

        Raises:
            CampaignError: It does not stop within ``timeout_s``.
        """
        rundir, end = RunDir(self.run_dir), time.monotonic() + timeout_s
        asked = False
        while self._goes_on():
            if time.monotonic() >= end:
                raise CampaignError("does not stop", where=str(self.run_dir), remedy="wait, or restart the kernel")
            if self.run_dir.is_dir():  # a run that has just begun takes an older request away: ask again
                rundir.request_stop.touch()
                asked = True
            time.sleep(LOOK_S)
        if asked:
            rundir.request_stop.unlink(missing_ok=True)

    def __await__(self) -> Generator[Any, None, Report]:
        """Wait without blocking the event loop: other coroutines go on. Returns and raises as `wait`."""
        self._show()
        return self._awaited().__await__()

    async def _awaited(self) -> Report:
        while await asyncio.to_thread(self._goes_on):
            await asyncio.sleep(LOOK_S)
        return self._result()

    def _result(self) -> Report:
        made = self.report
        if made is None:
            raise CampaignError(
                "the run never came to its end", where=str(self.run_dir), remedy="run the campaign again to resume"
            )
        if made.status == report.INTERRUPTED:
            raise Interrupted("stopped as asked; run again to resume", where=str(self.run_dir))
        if made.exit_code:
            raise CampaignFailed("\n".join(made.errors) or made.status, report=made, where=made.campaign)
        return made

    @abstractmethod
    def _goes_on(self) -> bool:
        """Look at the run; True while it goes on."""

    @abstractmethod
    def _show(self) -> None:
        """Show it below the cell that runs now."""

    _repr_pretty_ = Shown._repr_pretty_  # IPython would take __repr__

    def __repr__(self) -> str:
        return f"<run in {self.run_dir}: {self.status}>"


class BackgroundRun(RunHandle):
    """A run in a thread of this process.

    The thread takes no signals, and neither does what is started from it: an interrupt of a cell goes to the main
    thread alone. The process has ended the run if it ends in good order; if it is killed, the driver watchdog does.
    """

    def __init__(self, campaign: Campaign, run_dir: Path, shown: Progress, settings: dict[str, Any]) -> None:
        self.run_dir, self._shown = run_dir, shown
        self._done: Future[Report] = Future()
        self._thread = threading.Thread(target=self._work, args=(campaign, settings), name="campaign-run", daemon=True)
        # Before the interpreter waits for the threads of the worker pool, which would first do all that is queued.
        threading._register_atexit(self._end_with_process)  # type: ignore[attr-defined]  # private, Python 3.9 to 3.14
        self._thread.start()

    def _work(self, campaign: Campaign, settings: dict[str, Any]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Jupyter sends it to all of the kernel's group
        try:
            made = run(campaign, run_dir=self.run_dir, progress=self._shown, raises=False, **settings)
        except BaseException as error:  # noqa: BLE001  thread boundary: whoever waits gets it
            self._shown.close()
            self._done.set_exception(error)
        else:
            self._done.set_result(made)

    def _end_with_process(self) -> None:
        with contextlib.suppress(CampaignError, OSError):
            self.stop(EXIT_S)

    @property
    def status(self) -> str:
        """See `RunHandle.status`."""
        if not self._done.done():
            return "running"
        error = self._done.exception()
        if error is None:
            return self._done.result().status
        return "refused" if isinstance(error, SpecError) else "failed"

    @property
    def report(self) -> Report | None:
        """See `RunHandle.report`."""
        return self._done.result() if self._done.done() and self._done.exception() is None else None

    def _result(self) -> Report:
        self._done.result()  # raises what the run has raised
        return super()._result()

    def _goes_on(self) -> bool:
        return not self._done.done()

    def _show(self) -> None:
        if isinstance(self._shown, LiveView) and not self._shown.hidden and in_kernel():
            self._shown.show()

    def _card(self) -> Card:
        return self._shown.card() if isinstance(self._shown, LiveView) else Card(repr(self))


class AttachedRun(RunHandle):
    """A run of another process, or one that is over: what its run directory tells."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._view = LiveView(run_dir.name)
        self._view.hidden, self._view.without_report = True, "ended"
        self._watching: Future[Report | None] | None = None
        if self._goes_on():
            self._view.at(run_dir, run_dir.name)
            self._watching = aside("watch", watch, RunDir(run_dir), self._view)

    @property
    def status(self) -> str:
        """See `RunHandle.status`; ``ended`` if the run has left no report: it was killed."""
        if self._goes_on():
            return "running"
        made = self.report
        return made.status if made is not None else "ended"

    @property
    def report(self) -> Report | None:
        """See `RunHandle.report`."""
        return None if self._goes_on() else Report.load(self.run_dir)

    def _goes_on(self) -> bool:
        return bool(RunDir(self.run_dir).owner())

    def _result(self) -> Report:
        if self._watching is not None:
            self._watching.result()  # so that the view shows the end
        return super()._result()

    def _show(self) -> None:
        if in_kernel() and self._watching is not None:
            self._view.show()

    def _card(self) -> Card:
        if self._goes_on():
            return self._view.card()
        made = self.report
        note = "The run has left no report: it was killed. Run the campaign again to resume."
        return made._card() if made is not None else Card(f"Campaign {self.run_dir.name}", "ended", "bad", notes=[note])


_begun: dict[Path, BackgroundRun] = {}


def start(campaign: Campaign, *, progress: bool = True, **settings: Any) -> BackgroundRun:
    """Run a campaign in the background of this process; the next cell can be run at once.

    One run at a time goes on in a process.

    Args:
        campaign: The campaign.
        progress: Show a live view below this cell; outside a notebook, lines on standard error.
        settings: ``run_dir``, ``workers``, ``servers``, ``provider``, ``limit`` as in `campaign.driver.run.run`.

    Raises:
        CampaignError: Another run of this process goes on.
    """
    going = next((h for h in _begun.values() if h.running), None)
    if going is not None:
        remedy = "wait for it or stop it: campaign.Campaign.attach(run_dir).stop()"
        raise CampaignError("a campaign runs in this process already", where=str(going.run_dir), remedy=remedy)
    given = settings.pop("run_dir", None)
    run_dir = Path(given).resolve() if given else default_run_dir(campaign).resolve()
    shown = to_terminal() if progress else LiveView(campaign.campaign)
    if isinstance(shown, LiveView):
        shown.name = campaign.campaign
        if progress:
            shown.show()
        else:
            shown.hidden = True
    handle = BackgroundRun(campaign, run_dir, shown, settings)
    _begun[run_dir] = handle
    return handle


def attach(run_dir: Path | str) -> RunHandle:
    """A handle on the run of a run directory, started by any process.

    Raises:
        SpecError: It is no run directory.
    """
    path = Path(run_dir).resolve()
    mine = _begun.get(path)
    if mine is not None and mine.running:
        return mine
    if not RunDir(path).begun and not RunDir(path).owner():
        raise SpecError(
            "is no run directory" if path.exists() else "is not there", where=str(path),
            remedy="give the folder that a run has made, runs/NAME for example",
        )  # fmt: skip
    return AttachedRun(path)
