"""Draws a figure of spectra: stacked simulation, data as points, variations as a band, and a ratio below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from campaign.histogram.svg import Scale, band, drawing, escaped, label, path, short, steps, text
from campaign.report.spectra import Figure, Spectrum, added

WIDTH, TOP, MAIN, RATIO, BOTTOM, LEFT, RIGHT = 420.0, 14.0, 210.0, 66.0, 40.0, 58.0, 12.0
GAP = 6.0  # between the panels
STACK = 6  # datasets that have a colour of their own
MOST_LINES = 8  # variations that are drawn as lines
MOST_BINS = 120  # that are drawn; neighbours of more are added
LOG = 100.0  # this many times more in the highest bin than in the middle one: the scale is logarithmic


@dataclass(frozen=True)
class Sums:
    """The numbers that a figure draws, bin by bin.

    Attributes:
        edges: Edges of the bins.
        stack: Simulation by dataset.
        total: Their sum; None without simulation.
        low, high: The band around it, with statistical uncertainty and variations.
        lines: The sum under each variation.
        data: The sum of data; None without data.
        varied_data: The same under each variation.
        scale: By this the simulation is multiplied, so that it has as many entries as the data.
    """

    edges: Any
    stack: dict[str, Spectrum]
    total: Spectrum | None
    low: Any
    high: Any
    lines: dict[str, Spectrum]
    data: Spectrum | None
    varied_data: dict[str, Spectrum]
    scale: float


def sums(figure: Figure, most_bins: int = MOST_BINS) -> Sums:
    """Add up the spectra of a figure."""
    simulated = {name: coarser(s, most_bins) for name, s in figure.simulated.items()}
    observed = {name: coarser(s, most_bins) for name, s in figure.observed.items()}
    varied = {v: {d: coarser(s, most_bins) for d, s in by.items()} for v, by in figure.varied.items()}
    coarse = Figure(figure.title, simulated, observed, varied)
    data = added(list(observed.values())) if observed else None
    varied_data = coarse.variations(observed)
    first = next(iter([*simulated.values(), *observed.values()]))
    if not simulated:
        none = np.zeros(len(first.values))
        return Sums(first.edges, {}, None, none, none, {}, data, varied_data, 1.0)
    scale = _scale(added(list(simulated.values())), data)
    stack = {name: _times(s, scale) for name, s in _most(simulated).items()}
    total = added(list(stack.values()))
    lines = {name: _times(s, scale) for name, s in coarse.variations(simulated).items()}
    with np.errstate(all="ignore"):
        shifts = [line.values - total.values for line in lines.values()]
        up = np.sqrt(
            np.abs(total.variances) + sum((np.maximum(s, 0) ** 2 for s in shifts), np.zeros(len(total.values)))
        )
        down = np.sqrt(
            np.abs(total.variances) + sum((np.minimum(s, 0) ** 2 for s in shifts), np.zeros(len(total.values)))
        )
        low, high = total.values - down, total.values + up
    return Sums(first.edges, stack, total, low, high, lines, data, varied_data, scale)


def _scale(total: Spectrum, data: Spectrum | None) -> float:
    """Simulation that is within a factor of two of the data stays; other simulation is not normalised to them."""
    simulated, observed = float(np.nansum(total.values)), float(np.nansum(data.values)) if data is not None else 0.0
    if not (simulated > 0 and observed > 0) or 0.5 < simulated / observed < 2.0:
        return 1.0
    return observed / simulated


def _times(s: Spectrum, factor: float) -> Spectrum:
    if factor == 1.0:
        return s
    return Spectrum(
        s.edges, s.values * factor, s.variances * factor**2, s.outside * factor, s.label, s.categories, s.summed
    )


def _most(simulated: dict[str, Spectrum]) -> dict[str, Spectrum]:
    """The datasets with the largest sums, the others added up; the largest first."""
    order = sorted(simulated, key=lambda name: -float(np.nansum(simulated[name].values)))
    if len(order) <= STACK:
        return {name: simulated[name] for name in order}
    rest = {f"{len(order) - STACK + 1} others": added([simulated[name] for name in order[STACK - 1 :]])}
    return {name: simulated[name] for name in order[: STACK - 1]} | rest


def coarser(s: Spectrum, most: int) -> Spectrum:
    """The spectrum with not more than so many bins."""
    n = len(s.values)
    if n <= most:
        return s
    starts = np.arange(0, n, -(-n // most))
    with np.errstate(all="ignore"):
        values, variances = np.add.reduceat(s.values, starts), np.add.reduceat(s.variances, starts)
    edges = np.append(s.edges[starts], s.edges[-1])
    names = tuple(f"{s.categories[i]} ..." for i in starts) if s.categories else ()
    return Spectrum(edges, values, variances, s.outside, s.label, names, s.summed)


def draw(figure: Figure, most_bins: int = MOST_BINS) -> str:
    """The figure as HTML: title, legend, drawing and remarks."""
    made = sums(figure, most_bins)
    reference = figure.axis or next(iter([*figure.simulated.values(), *figure.observed.values()]))
    lower = made.total is not None and (made.data is not None or bool(made.lines))
    height = TOP + MAIN + (GAP + RATIO if lower else 0) + BOTTOM
    x = Scale(float(made.edges[0]), float(made.edges[-1]), LEFT, WIDTH - RIGHT)
    parts = [*_main(made, x), *(_ratio(made, x) if lower else ())]
    parts += _x_axis(coarser(reference, most_bins), x, height - BOTTOM)
    remarks = "".join(f"<li>{escaped(remark)}</li>" for remark in _remarks(figure, made, reference))
    shown = " ".join(dict.fromkeys(figure.outputs))
    return (
        f'<figure data-outputs="{escaped(shown)}"><figcaption>{escaped(figure.title)}</figcaption>'
        f"{_legend(made)}{drawing(WIDTH, height, parts, figure.title)}"
        + (f"<ul>{remarks}</ul>" if remarks else "")
        + "</figure>"
    )


def _main(made: Sums, x: Scale) -> Iterator[str]:
    y = _y_scale(made)
    edges = [x(float(e)) for e in made.edges]
    yield from _frame(TOP, MAIN)
    below = np.zeros(len(edges) - 1)
    layers = []
    for number, s in enumerate(made.stack.values()):
        below = below + np.nan_to_num(s.values)
        layers.append(path(steps(edges, _all(y, below), y.start), f"s{number}"))
    yield from reversed(layers)  # the sums are drawn from the back: each hides the lower part of the one before
    if made.total is not None:
        yield path(band(edges, _all(y, made.low), _all(y, made.high)), "band")
        yield path(steps(edges, _all(y, made.total.values)), "total")
    for s in list(made.varied_data.values())[:MOST_LINES]:
        yield path(steps(edges, _all(y, s.values)), "varied")
    if made.data is not None:
        yield from _points(made.data.values, np.sqrt(np.abs(made.data.variances)), edges, y)
    yield from _y_axis(y, "sum of weights", TOP, y.ticks())


def _ratio(made: Sums, x: Scale) -> Iterator[str]:
    assert made.total is not None
    edges, top = [x(float(e)) for e in made.edges], TOP + MAIN + GAP
    with np.errstate(all="ignore"):
        total = np.where(made.total.values > 0, made.total.values, np.nan)
        low, high = made.low / total, made.high / total
        lines = {name: s.values / total for name, s in made.lines.items()}
        data = None if made.data is None else made.data.values / total
        errors = None if made.data is None else np.sqrt(np.abs(made.data.variances)) / total
    spread = [low, high] if data is None or errors is None else [data[np.abs(errors) < 0.5], low, high]
    span = _span(np.concatenate([*spread, *lines.values()]))
    y = Scale(1 - span, 1 + span, top + RATIO, top)
    yield from _frame(top, RATIO)
    yield path(f"M{short(LEFT)},{short(y(1.0))}H{short(WIDTH - RIGHT)}", "one")
    yield path(band(edges, _all(y, np.nan_to_num(low, nan=1.0)), _all(y, np.nan_to_num(high, nan=1.0))), "band")
    for number, line in enumerate(list(lines.values())[:MOST_LINES]):
        yield path(steps(edges, _all(y, np.nan_to_num(line, nan=1.0))), f"v{number}")
    if data is not None and errors is not None:
        yield from _points(data, errors, edges, y, inside=True)
    yield from _y_axis(y, "ratio" if data is None else "data / sim.", top, [1 - span / 2, 1.0, 1 + span / 2])


def _span(values: Any) -> float:
    """How far the ratio goes from 1: nearly all values are inside, and never less than 2 %."""
    good = np.abs(values[np.isfinite(values)] - 1)
    wanted = float(np.quantile(good, 0.95)) * 1.3 if len(good) else 0.1
    return next((s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if wanted <= s), 1.0)


def _y_scale(made: Sums) -> Scale:
    shown = [s.values for s in (made.total, made.data, *made.varied_data.values()) if s is not None]
    if made.total is not None:
        shown += [made.high]
    values = np.concatenate(shown)
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    highest, lowest = (float(values.max()), float(values.min())) if len(values) else (1.0, 0.0)
    if len(positive) and lowest >= 0 and highest > LOG * float(np.median(positive)):
        least = max(float(positive.min()), highest * 1e-6)
        return Scale(least / 2, highest * 3, TOP + MAIN, TOP, log=True)
    if highest <= 0 and lowest >= 0:
        highest = 1.0
    return Scale(min(0.0, lowest * 1.15), max(0.0, highest * 1.15), TOP + MAIN, TOP)


def _all(y: Scale, values: Any) -> list[float]:
    return [y(float(v)) for v in values]


def _points(values: Any, errors: Any, edges: list[float], y: Scale, *, inside: bool = False) -> Iterator[str]:
    """Points with error bars, as two paths; bins without entries have none, nor those outside a ratio's range."""
    bars, dots = [], []
    for i, (value, error) in enumerate(zip(values.tolist(), errors.tolist(), strict=True)):
        if not np.isfinite(value) or (value == 0 and error == 0) or (inside and not y.low <= value <= y.high):
            continue
        at = short((edges[i] + edges[i + 1]) / 2)
        bars.append(f"M{at},{short(y(value - error))}V{short(y(value + error))}")
        dots.append(f"M{at},{short(y(value))}h0")
    yield path("".join(bars), "bars")
    yield path("".join(dots), "dots")


