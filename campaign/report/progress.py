"""Shows the progress of a run: one line per stage, updated in a terminal, printed on change elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from campaign.util.notebook import in_kernel

QUIET_S = 10.0  # outside a terminal, an unfinished stage says something this often


@dataclass
class StageProgress:
    """Counts of one stage: steps to do, done and failed, rows, and when it was begun."""

    total: int
    done: int = 0
    failed: int = 0
    rows: int = 0
    began: float = 0.0
    ended: float = 0.0
    told: float = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing of it is left."""
        return self.done + self.failed >= self.total


class Progress:
    """Counts of what each stage has done.

    Args:
        stream: Where to; None: nothing is shown.
    """

    explains = False  # whether `why` is worth an answer

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._tty = bool(stream and stream.isatty())
        self._lines: dict[str, StageProgress] = {}
        self._shown = 0
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._stream is None:
            return
        with self._lock:
            self._wipe()
            print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=self._stream, flush=True)
            self._draw()

    def expect(self, stage: str, total: int) -> None:
        """There are so many to do."""
        if total:
            self._lines[stage] = StageProgress(total, told=time.monotonic())

    def add(self, stage: str, done: int = 1, *, failed: int = 0, rows: int = 0) -> None:
        """Some more were done."""
        line = self._lines.get(stage)
        if line is None:
            return
        now = time.monotonic()
        line.began = line.began or now
        line.done, line.failed, line.rows = line.done + done, line.failed + failed, line.rows + rows
        line.ended = now
        if self._stream is None:
            return
        with self._lock:
            if self._tty:
                self._wipe()
                self._draw()
            elif line.over or now - line.told > QUIET_S:
                line.told = now
                print(f"[{now - self._start:6.1f} s] {self._text(stage, line)}", file=self._stream, flush=True)

    def at(self, root: Path, name: str = "") -> None:
        """The run of a campaign begins, in that run directory."""

    def why(self, reasons: Sequence[str], reused: int) -> None:
        """What is to be done and why, and how many tasks were done before."""

    def under_way(self, calls: int) -> None:
        """So many calls are with the workers, or wait for one."""

    def close(self) -> None:
        """Leave the cursor below the last line."""
        self._lines = {}
        self._shown = 0

    def _wipe(self) -> None:
        if self._shown and self._stream:
            self._stream.write(f"\x1b[{self._shown}A\x1b[J")
            self._shown = 0

    def _draw(self) -> None:
        if not self._tty or self._stream is None:
            return
        lines = list(self._texts())
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._shown = len(lines)

    def _texts(self) -> Iterable[str]:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps would not be wiped
        return (f"           {self._text(stage, line)}"[:width] for stage, line in self._lines.items())

    def _text(self, stage: str, line: StageProgress) -> str:
        width = 24
        full = min(width, width * line.done // line.total)
        bar = "#" * full + "." * (width - full)
        text = f"{stage:<16} [{bar}] {line.done}/{line.total}"
        if line.rows:
            text += f"  {_short(line.rows)} rows"
        if line.failed:
            text += f"  {line.failed} failed"
        if line.over and line.began:
            text += "  done"
        return text


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.3g} T"


def to_terminal() -> Progress:
    """Progress on standard error; in a notebook, below the cell."""
    if in_kernel():
        from campaign.report.live import LiveView

        return LiveView()
    return Progress(sys.stderr)
