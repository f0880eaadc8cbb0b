"""The exact histogram: filled like ``hist.Hist`` with Weight storage, with the same bits in any order and grouping.

The bins are hist's own, the sums of weights and of squared weights are :class:`campaign.histogram.exact_sum.ExactSum`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hist
import numpy as np
from numpy.typing import ArrayLike, NDArray

from campaign.errors import AxesMismatch, OutputError
from campaign.histogram.axes import Axis, Header, describe, difference
from campaign.histogram.binning import Known, Layout, array_of, layout
from campaign.histogram.exact_sum import BLOCK, ExactSum, Target, add_block
from campaign.histogram.extraction import scratch

__all__ = ["Bins", "Histogram", "Summary", "fill_together"]

_SPARSE = 8  # this many times fewer entries than bins: no array of all bins is worth making
_FORMAT = 1
_QUIET = np.errstate(over="ignore", under="ignore", invalid="ignore")  # 1e300 and NaN have their bins and sums
_SUMS, _ARRAYS = ("sumw", "sumw2"), ("limbs", "first", "nonfinite")  # a state's arrays are named sumw.limbs and so on


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """The bin of each entry, computed once by :meth:`Histogram.index` and used for any number of weights.

    Args:
        flat: Number of the bin (flow bins included) of every entry that has one, shape (kept,).
        kept: Which entries have a bin, shape (entries,); None if all have.
        entries: Number of entries.
    """

    flat: NDArray[np.intp]
    kept: NDArray[np.bool_] | None
    entries: int


class Summary(NamedTuple):
    """The result of :meth:`Histogram.summary`.

    Args:
        sha256: Digest of the content.
        holds: Whether there is anything in it.
        overflown: Bins that hold an infinite sum although no weight was infinite: float64 does not reach so far.
    """

    sha256: str
    holds: bool
    overflown: int


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
        self._start(layout(json.dumps([describe(number, axis) for number, axis in enumerate(axes)])), name)

    def _start(self, layout: Layout, name: str) -> None:
        self._layout, self.name = layout, name
        self._sumw, self._sumw2 = ExactSum(layout.size), ExactSum(layout.size)

    def empty(self) -> Histogram:
        """A histogram with the same axes and name, and nothing in it."""
        new = Histogram.__new__(Histogram)
        new._start(self._layout, self.name)
        return new

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Copies of the axes."""
        return tuple(copy.deepcopy(axis) for axis in self._layout.axes)

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many weights were ``nan``, ``posinf`` or ``neginf``."""
        return {kind: int(counts.sum()) for kind, counts in self._sumw.nonfinite.items()}

    @_QUIET
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
        columns, entries = self._columns(values, by_name)
        weights = _weights(weight, entries)
        for start, flat, kept in self._layout.blocks(columns, entries):
            self._add_block(flat, _part(weights, start, kept))
        return self

    @_QUIET
    def fill_each(
        self, along: str, weights: Mapping[Any, ArrayLike | None], *values: ArrayLike, **by_name: ArrayLike
    ) -> Histogram:
        """Adds the same entries once per category of one axis, each time with the weight of that category.

        Equal to one :meth:`fill` per category; where the entries lie on the other axes is found out once.

        Args:
            along: Name of a category axis.
            weights: By category: one weight per entry, or one for all; None counts entries.
            *values: One flat array or scalar per axis, that axis left out.
            **by_name: Values by the names of the axes not given by position.

        Returns:
            This histogram.

        Raises:
            OutputError: Shapes, types or categories do not fit; nothing was filled.
        """
        if not weights:
            return self
        first, *_ = wanted = list(weights)
        number, distances = self._layout.categories(along, wanted)
        if number <= len(values):
            values = (*values[:number], first, *values[number:])
        else:
            by_name = {**by_name, along: first}
        columns, entries = self._columns(values, by_name)
        arrays = [_weights(weight, entries) for weight in weights.values()]
        for start, flat, kept in self._layout.blocks(columns, entries):
            for distance, each in zip(distances, arrays, strict=True):
                moved = np.add(flat, distance, out=scratch.moved[: len(flat)])
                self._add_block(moved, _part(each, start, kept))
        return self

    @_QUIET
    def index(self, *values: ArrayLike, **by_name: ArrayLike) -> Bins:
        """The bins of entries, to be filled with several weights by :meth:`fill_at`."""
        columns, entries = self._columns(values, by_name)
        flat = np.empty(entries, np.intp)
        parts, masks = [], []
        for _, part, kept in self._layout.blocks(columns, entries, into=flat):
            if kept is not None:
                parts.append(part)
                masks.append(kept)
        return Bins(np.concatenate(parts), np.concatenate(masks), entries) if masks else Bins(flat, None, entries)

    @_QUIET
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

    def _columns(self, values: Sequence[Any], by_name: Mapping[str, Any]) -> tuple[list[NDArray[Any]], int]:
        columns, entries = self._layout.columns(values, by_name)
        return columns, 1 if entries is None else entries

    def _add_block(self, flat: NDArray[np.intp], weights: NDArray[np.float64]) -> None:
        if weights.ndim == 0 and len(flat) * _SPARSE >= self._layout.size:
            counts, weight = np.bincount(flat, minlength=self._layout.size), float(weights)
            self._sumw.add_counts(counts, weight)
            self._sumw2.add_counts(counts, weight * weight)
        else:
            add_block([(self._sumw, self._sumw2, flat)], weights if weights.ndim else np.full(flat.shape, weights))

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
        """The histogram as a header for JSON (floats in hexadecimal) and arrays, to be stored.

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
        new._start(layout(json.dumps(header["axes"])), header["name"])
        new._sumw, new._sumw2 = (
            ExactSum.from_state({key: arrays[f"{kind}.{key}"] for key in _ARRAYS}) for kind in _SUMS
        )
        if not new._sumw.size == new._sumw2.size == new._layout.size:
            raise OutputError(f"sums of {new._sumw.size} bins for axes of {new._layout.size} bins", where=new.name)
        return new

    def sha256(self) -> str:
        """Digest of the content: axes without labels, values, variances; not of the name or the way it was filled."""
        return self.summary().sha256

    def summary(self) -> Summary:
        """Sums over all bins, computed in one pass."""
        digest = hashlib.sha256(self._layout.key.encode())
        holds, infinite = False, np.zeros(self._layout.size, bool)
        for total in (self._sumw, self._sumw2):
            rounded = total.round()
            holds = holds or bool(rounded.any())
            infinite |= np.isinf(rounded)
            rounded[np.isnan(rounded)] = math.nan  # one bit pattern for all NaN
            digest.update(rounded.astype("<f8").tobytes())
        if infinite.any():
            for counts in self._sumw.nonfinite.values():
                infinite &= counts == 0
        return Summary(digest.hexdigest(), holds, int(np.count_nonzero(infinite)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Histogram.from_state, self.state()

    def _repr_html_(self) -> str:
        from campaign.histogram import plot

        return plot.as_html(self.to_hist())

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        from campaign.histogram import plot

        printer.text(plot.as_text(self.to_hist()))

    def __repr__(self) -> str:
        return f"Histogram({', '.join(map(repr, self._layout.axes))}, name={self.name!r})"


@_QUIET
def fill_together(
    histograms: Iterable[Histogram], columns: Mapping[str, ArrayLike], weight: ArrayLike | None = None
) -> None:
    """Adds the same entries with the same weight to several histograms.

    Equal to one :meth:`Histogram.fill` per histogram; where entries lie on axes that the histograms begin with alike
    is found out once, and the weight is cut into exact parts once.

    Args:
        histograms: Each takes the columns that its axes are named after.
        columns: By name of axis: one flat array or scalar; columns without an axis are left alone.
        weight: One per entry, or one for all; None counts entries.

    Raises:
        OutputError: Columns lack, or shapes or types do not fit; nothing was filled.
    """
    ready: dict[str, NDArray[Any]] = {}
    taken = []
    for histogram in histograms:
        names = [axis.name for axis in histogram._layout.axes]
        chosen = {name: columns[name] for name in names if name in columns}
        taken.append((histogram, *histogram._layout.columns((), chosen, ready)))
    if not taken:
        return
    lengths = {entries for *_, entries in taken if entries is not None}
    if len(lengths) > 1:
        raise OutputError(f"the columns of these histograms differ in length: {sorted(lengths)}")
    entries = lengths.pop() if lengths else 1
    weights, flats = _weights(weight, entries), np.empty((len(taken), min(entries, BLOCK)), np.intp)
    for start in range(0, entries, BLOCK):
        known: Known = {}
        # Entries without a bin are dropped before the weights are cut: histograms that drop the same ones share cuts.
        alike: dict[int, tuple[NDArray[np.float64], list[Target]]] = {}
        for (histogram, parts, _), out in zip(taken, flats[:, : entries - start], strict=True):
            mask = histogram._layout.block(parts, start, out, known)
            kept = None if mask is None else np.broadcast_to(mask, out.shape)
            flat = out if kept is None else out[kept]
            if weights.ndim == 0:
                histogram._add_block(flat, weights)
            else:
                _, targets = alike.setdefault(id(mask), (_part(weights, start, kept), []))
                targets.append((histogram._sumw, histogram._sumw2, flat))
        for part, targets in alike.values():
            add_block(targets, part)


def _part(weights: NDArray[np.float64], start: int, kept: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """The weights of a block's entries that have a bin."""
    if weights.ndim == 0:
        return weights
    part = weights[start : start + BLOCK]
    return part if kept is None else part[kept]


def _add_values(total: ExactSum, index: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Enters one number per bin; integers past 2**53 in two exact halves."""
    flat = values.reshape(-1)
    if flat.dtype.kind in "iu":
        low = flat & 0xFFFFFFFF
        total.add(index, low.astype(np.float64))
        flat = flat - low
    total.add(index, flat.astype(np.float64))


def _weights(weight: ArrayLike | None, entries: int) -> NDArray[np.float64]:
    if weight is None:
        return np.ones(())
    array = array_of("weight", weight)
    if array.dtype.kind not in "biuf" and array.size:
        raise OutputError(f"weight is {array.dtype}, not numbers")
    if array.shape not in ((), (entries,)):
        raise OutputError(f"weight of shape {array.shape} does not fit values of shape {(entries,)}")
    return array.astype(np.float64, copy=False)