def _frame(top: float, height: float) -> Iterator[str]:
    yield path(f"M{short(LEFT)},{short(top)}H{short(WIDTH - RIGHT)}V{short(top + height)}H{short(LEFT)}Z", "frame")


def _y_axis(y: Scale, name: str, top: float, big: list[float]) -> Iterator[str]:
    marks, right = [], WIDTH - RIGHT
    for tick in big:
        at = y(tick)
        marks.append(f"M{short(LEFT)},{short(at)}h6M{short(right)},{short(at)}h-6")
        yield text(LEFT - 5, at + 4, label(tick), anchor="end")
    marks += [f"M{short(LEFT)},{short(y(t))}h3M{short(right)},{short(y(t))}h-3" for t in _minor(y, big)]
    yield path("".join(marks), "tick")
    turn = f"rotate(-90 12 {short(top)})"
    yield f'<text x="12" y="{short(top)}" text-anchor="end" transform="{turn}" class="name">{escaped(name)}</text>'


def _minor(scale: Scale, big: list[float]) -> list[float]:
    """Places of the small ticks between the big ones."""
    if len(big) < 2:
        return []
    if scale.log:
        found = [b * m for b in (big[0] / 10, *big) for m in range(2, 10)] if big[1] / big[0] < 11 else []
    else:
        step = (big[1] - big[0]) / 5
        found = [big[0] + i * step for i in range(-5, 5 * len(big) + 1) if i % 5]
    return [tick for tick in found if scale.low <= tick <= scale.high]


