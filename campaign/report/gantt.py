"""Draws the timeline of a run: when servers started and served, when workers were in tasks, how many were busy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from campaign.histogram.svg import Scale, drawing, escaped, label, path, short, text

WIDTH, LEFT, RIGHT, ROW, TOP = 900.0, 150.0, 14.0, 15.0, 22.0
MOST = 32  # rows of servers, and of workers
CURVE = 70.0  # height of the curve of busy workers
POINTS = 300  # of the curve

MARKS = {  # points of a run's timeline, in words
    "checked": "campaign checked", "pool": "servers asked for", "ready": "first server ready",
    "answer": "first prediction", "tasks": "last task and merge done", "stopped": "servers and workers stopped",
}  # fmt: skip


@dataclass(frozen=True)
class Track:
    """One server or worker.

    Attributes:
        name: Shown at its left.
        spans: ``(start, end, style)`` in seconds from the start of the run; the style is a class of the page.
        remark: Shown when the pointer rests on it.
    """

    name: str
    spans: Sequence[tuple[float, float, str]]
    remark: str = ""


@dataclass(frozen=True)
class Timeline:
    """The timeline of a run: tasks of workers, and states of servers.

    Attributes:
        wall_s: Length of the run.
        servers, workers: Tracks.
        reduces: Tracks of reduce stages.
        marks: Seconds from the start, by the names of `MARKS`.
    """

    wall_s: float
    servers: Sequence[Track] = ()
    workers: Sequence[Track] = ()
    reduces: Sequence[Track] = ()
    marks: Mapping[str, float] = field(default_factory=dict)


def draw(timeline: Timeline) -> str:
    """The timeline as HTML; empty where nothing is known."""
    if not timeline.servers and not timeline.workers:
        return ""
    rows = [*timeline.servers[:MOST], *timeline.workers[:MOST], *timeline.reduces[:MOST]]
    curve = bool(timeline.workers)
    height = TOP + ROW * len(rows) + 8 + (CURVE + 14 if curve else 0) + 34
    end = max(timeline.wall_s, *(span[1] for row in rows for span in row.spans), 1e-3)
    x = Scale(0.0, end, LEFT, WIDTH - RIGHT)
    bottom = height - 34
    parts = [*_grid(x, bottom), *_rows(rows, x)]
    if curve:
        parts += _curve(timeline.workers, x, TOP + ROW * len(rows) + 14)
    parts += _marks(timeline.marks, x, bottom)
    return drawing(WIDTH, height, parts, "timeline of servers and workers") + _legend(timeline)


def _grid(x: Scale, bottom: float) -> Iterator[str]:
    ticks = x.ticks(10)
    yield path("".join(f"M{short(x(t))},{short(TOP)}V{short(bottom)}" for t in ticks), "grid")
    for tick in ticks:
        yield text(x(tick), bottom + 15, label(tick), anchor="middle")
    yield text(WIDTH - RIGHT, bottom + 30, "seconds from the start", "name", "end")


def _rows(rows: Sequence[Track], x: Scale) -> Iterator[str]:
    for i, row in enumerate(rows):
        top = TOP + ROW * i
        name = row.name if len(row.name) <= 22 else f"{row.name[:10]}…{row.name[-11:]}"
        yield text(LEFT - 6, top + 11, name, anchor="end")
        remark = f"<title>{escaped(row.remark)}</title>" if row.remark else ""
        by_style: dict[str, list[str]] = {}
        for start, stop, style in row.spans:
            left = x(start)
            width = max(0.4, x(stop) - left)
            by_style.setdefault(style, []).append(f"M{short(left)},{short(top + 2)}h{width:.1f}v11h-{width:.1f}z")
        bars = "".join(path("".join(d), style) for style, d in by_style.items())
        yield f"<g>{remark}{bars}</g>"


def busy(workers: Sequence[Track], end: float, points: int = POINTS) -> list[float]:
    """How many workers were in a task, on average over each of so many equal parts of the time."""
    width = end / points
    found = [0.0] * points
    for worker in workers:
        for start, stop, _ in worker.spans:
            first, last = max(0, int(start / width)), min(points - 1, int(stop / width))
            for i in range(first, last + 1):
                found[i] += max(0.0, min(stop, (i + 1) * width) - max(start, i * width)) / width
    return found


def _curve(workers: Sequence[Track], x: Scale, top: float) -> Iterator[str]:
    counts = busy(workers, x.high)
    y = Scale(0.0, float(len(workers)), top + CURVE, top)
    width = (x.stop - x.start) / len(counts)
    line = "".join(f"L{short(x.start + (i + 0.5) * width)},{short(y(n))}" for i, n in enumerate(counts))
    yield path(f"M{short(x.start)},{short(y.start)}{line}L{short(x.stop)},{short(y.start)}Z", "busy")
    yield path(f"M{short(x.start)},{short(y.stop)}H{short(x.stop)}", "one")
    for n in (0, len(workers)):
        yield text(LEFT - 6, y(n) + 4, n, anchor="end")
    yield text(LEFT - 24, top + CURVE / 2 + 4, "workers in tasks", anchor="end")


def _marks(marks: Mapping[str, float], x: Scale, bottom: float) -> Iterator[str]:
    at = -100.0
    for number, (_, seconds) in enumerate(_known(marks), 1):
        place = x(seconds)
        yield path(f"M{short(place)},{short(TOP - 4)}V{short(bottom)}", "mark")
        at = max(place, at + 15)  # numbers of marks that are close stand beside each other
        yield text(at, TOP - 8, number, "number", "middle")


def _known(marks: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, marks[name]) for name in sorted(marks, key=lambda n: marks[n]) if name in MARKS]


def _legend(timeline: Timeline) -> str:
    items = "".join(f"<li>{escaped(MARKS[name])}: {at:.1f} s</li>" for name, at in _known(timeline.marks))
    colours = "".join(
        f'<span class="key"><i class="{style}"></i>{what}</span>'
        for style, what in (
            ("starting", "server starts"),
            ("serving", "server is ready"),
            ("working", "worker is in a task"),
            ("reducing", "reduce stage, from its call to its answer"),
        )
    )
    left = [
        f"{len(tracks) - MOST} more {what} are not shown as rows"
        for what, tracks in (("servers", timeline.servers), ("workers", timeline.workers))
        if len(tracks) > MOST
    ]
    more = f"<p>{escaped('; '.join(left))}.</p>" if left else ""
    return f'<div class="legend">{colours}</div>{more}<ol class="marks">{items}</ol>'
