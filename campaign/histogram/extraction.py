"""Cuts floats into slices that float64 adds without error.

A slice is an integer of few bits times a power of two (its position), so float64 sums of it are exact as long as
they stay below 2**53 units (Rump's extraction, as in Demmel and Nguyen, "Parallel reproducible summation", 2015).
Two slices lie in one complex number: one pass over the bins adds both.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "Extent", "Slice", "cut", "extent", "extents", "scratch"]

Floats = NDArray[np.float64]

BLOCK = 1 << 15  # entries handled at once: few enough for a core's own cache, enough to hide the cost of the calls
LOWEST = -1074  # position of the lowest bit of any float64

_BITS = 53  # float64 counts exactly up to 2**53
_SLACK, _MORE_SLACK = 2, 8  # 2**this many blocks fit into an accumulator: at least, and more if there is room
_GRID = 4  # positions are multiples of this where there is room: blocks of like weights then share accumulators
_MANTISSA = (1 << 52) - 1
_PLAIN = 900  # sums of squares between 2**-900 and 2**900 have lost nothing to underflow or overflow


class _Scratch(threading.local):
    """Working arrays of one block, one set per thread: allocating them anew would cost as much as the sums."""

    def __init__(self) -> None:
        # Arrays at equal offsets within a page slow each other down (4K aliasing): these start 1/4 page apart.
        rows = [row[128 * k :][:BLOCK] for k, row in enumerate(np.empty((3, BLOCK + 512)))]
        self.lifted, self.squares, self.values = rows
        self.pairs = np.empty(BLOCK, np.complex128)
        self.index, self.moved = np.empty((2, BLOCK), np.intp)


scratch = _Scratch()


class Extent(NamedTuple):
    """The highest and the lowest bit of some floats.

    Args:
        top: The sum of their magnitudes is at most 2**top.
        low: Every one is a multiple of 2**low.
    """

    top: int
    low: int


class Slice(NamedTuple):
    """Multiples of one position (float64) or of two (complex128: real part first).

    Args:
        values: One per entry; borrowed, good until the next slice is taken.
        chosen: The entries they belong to; None: all.
        positions: Of the real part and, if there is one, of the imaginary part.
        load: Bound of the sum of magnitudes as a fraction of 2**53 units.
    """

    values: NDArray[Any]
    chosen: NDArray[np.intp] | None
    positions: tuple[int, ...]
    load: float


def extents(weight: Floats, square: Floats) -> tuple[Extent, Extent] | None:
    """Extents of weights and of their squares; None where these are not finite or have lost bits to underflow.

    Args:
        weight: Weights, at most BLOCK.
        square: Their squares, rounded.
    """
    total = float(np.add.reduce(square))
    if not 2.0**-_PLAIN < total < 2.0**_PLAIN:
        return None
    total *= 1 + 2.0**-20  # far more than what was lost to rounding
    smallest = float(np.minimum.reduce(square))
    if smallest >= 2.0**-_PLAIN:
        exponent = math.frexp(smallest)[1]
        low, low_of_squares = (exponent - 1) // 2 - 52, exponent - 53
    elif smallest == 0.0:
        low, low_of_squares = _lowest_exponent(weight) - 53, LOWEST
    else:
        return None
    bits = int(np.bitwise_or.reduce(weight.view(np.int64))) & _MANTISSA
    low += ((bits & -bits).bit_length() - 1) if bits else 52  # zeros that all mantissas end with
    low = max(low, LOWEST)
    # By Cauchy and Schwarz: far tighter than the number of entries times the largest.
    top, top_of_squares = (math.frexp(bound)[1] for bound in (math.sqrt(total * len(weight)), total))
    return Extent(top, low), Extent(top_of_squares, max(2 * low, low_of_squares, LOWEST))


def extent(largest: float, entries: int) -> Extent:
    """The extent of this many floats, of which only the largest magnitude is known."""
    return Extent(math.frexp(largest)[1] + (entries - 1).bit_length(), LOWEST)


def cut(values: Floats, known: Extent) -> Iterator[Slice]:
    """Slices of up to BLOCK values that add up to them exactly.

    Args:
        values: Magnitudes below 2**500 or so.
        known: What is known of them.
    """
    top, low, chosen = known.top, known.low, None
    while top >= low:
        count = len(values)
        carry = (count - 1).bit_length() - 1  # what a slice at p leaves adds up to at most 2**(p + carry)
        if top - low <= _BITS - _SLACK:
            position = _on_grid(low, top)
            yield Slice(values, chosen, (position,), _load(top, position))
            return
        spare = 2 * _BITS - (top - low + carry)
        fits = spare >= 2 * _SLACK
        first = top - _BITS + (min(spare // 2, _MORE_SLACK) if fits else _SLACK)
        rest = first + carry
        second = _on_grid(low, rest) if fits else max(rest - _BITS + _SLACK, low)
        pairs, lifted = scratch.pairs[:count], scratch.lifted[:count]
        magic = math.ldexp(1.5, 52 + first)
        np.add(values, magic, out=lifted)
        np.subtract(lifted, magic, out=pairs.real)
        left = None if fits else np.subtract(values, pairs.real)
        np.subtract(values, pairs.real, out=pairs.imag)
        if left is not None:
            magic = math.ldexp(1.5, 52 + second)
            np.add(left, magic, out=lifted)
            np.subtract(lifted, magic, out=pairs.imag)
            left -= pairs.imag
        yield Slice(pairs, chosen, (first, second), max(_load(top, first), _load(rest, second)))
        if left is None:
            return
        some = np.flatnonzero(left)  # few entries need a third slice: do not drag the others along
        if not len(some):
            return
        values, chosen = left[some], some if chosen is None else chosen[some]
        top = second + (len(some) - 1).bit_length() - 1


def _on_grid(low: int, top: int) -> int:
    """The position at or below ``low``, a multiple of the grid if what goes up to ``top`` still fits."""
    position = max(low // _GRID * _GRID, LOWEST)
    return position if top - position <= _BITS - _SLACK else low


def _load(top: int, position: int) -> float:
    return math.ldexp(1.0, max(top - position, 23) - _BITS)  # not below 2**-30: loads must add up exactly


def _lowest_exponent(weight: Floats) -> int:
    """Of the smallest magnitude that is not zero (0.5 has 0); there is one."""
    magnitudes = weight.view(np.uint64) << np.uint64(1)  # without the sign; they sort as the floats do
    magnitudes -= np.uint64(1)  # zeros wrap around to the largest
    smallest = (int(magnitudes.min()) + 1) >> 1
    return math.frexp(np.uint64(smallest).view(np.float64))[1]