def _x_axis(s: Spectrum, x: Scale, bottom: float) -> Iterator[str]:
    marks = []
    if s.categories:
        every = max(1, -(-len(s.categories) // 8))
        room = max(4, int(60 / max(1, min(8, len(s.categories)))))
        for i, name in enumerate(s.categories):
            if i % every == 0:
                yield text(
                    x(i + 0.5), bottom + 15, name if len(name) <= room else name[: room - 1] + "…", anchor="middle"
                )
    else:
        for tick in x.ticks():
            marks.append(f"M{short(x(tick))},{short(bottom)}v-6M{short(x(tick))},{short(TOP)}v6")
            yield text(x(tick), bottom + 15, label(tick), anchor="middle")
        marks += [f"M{short(x(t))},{short(bottom)}v-3M{short(x(t))},{short(TOP)}v3" for t in _minor(x, x.ticks())]
    yield path("".join(marks), "tick")
    yield text(WIDTH - RIGHT, bottom + 33, s.label, "name", "end")


def _legend(made: Sums) -> str:
    items = [f'<span class="key"><i class="dot"></i>{escaped("data")}</span>'] if made.data is not None else []
    items += [f'<span class="key"><i class="c{n}"></i>{escaped(name)}</span>' for n, name in enumerate(made.stack)]
    if made.total is not None:
        what = f"stat. + {len(made.lines)} variations" if made.lines else "stat. uncertainty"
        items.append(f'<span class="key"><i class="hatch"></i>{escaped(what)}</span>')
    items += [
        f'<span class="key"><i class="line l{n}"></i>{escaped(name)}</span>'
        for n, name in enumerate(list(made.lines)[:MOST_LINES])
    ]
    if made.varied_data:
        items.append('<span class="key"><i class="line"></i>data under variations</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def _remarks(figure: Figure, made: Sums, reference: Spectrum) -> Iterator[str]:
    if reference.summed:
        yield f"summed over {', '.join(reference.summed)}"
    if made.scale != 1.0:
        yield f"simulation is multiplied by {made.scale:.4g}, so that its sum is that of the data"
    if len(made.lines) > MOST_LINES:
        yield f"{len(made.lines)} variations are in the band, {MOST_LINES} are drawn as lines"
    if len(reference.values) > len(made.edges) - 1:
        yield f"{len(reference.values)} bins, neighbours added to {len(made.edges) - 1}"
    for name, s in {**figure.simulated, **figure.observed}.items():
        inside = float(np.nansum(np.abs(s.values)))
        if s.outside and abs(s.outside) > 1e-3 * inside:
            yield f"{name}: {s.outside:.4g} lies outside the range of the axis"
            break
