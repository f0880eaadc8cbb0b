"""Calibration of a quark/gluon tagger with di-jets: the stages of `campaign.yaml`, from minitree to scale factors."""

from __future__ import annotations

import json
from typing import Any

import awkward as ak
import corrections
import hist
import matrix_method
import numpy as np
import plots

from campaign import Histogram, Histograms, fill_together
from campaign.errors import CampaignError

PT_EDGES = [500, 600, 800, 1000, 1200, 1500, 2000]
PT_NAMES = [f"{low}-{high} GeV" for low, high in zip(PT_EDGES, PT_EDGES[1:], strict=False)]
WORKING_POINTS = [0.5, 0.6, 0.7, 0.8]
GLUON, LIGHT, CHARM, BOTTOM, DATA = FLAVOURS = [21, 1, 4, 5, -9999]
REWEIGHTED = ["ntrk", "bdt", "score"]
OPTIONS = ["none", *(f"{variable}_{flavour}" for variable in REWEIGHTED for flavour in ("quark", "gluon"))]
NOMINAL = "score_quark"
MAX_DROPPED = 1e-3

PT = hist.axis.Variable(PT_EDGES, name="pt_bin", label="jet pT [GeV]", flow=False)
LEADING = hist.axis.Boolean(name="is_leading")
FORWARD = hist.axis.Boolean(name="is_forward")
FLAVOUR = hist.axis.IntCategory(FLAVOURS, name="flavour")
OPTION = hist.axis.StrCategory(OPTIONS, name="option", flow=False)
VALUES = {
    "pt": hist.axis.Regular(60, 500, 2000, name="pt", label="pT [GeV]"),
    "eta": hist.axis.Regular(42, -2.1, 2.1, name="eta", label="eta"),
    "ntrk": hist.axis.Regular(30, 0.5, 60.5, name="ntrk", label="number of tracks"),
    "width": hist.axis.Regular(40, 0, 0.4, name="width", label="track width"),
    "c1": hist.axis.Regular(40, 0, 0.5, name="c1", label="C1"),
    "bdt": hist.axis.Regular(40, -1, 1, name="bdt", label="BDT"),
    "score": hist.axis.Regular(50, 0, 1, name="score", label="tagger score"),
}


def select(events: ak.Array, ctx: Any) -> dict[str, Any]:
    """The two leading jets of each good di-jet event, one row per jet."""
    events = events[["jet_fire", "pu_weight", ctx.weight, *(f"jet_{name}" for name in _JET)]]
    events = events[(events.jet_fire == 1) & (ak.num(events.jet_pt) >= 2)]
    jet = {name: ak.to_numpy(events[f"jet_{name}"][:, :2]).reshape(-1, 2) for name in _JET}
    pt, eta = jet["pt"] / np.float32(1000), np.abs(jet["eta"])
    weight = _event_weight(events, ctx.metadata)
    good = (pt[:, 1] > 500) & (pt[:, 0] < 2000) & (pt[:, 0] < 1.5 * pt[:, 1]) & (np.abs(weight) < 100)
    good &= ((eta < 2.1) & (jet["cleaning"] == 2) & (jet["nTracks"] > 1)).all(axis=1)
    if ctx.metadata["is_mc"]:
        good &= (jet["PartonTruthLabelID"] > 0).all(axis=1)
    first_is_forward = eta[:, 0] > eta[:, 1]
    rows = {column: jet[name] for name, column in _JET.items() if column} | {"pt": pt}
    rows |= {"is_forward": np.stack([first_is_forward, ~first_is_forward], axis=1)}
    rows |= {"is_leading": np.broadcast_to([True, False], pt.shape)}
    columns = {name: values[good].ravel() for name, values in rows.items()}
    per_event = {"weight": weight, ctx.weight: ak.to_numpy(events[ctx.weight])}
    return columns | {name: np.repeat(values[good], 2) for name, values in per_event.items()}


_JET = {
    "pt": "pt", "eta": "eta", "nTracks": "ntrk", "trackWidth": "width", "trackC1": "c1", "trackBDT": "bdt",
    "PartonTruthLabelID": "label", "cleaning": None,
}  # fmt: skip


def _event_weight(events: ak.Array, sample: dict[str, Any]) -> Any:
    """Data events that each event of this sample stands for; 1 in data, whatever its branches say."""
    if not sample["is_mc"]:
        return np.ones(len(events))
    produced = sample["luminosity"] * sample["cross_section"] * sample["filter_efficiency"]
    return ak.to_numpy(events.pu_weight).astype(np.float64) * (produced / sample["sum_of_weights"])


def _where(jets: ak.Array) -> dict[str, Any]:
    """Coordinates that every histogram of this analysis shares, by axis."""
    label = ak.to_numpy(jets.label)
    flavour = np.where((label > 0) & (label < CHARM), LIGHT, label)
    return {"pt_bin": jets.pt, "is_leading": jets.is_leading, "is_forward": jets.is_forward, "flavour": flavour}


def fill_nominal(jets: ak.Array, ctx: Any) -> Histograms:
    """Every variable, per pT bin, region and flavour."""
    filled = {name: Histogram(PT, LEADING, FORWARD, FLAVOUR, axis) for name, axis in VALUES.items()}
    columns = _where(jets) | {name: jets[name] for name in VALUES}
    fill_together(filled.values(), columns, weight=jets.weight * jets[ctx.weight])
    return Histograms(filled)


