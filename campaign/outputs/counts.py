"""Counts: numbers by name, added exactly; their partials and their JSON output."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from campaign.errors import OutputError, PartialError
from campaign.util.files import write_aside
from campaign.util.hashing import canonical_json
from campaign.util.messages import article

COUNTS = "counts"


class Counts(dict[str, Any]):
    """Numbers by name that are added up: integers, and floats (added exactly, rounded once)."""


def what(value: Any) -> str:
    """The wrong value that a stage returned, in words."""
    if value is None:
        return "nothing (does it 'return'?)"
    return "an empty dict" if isinstance(value, Mapping) and not value else article(type(value).__name__)


class CountsPartial:
    """Counts added exactly: integers as they are, floats as fractions, rounded once when they are read."""

    kind = "counts"

    def __init__(self) -> None:
        self.total: dict[str, Fraction | int] = {}
        self.floats: set[str] = set()
        self.rows = 0
        self.notes: list[str] = []

    def add(self, value: Mapping[str, Any]) -> None:
        """Add numbers by name."""
        for name, number in value.items():
            if type(number) is int:  # by far the most frequent
                self.total[name] = self.total.get(name, 0) + number
                continue
            plain = number.item() if isinstance(number, (np.generic, np.ndarray)) and number.ndim == 0 else number
            if not isinstance(plain, (int, float)):
                raise OutputError(f"the count '{name}' is {what(number)}", remedy="count in numbers")
            if isinstance(plain, float):
                self.floats.add(name)
                if not math.isfinite(plain):
                    raise OutputError(
                        f"the count '{name}' is {plain}", remedy="count values that are not numbers separately"
                    )
            self.total[name] = self.total.get(name, 0) + (Fraction(plain) if isinstance(plain, float) else int(plain))

    def merge(self, other: CountsPartial) -> None:
        """Add all of another partial's."""
        self.floats |= other.floats
        for name, number in other.total.items():
            self.total[name] = self.total.get(name, 0) + number

    def state(self) -> dict[str, list[Any]]:
        """Name -> [numerator, denominator, is float], exact."""
        return {n: [str(f.numerator), str(f.denominator), n in self.floats] for n, f in sorted(self.total.items())}

    def write(self, path: Path) -> str:
        """Write the exact state as a file; returns the SHA-256 (hex) of its content."""
        with write_aside(path) as stream:
            stream.write(self.content())
        return self.digest()

    def digest(self) -> str:
        """SHA-256 (hex) of the exact state."""
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """The exact state, for a pack."""
        return canonical_json({"format": "campaign-counts-1", "counts": self.state()}).encode()

    def discard(self) -> None:
        """Nothing lies anywhere yet."""

    def rounded(self) -> dict[str, int | float]:
        """The sums, each rounded once.

        Raises:
            OutputError: A sum of floats is beyond their range.
        """
        return {n: _float(n, f) if n in self.floats else int(f) for n, f in sorted(self.total.items())}


def _float(name: str, number: Fraction | int) -> float:
    try:
        return float(number)
    except OverflowError:
        raise OutputError(
            f"the sum of the count '{name}' is beyond the range of floats", remedy="count in another unit"
        ) from None


def read_counts(path: Path) -> CountsPartial:
    """Read counts back.

    Raises:
        PartialError: The file is torn or is something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PartialError(f"is not a complete file of counts: {error}", where=str(path)) from error
    return unpack_counts(content, str(path))


def unpack_counts(content: bytes, where: str) -> CountsPartial:
    """Counts of a pack or a file.

    Raises:
        PartialError: The bytes are something else.
    """
    counts = CountsPartial()
    try:
        data = json.loads(content)
        if data["format"] != "campaign-counts-1":
            raise ValueError(f"unknown format {data['format']}")
        for name, (numerator, denominator, is_float) in data["counts"].items():
            one = denominator == "1"
            counts.total[name] = int(numerator) if one else Fraction(int(numerator), int(denominator))
            if is_float:
                counts.floats.add(name)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise PartialError(f"is not a complete file of counts: {error}", where=where) from error
    return counts
