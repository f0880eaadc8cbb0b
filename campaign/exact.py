"""Exact sums of floats, bin by bin: order, grouping, chunking and merging cannot show.

A weight is cut into slices at positions that are powers of two (Rump's extraction, as in Demmel and Nguyen,
"Parallel reproducible summation", 2015). A slice is a small integer times its unit, and integers add without error.
The sums are kept as multi-word integers and rounded once, when somebody asks for a float.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from campaign.errors import OutputError

__all__ = ["BLOCK", "ExactSum", "add_block_and_squares", "add_together"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK = 1 << 15  # entries handled at once: few enough for a core's own cache, enough to hide the cost of the calls

_SLICE_BITS = 44  # a slice is an integer of at most 2**44 ...
_ROOM = 1 << 18  # ... so this many entries fit into one int64 (2**62) before it must be emptied
_GRID = 4  # positions are multiples of this: blocks of like weights then share one accumulator
_MAX_OPEN = 8  # open accumulators per sum: bounds the memory, whatever the weights
_LOWEST = -1074  # position of the lowest bit of any float64

_LIMB_BITS = 56  # few limbs, and 7 bits to spare in an int64: tens of merges between two carries
_LIMB_MASK = (1 << _LIMB_BITS) - 1
_LIMB_BASE = -1100  # position of bit 0 of limb 0, below _LOWEST; limb 19, from 2**-36 to 2**20, holds ordinary weights
_MAX_LOADS = 60  # a limb may hold this many times 2**56; two such limbs still add up to less than 2**63

_HUGE_FROM, _HUGE_SHIFT = 500, 600  # weights of 2**500 and more are summed 600 bits lower: nothing can overflow


class _Scratch(threading.local):
    """Working arrays of one block, one set per thread: allocating them anew would cost as much as the sums."""

    def __init__(self) -> None:
        # Arrays at equal offsets within a page slow each other down (4K aliasing): these start 1/4 page apart.
        lifted, left, squares, integers = (row[128 * k :][:BLOCK] for k, row in enumerate(np.empty((4, BLOCK + 512))))
        self.lifted, self.left, self.squares, self.integers = lifted, left, squares, integers.view(np.int64)


_scratch = _Scratch()


class ExactSum:
    """The exact sum of float64 weights in each of ``size`` bins.

    Two sums of the same weights have the same :meth:`state`, byte for byte, however the weights were ordered,
    chunked, distributed and merged.

    Args:
        size: Number of bins.
    """

    __slots__ = ("_loads", "_nonfinite", "_open", "_room", "_rows", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: dict[int, Ints] = {}  # limb number -> (size,), no gaps between lowest and highest
        self._open: dict[int, Ints] = {}  # position -> (size,) sums of slices, not yet in the limbs
        self._room = _ROOM
        self._loads = 0
        self._nonfinite: Ints | None = None

    def add(self, index: NDArray[np.integer[Any]], weight: ArrayLike) -> None:
        """Adds each weight to its bin.

        Args:
            index: Bins, integers in [0, size), shape (n,).
            weight: Weights, shape (n,), or one weight for all.
        """
        add_together([self], index, [weight])

    def add_counts(self, counts: Ints, weight: float = 1.0) -> None:
        """Adds ``weight`` to every bin as many times as ``counts`` says.

        Args:
            counts: Non-negative integers below 2**35, shape (size,).
            weight: The weight all these entries share.
        """
        if not math.isfinite(weight):
            self._count_nonfinite(np.flatnonzero(counts), np.asarray(weight), counts[counts > 0])
            return
        numerator, denominator = weight.as_integer_ratio()
        twos = (numerator & -numerator).bit_length() - 1 if numerator else 0
        odd, position = numerator >> twos, twos - (denominator.bit_length() - 1)
        high, low = odd >> 26, odd & ((1 << 26) - 1)
        for part, at in ((low, position), (high, position + 26)):
            if part:
                self._add_integers(counts * part, at, int(counts.sum()))

    def add_block(self, index: NDArray[np.intp], weight: Floats) -> None:
        """Adds a block that the caller has checked: :meth:`add` without its checks.

        Args:
            index: Bins, in [0, size), at most BLOCK of them.
            weight: Weights, same shape.
        """
        top = _largest(weight)
        if not top < math.inf:
            finite = np.isfinite(weight)
            self._count_nonfinite(index[~finite], weight[~finite], 1)
            self.add_block(index[finite], weight[finite])
        elif top >= math.ldexp(1.0, _HUGE_FROM):
            huge = np.abs(weight) >= math.ldexp(1.0, _HUGE_FROM)
            self._add_finite(index[huge], np.ldexp(weight[huge], -_HUGE_SHIFT), top * 2.0**-_HUGE_SHIFT, _HUGE_SHIFT)
            self.add_block(index[~huge], weight[~huge])
        else:
            self._add_finite(index, weight, top, 0)

    def __iadd__(self, other: ExactSum) -> ExactSum:
        if self.size != other.size:
            raise OutputError(f"cannot add sums of {other.size} bins to sums of {self.size} bins")
        other._empty_open()
        for limb, row in other._rows.items():
            if limb in self._rows:
                self._rows[limb] += row
            else:
                self._row(limb)[:] = row
        self._loads += other._loads
        if other._nonfinite is not None:
            self._nonfinite = other._nonfinite + (0 if self._nonfinite is None else self._nonfinite)
        if self._loads > _MAX_LOADS:
            self._carry()
        return self

    @property
    def nonfinite(self) -> dict[str, Ints]:
        """How many NaN, +inf and -inf were added to each bin: ``nan``, ``posinf``, ``neginf``, each (size,)."""
        counts = np.zeros((3, self.size), np.int64) if self._nonfinite is None else self._nonfinite
        return {"nan": counts[0].copy(), "posinf": counts[1].copy(), "neginf": counts[2].copy()}

    def round(self) -> Floats:
        """The float64 nearest to each exact sum (ties to even), as IEEE 754 has it for NaN, inf and overflow."""
        self._canonicalise()
        total = _round_limbs(self._rows, self.size)
        if self._nonfinite is not None:
            nan, posinf, neginf = self._nonfinite > 0
            total[posinf], total[neginf] = math.inf, -math.inf
            total[nan | (posinf & neginf)] = math.nan
        return total

    def state(self) -> dict[str, NDArray[Any]]:
        """What the sums are, as arrays to store: equal sums give equal bytes.

        Returns:
            ``limbs`` (k, size): two's complement digits of 56 bits, lowest first, the highest signed;
            ``first`` (): number of the lowest limb, whose unit is 2**(56 * first - 1100);
            ``nonfinite`` (3, size) or, if there were none, (0, size): counts of NaN, +inf, -inf.
        """
        self._canonicalise()
        empty = np.zeros((0, self.size), "<i8")
        rows = [self._rows[limb] for limb in sorted(self._rows)]
        return {
            "limbs": np.stack(rows).astype("<i8") if rows else empty,
            "first": np.array(min(self._rows, default=0), "<i8"),
            "nonfinite": empty if self._nonfinite is None else self._nonfinite.astype("<i8"),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> ExactSum:
        """The sums that gave this :meth:`state`; its arrays are copied."""
        limbs, first = state["limbs"], int(state["first"])
        new = cls(limbs.shape[1])
        new._rows = {first + k: row.astype(np.int64) for k, row in enumerate(limbs)}
        if len(state["nonfinite"]):
            new._nonfinite = state["nonfinite"].astype(np.int64)
        new._loads = 1
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return ExactSum.from_state, (self.state(),)

    def _add_finite(self, index: NDArray[np.intp], weight: Floats, top: float, shift: int) -> None:
        """Adds weights up to ``top`` < 2**500, times 2**shift, slice by slice until nothing is left."""
        while top:
            position = _position(top)
            left = self._add_slice(index, weight, position, shift)
            if left is None:
                return
            left = self._add_slice(index, left, max(position - _SLICE_BITS, _LOWEST), shift)
            if left is None:
                return
            some = np.flatnonzero(left)  # few entries need a third slice: do not drag the others along
            index, weight = index[some], left[some]
            top = _largest(weight)

    def _add_slice(self, index: NDArray[np.intp], weight: Floats, position: int, shift: int) -> Floats | None:
        """Adds the part of each weight that is a multiple of 2**position; the exact remainder, None if all zero."""
        self._take_room(len(weight))
        count, magic = len(weight), np.float64(math.ldexp(1.5, 52 + position))
        lifted, integers, left = _scratch.lifted[:count], _scratch.integers[:count], _scratch.left[:count]
        np.add(weight, magic, out=lifted)
        # Within one binade the bit patterns of floats count units of the last place: no conversion is needed.
        np.subtract(lifted.view(np.int64), magic.view(np.int64), out=integers)
        np.add.at(self._accumulator(position + shift), index, integers)
        lifted -= magic
        if np.array_equal(lifted, weight):
            return None
        np.subtract(weight, lifted, out=left)
        return left

    def _add_integers(self, integers: Ints, position: int, entries: int) -> None:
        """Adds integers * 2**position: the contributions, each below 2**44, of this many entries."""
        if entries > _ROOM:
            self._deposit(integers, position)
        else:
            self._take_room(entries)
            total = self._accumulator(position)
            total += integers

    def _take_room(self, entries: int) -> None:
        if entries > self._room:
            self._empty_open()
        self._room -= entries

    def _accumulator(self, position: int) -> Ints:
        if position not in self._open:
            if len(self._open) == _MAX_OPEN:
                self._empty_open()
            self._open[position] = np.zeros(self.size, np.int64)
        return self._open[position]

    def _empty_open(self) -> None:
        """Moves the open accumulators into the limbs."""
        for position, sums in self._open.items():
            self._deposit(sums, position)
        self._open.clear()
        self._room = _ROOM

    def _deposit(self, integers: Ints, position: int) -> None:
        """Adds integers * 2**position to the limbs."""
        limb, shift = divmod(position - _LIMB_BASE, _LIMB_BITS)
        low = (integers << shift) & _LIMB_MASK  # bits shifted out of the int64 belong to the next limbs
        middle = (integers >> (_LIMB_BITS - shift)) & _LIMB_MASK
        high = integers >> min(2 * _LIMB_BITS - shift, 63)
        for step, part in enumerate((low, middle, high)):
            if part.any():
                row = self._row(limb + step)
                row += part
        self._loads += 1
        if self._loads > _MAX_LOADS:
            self._carry()

    def _row(self, limb: int) -> Ints:
        """The limb of this number, made (and the gap to the others filled) if it is new."""
        if limb not in self._rows:
            lowest, highest = min(self._rows, default=limb), max(self._rows, default=limb)
            for new in {*range(limb, lowest), *range(highest + 1, limb + 1), limb}:
                self._rows[new] = np.zeros(self.size, np.int64)
        return self._rows[limb]

    def _carry(self) -> None:
        """Brings every limb but the highest into [0, 2**56), the highest into [-2**55, 2**55)."""
        limb, half = min(self._rows, default=0), 1 << (_LIMB_BITS - 1)
        while limb in self._rows:
            row = self._rows[limb]
            highest = limb + 1 not in self._rows
            if highest and bool(((row >= -half) & (row < half)).all()):
                break
            above = self._row(limb + 1)
            above += row >> _LIMB_BITS
            row &= _LIMB_MASK
            limb += 1
        self._loads = 1

    def _canonicalise(self) -> None:
        """The one shortest form: no limb on top that only repeats a sign, none below that is zero everywhere."""
        self._empty_open()
        self._carry()
        half = 1 << (_LIMB_BITS - 1)
        while len(self._rows) > 1:
            highest = max(self._rows)
            sign, below = self._rows[highest], self._rows[highest - 1]
            if not np.array_equal(sign, -(below >= half).astype(np.int64)):
                break
            below += self._rows.pop(highest) << _LIMB_BITS
        while self._rows and not self._rows[min(self._rows)].any():
            del self._rows[min(self._rows)]

    def _count_nonfinite(self, index: NDArray[np.intp], weight: Floats, count: Any) -> None:
        if not len(index):
            return
        if self._nonfinite is None:
            self._nonfinite = np.zeros((3, self.size), np.int64)
        tests = np.isnan(weight), weight == math.inf, weight == -math.inf
        for row, hit in zip(self._nonfinite, tests, strict=True):
            np.add.at(row, index, np.where(hit, count, 0))


def add_together(sums: Sequence[ExactSum], index: NDArray[np.integer[Any]], weights: Sequence[ArrayLike]) -> None:
    """Adds several weights per entry, each to its own sums; what depends on the index alone is done once.

    Args:
        sums: One per weight, all of one size.
        index: Bins, integers in [0, size), shape (n,).
        weights: One per sum: shape (n,), or one weight for all entries.

    Raises:
        OutputError: The shapes do not fit, or an index is outside its range.
    """
    (size,) = {total.size for total in sums}
    index = _checked_index(index, size)
    arrays: list[tuple[ExactSum, Floats]] = []
    counts: Ints | None = None
    for total, weight in zip(sums, weights, strict=True):
        values = np.asarray(weight, np.float64)
        if values.shape not in ((), index.shape):
            raise OutputError(f"weights of shape {values.shape} do not fit an index of shape {index.shape}")
        if values.ndim == 0:
            counts = np.bincount(index, minlength=size) if counts is None else counts
            total.add_counts(counts, float(values))
        else:
            arrays.append((total, values))
    for start in range(0, len(index) if arrays else 0, BLOCK):
        block = slice(start, start + BLOCK)
        for total, values in arrays:
            total.add_block(index[block], values[block])


def add_block_and_squares(sums: ExactSum, squares: ExactSum, index: NDArray[np.intp], weight: Floats) -> None:
    """Adds a checked block (see :meth:`ExactSum.add_block`) and its squares, each rounded once to float64."""
    sums.add_block(index, weight)
    square = _scratch.squares[: len(weight)]
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(weight, weight, out=square)
    squares.add_block(index, square)


def _checked_index(index: NDArray[np.integer[Any]], size: int) -> NDArray[np.intp]:
    index = np.asarray(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise OutputError(f"an index is a flat array of integers, not {index.dtype} of shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise OutputError(f"index from {index.min()} to {index.max()} for {size} bins")
    return index.astype(np.intp, copy=False)


def _largest(weight: Floats) -> float:
    """The largest magnitude; NaN if there is one."""
    return float(max(weight.max(initial=0.0), -weight.min(initial=0.0)))


def _position(top: float) -> int:
    """The lowest grid position from which weights up to ``top`` fit into one slice."""
    exponent = math.frexp(top)[1]
    return max(-((_SLICE_BITS - exponent) // _GRID) * _GRID, _LOWEST)


def _round_limbs(rows: Mapping[int, Ints], size: int) -> Floats:
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
    exponent = (first - 2 + lead) * _LIMB_BITS + _LIMB_BASE + length - 62
    # Exact for subnormals too: a sum has no bit below 2**-1074, so one that small has no more than 52 bits.
    with np.errstate(over="ignore"):
        total = np.ldexp(np.where(negative, -rounded, rounded), exponent)
    return np.asarray(total, np.float64)


def _leading_bits(high: Ints, middle: Ints, low: Ints, more: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """``high`` followed by ``more`` (5 to 62) bits of the next two limbs, and whether a set bit was cut off."""
    from_middle = np.minimum(more, _LIMB_BITS)
    from_low = more - from_middle
    window = (high << more) | ((middle >> (_LIMB_BITS - from_middle)) << from_low) | (low >> (_LIMB_BITS - from_low))
    lost = (middle & ((1 << (_LIMB_BITS - from_middle)) - 1)) | (low & ((1 << (_LIMB_BITS - from_low)) - 1))
    return window, lost != 0


def _negated(limbs: Ints, where: NDArray[np.bool_]) -> Ints:
    """Magnitudes of two's complement limbs: those at ``where`` change sign."""
    limbs = np.where(where, -limbs, limbs)
    for below, above in pairwise(limbs):
        above += below >> _LIMB_BITS
        below &= _LIMB_MASK
    return limbs