def reweighting_factors(merged: Any, _ctx: Any) -> dict[str, Any]:
    """Per option, the factor of a central jet by (pT bin, bin of the variable), from simulation alone."""
    tables: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    for variable in REWEIGHTED:
        w, _ = spectra(merged["mc"][variable])
        for i, flavour in enumerate(("quark", "gluon")):
            option = f"{variable}_{flavour}"
            pairs = [matrix_method.reweighting(w[b, 0, i], w[b, 1, i]) for b in range(len(PT_NAMES))]
            tables[option], dropped[option] = (np.array(part) for part in zip(*pairs, strict=True))
            worst = int(np.argmax(dropped[option]))
            if dropped[option][worst] > MAX_DROPPED:
                raise CampaignError(
                    f"{dropped[option][worst]:.2%} of the forward weight lies in bins without central jets "
                    f"(allowed: {MAX_DROPPED:.1%})",
                    where=f"reweighting by {option} in {PT_NAMES[worst]}",
                    remedy=f"more simulated events, or wider bins of {variable}",
                )
    return {"tables": tables, "dropped": dropped}


def fill_options(jets: ak.Array, ctx: Any) -> Histograms:
    """The tagger's score under every option of reweighting central jets, its inputs' with and without."""
    nominal, where = ak.to_numpy(jets.weight * jets[ctx.weight]), _where(jets)
    weights = {"none": nominal}
    forward, pt_bin = ak.to_numpy(jets.is_forward), PT.index(ak.to_numpy(jets.pt))
    for variable in REWEIGHTED:
        value_bin = VALUES[variable].index(ak.to_numpy(jets[variable])) + 1  # tables begin with the underflow
        for flavour in ("quark", "gluon"):
            table = ctx.frozen["factors"]["tables"][f"{variable}_{flavour}"]
            weights[f"{variable}_{flavour}"] = nominal * np.where(forward, 1.0, table[pt_bin, value_bin])
    filled = {}
    for name, options in {"score": OPTIONS, "ntrk": ["none", NOMINAL], "bdt": ["none", NOMINAL]}.items():
        columns, chosen = where | {name: jets[name]}, {option: weights[option] for option in options}
        filled[name] = Histogram(OPTION, PT, LEADING, FORWARD, FLAVOUR, VALUES[name])
        filled[name].fill_each("option", chosen, **columns)
    return Histograms(filled)


def spectra(h: hist.Hist) -> tuple[Any, Any]:
    """Simulation's sums of w and w2: (pT bin, region, flavour, value bin with flow), both jets together."""
    both = []
    for sums in (h.values(flow=True), h.variances(flow=True)):
        flavours = sums.sum(axis=1)[:, ::-1]  # the Boolean axis has central first
        quark = sum(flavours[:, :, FLAVOURS.index(f)] for f in (LIGHT, CHARM, BOTTOM))
        both.append(np.stack([quark, flavours[:, :, FLAVOURS.index(GLUON)]], axis=2))
    return both[0], both[1]


def data_spectra(h: hist.Hist) -> tuple[Any, Any]:
    """Data's sums of w and w2: (pT bin, region, value bin with flow)."""
    w, w2 = (sums.sum(axis=1)[:, ::-1, FLAVOURS.index(DATA)] for sums in (h.values(flow=True), h.variances(flow=True)))
    return w, w2


def extract(merged: Any, ctx: Any) -> dict[str, Any]:
    """Scale factors per option, pT bin and working point; pT bins in which the method fails are refused by name."""
    edges = [*map(float, VALUES["score"].edges)]
    options = {option: _extract_option(merged, option) for option in OPTIONS}
    if not options[NOMINAL]["points"]:
        reasons = "; ".join(f"{name}: {why}" for name, why in options[NOMINAL]["refused"].items())
        raise CampaignError(f"every pT bin is refused: {reasons}", where="extract", remedy="more simulated events")
    result = {"nominal": NOMINAL, "pt_edges": PT_EDGES, "cut_edges": edges, "options": options}
    suffix = "" if ctx.variation == "nominal" else f"_{ctx.variation}"
    (ctx.artefacts / f"scale_factors{suffix}.json").write_text(json.dumps(result, indent=1))
    table = corrections.correction_set(result, ctx.variation)
    (ctx.artefacts / f"scale_factors{suffix}.correctionlib.json").write_text(json.dumps(table, indent=1))
    (ctx.artefacts / f"scale_factors{suffix}.txt").write_text(plots.table(result))
    if ctx.variation == "nominal":
        plots.draw(merged, result, ctx.artefacts)
    return result


def _extract_option(merged: Any, option: str) -> dict[str, Any]:
    mc, data = (merged[dataset]["score"][{"option": option}] for dataset in ("mc", "data"))
    (mc_w, mc_w2), (data_w, data_w2) = spectra(mc), data_spectra(data)
    points: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for b, name in enumerate(PT_NAMES):
        try:
            points[name] = matrix_method.scale_factors(mc_w[b], mc_w2[b], data_w[b], data_w2[b], WORKING_POINTS)
        except matrix_method.Degenerate as error:
            refused[name] = str(error)
    return {"points": points, "refused": refused}
