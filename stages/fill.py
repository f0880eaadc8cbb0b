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
from campaign.histogram.histogram import Histogram, fill_together
from campaign.outputs.histograms import Histograms
from campaign.protocols import WEIGHT, Context

_RESERVED = ("weight", "sample", "threads")  # hist takes these for fill's own arguments: no axis is named so


class _Wrong(ValueError):
    """A histogram that cannot be made; ``key`` leads to it among the stage's options."""

    def __init__(self, message: str, *key: str) -> None:
        super().__init__(message)
        self.key = ("histograms", *key)


def _sentence(error: Exception) -> str:
    if not isinstance(error, OutputError):
        return str(error)
    return f"{error.message}; {error.remedy}" if error.remedy else error.message


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
        if self.weight is not None and not isinstance(self.weight, str):
            raise ValueError(f"'weight' is {self.weight!r}, not the name of a column")
        if self.weight == WEIGHT:
            raise ValueError(
                f"'weight: {WEIGHT}' would multiply by ctx.weight twice: fill does it by itself; take it out"
            )
        if not isinstance(self.histograms, Mapping):
            raise _Wrong(f"'histograms' is {self.histograms!r}; write {{name: {{column: axis}}}}")
        for name, axes in self.histograms.items():
            if not axes or not isinstance(axes, Mapping):
                raise _Wrong(f"histogram {name} has no axis; write {{column: axis}}", name)
            for column, given in axes.items():
                try:
                    Histogram(axis(column, given))
                except (ValueError, TypeError, KeyError, OutputError) as error:
                    raise _Wrong(f"histogram {name}, axis {column}: {_sentence(error)}", name, column) from error

    def __call__(self, batch: Any, ctx: Context) -> Histograms:
        """Fill one range."""
        weight = np.ones(len(batch)) if self.weight is None else numbers(batch, self.weight)
        if ctx.weight in ak.fields(batch):
            weight = weight * numbers(batch, ctx.weight)
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


def numbers(batch: Any, column: str) -> np.ndarray[Any, Any]:
    """A column of one number per row: float64, shape (rows,). Text that looks like numbers is refused."""
    array = flat(batch, column)
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise OutputError(
            f"the weight '{column}' is of type {ak.type(batch[column])}, one number per row is needed",
            remedy="make it a number in the stage before",
        )
    return array.astype(np.float64, copy=False)


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
        ValueError: It is not one of the three forms, or hist has no such axis.
    """
    named = {"label": name} if name in _RESERVED else {"name": name}
    if set(given) == {"bins", "range"}:
        bins, (low, high) = given["bins"], given["range"]
        if isinstance(bins, bool) or int(bins) != float(bins):
            raise ValueError(f"{bins!r} is no number of bins")
        return hist.axis.Regular(int(bins), float(low), float(high), **named)
    if set(given) == {"edges"}:
        return hist.axis.Variable([float(e) for e in _listed("edges", given["edges"])], **named)
    if set(given) == {"categories"} and len(_listed("categories", given["categories"])):
        values = [v.item() if isinstance(v, np.generic) else v for v in given["categories"]]
        text = isinstance(values[0], str)
        for number, value in enumerate(values):
            _check_category(value, text, values[:number])
        return hist.axis.StrCategory(values, **named) if text else hist.axis.IntCategory(values, **named)
    raise ValueError(f"found the keys {sorted(given)}; give bins and range, or edges, or categories")


def _listed(key: str, value: Any) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        raise ValueError(f"'{key}' is {value!r}, not a list")
    return value


def _check_category(value: Any, text: bool, before: Sequence[Any]) -> None:
    """Refuse what hist refuses without saying why, and what it takes for another category."""
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise ValueError(f"the category {value!r} is neither an integer nor text; in YAML, text stands in quotes")
    if isinstance(value, str) is not text:
        raise ValueError(f"the categories {before[0]!r} and {value!r} are text and a number; put quotes around all")
    if value in before:
        raise ValueError(f"the category {value!r} stands there twice; list each category once")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError(f"the category {value} is beyond 32 bits, which is what an axis holds; use text")
