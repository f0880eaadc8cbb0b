"""Two hundred calibrations of toy data: scale factors are unbiased and scatter by the uncertainty they are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hist
import numpy as np
import pytest

from tests.physics import laws  # puts the example on the path

import jets  # isort: skip
import make_data  # isort: skip
import qg  # isort: skip

TOYS = 200
N_DRAWN = 600_000  # events behind the densities
N_DATA = 120_000  # selected events per toy, as in the example's data
MC_WEIGHTS, MC_SHARES = np.array([0.15, 0.2, 0.27]), np.array([0.3, 0.45, 0.25])  # five events of MC for one of data
CODES = [qg.LIGHT, qg.GLUON]
Densities = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def score() -> jets.Score:
    """The shipped tagger, in this process."""
    return make_data.load_score()


@pytest.fixture(scope="module")
def densities(score: jets.Score) -> Densities:
    """Per reweighting variable, expected data jets by (pT bin, region, flavour, bin with flow) in the house's order."""
    rng = np.random.default_rng(2024)
    sums: Densities = {}
    for _ in range(6):  # in parts: bounds the memory
        for name, part in expectation(rng, N_DRAWN // 6, score).items():
            sums[name] = sums.get(name, 0) + part
    scale = 2 * N_DATA / sums["score"].sum()
    return {name: total * scale for name, total in sums.items()}


def expectation(rng: np.random.Generator, n: int, score: jets.Score) -> Densities:
    """Counts of the jets of n drawn events that pass the kinematic selection."""
    event = jets.draw_dijets(rng, n)
    pt, eta = event.pt, np.abs(event.eta)
    good = (pt[:, 1] > 500) & (pt[:, 0] < 2000) & (pt[:, 0] < 1.5 * pt[:, 1]) & (eta < 2.1).all(axis=1)
    central = np.argsort(-eta[good], axis=1).argsort(axis=1).ravel()  # 0 the forward jet, 1 the central one
    pt, label = pt[good].ravel(), event.label[good].ravel()
    features = jets.draw_features(rng, label, pt)
    values = {"ntrk": features.ntrk, "bdt": features.bdt, "score": score(features.inputs(pt))}
    where = [np.digitize(pt, qg.PT_EDGES) - 1, central, label == jets.GLUON]
    counts = {}
    for name, value in values.items():
        axis = qg.VALUES[name]
        shape = (len(qg.PT_NAMES), 2, 2, axis.extent)
        cell = np.ravel_multi_index([*(np.asarray(w, int) for w in where), axis.index(value) + 1], shape)
        counts[name] = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(float)
    return counts


def simulate(rng: np.random.Generator, mean: Any) -> np.ndarray[Any, Any]:
    """Sums of w and w2 of a toy simulation, last axis (w, w2)."""
    counts = rng.poisson(np.multiply.outer(mean, MC_SHARES) / (MC_WEIGHTS @ MC_SHARES))
    return np.stack([counts @ MC_WEIGHTS, counts @ MC_WEIGHTS**2], axis=-1)


def as_hist(variable: str, sums: Any, codes: list[int]) -> hist.Hist:
    """A histogram as the first pass merges it, of sums (pT bin, region, flavour, bin with flow, (w, w2))."""
    axes = (qg.PT, qg.LEADING, qg.FORWARD, qg.FLAVOUR, qg.VALUES[variable])
    h = hist.Hist(*axes, storage=hist.storage.Weight())
    for i, code in enumerate(codes):
        for region, forward in enumerate((1, 0)):
            view = h.view(flow=True)[:, 0, forward, qg.FLAVOURS.index(code)]
            view["value"], view["variance"] = sums[:, region, i, :, 0], sums[:, region, i, :, 1]
    return h


def second_pass(first: hist.Hist, tables: Any) -> dict[str, hist.Hist]:
    """The score under the options that depend on the score alone; other options are left empty."""
    h = hist.Hist(qg.OPTION, *first.axes, storage=hist.storage.Weight())
    for option in ("none", "score_quark", "score_gluon"):
        view = h.view(flow=True)[qg.OPTIONS.index(option)]
        view[...] = first.view(flow=True)
        if option != "none":
            factor = tables[option][:, None, None, :]
            view["value"][:, :, 0] *= factor
            view["variance"][:, :, 0] *= factor**2
    return {"score": h}


def calibrations(densities: Densities, of_data: Any, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Toys: simulation and data drawn anew, factors from this simulation, extraction by the example's own stages."""
    context = SimpleNamespace(variation="toy", artefacts=folder)
    for k in range(TOYS):
        rng = np.random.default_rng((seed, k))
        mc = {name: as_hist(name, simulate(rng, mean), CODES) for name, mean in densities.items()}
        counts = rng.poisson(of_data).sum(axis=2, keepdims=True)
        data = as_hist("score", np.stack([counts, counts], axis=-1), [qg.DATA])
        tables = qg.reweighting_factors({"mc": mc}, context)["tables"]
        merged = {"mc": second_pass(mc["score"], tables), "data": second_pass(data, tables)}
        yield qg.extract(merged, context)


def assert_pulls(results: list[dict[str, Any]], expected: Any) -> None:
    """Per flavour and working point, pulls of all toys and pT bins: |mean| < 0.25, width 0.85 to 1.15."""
    assert len(results) == TOYS
    for wp, target in enumerate(qg.WORKING_POINTS):
        for flavour in ("quark", "gluon"):
            pulls = []
            for result in results:
                for b, points in enumerate(laws.nominal(result).values()):
                    found = points[wp][flavour]
                    true = expected(flavour, b, points[wp]["cut"])
                    pulls.append((found["scale_factor"] - true) / found["sigma"])
            assert len(pulls) == TOYS * len(qg.PT_NAMES)
            assert abs(np.mean(pulls)) < 0.25, f"{flavour} at {target}"
            assert 0.85 < np.std(pulls) < 1.15, f"{flavour} at {target}"


@pytest.mark.slow
def test_scale_factors_of_unchanged_data_are_one(densities: Densities, tmp_path: Path) -> None:
    """Data of simulation's densities: pulls from 1 have no mean and unit width, for quark and gluon at every point."""
    results = list(calibrations(densities, densities["score"], 1, tmp_path))
    assert_pulls(results, lambda *_: 1.0)


@pytest.mark.slow
def test_scale_factors_of_changed_gluons_are_the_change(densities: Densities, tmp_path: Path) -> None:
    """Data's gluons reweighted by a known function of the score: pulls from the known factors are as good."""
    score = qg.VALUES["score"]
    middle = np.concatenate([[0.0], score.centers, [1.0]])
    change = densities["score"] * (1 + 0.5 * (1 - 2 * middle))
    plain = densities["score"][:, :, 1]
    gluon = change[:, :, 1] * (plain.sum(axis=-1) / change[:, :, 1].sum(axis=-1))[..., None]
    of_data = np.stack([densities["score"][:, :, 0], gluon], axis=2)

    def expected(flavour: str, b: int, cut: int) -> float:
        forward = (of_data[b, 0, 1], plain[b, 0])
        changed, simulated = (above[cut + 1 :].sum() / above.sum() for above in forward)
        return 1.0 if flavour == "quark" else float(changed / simulated)

    results = list(calibrations(densities, of_data, 2, tmp_path))
    assert_pulls(results, expected)
