"""The exact histogram: filled like ``hist.Hist`` with Weight storage, the same bits in any order and grouping.

The bins are hist's own, the sums of weights and of squared weights are :class:`campaign.exact.ExactSum`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import hist
import numpy as np
from numpy.typing import ArrayLike, NDArray

from campaign.axes import CATEGORIES, Axis, Header, describe, difference, limits, rebuilt, without_label
from campaign.errors import AxesMismatch, OutputError
from campaign.exact import BLOCK, ExactSum, add_block_and_squares

__all__ = ["Bins", "Histogram"]

_FEW_EDGES = 64  # up to here one comparison per edge beats a binary search
_SPARSE = 8  # this many times fewer entries than bins: no array of all bins is worth making
_FORMAT = 1
_SUMS, _ARRAYS = ("sumw", "sumw2"), ("limbs", "first", "nonfinite")  # a state's arrays are named sumw.limbs and so on


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Where entries fall: computed once by :meth:`Histogram.index`, good for any number of weights.

    Args:
        flat: Number of the bin (flow bins included) of every entry that has one, shape (kept,).
        kept: Which entries have a bin, shape (entries,); None if all have.
        entries: Number of entries.
    """

    flat: NDArray[np.intp]
    kept: NDArray[np.bool_] | None
    entries: int


