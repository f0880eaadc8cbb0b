"""Live view of a run in a notebook: one card that is replaced in place while the run goes on."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from campaign.errors import CampaignError
from campaign.report.card import TONES
from campaign.report.progress import Progress, ServerProgress, StageProgress, duration, short
from campaign.report.report import Report
from campaign.util.card import Bar, Card, Table
from campaign.util.messages import counted
from campaign.util.notebook import Places

TICK_S = 1.0  # between two updates of the view
MESSAGES = 12  # messages of the run that are shown, the last ones
FAILURES = 5  # failures that are shown while the run goes on, the first ones


class LiveView(Progress):
    """Progress as a card below one or more cells.

    Args:
        name: Name of the campaign.

    Attributes:
        hidden: True: the view counts, and is not shown when the run begins.
        state: ``starting``, ``running``, or how the run ended.
        without_report: The state of a run that ends without a report.
    """

    explains = True

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name, self.hidden = name, False
        self.state, self.without_report = "starting", "refused"
        self._places = Places()
        self._messages: deque[str] = deque(maxlen=MESSAGES)
        self._why: list[str] = []
        self._reused: int | None = None
        self._calls: int | None = None
        self._root: Path | None = None
        self._before: tuple[int, int] | None = None  # stamp of the report of an earlier run
        self._notes: list[str] = []
        self._ended = math.inf
        self._closed = threading.Event()
        self._updating = threading.Lock()

    def at(self, root: Path, name: str) -> None:
        """Show the view, and update it from now on."""
        self._root, self.name = root, name
        self._before = _stamp(root)
        self.state = "running"
        if not self._places and not self.hidden:
            self.show()
        threading.Thread(target=self._follow, name="campaign-view", daemon=True).start()

    def say(self, text: str) -> None:
        """Show a message of the run."""
        self._messages.append(f"[{self._passed():6.1f} s] {text}")

    def fail(self, message: str) -> None:
        """Show that a file or a reduce stage has failed for good."""
        self.failures.append(message)

    def why(self, reasons: Sequence[str], reused: int) -> None:
        """Show what is done and why, and how many tasks were done before."""
        self._why, self._reused = list(reasons), reused

    def under_way(self, calls: int) -> None:
        """Show how many calls are with the workers, or wait for one."""
        self._calls = calls

    def close(self) -> None:
        """Show how the run ended. The counts stay."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._ended, report = time.monotonic(), None
        if self._root is not None and _stamp(self._root) != self._before:
            with contextlib.suppress(CampaignError, OSError):
                report = Report.load(self._root)
        if report is not None:
            self.state = report.status
            self._notes = [f"note: {w}" for w in report.warnings] + [f"error: {e}" for e in report.errors]
        else:
            self.state = self.without_report
        self._update()

    def show(self) -> None:
        """Show the view below the cell that runs now, too."""
        card = self.card()
        self._places.add(card.html(), card.text())

    def _follow(self) -> None:
        while not self._closed.wait(TICK_S):
            self._update()

    def _update(self) -> None:
        with self._updating, contextlib.suppress(Exception):  # a kernel that shuts down has no place to show it
            if self._places:
                card = self.card()
                self._places.update(card.html(), card.text())

    def _passed(self) -> float:
        return min(time.monotonic(), self._ended) - self.start

    def card(self) -> Card:
        """The view as it is now."""
        stages, over = list(self.stages.values()), self._closed.is_set()
        failed = sum(line.failed for line in stages)
        facts = {"time": duration(self._passed())}
        if self._reused is not None:
            facts["done before"] = counted(self._reused, "task")
        if not over and self._calls is not None:
            facts["in flight"] = f"{self._calls} {'batch' if self._calls == 1 else 'batches'} of tasks"
        if not over:
            facts["time left"] = self._left(stages)
        if failed:
            facts["failed"] = counted(failed, "task")
        if self._root is not None:
            facts["run directory"] = str(self._root)
        failures = [] if over else [f"failed: {message}" for message in self.failures[:FAILURES]]
        return Card(
            f"Campaign {self.name}".rstrip(),
            state=self.state,
            tone=TONES.get(self.state, "bad" if over else "wait"),
            facts=facts,
            tables={
                "Stages": Table(("stage", "files and variations", "rows", "rows/s", "failed"), list(_stages(stages))),
                "Servers": Table(("server", "state", "host", "busy", "note"), list(_servers(self.servers))),
            },
            notes=[*(f"to do: {reason}" for reason in self._why), *failures, *self._notes],
            log=list(self._messages),
        )

    def _left(self, stages: Sequence[StageProgress]) -> str:
        """The time left, and the stages whose pace is not known yet."""
        seconds = self.left_s()
        if seconds is None:
            return "unknown until a tenth of the tasks is done"
        unbegun = [line.name for line in stages if not line.over and not line.began]
        return f"about {duration(seconds)}" + (f"; not begun yet: {', '.join(unbegun)}" if unbegun else "")


def _stages(stages: Iterable[StageProgress]) -> Iterable[tuple[str | Bar, ...]]:
    for line in stages:
        seconds = (line.ended if line.over else time.monotonic()) - line.began
        rate = short(line.rows / seconds) if line.rows and line.began and seconds > 0.5 else ""
        bar = Bar((line.done + line.failed) / line.total, f"{line.done:,}/{line.total:,}")
        yield line.name, bar, short(line.rows) if line.rows else "", rate, f"{line.failed:,}" if line.failed else ""


def _servers(servers: Iterable[ServerProgress]) -> Iterable[tuple[str, ...]]:
    for server in servers:
        notes = [f"{server.queue_s:.1f} queued"] if server.queue_s else []
        notes += [f"replaced {server.restarts} times"] if server.restarts else []
        notes += [server.reason] if server.reason else []
        busy = "" if server.busy is None else f"{server.busy:.0%}"
        yield server.name, server.state, server.host, busy, ", ".join(notes)


def _stamp(root: Path) -> tuple[int, int] | None:
    try:
        stat = (root / "report.json").stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino
