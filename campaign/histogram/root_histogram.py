"""Converts one histogram of numeric axes to ROOT's TH1D, TH2D or TH3D, each axis with underflow and overflow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray
from uproot.writing.identify import to_TAxis, to_TH1x, to_TH2x, to_TH3x

Floats = NDArray[np.float64]

_MAKE = {1: to_TH1x, 2: to_TH2x, 3: to_TH3x}
_LETTERS = "xyz"
_LARGEST = 1 << 30  # bytes of one object in a ROOT file
_QUIET = np.errstate(over="ignore", invalid="ignore", divide="ignore")  # NaN and infinite contents have NaN statistics


def refusal(axes: Sequence[Any]) -> str:
    """Why ROOT has no histogram with these numeric axes; empty: it has."""
    if not 1 <= len(axes) <= 3:
        return f"{len(axes)} numeric axes; ROOT holds 1 to 3"
    if any(axis.traits.circular for axis in axes):
        return "ROOT has no circular axes"
    if any(not len(axis) for axis in axes):
        return "ROOT has no axes without bins"
    if any(axis.edges[0] > axis.edges[-1] for axis in axes):
        return "ROOT has no axes from high to low"
    if 16 * np.prod([len(axis) + 2.0 for axis in axes]) > _LARGEST:
        return "ROOT holds no more than 1 GiB in one histogram"
    return ""


@_QUIET
def root_histogram(axes: Sequence[Any], values: Floats, variances: Floats) -> Any:
    """The object that uproot writes as TH1D, TH2D or TH3D.

    ``fEntries`` is the number of entries where all weights are 1, else that of effective entries (flow bins included):
    how often a weighted histogram was filled, its sums do not say. The other statistics are made from the bins without
    flow and their centres, as ``TH1::ResetStats`` does.

    Args:
        axes: Of numbers, one to three.
        values: Sums of weights, flow bins included where an axis has them.
        variances: Sums of squared weights, likewise.
    """
    values, variances = (_with_flow(axes, array) for array in (values, variances))
    entries, squares = float(values.sum()), float(variances.sum())
    if not np.array_equal(values, variances) and squares:
        entries = (entries / squares**0.5) ** 2
    inside = (slice(1, -1),) * len(axes)
    return _MAKE[len(axes)](
        fName=None,
        fTitle="",
        data=_root_order(values),
        fSumw2=_root_order(variances),
        fEntries=entries,
        fTsumw2=float(variances[inside].sum()),
        **_moments(axes, values[inside]),
        **{f"f{letter.upper()}axis": _axis(letter, axis) for letter, axis in zip(_LETTERS, axes, strict=False)},
    )


def _with_flow(axes: Sequence[Any], array: Floats) -> Floats:
    """With zeros for the flow bins that an axis does not have."""
    padded: Floats = np.pad(array, [(int(not a.traits.underflow), int(not a.traits.overflow)) for a in axes])
    return padded


def _root_order(array: Floats) -> NDArray[Any]:
    flat: NDArray[Any] = array.T.reshape(-1).astype(">f8")
    return flat


def _axis(letter: str, axis: Any) -> Any:
    # ROOT computes the edges of equal bins from the first and the last one.
    regular = isinstance(axis, hist.axis.Regular) and axis.transform is None
    edges = axis.edges.astype(np.float64)
    title = axis.label or axis.name or ""
    return to_TAxis(
        fName=f"{letter}axis", fTitle=str(title), fNbins=len(axis), fXmin=float(edges[0]), fXmax=float(edges[-1]),
        fXbins=None if regular else edges,
    )  # fmt: skip


def _moments(axes: Sequence[Any], values: Floats) -> dict[str, float]:
    """Sums of weights times powers of the bins' centres, by ROOT's names."""
    found = {"fTsumw": float(values.sum())}
    places = np.nonzero(values)  # an empty bin that reaches to infinity counts as nothing, not as NaN
    weights = values[places]
    centres = {
        letter: ((axis.edges[:-1] + axis.edges[1:]) / 2)[place]
        for letter, axis, place in zip(_LETTERS, axes, places, strict=False)
    }
    for letter, x in centres.items():
        found[f"fTsumw{letter}"] = float((weights * x).sum())
        found[f"fTsumw{letter}2"] = float((weights * x * x).sum())
    for (first, x), (second, y) in itertools.combinations(centres.items(), 2):
        found[f"fTsumw{first}{second}"] = float((weights * x * y).sum())
    return found
