"""Plots a histogram for a notebook: SVG by its own code, and a few lines of text for a console."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray

from campaign.histogram.svg import ticks

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44
INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
CELLS = 100  # of a two-dimensional plot along one axis; more bins are added up
BINS = 2000  # of a one-dimensional plot; more bins are added up
LARGE = 4_000_000  # bins of a histogram that is described and not drawn
ROWS, COLUMNS = 24, 40  # of a plot in text
LABELS = 12  # names of categories along an axis
Array = NDArray[np.float64]

# Axes and words take the colour of the text around them; the marks have one colour for light and one for dark pages.
STYLE = """<style>
.campaign-plot{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));--campaign-mark:#2f74e0;
display:inline-block;vertical-align:top;margin:4px 12px 4px 0;font-size:12px}
@media (prefers-color-scheme:dark){.campaign-plot{--campaign-mark:#6ea8fe}}
[data-jp-theme-light=true] .campaign-plot{--campaign-mark:#2f74e0}
[data-jp-theme-light=false] .campaign-plot{--campaign-mark:#6ea8fe}
.campaign-plot svg{max-width:100%;height:auto;font-family:system-ui,sans-serif}
.campaign-plot svg .mark{stroke:var(--campaign-mark)}.campaign-plot svg .area{fill:var(--campaign-mark)}
</style>"""


def as_html(h: hist.BaseHist, name: str = "") -> str:
    """A plot of one or two axes; of more axes, one plot for each, the others added up."""
    title = f"<b>{html.escape(name or h.name or '')}</b> " if name or h.name else ""
    words = f"<div>{title}{html.escape(described(h))}</div>"
    return f'<div class="campaign-plot">{STYLE}{words}{"".join(_plots(h))}</div>'


def described(h: hist.BaseHist) -> str:
    """Axes, entries inside and outside, in one line."""
    axes = " × ".join(f"{_name(axis, i)} ({_bins(axis)})" for i, axis in enumerate(h.axes))
    inside, whole = _values(h), _values(h, flow=True)
    odd = int(np.count_nonzero(~np.isfinite(whole)))
    total, everything = (float(np.sum(v, where=np.isfinite(v))) for v in (inside, whole))
    told = f"{axes}; sum of weights {total:.6g}"
    told += f", {everything - total:.6g} outside" if everything != total else ""
    return told + (f"; bins without a finite sum: {odd}" if odd else "")


def as_text(h: hist.BaseHist, name: str = "") -> str:
    """The line of `described`, and for one axis its bins as bars of characters."""
    lines = [f"{name or h.name or 'Histogram'}: {described(h)}"]
    if len(h.axes) == 1 and h.axes[0].size:
        values, _, edges = _folded(h, ROWS)
        most = max((v for v in values if math.isfinite(v)), default=0.0)
        labels = _labels(h.axes[0], edges, len(values))
        width = max(map(len, labels))
        for label, value in zip(labels, values, strict=True):
            full = int(COLUMNS * value / most) if most > 0 and math.isfinite(value) and value > 0 else 0
            lines.append(f"  {label:<{width}} |{'#' * full:<{COLUMNS}} {value:.6g}")
    return "\n".join(lines)


def _plots(h: hist.BaseHist) -> Iterable[str]:
    if math.prod(axis.extent for axis in h.axes) > LARGE:
        return [f"<div>more than {LARGE:,} bins are not drawn</div>"]
    if any(axis.size == 0 for axis in h.axes):
        return ["<div>an axis has no bins</div>"]
    if len(h.axes) == 1:
        return [_one(h)]
    if len(h.axes) == 2:
        return [_two(h)]
    return [_one(h.project(i)) for i in range(len(h.axes))]


def _name(axis: Any, number: int = 0) -> str:
    return str(getattr(axis, "label", "") or getattr(axis, "name", "") or f"axis {number}")


def _bins(axis: Any) -> str:
    return f"{axis.size} {'categories' if _is_category(axis) else 'bin' if axis.size == 1 else 'bins'}"


def _is_category(axis: Any) -> bool:
    return isinstance(axis, (hist.axis.StrCategory, hist.axis.IntCategory, hist.axis.Boolean))


def _values(h: hist.BaseHist, *, flow: bool = False) -> Array:
    return np.asarray(h.values(flow=flow), np.float64)


def _folded(h: hist.BaseHist, most: int) -> tuple[Array, Array, Array]:
    """Values, variances and edges of one axis, neighbouring bins added up where there are more than ``most``."""
    values, variances = _values(h), h.variances()
    spread = np.full(values.shape, np.nan) if variances is None else np.asarray(variances, np.float64)
    edges = np.arange(len(values) + 1.0) if _is_category(h.axes[0]) else np.asarray(h.axes[0].edges, np.float64)
    each = 1 if _is_category(h.axes[0]) else math.ceil(len(values) / most)
    starts = np.arange(0, len(values), each)
    return np.add.reduceat(values, starts), np.add.reduceat(spread, starts), np.append(edges[starts], edges[-1])


def _labels(axis: Any, edges: Array, count: int) -> list[str]:
    if _is_category(axis):
        return [str(axis.value(i)) for i in range(count)]
    return [f"[{a:.4g}, {b:.4g})" for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = high - low if high > low else 1.0
    return lambda value: start + (stop - start) * ((value - low) / span)


def _one(h: hist.BaseHist) -> str:
    axis = h.axes[0]
    values, variances, edges = _folded(h, BINS)
    finite = [e for e in edges if math.isfinite(e)]
    if len(finite) < 2:
        return "<div>the axis has no finite range to draw</div>"
    shown = np.clip(edges, min(finite), max(finite))  # an outermost edge may be infinite
    good = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        errors = np.where(np.isfinite(variances) & (variances >= 0), np.sqrt(np.abs(variances)), 0.0)
    tops, lows = (values + errors)[good], (values - errors)[good]
    high = max(0.0, float(tops.max(initial=0.0))) or 1.0
    low = min(0.0, float(lows.min(initial=0.0)))
    x = _scale(float(shown[0]), float(shown[-1]), LEFT, LEFT + INNER_W)
    y = _scale(low, high * 1.05, TOP + INNER_H, TOP)
    points = [f"M{x(shown[0]):.1f} {y(0):.1f}"]
    for i, value in enumerate(values):
        at = y(float(value)) if good[i] else y(0)
        points.append(f"L{x(shown[i]):.1f} {at:.1f}L{x(shown[i + 1]):.1f} {at:.1f}")
    path = "".join([*points, f"L{x(shown[-1]):.1f} {y(0):.1f}"])
    bars = "".join(
        f"M{(x(shown[i]) + x(shown[i + 1])) / 2:.1f} {y(float(v - e)):.1f}V{y(float(v + e)):.1f}"
        for i, (v, e) in enumerate(zip(values, errors, strict=True)) if good[i] and e > 0 and len(values) <= 200
    )  # fmt: skip
    marks = (
        f'<path class="area" d="{path}Z" fill="#2f74e0" fill-opacity="0.25"/>'
        f'<path class="mark" d="{path}" fill="none" stroke="#2f74e0" stroke-width="1.2"/>'
        f'<path class="mark" d="{bars}" fill="none" stroke="#2f74e0" stroke-width="1"/>'
    )
    under = _under(axis, x, edges)
    beside = "".join(_left(y(t), _number(t)) for t in ticks(low, high * 1.05, 4))
    return _svg(marks + under + beside, _name(axis), f"histogram of {_name(axis)}")


def _two(h: hist.BaseHist) -> str:
    values, x_edges, y_edges = _values(h), *(_edges(axis) for axis in h.axes)
    for number, edges in enumerate((x_edges, y_edges)):
        each = math.ceil((len(edges) - 1) / CELLS)
        starts = np.arange(0, len(edges) - 1, each)
        values = np.add.reduceat(values, starts, axis=number)
        kept = np.append(edges[starts], edges[-1])
        x_edges, y_edges = (kept, y_edges) if number == 0 else (x_edges, kept)
    x_shown, y_shown = (_finite(edges) for edges in (x_edges, y_edges))
    x = _scale(float(x_shown[0]), float(x_shown[-1]), LEFT, LEFT + INNER_W)
    y = _scale(float(y_shown[0]), float(y_shown[-1]), TOP + INNER_H, TOP)
    most = float(np.nanmax(np.where(np.isfinite(values), np.abs(values), 0.0), initial=0.0)) or 1.0
    cells = []
    for i, j in np.argwhere(np.isfinite(values) & (values != 0)).tolist():
        left, right, top, bottom = x(x_shown[i]), x(x_shown[i + 1]), y(y_shown[j + 1]), y(y_shown[j])
        colour = "area" if values[i, j] > 0 else "below"
        fill = "#2f74e0" if values[i, j] > 0 else "#c62828"
        cells.append(
            f'<rect class="{colour}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.2f}" '
            f'height="{bottom - top:.2f}" fill="{fill}" fill-opacity="{abs(values[i, j]) / most:.3f}"/>'
        )
    beside = _beside(h.axes[1], y, y_edges)
    note = f"{_name(h.axes[0])}; strongest cell {most:.4g}; up: {_name(h.axes[1], 1)}"
    return _svg("".join(cells) + _under(h.axes[0], x, x_edges) + beside, note, f"histogram of {note}")


def _edges(axis: Any) -> Array:
    return np.arange(axis.size + 1.0) if _is_category(axis) else np.asarray(axis.edges, np.float64)


def _finite(edges: Array) -> Array:
    inside = edges[np.isfinite(edges)]
    return np.clip(edges, inside.min(), inside.max()) if len(inside) else np.arange(float(len(edges)))


def _places(axis: Any, edges: Array) -> list[tuple[float, str]]:
    """The positions of labels along an axis."""
    if _is_category(axis):
        step = math.ceil(axis.size / LABELS)
        return [(i + 0.5, str(axis.value(i))) for i in range(0, axis.size, step)]
    shown = _finite(edges)
    return [(t, _number(t)) for t in ticks(float(shown[0]), float(shown[-1]), 5)]


def _under(axis: Any, x: Callable[[float], float], edges: Array) -> str:
    base, long = TOP + INNER_H, max(1, 64 // max(1, len(_places(axis, edges))))
    return "".join(
        f'<path d="M{x(at):.1f} {base}v4" stroke="currentColor"/>'
        f'<text x="{x(at):.1f}" y="{base + 16}" text-anchor="middle">{html.escape(_cut(word, long))}</text>'
        for at, word in _places(axis, edges)
    )


def _beside(axis: Any, y: Callable[[float], float], edges: Array) -> str:
    return "".join(_left(y(at), _cut(word, 9)) for at, word in _places(axis, edges))


def _left(at: float, word: str) -> str:
    return (
        f'<path d="M{LEFT - 4} {at:.1f}h4" stroke="currentColor"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{html.escape(word)}</text>'
    )


def _cut(word: str, long: int) -> str:
    return word if len(word) <= max(long, 3) else word[: max(long, 3) - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _svg(inside: str, below: str, words: str) -> str:
    frame = f'<path d="M{LEFT} {TOP}V{TOP + INNER_H}H{LEFT + INNER_W}" fill="none" stroke="currentColor"/>'
    label = f'<text x="{LEFT + INNER_W / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(below)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{html.escape(words)}" font-size="11" fill="currentColor">'
        f"<title>{html.escape(words)}</title>{inside}{frame}{label}</svg>"
    )


def several(histograms: Sequence[tuple[str, Any]]) -> str:
    """Plots of several, side by side."""
    return "".join(as_html(h, name) for name, h in histograms)
