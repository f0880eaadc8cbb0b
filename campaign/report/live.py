"""Shows the progress of a run in a notebook: one view that is replaced in place while the run goes on."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError
from campaign.report.card import TONES
from campaign.report.progress import Progress, StageProgress
from campaign.report.report import Report
from campaign.util.card import Bar, Card, Table, short
from campaign.util.files import read_json
from campaign.util.messages import counted
from campaign.util.notebook import Places

TICK_S = 1.0  # between two updates of the view
WINDOW_S = 30.0  # a rate is taken over the last so many seconds
FEW = 3  # with fewer steps done, a rate is a guess
SAID = 12  # lines of what the run has said that are shown
Sample = tuple[float, dict[str, tuple[int, int]]]


class ServerUse:
    """How busy each server is: the part of the last seconds in which it computed.

    Args:
        folder: Of the pool's records.
        since: Records of servers that were started before are of an earlier pool, seconds since the epoch.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self._folder, self._since = folder, since
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def rows(self) -> list[tuple[str, ...]]:
        """Name, state, host and how busy, of the newest server in each slot."""
        newest: dict[Any, Mapping[str, Any]] = {}
        for path in self._folder.glob("server-*.json"):
            record = read_json(path) or {}
            started = record.get("started")
            if not isinstance(started, (int, float)) or started < self._since or "name" not in record:
                continue
            other = newest.get(record.get("slot"))
            if other is None or other["started"] <= started:
                newest[record.get("slot")] = record
        found = sorted(newest.values(), key=lambda r: str(r["name"]))
        return [(str(r["name"]), str(r.get("state", "")), str(r.get("host", "")), self._busy(r)) for r in found]

    def _busy(self, record: Mapping[str, Any]) -> str:
        try:
            computing = sum(float(t["computing_s"]) for t in record.get("times", {}).values())
        except (TypeError, KeyError, ValueError, AttributeError):  # a damaged record is no reason to fail
            return ""
        seen, now = self._seen.setdefault(str(record["name"]), deque()), time.monotonic()
        if record.get("state") != "ready":
            seen.clear()
            return ""
        seen.append((now, computing))
        while len(seen) > 2 and now - seen[0][0] > WINDOW_S:
            seen.popleft()
        span = now - seen[0][0]
        return f"{(computing - seen[0][1]) / span:.0%}" if span > TICK_S else ""


