"""Holds sums as multi-word integers, bin by bin: adds and merges without error, rounds once at the end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Superaccumulator"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BITS = 56  # few limbs, and 7 bits to spare in an int64: tens of merges between two carries
_MASK = (1 << _BITS) - 1
_BASE = -1100  # position of bit 0 of limb 0, below the lowest bit of any float64; limb 19 holds ordinary weights
_MAX_LOADS = 60  # a limb may hold this many times 2**56; two such limbs still add up to less than 2**63


class Superaccumulator:
    """One big integer per bin, in units of 2**-1100.

    Args:
        size: Number of bins.
    """

    __slots__ = ("_loads", "_rows", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: dict[int, Ints] = {}  # limb number -> (size,), no gaps between lowest and highest
        self._loads = 0

    @classmethod
    def from_digits(cls, digits: Ints, first: int) -> Superaccumulator:
        """The limbs that gave these :meth:`digits`; the array is copied."""
        new = cls(digits.shape[1])
        new._rows = {first + k: row.astype(np.int64) for k, row in enumerate(digits)}
        new._loads = 1
        return new

    def digits(self) -> tuple[Ints, int]:
        """Two's complement digits of 56 bits, (k, size), lowest first, the highest signed; the lowest one's number.

        Equal sums have equal digits.
        """
        self._canonicalise()
        rows = [self._rows[limb] for limb in sorted(self._rows)]
        return np.stack(rows) if rows else np.zeros((0, self.size), np.int64), min(self._rows, default=0)

    def add(self, integers: Ints, position: int, bins: NDArray[np.intp] | slice = slice(None)) -> None:
        """Adds integers * 2**position, position >= -1100, to the bins: all, or those named, each once."""
        limb, shift = divmod(position - _BASE, _BITS)
        low = (integers << shift) & _MASK  # bits shifted out of the int64 belong to the next limbs
        middle = (integers >> (_BITS - shift)) & _MASK
        high = integers >> min(2 * _BITS - shift, 63)
        for step, part in enumerate((low, middle, high)):
            if part.any():
                self._row(limb + step)[bins] += part
        self._loads += 1
        if self._loads > _MAX_LOADS:
            self._carry()

    def __iadd__(self, other: Superaccumulator) -> Superaccumulator:
        for limb, row in other._rows.items():
            if limb in self._rows:
                self._rows[limb] += row
            else:
                self._row(limb)[:] = row
        self._loads += other._loads
        if self._loads > _MAX_LOADS:
            self._carry()
        return self

    def round(self) -> Floats:
        """The float64 nearest to each sum, ties to even; past the float64 range infinite."""
        self._canonicalise()
        return _rounded(self._rows, self.size)

    def _row(self, limb: int) -> Ints:
        """The limb of this number, made (and the gap to the others filled) if it is new."""
        if limb not in self._rows:
            lowest, highest = min(self._rows, default=limb), max(self._rows, default=limb)
            for new in {*range(limb, lowest), *range(highest + 1, limb + 1), limb}:
                self._rows[new] = np.zeros(self.size, np.int64)
        return self._rows[limb]

    def _carry(self) -> None:
        """Brings every limb but the highest into [0, 2**56), the highest into [-2**55, 2**55)."""
        limb, half = min(self._rows, default=0), 1 << (_BITS - 1)
        while limb in self._rows:
            row = self._rows[limb]
            highest = limb + 1 not in self._rows
            if highest and bool(((row >= -half) & (row < half)).all()):
                break
            above = self._row(limb + 1)
            above += row >> _BITS
            row &= _MASK
            limb += 1
        self._loads = 1

    def _canonicalise(self) -> None:
        """The one shortest form: no limb on top that only repeats a sign, none below that is zero everywhere."""
        self._carry()
        half = 1 << (_BITS - 1)
        while len(self._rows) > 1:
            highest = max(self._rows)
            sign, below = self._rows[highest], self._rows[highest - 1]
            if not np.array_equal(sign, -(below >= half).astype(np.int64)):
                break
            below += self._rows.pop(highest) << _BITS
        while self._rows and not self._rows[min(self._rows)].any():
            del self._rows[min(self._rows)]


def _rounded(rows: Mapping[int, Ints], size: int) -> Floats:
    """The nearest float64 of canonical limbs: the leading 62 bits and whether anything follows decide."""
    if not rows:
        return np.zeros(size)
    first, limbs = min(rows), np.stack([rows[limb] for limb in sorted(rows)])
    negative = limbs[-1] < 0
    limbs = _negated(limbs, negative)
    # Two zero limbs below, so that every leading limb has two neighbours.
    limbs = np.concatenate([np.zeros((2, size), np.int64), limbs])
    lead = len(limbs) - 1 - np.argmax(limbs[::-1] != 0, axis=0)
    lead = np.maximum(lead, 2)
    bins = np.arange(size)
    high, middle, low = (limbs[lead - step, bins] for step in range(3))
    followed = (np.cumsum(limbs != 0, axis=0)[lead - 2, bins] - (low != 0)) > 0
    length = np.frexp(high.astype(np.float64))[1].astype(np.int64)
    window, lost = _leading_bits(high, middle, low, 62 - length)
    # A set lowest bit stands for all that follows: the conversion to 53 bits then rounds as if it saw them.
    rounded = (window | (lost | followed)).astype(np.float64)
    exponent = (first - 2 + lead) * _BITS + _BASE + length - 62
    # Exact for subnormals too: a sum has no bit below 2**-1074, so one that small has no more than 52 bits.
    with np.errstate(over="ignore"):
        total = np.ldexp(np.where(negative, -rounded, rounded), exponent)
    return np.asarray(total, np.float64)


def _leading_bits(high: Ints, middle: Ints, low: Ints, more: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """``high`` followed by ``more`` (5 to 62) bits of the next two limbs, and whether a set bit was cut off."""
    from_middle = np.minimum(more, _BITS)
    from_low = more - from_middle
    window = (high << more) | ((middle >> (_BITS - from_middle)) << from_low) | (low >> (_BITS - from_low))
    lost = (middle & ((1 << (_BITS - from_middle)) - 1)) | (low & ((1 << (_BITS - from_low)) - 1))
    return window, lost != 0


def _negated(limbs: Ints, where: NDArray[np.bool_]) -> Ints:
    """Magnitudes of two's complement limbs: those at ``where`` change sign."""
    limbs = np.where(where, -limbs, limbs)
    for below, above in pairwise(limbs):
        above += below >> _BITS
        below &= _MASK
    return limbs
