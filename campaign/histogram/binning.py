"""Finds the bin of each entry, bit for bit as hist does."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import hist
import numpy as np
from numpy.typing import NDArray

from campaign.errors import OutputError
from campaign.histogram.axes import CATEGORIES, Axis, Header, limits, rebuilt, without_label
from campaign.histogram.extraction import BLOCK, scratch

__all__ = ["Known", "Layout", "array_of", "layout"]

_FEW_EDGES = 64  # up to here one comparison per edge beats a binary search


def array_of(what: str, value: Any) -> NDArray[Any]:
    """A flat array or a scalar, whatever it was given as; ``what`` names it if it is neither."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise OutputError(f"{what} has masked entries: select or fill them first")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise OutputError(f"{what} is not a flat array (jagged, or with missing entries): flatten it first") from error
    if array.ndim > 1:
        raise OutputError(f"{what} has shape {array.shape}: flatten it first")
    return array


# Bins: from values to hist's own index, -1 for underflow, size for overflow -------------------------------------------

# By the descriptions of the axes taken so far: bins of a block, and which of its entries have one.
Known: TypeAlias = dict[tuple[str, ...], tuple[NDArray[Any], "NDArray[np.bool_] | None"]]
Binner: TypeAlias = Callable[[NDArray[Any]], NDArray[np.signedinteger[Any]]]


def _binner(axis: Axis, fields: Header) -> Binner:
    """The index of values on one axis, bit for bit hist's; ``axis.index`` is right for all but unknown categories."""
    kind, closed = fields["type"], not fields["overflow"]
    if kind in ("StrCategory", "IntCategory"):
        return functools.partial(_category_index, list(axis))
    if kind == "Boolean":
        return _boolean_index
    if kind == "Variable" and not fields["circular"] and len(axis.edges) <= _FEW_EDGES:
        return functools.partial(_edge_index, [float(edge) for edge in axis.edges], closed)
    if kind == "Regular" and not fields["circular"] and not closed and fields["transform"] == "None":
        return _RegularIndex(*limits(fields), fields["bins"])
    index: Binner = axis.index
    return index


def _boolean_index(values: NDArray[np.int32]) -> NDArray[np.int8]:
    index: NDArray[np.int8] = (values != 0).view(np.int8)
    return index


def _category_index(categories: list[Any], values: NDArray[Any]) -> NDArray[np.signedinteger[Any]]:
    count = len(categories)
    index = np.full(values.shape, count, np.int8 if count < 128 else np.int32)
    for number, category in enumerate(categories):
        # Arithmetic, because a masked store takes six times longer.
        index -= (values == category).view(np.int8) * index.dtype.type(count - number)
    return index


def _edge_index(edges: list[float], closed: bool, values: NDArray[np.float64]) -> NDArray[np.int8]:
    # Counting edges above the value, not below it, sends NaN to the overflow bin as hist does.
    index = np.full(values.shape, len(edges) - 1, np.int8)
    for edge in edges[:-1]:
        index -= (values < edge).view(np.int8)
    # Without an overflow bin hist counts the last edge into the last bin.
    index -= (values <= edges[-1] if closed else values < edges[-1]).view(np.int8)
    return index


class _RegularIndex:
    """Boost's own steps in its own order; for z < 1 the product z * bins never rounds up to bins."""

    def __init__(self, start: float, stop: float, bins: int) -> None:
        self._start, self._bins, width = start, np.float64(bins), stop - start
        # Multiplying by 1/width is dividing by width, to the bit, where both are powers of two; and it is faster.
        fraction, exponent = math.frexp(width)
        exact = fraction == 0.5 and abs(exponent) < 1000
        self._scale = (np.multiply, 1 / width) if exact else (np.divide, width)
        self._below_end = self._bins.view(np.uint64)

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        z = scratch.values[: len(values)]
        scale, width = self._scale
        if self._start != 0.0:
            values = np.subtract(values, self._start, out=z)
        if width != 1.0:
            values = scale(values, width, out=z)
        np.multiply(values, self._bins, out=z)
        # Seen as integers, negative numbers and NaN are larger than any bin: one look finds them all.
        if np.maximum.reduce(z.view(np.uint64), initial=0) >= self._below_end:
            np.clip(z, -1, self._bins, out=z)
            np.floor(z, out=z)
            if np.isnan(z.max(initial=0)):
                z[np.isnan(z)] = self._bins
        return z.astype(np.int32)


