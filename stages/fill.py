"""The stage ``fill``: histograms of columns, described in the campaign file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import hist
import numpy as np

from campaign.errors import OutputError
from campaign.histogram import Histogram, fill_together
from campaign.outputs import Histograms
from campaign.protocols import Context

_RESERVED = ("weight", "sample", "threads")  # hist takes these for fill's own arguments: no axis is named so


@dataclass(frozen=True)
class Fill:
    """Fill histograms of flat columns, exactly.

    Args:
        histograms: ``{name: {column: axis, ...}}``; an axis is ``{bins: N, range: [low, high]}``, ``{edges: [...]}``
            or ``{categories: [...]}`` (numbers or text), in the order of the histogram's axes.
        weight: Column of the event weight; None: 1. The variation's weight is multiplied in by itself.
    """

    histograms: Mapping[str, Mapping[str, Mapping[str, Any]]]
    weight: str | None = None

    def __post_init__(self) -> None:
        for name, axes in self.histograms.items():
            for column, given in axes.items():
                try:
                    axis(column, given)
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"histogram {name}, axis {column}: {error}") from error
            if not axes:
                raise ValueError(f"histogram {name} has no axis")

    def __call__(self, batch: Any, ctx: Context) -> Histograms:
        """Fill one range."""
        weight = np.ones(len(batch)) if self.weight is None else flat(batch, self.weight).astype(float)
        if ctx.weight in ak.fields(batch):
            weight = weight * flat(batch, ctx.weight)
        filled = Histograms({name: empty(axes) for name, axes in self.histograms.items()})
        wanted = {column for axes in self.histograms.values() for column in axes}
        columns = {column: flat(batch, column) for column in wanted}
        named = [name for name, axes in self.histograms.items() if not set(axes) & set(_RESERVED)]
        fill_together([filled[name] for name in named], columns, weight)
        for name in filled.keys() - named:
            filled[name].fill(*(columns[column] for column in self.histograms[name]), weight=weight)
        return filled


def flat(batch: Any, column: str) -> np.ndarray[Any, Any]:
    """A column of one number or text per row, shape (rows,).

    Raises:
        OutputError: Its entries vary in length, or some are missing.
    """
    values = batch[column]
    try:
        array = ak.to_numpy(values, allow_missing=False)
    except ValueError as error:
        raise OutputError(
            f"the column '{column}' is of type {ak.type(values)}, one value per row is needed",
            remedy="flatten or fill it in the stage before",
        ) from error
    return np.asarray(array)


def empty(axes: Mapping[str, Mapping[str, Any]]) -> Histogram:
    """A histogram with these axes and nothing in it."""
    return _made(json.dumps(axes, default=_plain)).empty()


@functools.lru_cache(maxsize=256)
def _made(axes: str) -> Histogram:
    # Describing and comparing axes takes longer than filling ten thousand rows: once per process, not once per range.
    return Histogram(*(axis(column, given) for column, given in json.loads(axes).items()))


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays, and mappings that are no dict, as JSON has them."""
    return dict(value) if isinstance(value, Mapping) else value.tolist()


def axis(name: str, given: Mapping[str, Any]) -> Any:
    """A hist axis from its description.

    Raises:
        ValueError: It is none of the three forms.
    """
    named = {"label": name} if name in _RESERVED else {"name": name}
    if set(given) == {"bins", "range"}:
        low, high = given["range"]
        return hist.axis.Regular(int(given["bins"]), float(low), float(high), **named)
    if set(given) == {"edges"}:
        return hist.axis.Variable([float(e) for e in given["edges"]], **named)
    if set(given) == {"categories"} and given["categories"]:
        values: Sequence[Any] = given["categories"]
        text = all(isinstance(v, str) for v in values)
        return hist.axis.StrCategory(values, **named) if text else hist.axis.IntCategory(values, **named)
    raise ValueError(f"found the keys {sorted(given)}; give bins and range, or edges, or categories")
