"""Live view of a run in a terminal, drawn by rich: stages, servers, failures, time left."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from campaign.report.progress import Progress, ServerProgress, StageProgress, duration, short

REFRESH = 4  # frames per second
SERVERS = 6  # lines of servers on the screen; the others are counted by state
NARROW = 78  # columns; below, bars and rates are left out
STATES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "ended": "red"}


class TerminalProgress(Progress):
    """One screen at the bottom of the terminal; messages and failures stay above it.

    Args:
        console: Where it is drawn; None: standard error.
        title: A line above the stages.
    """

    def __init__(self, console: Console | None = None, title: str = "") -> None:
        super().__init__()
        self.title = title
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._live = Live(
            console=self.console, get_renderable=self._view, refresh_per_second=REFRESH, redirect_stdout=False,
            redirect_stderr=False, transient=True,
        )  # fmt: skip
        self._started = threading.Lock()

    def say(self, text: str) -> None:
        """Show a message of the run above the view."""
        self._start()
        self.console.print(Text(f"[{time.monotonic() - self.start:6.1f} s] {text}"))

    def expect(self, stage: str, total: int, done: int = 0) -> None:
        """Announce that a stage has so many tasks, some of which are done already."""
        super().expect(stage, total, done)
        self._start()

    def fail(self, message: str) -> None:
        """Show above the view, once and at once, that a file or a reduce stage has failed for good."""
        self.failures.append(message)
        first, *rest = message.splitlines() or [""]
        self.console.print(Text.assemble((f"[{time.monotonic() - self.start:6.1f} s] failed ", "bold red"), first))
        for line in rest:
            self.console.print(Text("             " + line))

    def close(self) -> None:
        """Take the view off the screen. The last counts of each stage stay, as plain lines."""
        if not self._live.is_started:
            return
        last = self._stages(list(self.stages.values()))
        self._live.stop()
        if self.stages:
            self.console.print(last)
        super().close()

    def _start(self) -> None:
        with self._started:
            if not self._live.is_started:
                self._live.start()

    def _counted(self, line: StageProgress, now: float) -> None:
        """Nothing to do: the next frame shows it."""

    def _view(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self.title, style="bold")] if self.title else []
        stages = list(self.stages.values())
        if stages:
            parts.append(self._stages(stages))
        if self.servers:
            parts.append(_servers(self.servers))
        parts.append(self._foot())
        return Group(*parts)

    def _stages(self, stages: list[StageProgress]) -> Table:
        wide = self.console.width >= NARROW
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=24 if wide else 14)
        if wide:
            table.add_column(width=max(8, min(40, self.console.width - 68)))
        for _ in range(4 if wide else 3):
            table.add_column(justify="right", no_wrap=True)
        for line in stages:
            seconds = (line.ended if line.over else time.monotonic()) - line.began
            rate = f"{short(line.rows / seconds)} rows/s" if line.rows and line.began and seconds > 0.5 else ""
            style = "red" if line.failed else "green" if line.over else "cyan"
            bar = ProgressBar(line.total, line.done + line.failed, complete_style=style, finished_style=style)
            table.add_row(
                line.name, *([bar] if wide else []), f"{line.done:,}/{line.total:,}", *([rate] if wide else []),
                Text(f"{line.failed:,} failed" if line.failed else "", "red"),
                "done" if line.over and line.began else "",
            )  # fmt: skip
        return table

    def _foot(self) -> Text:
        left = self.left_s() if self.stages else None
        over = all(line.over for line in self.stages.values())
        text = f"{duration(time.monotonic() - self.start)} so far"
        if self.stages and not over:
            text += f", about {duration(left)} left" if left is not None else ", time left unknown yet"
        made = Text(text, style="dim")
        if self.failures:
            made.append(f"   {len(self.failures)} failed", style="red")
        return made


def _servers(servers: tuple[ServerProgress, ...]) -> RenderableType:
    lines = [_server(server) for server in servers[:SERVERS]]
    if len(servers) > SERVERS:
        states = [server.state for server in servers[SERVERS:]]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines.append(Text(f"and {len(states)} more: {counts}"))
    return Group(*lines)


def _server(server: ServerProgress) -> Text:
    busy = "" if server.busy is None else f"{100 * server.busy:.0f} % busy"
    queue = "" if server.queue_s is None else f"{server.queue_s:.1f} queued"
    restarts = f"{server.restarts} restarts" if server.restarts > 1 else "1 restart" if server.restarts else ""
    more = "  ".join(part for part in (busy, queue, restarts, server.reason or server.host) if part)
    state = (f"{server.state:<8}", STATES.get(server.state, ""))
    return Text.assemble(f"{server.name:<12}  ", state, f"  {more}", no_wrap=True, overflow="ellipsis")
