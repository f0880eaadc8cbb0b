"""Sums floats exactly, bin by bin: the result does not depend on order, grouping or merging.

Weights are cut into slices (:mod:`campaign.histogram.extraction`) that float64 adds without error. Their sums move
into multi-word integers (:mod:`campaign.histogram.superaccumulator`) before they grow too long. They are rounded once,
when a float is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from campaign.errors import OutputError
from campaign.histogram.extraction import BLOCK, Slice, cut, extent, extents, scratch
from campaign.histogram.superaccumulator import Superaccumulator

__all__ = ["BLOCK", "ExactSum", "Target", "add_block", "add_together"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_FEW = 4  # this many times fewer bins with something in them than bins: only those are looked at
_MAX_OPEN = 8  # open accumulators per sum: bounds the memory, whatever the weights
_COUNTED_ROOM = 1 << 35  # entries of less than 2**27 each that fit into an int64 (2**62)
_HUGE_FROM, _HUGE_SHIFT = 500, 600  # weights of 2**500 and more are summed 600 bits lower: nothing can overflow


class ExactSum:
    """The exact sum of float64 weights in each of ``size`` bins.

    Two sums of the same weights have the same :meth:`state`, byte for byte, however the weights were ordered,
    chunked, distributed and merged.

    Args:
        size: Number of bins.
    """

    __slots__ = ("_counted", "_counted_room", "_limbs", "_nonfinite", "_open", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._limbs = Superaccumulator(size)
        self._open: dict[tuple[int, ...], _Open] = {}  # by positions; not yet in the limbs
        self._counted: dict[int, Ints] = {}  # by position: sums of integers, not yet in the limbs
        self._counted_room = _COUNTED_ROOM
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
                self._add_integers(counts if part == 1 else counts * part, at, int(counts.sum()))

    def add_slice(self, index: NDArray[np.intp], part: Slice) -> None:
        """Adds a slice of weights whose bins the caller has checked.

        Args:
            index: Bins, in [0, size), one per weight.
            part: The slice.
        """
        found = self._open.get(part.positions)
        if found is None:
            if len(self._open) == _MAX_OPEN:
                self._empty_open()
            self._open[part.positions] = found = _Open(np.zeros(self.size, part.values.dtype))
        elif found.load + part.load > 1:
            found.empty_into(self._limbs, part.positions)
        found.load += part.load
        np.add.at(found.sums, index if part.chosen is None else index[part.chosen], part.values)

    def __iadd__(self, other: ExactSum) -> ExactSum:
        if self.size != other.size:
            raise OutputError(f"cannot add sums of {other.size} bins to sums of {self.size} bins")
        other._empty_open()
        self._limbs += other._limbs
        if other._nonfinite is not None:
            self._nonfinite = other._nonfinite + (0 if self._nonfinite is None else self._nonfinite)
        return self

    @property
    def nonfinite(self) -> dict[str, Ints]:
        """How many NaN, +inf and -inf were added to each bin: ``nan``, ``posinf``, ``neginf``, each (size,)."""
        counts = np.zeros((3, self.size), np.int64) if self._nonfinite is None else self._nonfinite
        return {"nan": counts[0].copy(), "posinf": counts[1].copy(), "neginf": counts[2].copy()}

    def round(self) -> Floats:
        """The float64 nearest to each exact sum (ties to even), as IEEE 754 has it for NaN, inf and overflow."""
        self._empty_open()
        total = self._limbs.round()
        if self._nonfinite is not None:
            nan, posinf, neginf = self._nonfinite > 0
            total[posinf], total[neginf] = math.inf, -math.inf
            total[nan | (posinf & neginf)] = math.nan
        return total

    def state(self) -> dict[str, NDArray[Any]]:
        """The sums as arrays to store. Equal sums give equal bytes.

        Returns:
            ``limbs`` (k, size): two's complement digits of 56 bits, lowest first, the highest signed;
            ``first`` (): number of the lowest limb, whose unit is 2**(56 * first - 1100);
            ``nonfinite`` (3, size) or, if there were none, (0, size): counts of NaN, +inf, -inf.
        """
        self._empty_open()
        limbs, first = self._limbs.digits()
        nonfinite = np.zeros((0, self.size), "<i8") if self._nonfinite is None else self._nonfinite.astype("<i8")
        return {"limbs": limbs.astype("<i8"), "first": np.array(first, "<i8"), "nonfinite": nonfinite}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> ExactSum:
        """The sums that gave this :meth:`state`; its arrays are copied."""
        new = cls(state["limbs"].shape[1])
        new._limbs = Superaccumulator.from_digits(state["limbs"], int(state["first"]))
        if len(state["nonfinite"]):
            new._nonfinite = state["nonfinite"].astype(np.int64)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return ExactSum.from_state, (self.state(),)

    def _add_huge(self, index: NDArray[np.intp], weight: Floats, largest: float) -> None:
        scaled, lower = np.ldexp(weight, -_HUGE_SHIFT), math.ldexp(largest, -_HUGE_SHIFT)
        for part in cut(scaled, extent(lower, len(scaled))):
            found = _Open(np.zeros(self.size, part.values.dtype))
            np.add.at(found.sums, index if part.chosen is None else index[part.chosen], part.values)
            found.empty_into(self._limbs, part.positions, _HUGE_SHIFT)

    def _add_integers(self, integers: Ints, position: int, entries: int) -> None:
        """Adds integers * 2**position: the contributions, each below 2**27, of this many entries."""
        if entries > self._counted_room:
            self._empty_open()
        if position not in self._counted and len(self._counted) == _MAX_OPEN:
            self._empty_open()
        if position not in self._counted:
            self._counted[position] = integers.copy()
        else:
            self._counted[position] += integers
        self._counted_room -= entries

    def _empty_open(self) -> None:
        """Moves the open accumulators into the limbs."""
        for positions, found in self._open.items():
            found.empty_into(self._limbs, positions)
        for position, sums in self._counted.items():
            self._limbs.add(sums, position)
        self._open.clear()
        self._counted.clear()
        self._counted_room = _COUNTED_ROOM

    def _count_nonfinite(self, index: NDArray[np.intp], weight: Floats, count: Any) -> None:
        if not len(index):
            return
        if self._nonfinite is None:
            self._nonfinite = np.zeros((3, self.size), np.int64)
        tests = np.isnan(weight), weight == math.inf, weight == -math.inf
        for row, hit in zip(self._nonfinite, tests, strict=True):
            np.add.at(row, index, np.where(hit, count, 0))


class _Open:
    """Float sums of slices, exact as long as ``load`` is at most 1.

    Args:
        sums: float64 or complex128 (size,), zeros.
    """

    __slots__ = ("load", "sums")

    def __init__(self, sums: NDArray[Any]) -> None:
        self.sums, self.load = sums, 0.0

    def empty_into(self, limbs: Superaccumulator, positions: tuple[int, ...], shift: int = 0) -> None:
        """Moves the sums, times 2**shift, into the limbs; leaves zeros."""
        bins: NDArray[np.intp] | slice = slice(None)
        found = np.flatnonzero(self.sums)
        if len(found) * _FEW <= len(self.sums):  # a file's entries fill few bins of many
            bins = found
        some = self.sums[bins]
        for sums, position in zip((some.real, some.imag), positions, strict=False):
            half = -position // 2  # the whole factor may exceed the float64 range
            units = sums * math.ldexp(1.0, half)
            units *= math.ldexp(1.0, -position - half)
            limbs.add(units.astype(np.int64), position + shift, bins)
        self.sums[bins] = 0
        self.load = 0.0


Target = tuple[ExactSum, "ExactSum | None", NDArray[np.intp]]  # sums, sums of squares, bins


def add_block(targets: Sequence[Target], weight: Floats) -> None:
    """Adds one block of weights to one or several sums: cut once, whatever the number of sums.

    Args:
        targets: Sums, where wanted the sums of squares (each rounded once to float64), and the bins, which the
            caller has checked: in [0, size), one per weight.
        weight: Weights, at most BLOCK.
    """
    square = scratch.squares[: len(weight)]
    np.multiply(weight, weight, out=square)
    known = extents(weight, square)
    if known is None:
        for sums, squares, index in targets:
            _add_any(sums, index, weight)
            if squares is not None:
                _add_any(squares, index, square)
        return
    for part in cut(weight, known[0]):
        for sums, _, index in targets:
            sums.add_slice(index, part)
    wanted = [(squares, index) for _, squares, index in targets if squares is not None]
    for part in cut(square, known[1]) if wanted else ():
        for squares, index in wanted:
            squares.add_slice(index, part)


def _add_any(sums: ExactSum, index: NDArray[np.intp], weight: Floats) -> None:
    """Adds weights about which nothing is known: NaN, infinities, 1e300, subnormals."""
    finite = np.isfinite(weight)
    sums._count_nonfinite(index[~finite], weight[~finite], 1)
    huge = finite & (np.abs(weight) >= math.ldexp(1.0, _HUGE_FROM))
    if huge.any():
        sums._add_huge(index[huge], weight[huge], float(np.abs(weight[huge]).max()))
    usual = finite & ~huge & (weight != 0)
    if usual.any():
        index, weight = index[usual], weight[usual]
        for part in cut(weight, extent(float(np.abs(weight).max()), len(weight))):
            sums.add_slice(index, part)


@np.errstate(over="ignore", under="ignore", invalid="ignore")
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
            add_block([(total, None, index[block])], values[block])


def _checked_index(index: NDArray[np.integer[Any]], size: int) -> NDArray[np.intp]:
    index = np.asarray(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise OutputError(f"an index is a flat array of integers, not {index.dtype} of shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise OutputError(f"index from {index.min()} to {index.max()} for {size} bins")
    return index.astype(np.intp, copy=False)