class Histogram:
    """A histogram whose contents do not depend on the order or grouping of its fills and merges.

    Args:
        *axes: ``hist.axis.*``, without growth; flow bins, names and labels are kept as in hist, metadata is not.
        name: The name ``to_hist`` gives.

    Raises:
        OutputError: An axis grows, or cannot be written down exactly.
    """

    __slots__ = ("_layout", "_sumw", "_sumw2", "name")

    def __init__(self, *axes: Axis, name: str = "") -> None:
        names = [axis.name for axis in axes if getattr(axis, "name", "")]
        if not axes or len(set(names)) < len(names):
            raise OutputError(f"a histogram has one axis or more, each with its own name; these are {names}")
        self._start(_layout(json.dumps([describe(number, axis) for number, axis in enumerate(axes)])), name)

    def _start(self, layout: _Layout, name: str) -> None:
        self._layout, self.name = layout, name
        self._sumw, self._sumw2 = ExactSum(layout.size), ExactSum(layout.size)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Copies of the axes."""
        return tuple(copy.deepcopy(axis) for axis in self._layout.axes)

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many weights were ``nan``, ``posinf`` or ``neginf``."""
        return {kind: int(counts.sum()) for kind, counts in self._sumw.nonfinite.items()}

    def fill(self, *values: ArrayLike, weight: ArrayLike | None = None, **by_name: ArrayLike) -> Histogram:
        """Adds entries, called exactly as ``hist.Hist.fill``.

        A scalar is that value for every entry. (boost-histogram 1.8 drops the others of its buffer when the first
        entry falls outside an axis without flow that stands before the scalar; here they are kept.)

        Args:
            *values: One flat array or scalar per axis.
            weight: One per entry, or one for all; None counts entries.
            **by_name: Values by the names of the axes not given by position.

        Returns:
            This histogram.

        Raises:
            OutputError: Shapes or types do not fit; nothing was filled.
        """
        columns, entries = self._layout.columns(values, by_name)
        weights = _weights(weight, entries)
        for start, flat, kept in self._layout.blocks(columns, entries):
            part = weights[start : start + BLOCK] if weights.ndim else weights
            self._add_block(flat, part if kept is None or not part.ndim else part[kept])
        return self

    def index(self, *values: ArrayLike, **by_name: ArrayLike) -> Bins:
        """The bins of entries, to be filled with several weights by :meth:`fill_at`."""
        columns, entries = self._layout.columns(values, by_name)
        return _joined(self._layout.blocks(columns, entries), entries)

    def fill_at(self, bins: Bins, weight: ArrayLike | None = None) -> Histogram:
        """Adds entries whose bins are known: by this histogram, or by one with the same axes.

        Args:
            bins: What :meth:`index` returned.
            weight: One per entry given to :meth:`index`, or one for all; None counts entries.

        Returns:
            This histogram.
        """
        weights = _weights(weight, bins.entries)
        if len(bins.flat) and bins.flat.max() >= self._layout.size:
            raise OutputError(f"bin {bins.flat.max()} of {self._layout.size}: these bins belong to other axes")
        if weights.ndim and bins.kept is not None:
            weights = weights[bins.kept]
        for start in range(0, len(bins.flat), BLOCK):
            block = slice(start, start + BLOCK)
            self._add_block(bins.flat[block], weights[block] if weights.ndim else weights)
        return self

    def _add_block(self, flat: NDArray[np.intp], weights: NDArray[np.float64]) -> None:
        if weights.ndim == 0 and len(flat) * _SPARSE >= self._layout.size:
            counts, weight = np.bincount(flat, minlength=self._layout.size), float(weights)
            self._sumw.add_counts(counts, weight)
            self._sumw2.add_counts(counts, weight * weight)
        else:
            add_block_and_squares(self._sumw, self._sumw2, flat, np.broadcast_to(weights, flat.shape))

    def __iadd__(self, other: Histogram) -> Histogram:
        """Merges; axes must be the same to the bit, names included; labels are presentation and may differ."""
        if self._layout.key != other._layout.key:
            raise self._mismatch(other)
        self._sumw += other._sumw
        self._sumw2 += other._sumw2
        return self

    def _mismatch(self, other: Histogram) -> AxesMismatch:
        return AxesMismatch(
            f"the histograms have different axes: {difference(self.axes, other.axes)}",
            where=self.name or other.name,
            remedy="define the axes once, from the same numbers, for all files",
        )

    def to_hist(self) -> hist.Hist:
        """The histogram as ``hist.Hist`` with Weight storage, each sum rounded once."""
        result = hist.Hist(*self.axes, storage=hist.storage.Weight(), name=self.name or None)
        view: Any = result.view(flow=True)
        view["value"] = self._sumw.round().reshape(view.shape)
        view["variance"] = self._sumw2.round().reshape(view.shape)
        return result

    @classmethod
    def from_hist(cls, source: hist.Hist) -> Histogram:
        """Takes over a histogram filled elsewhere: each bin's value and variance enters exactly.

        Args:
            source: With storage Weight, Double or Int64.

        Raises:
            OutputError: Another storage, or Double filled with weights (their squares are lost).
        """
        storage = source.storage_type.__name__
        if storage not in ("Weight", "Double", "Int64"):
            raise OutputError(f"storage {storage} cannot be summed exactly; use Weight, Double or Int64")
        values, variances = source.values(flow=True), source.variances(flow=True)
        if variances is None:
            raise OutputError(
                f"storage {storage} was filled with weights: the sums of their squares are lost",
                remedy="make the histogram with storage=hist.storage.Weight()",
            )
        new = cls(*source.axes, name=source.name or "")
        every = np.arange(new._layout.size)
        _add_values(new._sumw, every, values)
        _add_values(new._sumw2, every, variances)
        return new

    def state(self) -> tuple[Header, dict[str, NDArray[Any]]]:
        """What the histogram is, to store: a header for JSON (floats in hexadecimal) and arrays.

        Equal contents give equal bytes, whatever the order and grouping of fills and merges.
        """
        header = {"format": _FORMAT, "name": self.name, "axes": self._layout.header()}
        sums = dict(zip(_SUMS, (self._sumw, self._sumw2), strict=True))
        return header, {f"{kind}.{key}": array for kind, total in sums.items() for key, array in total.state().items()}

    @classmethod
    def from_state(cls, header: Header, arrays: Mapping[str, NDArray[Any]]) -> Histogram:
        """The histogram that gave this :meth:`state`.

        Raises:
            OutputError: The state is of another format, or its arrays do not fit its axes.
        """
        if header.get("format") != _FORMAT:
            raise OutputError(f"a histogram of format {header.get('format')!r}; this version reads {_FORMAT}")
        missing = {f"{kind}.{key}" for kind in _SUMS for key in _ARRAYS} - set(arrays)
        if missing:
            raise OutputError(f"the state of a histogram lacks {sorted(missing)}", where=header["name"])
        new = cls.__new__(cls)
        new._start(_layout(json.dumps(header["axes"])), header["name"])
        new._sumw, new._sumw2 = (
            ExactSum.from_state({key: arrays[f"{kind}.{key}"] for key in _ARRAYS}) for kind in _SUMS
        )
        if not new._sumw.size == new._sumw2.size == new._layout.size:
            raise OutputError(f"sums of {new._sumw.size} bins for axes of {new._layout.size} bins", where=new.name)
        return new

    def sha256(self) -> str:
        """Digest of the content: axes without labels, values, variances; not of the name or the way it was filled."""
        digest = hashlib.sha256(self._layout.key.encode())
        for total in (self._sumw, self._sumw2):
            rounded = total.round()
            rounded[np.isnan(rounded)] = math.nan  # one bit pattern for all NaN
            digest.update(rounded.astype("<f8").tobytes())
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Histogram.from_state, self.state()

    def __repr__(self) -> str:
        return f"Histogram({', '.join(map(repr, self._layout.axes))}, name={self.name!r})"