def _prepared(axis: Axis, what: str, array: NDArray[Any]) -> NDArray[Any]:
    """The values as the type the axis takes: float64, int32 or str."""
    kind = array.dtype.kind if array.size else "empty"
    if isinstance(axis, hist.axis.StrCategory):
        return _strings(what, array, kind)
    if isinstance(axis, hist.axis.Regular | hist.axis.Variable):
        if kind not in ("b", "i", "u", "f", "empty"):
            raise OutputError(f"{what} takes numbers, got {array.dtype}")
        return array.astype(np.float64, copy=False)
    if kind not in ("b", "i", "u", "empty"):
        raise OutputError(f"{what} takes integers, got {array.dtype}")
    narrow = np.can_cast(array.dtype, np.int32) or not array.size
    if not narrow and not (array.min() >= -(2**31) and array.max() < 2**31):
        raise OutputError(f"{what} takes integers of 32 bits, got {array.min()} to {array.max()}")
    return array.astype(np.int32, copy=False)


def _strings(what: str, array: NDArray[Any], kind: str) -> NDArray[Any]:
    if kind == "S":
        return np.char.decode(array, "utf-8")
    if kind in "UT" or kind == "empty" or (kind == "O" and all(isinstance(text, str) for text in array.flat)):
        return array.astype(np.str_, copy=False)
    raise OutputError(f"{what} takes strings, got {array.dtype}")


