"""Draws with plain SVG text: scales with round ticks, paths of steps, and numbers in few characters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours of a terminal
_ILLEGAL = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain(text: str) -> str:
    """Text without a terminal's colours."""
    return _ESCAPES.sub("", text)


def escaped(text: object) -> str:
    """Text that stands in HTML and XML for itself; characters that neither can hold become U+FFFD."""
    found = _ILLEGAL.sub("\ufffd", plain(str(text)))
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        found = found.replace(character, name)
    return found


def short(number: float) -> str:
    """A coordinate with one decimal at most."""
    text = f"{number:.1f}"
    return text[:-2] if text.endswith(".0") else text


@dataclass(frozen=True)
class Scale:
    """Maps numbers to coordinates.

    Attributes:
        low, high: The range of numbers.
        start, stop: Their coordinates.
        log: Whether the scale is logarithmic; ``low`` is then above 0.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, number: float) -> float:
        """The coordinate of a number; of one outside the range, that of the nearest end."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        if math.isnan(number):
            return self.start
        if self.log:
            number = math.log10(number) if number > 0 else low
        part = (number - low) / (high - low) if high > low else 0.5
        return self.start + (self.stop - self.start) * min(1.0, max(0.0, part))

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers in the range."""
        return _decades(self.low, self.high) if self.log else ticks(self.low, self.high, most)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, not more than so many."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(span / most)) if span / most > 1e-300 else 1e-300
    step = next(power * m for m in (1, 2, 5, 10, 20) if span / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, (last - first + 5) // 6)
    return [10.0**power for power in range(first, last + 1, every)]


def label(number: float) -> str:
    """A tick's label: ``0``, ``0.25``, ``1500``, ``2e6``."""
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        return f"{number:.6g}"
    mantissa, _, power = f"{number:.6e}".partition("e")
    return f"{float(mantissa):.4g}e{int(power)}"


def steps(edges: Sequence[float], heights: Sequence[float], base: float | None = None) -> str:
    """The path of a step histogram through these coordinates; with a base it is closed there."""
    if not len(heights):
        return ""
    start = heights[0] if base is None else base
    parts = [f"M{short(edges[0])},{short(start)}"]
    at = start
    for right, height in zip(edges[1:], heights, strict=True):
        if short(height) != short(at):
            parts.append(f"V{short(height)}")
            at = height
        parts.append(f"H{short(right)}")
    if base is not None:
        parts.append(f"V{short(base)}Z")
    return _joined(parts)


def band(edges: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    """The closed path between two step histograms."""
    if not len(low):
        return ""
    back = [f"V{short(y)}H{short(x)}" for x, y in zip(reversed(edges[:-1]), reversed(low), strict=True)]
    return steps(edges, high) + "".join(back) + "Z"


def _joined(parts: Iterable[str]) -> str:
    """Neighbouring horizontal lines become one."""
    kept: list[str] = []
    for part in parts:
        if part[0] == "H" and kept and kept[-1][0] == "H":
            kept[-1] = part
        else:
            kept.append(part)
    return "".join(kept)


def text(x: float, y: float, what: object, style: str = "", anchor: str = "") -> str:
    """A text at a place; ``anchor``: ``middle`` or ``end``."""
    more = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{short(x)}" y="{short(y)}"{more}>{escaped(what)}</text>'


def path(d: str, style: str, more: str = "") -> str:
    """A path; empty text without points."""
    return f'<path class="{style}" d="{d}"{more}/>' if d else ""


def drawing(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """An ``svg`` element that grows with its place; the title is for those who do not see it."""
    inside = "".join(parts)
    box = f'viewBox="0 0 {short(width)} {short(height)}"'
    return f'<svg {box} role="img" aria-label="{escaped(title)}">{inside}</svg>'