def _add_values(total: ExactSum, index: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Enters one number per bin; integers past 2**53 in two exact halves."""
    flat = values.reshape(-1)
    if flat.dtype.kind in "iu":
        low = flat & 0xFFFFFFFF
        total.add(index, low.astype(np.float64))
        flat = flat - low
    total.add(index, flat.astype(np.float64))


# Values and weights ---------------------------------------------------------------------------------------------------


def _array(what: str, value: Any) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise OutputError(f"{what} has masked entries: select or fill them first")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise OutputError(f"{what} is not a flat array (jagged, or with missing entries): flatten it first") from error
    if array.ndim > 1:
        raise OutputError(f"{what} has shape {array.shape}: flatten it first")
    return array


def _weights(weight: ArrayLike | None, entries: int) -> NDArray[np.float64]:
    if weight is None:
        return np.ones(())
    array = _array("weight", weight)
    if array.dtype.kind not in "biuf" and array.size:
        raise OutputError(f"weight is {array.dtype}, not numbers")
    if array.shape not in ((), (entries,)):
        raise OutputError(f"weight of shape {array.shape} does not fit values of shape {(entries,)}")
    return array.astype(np.float64, copy=False)


def _joined(blocks: Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_] | None]], entries: int) -> Bins:
    parts = list(blocks)
    flats = [flat for _, flat, _ in parts] or [np.zeros(0, np.intp)]
    masks = [kept for _, _, kept in parts if kept is not None]
    return Bins(np.concatenate(flats), np.concatenate(masks) if masks else None, entries)


# Bins: from values to hist's own index, -1 for underflow, size for overflow -------------------------------------------

Binner: TypeAlias = Callable[[NDArray[Any]], NDArray[np.signedinteger[Any]]]


def _binner(axis: Axis, fields: Header) -> Binner:
    """The index of values on one axis, bit for bit hist's; ``axis.index`` is right for all but unknown categories."""
    kind, plain = fields["type"], not fields["circular"] and fields["overflow"]
    if kind in ("StrCategory", "IntCategory"):
        return functools.partial(_category_index, list(axis))
    if kind == "Variable" and plain and len(axis.edges) <= _FEW_EDGES:
        return functools.partial(_edge_index, [float(edge) for edge in axis.edges])
    if kind == "Regular" and plain and fields["transform"] == "None":
        return functools.partial(_regular_index, *limits(fields), fields["bins"])
    index: Binner = axis.index
    return index


def _category_index(categories: list[Any], values: NDArray[Any]) -> NDArray[np.signedinteger[Any]]:
    count = len(categories)
    index = np.full(values.shape, count, np.int8 if count < 128 else np.int32)
    for number, category in enumerate(categories):
        # Arithmetic, because a masked store takes six times longer.
        index -= (values == category).view(np.int8) * index.dtype.type(count - number)
    return index


def _edge_index(edges: list[float], values: NDArray[np.float64]) -> NDArray[np.int8]:
    # Counting edges above the value, not below it, sends NaN to the overflow bin as hist does.
    index = np.full(values.shape, len(edges) - 1, np.int8)
    for edge in edges:
        index -= (values < edge).view(np.int8)
    return index


def _regular_index(start: float, stop: float, bins: int, values: NDArray[np.float64]) -> NDArray[np.int32]:
    """Boost's own steps in its own order; for z < 1 the product z * bins never rounds up to bins."""
    with np.errstate(over="ignore", invalid="ignore"):
        z = values - start
        z /= stop - start
        z *= bins
    np.clip(z, -1, bins, out=z)
    np.floor(z, out=z)
    if np.isnan(z.max(initial=0)):
        z[np.isnan(z)] = bins
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
    if array.size and not (array.min() >= -(2**31) and array.max() < 2**31):
        raise OutputError(f"{what} takes integers of 32 bits, got {array.min()} to {array.max()}")
    return array.astype(np.int32, copy=False)


def _strings(what: str, array: NDArray[Any], kind: str) -> NDArray[Any]:
    if kind == "S":
        return np.char.decode(array, "utf-8")
    if kind in "UT" or kind == "empty" or (kind == "O" and all(isinstance(text, str) for text in array.flat)):
        return array.astype(np.str_, copy=False)
    raise OutputError(f"{what} takes strings, got {array.dtype}")


class _Layout:
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
        self._first = 0  # the flat number of the bin whose index is 0 on every axis
        for axis, extent in zip(self.axes, self.extents, strict=True):
            self._first = self._first * extent + axis.traits.underflow
        self._names = [f"axis {number} ({axis.name!r})" for number, axis in enumerate(self.axes)]

    def header(self) -> list[Header]:
        axes: list[Header] = json.loads(self._described)
        return axes

    def columns(self, values: Sequence[Any], by_name: Mapping[str, Any]) -> tuple[list[NDArray[Any]], int]:
        """One checked array per axis (one entry: the same for all) and the number of entries."""
        wanted = [axis.name for axis in self.axes]
        named = wanted[len(values) :]
        if len(values) > len(wanted) or set(named) != set(by_name) or len(named) != len(by_name):
            raise OutputError(
                f"got {len(values)} values by position and {sorted(by_name)} by name; the axes are {wanted}"
            )
        arrays = [
            _array(name, value)
            for name, value in zip(self._names, [*values, *(by_name[name] for name in named)], strict=True)
        ]
        shapes = {name: array.shape for name, array in zip(self._names, arrays, strict=True)}
        lengths = {array.size for array in arrays if array.ndim} or {1}
        if len(lengths) > 1:
            raise OutputError(f"values of different shapes: {shapes}")
        prepared = [_prepared(*each) for each in zip(self.axes, self._names, arrays, strict=True)]
        return [np.atleast_1d(array) for array in prepared], lengths.pop()

    def blocks(
        self, columns: list[NDArray[Any]], entries: int
    ) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_] | None]]:
        """Start, bins and, where an axis without flow drops entries, the mask of those kept, block by block."""
        for start in range(0, entries, BLOCK):
            length = min(BLOCK, entries - start)
            parts = [column if len(column) == 1 else column[start : start + length] for column in columns]
            flat, kept = self._block(parts)
            if len(flat) != length:
                flat = np.broadcast_to(flat, (length,))
            if kept is not None:
                kept = np.broadcast_to(kept, (length,))
                flat = flat[kept]
            yield start, flat, kept

    def _block(self, parts: list[NDArray[Any]]) -> tuple[NDArray[np.intp], NDArray[np.bool_] | None]:
        flat, kept = np.zeros(1, np.int32 if self.size < 2**31 else np.intp), None
        steps = zip(self.axes, self._binners, self.extents, self._drops, parts, strict=True)
        for axis, binner, extent, drops, part in steps:
            index = binner(part)
            if drops:
                inside = (index >= -int(axis.traits.underflow)) & (index < axis.size + int(axis.traits.overflow))
                kept = inside if kept is None else kept & inside
            flat = flat * extent + index
        return np.add(flat, self._first, dtype=np.intp), kept


def _drops(axis: Axis) -> bool:
    """Whether entries may have no bin."""
    if isinstance(axis, CATEGORIES) or axis.traits.circular:
        return not axis.traits.overflow
    return not (axis.traits.underflow and axis.traits.overflow)


@functools.lru_cache(maxsize=256)
def _layout(described: str) -> _Layout:
    return _Layout(described)
