"""Converts what a stage returned to Columns, Histograms or Counts, and starts the partial of that kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import hist
import numpy as np

from campaign.errors import OutputError
from campaign.histogram.histogram import Histogram
from campaign.outputs.columns import Columns, ColumnsPartial, _is_array, as_columns
from campaign.outputs.counts import Counts, CountsPartial, what
from campaign.outputs.histograms import Histograms, HistogramsPartial
from campaign.util.lazy import LazyModule
from campaign.util.messages import listed

if TYPE_CHECKING:
    import pyarrow.parquet as pq
else:
    pq = LazyModule("pyarrow.parquet")

Output = Columns | Histograms | Counts


def as_output(value: Any, stage: str) -> Output:
    """The value that a stage returned, as one of the three kinds.

    Raises:
        OutputError: It is not one of them; says what it is.
    """
    try:
        return _as_output(value, stage)
    except OutputError as error:
        error.where = error.where or f"stage {stage}"
        error.stage = error.stage or stage
        raise


def _as_output(value: Any, stage: str) -> Output:
    if isinstance(value, Columns) and value:
        return Columns(value)  # looked at again: columns may have been added after it was made
    if isinstance(value, Mapping) and (odd := [name for name in value if not isinstance(name, str)]):
        text = f"returned a dict with the key {odd[0]!r}, which is no text"  # in JSON 1 and "1" would be one
        raise OutputError(text, where=f"stage {stage}", remedy=f"call it {str(odd[0])!r}, say")
    if isinstance(value, (Histograms, Counts)):
        return value
    if isinstance(value, ak.Array) and ak.fields(value):
        return as_columns(value)
    if isinstance(value, Mapping) and value:
        if all(isinstance(v, (Histogram, hist.BaseHist)) for v in value.values()):
            return Histograms(value)
        if all(isinstance(v, (int, float, np.integer, np.floating)) for v in value.values()):
            return Counts(value)
        if all(_is_array(v) for v in value.values()):
            return Columns(value)
        kinds = listed(f"{name}: {type(v).__name__}" for name, v in value.items())
        raise OutputError(f"returned a dict of different things ({kinds})", where=f"stage {stage}", remedy=_RETURN)
    raise OutputError(
        f"returned {what(value)}",
        where=f"stage {stage}",
        remedy=_RETURN,
    )


_RETURN = "return a dict of equal-length arrays, Histograms or Counts"


def start_partial(first: Output, path: Callable[[], Path]) -> Partial:
    """A partial of the kind of the first range's value; columns are streamed to a file beside ``path()``."""
    if isinstance(first, Columns):
        return ColumnsPartial(path())
    return HistogramsPartial() if isinstance(first, Histograms) else CountsPartial()


Partial = HistogramsPartial | CountsPartial | ColumnsPartial
"""One partial being made, range by range: columns in a file of their own, the others for a pack."""


def contents_digest(parts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over named digests, in the order given."""
    state = hashlib.sha256()
    for name, value in parts:
        state.update(f"{name} {value}\n".encode())
    return state.hexdigest()
