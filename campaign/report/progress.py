"""Progress of a run: counts what each stage has done, and writes plain lines. Other views are subclasses.

`campaign.report.terminal` draws a live view in a terminal, `campaign.report.live` one in a notebook,
`campaign.report.events` writes JSON lines.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from campaign.util.notebook import in_kernel

QUIET_S = 10.0  # an unfinished stage writes a line this often


@dataclass
class StageProgress:
    """The progress of one stage.

    Attributes:
        name: The stage.
        total: Tasks of the stage in this run: files times variations.
        done, failed: Tasks that ended.
        rows: Rows that the done tasks have read.
        before: Tasks that were done before this view began.
        began, ended: Monotonic clock at the first and at the last finished task, seconds; 0: none has ended.
        shown: Monotonic clock at the last plain line about the stage.
    """

    name: str
    total: int
    done: int = 0
    failed: int = 0
    rows: int = 0
    before: int = 0
    began: float = 0.0
    ended: float = 0.0
    shown: float = 0.0

    @property
    def over(self) -> bool:
        """True if all tasks of the stage have ended."""
        return self.done + self.failed >= self.total


@dataclass(frozen=True)
class ServerProgress:
    """One server, as a view shows it.

    Attributes:
        name: The server.
        state: ``starting``, ``ready``, ``stopping`` or ``ended``.
        host: Its node.
        busy: Share of the last seconds in which its models computed, 0 to 1 per instance; None: unknown.
        queue_s: Mean number of requests that waited in it (queueing seconds per second); None: unknown.
        restarts: Servers that this slot has lost before.
        reason: Why it ended; empty while it runs.
    """

    name: str
    state: str
    host: str = ""
    busy: float | None = None
    queue_s: float | None = None
    restarts: int = 0
    reason: str = ""


class Progress:
    """Counts of what each stage has done, and plain lines about them.

    Args:
        stream: Where the lines go; None: nothing is shown.

    Attributes:
        stages: The progress of each stage, by name, in the order of the campaign.
        servers: The pool's servers, as last seen.
        failures: Messages of files and reduce stages that have failed for good.
        explains: True if `why` shows something.
    """

    explains = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stages: dict[str, StageProgress] = {}
        self.servers: tuple[ServerProgress, ...] = ()
        self.failures: list[str] = []
        self.start = time.monotonic()
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Show a message of the run."""
        self._line(text)

    def expect(self, stage: str, total: int, done: int = 0) -> None:
        """Announce that a stage has so many tasks, some of which are done already."""
        if total:
            self.stages[stage] = StageProgress(stage, total, done, before=done, shown=time.monotonic())

    def add(self, stage: str, done: int = 1, *, failed: int = 0, rows: int = 0) -> None:
        """Count tasks of a stage that have ended."""
        line = self.stages.get(stage)
        if line is None:
            return
        now = time.monotonic()
        line.began = line.began or now
        line.done, line.failed, line.rows = line.done + done, line.failed + failed, line.rows + rows
        line.ended = now
        self._counted(line, now)

    def fail(self, message: str) -> None:
        """Show, once and at once, that a file or a reduce stage has failed for good."""
        self.failures.append(message)
        self._line("failed    " + message.replace("\n", "\n            "))

    def show_servers(self, servers: Sequence[ServerProgress]) -> None:
        """Show the servers of the pool; plain lines leave them out."""
        self.servers = tuple(servers)

    def at(self, root: Path, name: str) -> None:
        """Tell the view that the run of a campaign begins in a run directory."""

    def why(self, reasons: Sequence[str], reused: int) -> None:
        """Show what is done and why, and how many tasks were done before; plain lines leave it out."""

    def under_way(self, calls: int) -> None:
        """Show how many calls are with the workers, or wait for one; plain lines leave it out."""

    def close(self) -> None:
        """End the view."""
        self.stages = {}

    def left_s(self) -> float | None:
        """Seconds that the run still needs, from the mean pace of all tasks so far; None before a tenth is done."""
        ended = sum(line.done + line.failed - line.before for line in self.stages.values())
        total = sum(line.total - line.before for line in self.stages.values())
        began = min((line.began for line in self.stages.values() if line.began), default=0.0)
        passed = time.monotonic() - began
        if not began or ended < 0.1 * total or passed < 3:
            return None
        return passed * (total - ended) / ended

    def _counted(self, line: StageProgress, now: float) -> None:
        if line.over or now - line.shown > QUIET_S:
            line.shown = now
            self._line(stage_text(line))

    def _line(self, text: str) -> None:
        if self._stream is None:
            return
        with self._lock:
            print(f"[{time.monotonic() - self.start:6.1f} s] {text}", file=self._stream, flush=True)


def stage_text(line: StageProgress, width: int = 24) -> str:
    """The progress of a stage as a line of text with a bar."""
    full = min(width, width * line.done // line.total)
    text = f"{line.name:<16} [{'#' * full}{'.' * (width - full)}] {line.done}/{line.total}"
    if line.rows:
        text += f"  {short(line.rows)} rows"
    if line.failed:
        text += f"  {line.failed} failed"
    if line.over and line.began:
        text += "  done"
    return text


def short(number: float) -> str:
    """A number with three digits and a unit, e.g. ``1.2 M``."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.3g} T"


def duration(seconds: float) -> str:
    """A duration in words, e.g. ``3 min 20 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def to_terminal() -> Progress:
    """Progress on standard error: a live view in a terminal, plain lines elsewhere; in a notebook, below the cell."""
    if in_kernel():
        from campaign.report.live import LiveView

        return LiveView()
    if sys.stderr.isatty():
        from campaign.report.terminal import TerminalProgress

        return TerminalProgress()
    return Progress(sys.stderr)