class Layout:
    """The axes of a histogram and how values find their bins; shared by all histograms with the same axes.

    Args:
        described: JSON text of the axes' descriptions.
    """

    def __init__(self, described: str) -> None:
        self._described = described
        self.axes = [rebuilt(fields) for fields in self.header()]
        self.key = json.dumps([without_label(fields) for fields in self.header()], sort_keys=True)
        self.extents = [axis.extent for axis in self.axes]
        self.size = math.prod(self.extents)
        self._binners = [_binner(axis, fields) for axis, fields in zip(self.axes, self.header(), strict=True)]
        self._drops = [_drops(axis) for axis in self.axes]
        self._described_axes = [json.dumps(fields) for fields in self.header()]
        self.first = 0  # the flat number of the bin whose index is 0 on every axis
        for axis, extent in zip(self.axes, self.extents, strict=True):
            self.first = self.first * extent + axis.traits.underflow
        self._names = [f"axis {number} ({axis.name!r})" for number, axis in enumerate(self.axes)]

    def header(self) -> list[Header]:
        """The axes' descriptions."""
        axes: list[Header] = json.loads(self._described)
        return axes

    def columns(
        self, values: Sequence[Any], by_name: Mapping[str, Any], ready: dict[str, NDArray[Any]] | None = None
    ) -> tuple[list[NDArray[Any]], int | None]:
        """One checked array per axis (one entry: the same for all) and the number of entries, None if all are scalars.

        Args:
            values: Values by the positions of the axes.
            by_name: Those of the other axes.
            ready: By descriptions of axes: what other histograms have made of the same columns; added to.
        """
        ready = {} if ready is None else ready
        wanted = [axis.name for axis in self.axes]
        named = wanted[len(values) :]
        if len(values) > len(wanted) or set(named) != set(by_name) or len(named) != len(by_name):
            raise OutputError(
                f"got {len(values)} values by position and {sorted(by_name)} by name; the axes are {wanted}"
            )
        arrays = [
            array_of(name, value)
            for name, value in zip(self._names, [*values, *(by_name[name] for name in named)], strict=True)
        ]
        shapes = {name: array.shape for name, array in zip(self._names, arrays, strict=True)}
        lengths = {array.size for array in arrays if array.ndim}
        if len(lengths) > 1:
            raise OutputError(f"values of different shapes: {shapes}")
        steps = zip(self._described_axes, self.axes, self._names, arrays, strict=True)
        made = [
            ready[described] if described in ready else np.atleast_1d(_prepared(axis, name, array))
            for described, axis, name, array in steps
        ]
        ready.update(zip(self._described_axes, made, strict=True))
        return made, lengths.pop() if lengths else None

    def categories(self, along: str, wanted: Sequence[Any]) -> tuple[int, list[int]]:
        """The number of a category axis, and how far each category's bins lie from the first one's.

        Raises:
            OutputError: There is no such axis, or it lacks a category.
        """
        names = [axis.name for axis in self.axes]
        if along not in names or not isinstance(self.axes[names.index(along)], CATEGORIES):
            raise OutputError(f"'{along}' is no category axis; the axes are {names}")
        number = names.index(along)
        known, stride = list(self.axes[number]), math.prod(self.extents[number + 1 :])
        missing = [category for category in wanted if category not in known]
        if missing:
            raise OutputError(f"the axis '{along}' has no {missing}, only {known}")
        return number, [(known.index(category) - known.index(wanted[0])) * stride for category in wanted]

    def blocks(
        self, columns: list[NDArray[Any]], entries: int, into: NDArray[np.intp] | None = None
    ) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_] | None]]:
        """Start, bins and, where an axis without flow drops entries, the mask of those kept, block by block.

        Args:
            columns: What :meth:`columns` returned.
            entries: Likewise.
            into: Where the bins of all entries are written, shape (entries,); None: they are borrowed for one turn.
        """
        for start in range(0, entries, BLOCK):
            length = min(BLOCK, entries - start)
            out = scratch.index[:length] if into is None else into[start : start + length]
            kept = self.block(columns, start, out, {})
            if kept is None:
                yield start, out, None
            else:
                every = np.broadcast_to(kept, out.shape)
                yield start, out[every], every

    def block(
        self, columns: list[NDArray[Any]], start: int, out: NDArray[np.intp], known: Known
    ) -> NDArray[np.bool_] | None:
        """Writes the bins of the entries from ``start`` on to ``out``.

        Args:
            columns: What :meth:`columns` returned.
            start: Number of the first entry.
            out: As many as are wanted, at most BLOCK.
            known: What histograms with the same columns have found out about this block; added to.

        Returns:
            Which entries have a bin, of their shape or (1,): the same object for all histograms whose axes that drop
            entries are the same; None: all have.
        """
        flat: NDArray[Any] = np.zeros((), np.int32)
        kept: NDArray[np.bool_] | None = None
        key: tuple[str, ...] = ()
        steps = zip(self.axes, self._binners, self.extents, self._drops, self._described_axes, columns, strict=True)
        for axis, binner, extent, drops, described, column in steps:
            key = (*key, described)
            if key in known:
                flat, kept = known[key]
                continue
            index = binner(column if len(column) == 1 else column[start : start + len(out)])
            if drops:
                inside = (index >= -int(axis.traits.underflow)) & (index < axis.size + int(axis.traits.overflow))
                kept = inside if kept is None else kept & inside
            flat = _joined(flat, extent, index, np.dtype(np.int32 if self.size < 2**31 else np.intp))
            known[key] = flat, kept
        np.copyto(out, flat + flat.dtype.type(self.first) if self.first else flat)
        return kept


def _joined(flat: NDArray[Any], extent: int, index: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bins of one axis more: flat * extent + index."""
    if flat.ndim == 0:
        return index.astype(dtype, copy=False)
    scaled: NDArray[Any] = flat.astype(dtype, copy=False) * dtype.type(extent)
    if len(scaled) < len(index):
        scaled = np.broadcast_to(scaled, index.shape).copy()
    scaled += index
    return scaled


def _drops(axis: Axis) -> bool:
    """True if some entries may have no bin."""
    if isinstance(axis, CATEGORIES) or axis.traits.circular:
        return not axis.traits.overflow
    return not (axis.traits.underflow and axis.traits.overflow)


@functools.lru_cache(maxsize=256)
def layout(described: str) -> Layout:
    """The layout of these axes, the same object for all histograms that have them."""
    return Layout(described)
