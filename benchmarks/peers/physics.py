"""The physics of the benchmark, the same functions for everybody: select jets, make a model's inputs, fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import awkward as ak
import hist
import numpy as np

TREE = "nominal"
BRANCHES = ["jet_pt", "jet_eta", "jet_nTracks", "jet_trackWidth", "jet_trackC1", "weight"]
_JET = {"pt": "jet_pt", "eta": "jet_eta", "ntrk": "jet_nTracks", "width": "jet_trackWidth", "c1": "jet_trackC1"}


def select(events: ak.Array) -> dict[str, np.ndarray]:
    """Jets that can be tagged, one row each: flat arrays of shape (jets,), pt in GeV, with their event's weight."""
    jets = ak.zip({name: events[branch] for name, branch in _JET.items()})
    good = (jets.pt > 44_800) & (np.abs(jets.eta) < 2.1) & (jets.ntrk > 1)
    selected = ak.flatten(jets[good])
    columns = {name: ak.to_numpy(selected[name]) for name in _JET}
    columns["pt"] = columns["pt"] / np.float32(1000)
    columns["weight"] = np.repeat(ak.to_numpy(events["weight"]), ak.to_numpy(ak.sum(good, axis=1)))
    return columns


def features(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The model's input X: float32, shape (jets, 4), each of the order of one."""
    scaled = (columns["pt"] / 50, columns["ntrk"] / 12, columns["width"] * 15, columns["c1"] * 4)
    return np.stack(scaled, axis=1).astype(np.float32)


def fill(columns: Mapping[str, np.ndarray], score: np.ndarray, histogram: Callable[..., Any]) -> dict[str, Any]:
    """The histograms, made by ``histogram(*axes)`` and filled like ``hist.Hist``.

    Args:
        columns: What `select` returned.
        score: The model's answer, shape (jets,).
        histogram: Makes one: `weighted` for hist's own, or ``campaign.Histogram``.
    """
    axis = hist.axis.Regular
    weight = columns["weight"]
    return {
        "score": histogram(axis(50, 0, 1, name="score")).fill(score, weight=weight),
        "score_by_pt": histogram(axis(20, 0, 400, name="pt"), axis(25, 0, 1, name="score")).fill(
            columns["pt"], score, weight=weight
        ),
        "eta": histogram(axis(42, -2.1, 2.1, name="eta")).fill(columns["eta"], weight=weight),
        "tracks": histogram(hist.axis.Integer(0, 60, name="ntrk")).fill(columns["ntrk"]),  # entries, not weights
    }


def weighted(*axes: Any) -> hist.Hist:
    """Make hist's own histogram of sums of weights and of squared weights."""
    return hist.Hist(*axes, storage=hist.storage.Weight())