class LiveView(Progress):
    """Progress as a card that is updated in place; it counts, and shows itself where it is asked to.

    Args:
        name: Of the campaign, where it is known already.

    Attributes:
        hidden: Whether it counts only, and is not shown when the run begins.
    """

    explains = True

    def __init__(self, name: str = "") -> None:
        super().__init__(None)
        self.name = name
        self.state = "starting"
        self._places = Places()
        self.hidden = False
        self._samples: deque[Sample] = deque()
        self._said: deque[str] = deque(maxlen=SAID)
        self._why: list[str] = []
        self._reused: int | None = None
        self._calls = 0
        self._root: Path | None = None
        self._before: tuple[int, int] | None = None  # of the report that an earlier run has left
        self._use: ServerUse | None = None
        self._servers: list[tuple[str, ...]] = []
        self._notes: list[str] = []
        self._began, self._ended = time.time(), math.inf
        self._closed = threading.Event()
        self._shown_now = threading.Lock()  # one update at a time

    # What the run says.
    def at(self, root: Path, name: str = "") -> None:
        """The run lies there and begins now; from now on the view follows it."""
        self._root, self.name = root, name or self.name
        self._use = ServerUse(root / "servers", self._began - 1.0)
        self._before = _stamp(root)
        self.state = "running"
        if not self._places and not self.hidden:
            self.show()
        threading.Thread(target=self._follow, name="campaign-view", daemon=True).start()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._said.append(f"[{self._elapsed():6.1f} s] {text}")

    def why(self, reasons: Sequence[str], reused: int) -> None:
        """What is done, and why it was not reused; how many tasks were done before."""
        self._why, self._reused = list(reasons), reused

    def under_way(self, calls: int) -> None:
        """So many calls are with the workers, or wait for one."""
        self._calls = calls

    def close(self) -> None:
        """The run is over: show how it ended, for good."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._ended = time.time()
        self._calls, report = 0, None
        if self._root is not None:
            if _stamp(self._root) != self._before:  # else it is of an earlier run
                with contextlib.suppress(CampaignError, OSError):
                    report = Report.load(self._root)
            self._look()
        if report is not None and self.state == "running":
            self.state = report.status
            self._notes = [f"note: {w}" for w in report.warnings] + [f"error: {e}" for e in report.errors]
        elif self.state in ("starting", "running"):
            self.state = "refused"
        self._refresh()

    # What is shown.
    def show(self) -> None:
        """Show it below the cell that runs now, too."""
        card = self.card()
        self._places.add(card.html(), card.text())

    def _follow(self) -> None:
        while not self._closed.wait(TICK_S):
            self._look()
            self._refresh()

    def _look(self) -> None:
        now = time.monotonic()
        counts = {name: (line.done, line.rows) for name, line in list(self._lines.items())}
        self._samples.append((now, counts))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        with contextlib.suppress(OSError):
            self._servers = self._use.rows() if self._use is not None else []

    def _refresh(self) -> None:
        with self._shown_now, contextlib.suppress(Exception):  # a kernel that shuts down has no place to show it
            card = self.card()
            self._places.update(card.html(), card.text())

    def _elapsed(self) -> float:
        return min(time.time(), self._ended) - self._began

    def card(self) -> Card:
        """What it shows now."""
        failed = sum(line.failed for line in self._lines.values())
        facts = {"time": _duration(self._elapsed())}
        if self._reused is not None:
            facts["done before"] = counted(self._reused, "task")
        if not self._closed.is_set():
            facts["in flight"] = counted(self._calls, "batch").replace("batchs", "batches")
            facts["time left"] = self.left() or "unknown until a few tasks are done"
        if failed:
            facts["failed"] = str(failed)
        if self._root is not None:
            facts["run directory"] = str(self._root)
        return Card(
            f"Campaign {self.name}".rstrip(),
            state=self.state,
            tone=TONES.get(self.state, "bad" if self.state == "refused" else "wait"),
            facts=facts,
            tables={
                "Stages": Table(("stage", "files and variations", "rows", "rows/s", "failed"), list(self._stages())),
                "Servers": Table(("server", "state", "host", "busy"), self._servers),
            },
            notes=[*(f"to do: {reason}" for reason in self._why), *self._notes],
            log=list(self._said),
        )

    def _stages(self) -> Iterable[tuple[str | Bar, ...]]:
        for name, line in list(self._lines.items()):
            rows = self._rate(name, 1)
            yield (
                name, Bar(line.done / line.total, f"{line.done}/{line.total}"), short(line.rows) if line.rows else "",
                short(rows) if rows and not self._closed.is_set() else "", str(line.failed) if line.failed else "",
            )  # fmt: skip

    def _rate(self, stage: str, which: int) -> float:
        """Steps (0) or rows (1) per second in the last seconds."""
        if len(self._samples) < 2:
            return 0.0
        (then, before), (now, counts) = self._samples[0], self._samples[-1]
        return (counts.get(stage, (0, 0))[which] - before.get(stage, (0, 0))[which]) / max(1e-3, now - then)

    def left(self) -> str:
        """How long it will take, as far as the rates of the stages that have begun tell; empty: they do not yet."""
        unbegun = [n for n, line in self._lines.items() if not line.over and not line.began]
        shortest = longest = 0.0
        for name, line in list(self._lines.items()):
            if line.over or not line.began:
                continue
            one = self._time_of(name, line)
            if one is None:
                return ""
            shortest, longest = max(shortest, one[0]), max(longest, one[1])
        if not longest:
            return ""
        told = _duration(shortest)
        if _duration(longest) != told:
            told += f" to {_duration(longest)}"
        return f"at least {told}; not begun: {', '.join(unbegun)}" if unbegun else f"about {told}"

    def _time_of(self, name: str, line: StageProgress) -> tuple[float, float] | None:
        """By the rate since its first step and by that of the last seconds, the shorter time first."""
        remaining, took = line.total - line.done - line.failed, time.monotonic() - line.began
        if line.done < FEW or took <= TICK_S:
            return None
        rates = [rate for rate in (line.done / took, self._rate(name, 0)) if rate > 0]
        times = sorted(remaining / rate for rate in rates)
        return times[0], times[-1]


def _stamp(root: Path) -> tuple[int, int] | None:
    try:
        stat = (root / "report.json").stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _duration(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60 // 10 * 10} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
