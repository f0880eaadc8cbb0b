"""Laws of the calibration's parts: factors, extraction, working points, uncertainties, refusals, cuts and fills."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import hist
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import Histograms
from campaign.errors import CampaignError
from tests.physics import laws  # noqa: F401  it puts the example on the path

import matrix_method  # isort: skip
import qg  # isort: skip

SHARES = st.floats(0.02, 0.98)
SPECTRUM = st.lists(st.floats(0.01, 100), min_size=12, max_size=12).map(lambda v: np.array(v) / sum(v))


# ---- factors of the central jets


def test_factors_give_central_jets_the_forward_shape() -> None:
    """Central times factor has the forward shape and the central total, and nothing is dropped."""
    forward, central = np.array([1.0, 2.0, 5.0, 0.0]), np.array([4.0, 2.0, 2.0, 8.0])
    factors, dropped = matrix_method.reweighting(forward, central)
    assert dropped == 0
    assert central * factors / 16 == pytest.approx(forward / 8)


def test_an_empty_central_bin_has_factor_zero_and_its_forward_share_is_dropped() -> None:
    """0/0 and n/0 are 0; what n/0 loses is told as a share of the forward weight."""
    factors, dropped = matrix_method.reweighting(np.array([0.0, 3.0, 7.0]), np.array([0.0, 0.0, 5.0]))
    assert factors.tolist() == [0.0, 0.0, 0.7]
    assert dropped == pytest.approx(0.3)


def test_of_nothing_the_factors_are_zero() -> None:
    """Two empty spectra give factors 0 and drop nothing; an empty central one drops everything."""
    nothing, something = np.zeros(3), np.ones(3)
    assert [v.tolist() if np.ndim(v) else v for v in matrix_method.reweighting(nothing, nothing)] == [[0, 0, 0], 0.0]
    assert matrix_method.reweighting(something, nothing)[1] == 1.0


def simulated(variable: str, *, hole_in: int = 3, hole: float = 0.0) -> hist.Hist:
    """A first-pass histogram, forward twice central; in one pT bin a share `hole` of forward quarks is alone."""
    h = hist.Hist(qg.PT, qg.LEADING, qg.FORWARD, qg.FLAVOUR, qg.VALUES[variable], storage=hist.storage.Weight())
    for pt in 0.5 * (np.array(qg.PT_EDGES[1:]) + qg.PT_EDGES[:-1]):
        for flavour in (qg.GLUON, qg.LIGHT, qg.CHARM, qg.BOTTOM):
            for forward in (True, False):
                h.fill(pt, True, forward, flavour, h.axes[-1].centers[5:9], weight=1.0 + forward)
    if hole:
        lone = hole / (1 - hole) * 24.0  # three quark flavours, four bins, weight 2
        pt = 0.5 * (qg.PT_EDGES[hole_in] + qg.PT_EDGES[hole_in + 1])
        h.fill(pt, True, True, qg.CHARM, h.axes[-1].centers[20], weight=lone)
    return h


@pytest.mark.parametrize("variable", qg.REWEIGHTED)
def test_a_large_drop_is_refused_by_the_name_of_its_pt_bin(variable: str) -> None:
    """More than 0.1 % of forward weight without a central partner ends the stage; option and pT bin are named."""
    merged = {"mc": {v: simulated(v, hole=0.0011 if v == variable else 0.0) for v in qg.REWEIGHTED}}
    with pytest.raises(CampaignError) as caught:
        qg.reweighting_factors(merged, None)
    assert caught.value.where == f"reweighting by {variable}_quark in 1000-1200 GeV"
    assert "0.11%" in str(caught.value)


def test_a_small_drop_is_allowed_and_told() -> None:
    """Less than 0.1 % is reported in the frozen value, in its option and pT bin and nowhere else."""
    merged = {"mc": {v: simulated(v, hole=0.0009 if v == "bdt" else 0.0) for v in qg.REWEIGHTED}}
    frozen = qg.reweighting_factors(merged, None)
    assert frozen["tables"].keys() == frozen["dropped"].keys() == set(qg.OPTIONS) - {"none"}
    assert frozen["dropped"].pop("bdt_quark") == pytest.approx([0, 0, 0, 0.0009, 0, 0])
    assert all((dropped == 0).all() for dropped in frozen["dropped"].values())
    for variable in qg.REWEIGHTED:  # same shapes in both regions: 1 where there are jets, 0 elsewhere, flow bins too
        expected = np.zeros((6, len(qg.VALUES[variable]) + 2))
        expected[:, 6:10] = 1
        assert frozen["tables"][f"{variable}_gluon"] == pytest.approx(expected)


# ---- extraction


def test_quark_means_light_charm_and_bottom() -> None:
    """The quark spectrum is the sum of light, c and b of both jets; forward comes first."""
    h = hist.Hist(qg.PT, qg.LEADING, qg.FORWARD, qg.FLAVOUR, qg.VALUES["score"], storage=hist.storage.Weight())
    for weight, (leading, forward, flavour) in enumerate(
        [(a, b, f) for a in (True, False) for b in (True, False) for f in (21, 1, 4, 5, -9999)], start=1
    ):
        h.fill(550, leading, forward, flavour, 0.31, weight=float(weight))
    w, w2 = qg.spectra(h)
    # weights 1-5 leading forward, 6-10 leading central, 11-15 subleading forward, 16-20 subleading central
    assert w[0, :, :, 16].tolist() == [[2 + 3 + 4 + 12 + 13 + 14, 1 + 11], [7 + 8 + 9 + 17 + 18 + 19, 6 + 16]]
    assert w2[0, 0, 1, 16] == 1 + 11**2
    data, data2 = qg.data_spectra(h)
    assert data[0, :, 16].tolist() == [5 + 15, 10 + 20]
    assert data2[0, 1, 16] == 10**2 + 20**2


def mixed(quark: Any, gluon: Any, shares: Any, totals: Any = (1e6, 1e6)) -> np.ndarray[Any, Any]:
    """Sums of weights (region, flavour, bin) of regions that hold these shares of quarks."""
    return np.array([[n * f * quark, n * (1 - f) * gluon] for n, f in zip(totals, shares, strict=True)])


@settings(max_examples=80, deadline=None)
@given(SPECTRUM, SPECTRUM, SHARES, SHARES, st.floats(1e5, 1e7), st.floats(1e5, 1e7))
def test_known_spectra_mixed_are_extracted_again(
    quark: Any, gluon: Any, forward: float, central: float, n_forward: float, n_central: float
) -> None:
    """Mix two pure spectra in any two proportions and any sizes: the matrix method gives the pure spectra back."""
    if abs(forward - central) < 0.06:
        forward, central = 0.65, 0.35
    w = mixed(quark, gluon, (forward, central), (n_forward, n_central))
    matrix = matrix_method.Matrix.from_truth(w, w)
    assert matrix.determinant == pytest.approx(forward - central)
    found = matrix.solve(w.sum(axis=1))
    assert found[0] == pytest.approx(quark, abs=1e-10)
    assert found[1] == pytest.approx(gluon, abs=1e-10)


def test_data_are_solved_with_the_fractions_of_simulation() -> None:
    """Data of other gluons but simulation's fractions: factors are the ratios of the pure spectra's own shares."""
    quark, gluon, other = (np.array(v, float) for v in ([6, 3, 1, 0], [1, 2, 3, 4], [2, 2, 3, 3]))
    mc = mixed(quark / 10, gluon / 10, (0.65, 0.35))
    data = mixed(quark / 10, other / 10, (0.65, 0.35), (4e5, 8e5)).sum(axis=1)
    (point,) = matrix_method.scale_factors(mc, mc, data, data, [0.8])
    assert point["cut"] == 1
    assert point["quark"]["mc"] == pytest.approx(0.9)
    assert point["quark"]["mc_truth"] == pytest.approx(0.9)
    assert point["quark"]["scale_factor"] == pytest.approx(1)
    assert point["gluon"]["mc"] == pytest.approx(0.7)
    assert point["gluon"]["mc_truth"] == pytest.approx(0.7)
    assert point["gluon"]["scale_factor"] == pytest.approx(0.6 / 0.7)


@settings(max_examples=80, deadline=None)
@given(SPECTRUM, st.sampled_from(qg.WORKING_POINTS))
def test_the_cut_is_the_first_bin_that_reaches_the_target(quark: Any, target: float) -> None:
    """With the cut's bin the cumulative reaches the target, without it it does not."""
    cut = matrix_method.working_point(quark, target)
    assert np.cumsum(quark)[cut] >= target
    assert cut == 0 or np.cumsum(quark)[cut - 1] < target


def test_a_bin_that_reaches_the_target_exactly_is_the_cut() -> None:
    """Reaching is enough; and a spectrum that never reaches is an error."""
    assert matrix_method.working_point(np.array([0.25, 0.25, 0.5]), 0.5) == 1
    with pytest.raises(ValueError, match="never reaches"):
        matrix_method.working_point(np.array([0.25, 0.125]), 0.5)


# ---- uncertainties


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e6)), min_size=4, max_size=9), st.integers(1, 4))
def test_the_variance_is_that_of_a_weighted_binomial(bins: Any, passed: int) -> None:
    """It is (1 - e)² of what passes and e² of what fails, never negative; for unit weights e (1 - e) / n."""
    w, w2 = np.transpose(bins) + 1e-3
    eff, var = matrix_method.efficiency(w, w2, slice(0, passed))
    assert eff == pytest.approx(w[:passed].sum() / w.sum())
    by_hand = (1 - eff) ** 2 * w2[:passed].sum() + eff**2 * w2[passed:].sum()
    assert var == pytest.approx(by_hand / w.sum() ** 2, rel=1e-6, abs=1e-12 * w2.sum() / w.sum() ** 2)
    assert var >= 0
    eff, var = matrix_method.efficiency(w, w, slice(0, passed))
    assert var == pytest.approx(eff * (1 - eff) / w.sum(), abs=1e-12)


def weighted_toys(rng: Any, mean: Any, toys: int) -> tuple[Any, Any]:
    """Per toy, sums of w and w2 of Poisson many events whose weights are 0.3, 1 or 2.5."""
    weights, shares = np.array([0.3, 1.0, 2.5]), np.array([0.4, 0.4, 0.2])
    counts = rng.poisson(np.multiply.outer(mean, shares) / (weights @ shares), (toys, *np.shape(mean), 3))
    return counts @ weights, counts @ weights**2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_uncertainty_of_an_efficiency_covers_toys(share: float) -> None:
    """Efficiencies of weighted events scatter by the uncertainty the formula gives them."""
    w, w2 = weighted_toys(np.random.default_rng(11), 2000 * np.array([share, 1 - share]), 800)
    found = np.array([matrix_method.efficiency(*toy, slice(0, 1)) for toy in zip(w, w2, strict=True)])
    pull = (found[:, 0] - share) / np.sqrt(found[:, 1])
    assert 0.9 < pull.std() < 1.1
    assert abs(pull.mean()) < 0.25


@pytest.mark.parametrize("cut", [1, 3])
def test_the_uncertainty_of_what_is_extracted_covers_toys(cut: int) -> None:
    """Quark efficiency and gluon rejection out of two weighted regions: pulls have width 0.85 to 1.15."""
    quark, gluon = np.array([0.35, 0.25, 0.2, 0.1, 0.07, 0.03]), np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.25])
    truth = mixed(quark, gluon, (0.65, 0.35), (5e3, 6e3))
    matrix = matrix_method.Matrix.from_truth(truth, truth)
    w, w2 = weighted_toys(np.random.default_rng(12), truth.sum(axis=1), 600)
    toys = [matrix_method.separated(matrix, *toy, cut) for toy in zip(w, w2, strict=True)]
    for flavour, true in (("quark", quark[: cut + 1].sum()), ("gluon", gluon[cut + 1 :].sum())):
        value, sigma = np.array([toy[flavour] for toy in toys]).T
        pull = (value - true) / sigma
        assert 0.85 < pull.std() < 1.15
        assert abs(pull.mean()) < 0.25


def test_the_scale_factors_uncertainty_is_both_sides_relative_ones() -> None:
    """The relative uncertainty is the root of the squared relative uncertainties of data and simulation."""
    mc = mixed(np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5]), (0.65, 0.35), (2e4, 3e4))
    data = mc.sum(axis=1) / 5
    for point in matrix_method.scale_factors(mc, mc, data, data, [0.5, 0.8]):
        for flavour in ("quark", "gluon"):
            v = point[flavour]
            relative = np.hypot(v["data_sigma"] / v["data"], v["mc_sigma"] / v["mc"])
            assert v["sigma"] == pytest.approx(v["scale_factor"] * relative)


# ---- refusals

FALLING = np.exp(-np.linspace(0, 3, 50))


def second_pass(shares: dict[int, tuple[float, float]], n: float = 1e5, no_data_in: int | None = None) -> Any:
    """Merged second-pass histograms of all options; shares of quarks (forward, central) by pT bin."""
    axes = (qg.OPTION, qg.PT, qg.LEADING, qg.FORWARD, qg.FLAVOUR, qg.VALUES["score"])
    mc, data = (hist.Hist(*axes, storage=hist.storage.Weight()) for _ in range(2))
    for b, fractions in shares.items():
        w = mixed(FALLING / FALLING.sum(), FALLING[::-1] / FALLING.sum(), fractions, (n, n))
        for option in range(len(qg.OPTIONS)):
            for region, forward in enumerate((1, 0)):
                for flavour, code in enumerate((qg.LIGHT, qg.GLUON)):
                    index = (option, b, 0, forward, qg.FLAVOURS.index(code), slice(1, -1))
                    mc.view(flow=True)[index] = (
                        np.stack([w[region, flavour]] * 2, axis=-1).ravel().view(mc.view().dtype)
                    )
                if b != no_data_in:
                    index = (option, b, 0, forward, qg.FLAVOURS.index(qg.DATA), slice(1, -1))
                    total = np.stack([w[region].sum(axis=0)] * 2, axis=-1).ravel()
                    data.view(flow=True)[index] = total.view(data.view().dtype)
    return {"mc": {"score": mc}, "data": {"score": data}}


GOOD = dict.fromkeys(range(6), (0.65, 0.35))


def varied(folder: Path) -> Any:
    """Context of a variation: the table is written, figures are not drawn."""
    return SimpleNamespace(variation="toy", artefacts=folder)


def test_the_cuts_edge_is_the_upper_edge_of_its_bin(tmp_path: Path) -> None:
    """`cut_edges[cut]` is the score below which the target of simulation's quarks lies, and one bin less is too few."""
    result = qg.extract(second_pass(GOOD), varied(tmp_path))
    below = dict(zip(np.round(qg.VALUES["score"].edges[1:], 9), np.cumsum(FALLING / FALLING.sum()), strict=True))
    for points in result["options"]["score_quark"]["points"].values():
        for point, target in zip(points, qg.WORKING_POINTS, strict=True):
            edge = result["cut_edges"][point["cut"]]
            assert below[round(edge, 9)] == pytest.approx(point["quark"]["mc"])
            assert below[round(edge, 9)] >= target
            assert below[round(edge - 0.02, 9)] < target
    assert json.loads((tmp_path / "scale_factors_toy.json").read_text()) == result


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shares": {**GOOD, 2: (0.52, 0.48)}}, "D = 0.040"),
        ({"shares": {**GOOD, 2: (0.48, 0.52)}}, "D = -0.040"),
        ({"shares": {b: f for b, f in GOOD.items() if b != 2}}, "the forward region of simulation is empty"),
        ({"shares": GOOD, "no_data_in": 2}, "the forward region of data is empty"),
    ],
)
def test_a_pt_bin_in_which_the_method_fails_is_refused_by_name(tmp_path: Path, change: Any, reason: str) -> None:
    """|D| < 0.05 or nothing there: that pT bin alone is refused, by name, with the reason, in the table too."""
    result = qg.extract(second_pass(**change), varied(tmp_path))
    option = result["options"][qg.NOMINAL]
    assert list(option["refused"]) == ["800-1000 GeV"]
    assert reason in option["refused"]["800-1000 GeV"]
    assert list(option["points"]) == [name for name in qg.PT_NAMES if name != "800-1000 GeV"]
    lines = (tmp_path / "scale_factors_toy.txt").read_text().splitlines()
    assert [line for line in lines if "REFUSED" in line] == [
        f"800-1000 GeV    REFUSED: {option['refused']['800-1000 GeV']}"
    ]


@pytest.mark.parametrize(("d", "refused"), [(0.049, True), (-0.049, True), (0.051, False), (-0.051, False)])
def test_regions_too_alike_are_refused(d: float, refused: bool) -> None:
    """With any number of jets |D| < 0.05 is too little, of either sign, and a little more is enough."""
    w = mixed(FALLING, FALLING[::-1], (0.5 + d / 2, 0.5 - d / 2))
    if refused:
        with pytest.raises(matrix_method.Degenerate, match="differ by D"):
            matrix_method.Matrix.from_truth(w, w)
    else:
        assert matrix_method.Matrix.from_truth(w, w).determinant == pytest.approx(d)


@pytest.mark.parametrize(("sigmas", "refused"), [(4.9, True), (5.1, False)])
def test_a_difference_of_less_than_five_sigma_is_refused(sigmas: float, refused: bool) -> None:
    """D = 0.3 is refused when its own uncertainty, of so few jets, is more than a fifth of it."""
    jets_per_region = 2 * 0.65 * 0.35 * (sigmas / 0.3) ** 2
    w = mixed(FALLING / FALLING.sum(), FALLING[::-1] / FALLING.sum(), (0.65, 0.35), [jets_per_region] * 2)
    if refused:
        with pytest.raises(matrix_method.Degenerate, match="5 sigma"):
            matrix_method.Matrix.from_truth(w, w)
    else:
        matrix = matrix_method.Matrix.from_truth(w, w)
        assert matrix.determinant / matrix.sigma == pytest.approx(sigmas)


def test_nan_is_refused() -> None:
    """A weight that is no number makes the pT bin a refused one, never a scale factor."""
    w = mixed(FALLING, FALLING[::-1], (0.65, 0.35))
    w[1, 0, 7] = np.nan
    with pytest.raises(matrix_method.Degenerate):
        matrix_method.Matrix.from_truth(w, w)


def test_data_that_lost_a_flavour_have_scale_factor_zero() -> None:
    """Not one gluon of data above the cut: the factor is 0 with an uncertainty, not an error."""
    mc = mixed(np.array([0.8, 0.2]), np.array([0.25, 0.75]), (0.65, 0.35))
    data = np.array([[1e5, 0.0], [1e5, 0.0]])
    (point,) = matrix_method.scale_factors(mc, mc, data, data, [0.5])
    assert point["gluon"]["scale_factor"] == pytest.approx(0, abs=1e-12)
    assert np.isfinite(point["gluon"]["sigma"])


def test_all_pt_bins_refused_is_an_error(tmp_path: Path) -> None:
    """With not one pT bin left there is no calibration; every bin is named with its reason."""
    with pytest.raises(CampaignError, match="every pT bin is refused") as caught:
        qg.extract(second_pass(dict.fromkeys(range(6), (0.5, 0.5))), varied(tmp_path))
    assert all(f"{name}: quark fractions" in str(caught.value) for name in qg.PT_NAMES)


# ---- selection

JET = {
    "pt": [[900e3, 800e3]], "eta": [[1.5, -0.5]], "nTracks": [[20, 11]], "trackWidth": [[0.1, 0.2]],
    "trackC1": [[0.2, 0.3]], "trackBDT": [[0.5, -0.5]], "PartonTruthLabelID": [[21, 2]], "cleaning": [[2, 2]],
}  # fmt: skip
KINDS = {"nTracks": np.int32, "PartonTruthLabelID": np.int32, "cleaning": np.int32}
MC = {"is_mc": True, "luminosity": 36_200.0, "cross_section": 2.5, "filter_efficiency": 0.0125, "sum_of_weights": 4e3}
DATA = {"is_mc": False}
PER_WEIGHT = 36_200.0 * 2.5 * 0.0125 / 4e3


def events(fire: int = 1, pu_weight: float = 0.8, chosen: float = 1.0, **jets: Any) -> ak.Array:
    """One event, good unless told otherwise; `jets` gives a branch's values."""
    columns = {f"jet_{n}": ak.values_astype(ak.Array(v), KINDS.get(n, np.float32)) for n, v in (JET | jets).items()}
    columns |= {"jet_fire": np.int32([fire]), "pu_weight": np.float32([pu_weight]), "chosen": np.array([chosen])}
    return ak.Array(columns)


def selected(array: ak.Array, sample: dict[str, Any] = MC) -> dict[str, Any]:
    """What the stage returns."""
    return qg.select(array, SimpleNamespace(metadata=sample, weight="chosen"))


def test_a_good_event_gives_two_rows() -> None:
    """One row per jet: values as in the file, pT in GeV, which one leads and which one is forward."""
    found = selected(events())
    assert found["pt"].tolist() == [900, 800]
    assert found["pt"].dtype == np.float32
    assert found["ntrk"].tolist() == [20, 11]
    assert found["label"].tolist() == [21, 2]
    assert found["bdt"].tolist() == [0.5, -0.5]
    assert found["is_leading"].tolist() == [True, False]
    assert found["is_forward"].tolist() == [True, False]
    assert {len(column) for column in found.values()} == {2}
    assert {"eta", "width", "c1"} < found.keys()


@pytest.mark.parametrize(
    ("eta", "forward"), [([0.5, -1.5], [False, True]), ([-1.5, 0.5], [True, False]), ([1.0, -1.0], [False, True])]
)
def test_the_forward_jet_is_that_of_larger_absolute_eta(eta: Any, forward: Any) -> None:
    """Exactly one jet of each event is forward, also where both are alike."""
    assert selected(events(eta=[eta]))["is_forward"].tolist() == forward


GOOD_EVENTS = {
    "just above 500 GeV": {"pt": [[700e3, 500.1e3]]},
    "just below 2000 GeV": {"pt": [[1999.9e3, 1400e3]]},
    "ratio just below 1.5": {"pt": [[1199e3, 800e3]]},
    "eta just below 2.1": {"eta": [[2.09, -2.09]]},
    "two tracks": {"nTracks": [[2, 2]]},
    "every flavour": {"PartonTruthLabelID": [[5, 4]]},
    "weight just below 100": {"pu_weight": 99.9 / PER_WEIGHT},
    "weight just above -100": {"pu_weight": -99.9 / PER_WEIGHT},
    "a third jet, whatever it is": {
        name: [[*pair[0], {"pt": 450e3, "eta": 3.0}.get(name, 0)]] for name, pair in JET.items()
    },
}
BAD_EVENTS = {
    "no trigger": {"fire": 0},
    "pT2 of 500 GeV": {"pt": [[700e3, 500e3]]},
    "pT1 of 2000 GeV": {"pt": [[2000e3, 1400e3]]},
    "ratio 1.5": {"pt": [[1200e3, 800e3]]},
    "leading eta": {"eta": [[2.1, 0.0]]},
    "subleading eta": {"eta": [[0.0, -2.1]]},
    "leading cleaning": {"cleaning": [[1, 2]]},
    "subleading cleaning": {"cleaning": [[2, 1]]},
    "leading tracks": {"nTracks": [[1, 20]]},
    "subleading tracks": {"nTracks": [[20, 1]]},
    "leading label": {"PartonTruthLabelID": [[-1, 21]]},
    "subleading label": {"PartonTruthLabelID": [[21, 0]]},
    "weight of 100": {"pu_weight": 100.1 / PER_WEIGHT},
    "weight of -100": {"pu_weight": -100.1 / PER_WEIGHT},
    "weight no number": {"pu_weight": float("nan")},
    "one jet": {name: [pair[0][:1]] for name, pair in JET.items()},
    "no jet": {name: ak.Array([pair[0][:1]])[:, :0] for name, pair in JET.items()},
}


@pytest.mark.parametrize("name", GOOD_EVENTS)
def test_an_event_inside_every_cut_is_kept(name: str) -> None:
    """Values just inside a cut pass it."""
    assert len(selected(events(**GOOD_EVENTS[name]))["pt"]) == 2


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_each_cut_alone_rejects_an_event(name: str) -> None:
    """One value outside one cut loses the event, both jets of it, and not the good one beside it."""
    both = ak.concatenate([events(**BAD_EVENTS[name]), events(pt=[[701e3, 601e3]])])
    assert selected(both)["pt"].tolist() == [701, 601]


def test_labels_cut_in_simulation_only() -> None:
    """Data's label -9999 is carried, not cut."""
    assert selected(events(PartonTruthLabelID=[[-9999, -9999]]), DATA)["label"].tolist() == [-9999, -9999]
    assert len(selected(events(PartonTruthLabelID=[[-9999, -9999]]))["label"]) == 0


@pytest.mark.parametrize("sample", [MC, DATA])
def test_nothing_in_nothing_out(sample: dict[str, Any]) -> None:
    """An empty range, and one that loses all events, give the same columns and types with no rows."""
    full = selected(events(PartonTruthLabelID=[[1, 1]]), sample)
    for none in (selected(events()[:0], sample), selected(events(fire=0), sample)):
        assert {name: (column.dtype, len(column)) for name, column in none.items()} == {
            name: (column.dtype, 0) for name, column in full.items()
        }


def test_the_event_weight_is_lumi_cross_section_efficiency_over_sum_of_weights() -> None:
    """In simulation the generator's weight times what its sample stands for; in data 1."""
    found = selected(events(pu_weight=0.75))
    assert found["weight"].tolist() == [0.75 * PER_WEIGHT] * 2
    assert found["weight"].dtype == np.float64
    assert selected(events(pu_weight=0.75), DATA)["weight"].tolist() == [1.0, 1.0]


def test_the_variations_weight_is_carried_and_not_cut_on() -> None:
    """Row by row under its own name, apart from the event weight, however large."""
    found = selected(ak.concatenate([events(chosen=1e9), events(fire=0, chosen=3.0), events(chosen=-2.0)]))
    assert found["chosen"].tolist() == [1e9, 1e9, -2, -2]
    assert found["chosen"].dtype == np.float64
    assert len(set(found["weight"])) == 1


# ---- second pass


def jets_of(rng: Any, n: int = 400) -> ak.Array:
    """Jets as they come from the prediction."""
    columns = {"pt": rng.uniform(500, 2000, n), "is_forward": rng.random(n) < 0.5, "is_leading": rng.random(n) < 0.5}
    columns |= {"label": rng.choice([1, 2, 3, 4, 5, 21], n), "weight": rng.uniform(0.5, 2, n)}
    columns |= {"chosen": rng.choice([0.5, 1.0, 2.0], n), "ntrk": rng.integers(0, 70, n)}
    columns |= {"bdt": rng.uniform(-1, 1, n), "score": rng.uniform(0, 1, n), "eta": rng.uniform(-2.1, 2.1, n)}
    return ak.Array(columns | {"width": rng.uniform(0, 0.5, n), "c1": rng.uniform(0, 0.5, n)})


def test_central_jets_get_their_bins_factor_and_forward_jets_none() -> None:
    """Every option: forward as without reweighting; central each jet times the factor of (pT bin, bin of variable)."""
    rng = np.random.default_rng(5)
    jets = jets_of(rng)
    tables = {
        f"{v}_{flavour}": rng.uniform(0.2, 3, (6, len(qg.VALUES[v]) + 2))
        for v in qg.REWEIGHTED
        for flavour in ("quark", "gluon")
    }
    ctx = SimpleNamespace(weight="chosen", frozen={"factors": {"tables": tables}})
    filled = qg.fill_options(jets, ctx)
    assert isinstance(filled, Histograms)
    score = filled["score"].to_hist()
    nominal = np.asarray(jets.weight * jets.chosen)
    forward = np.asarray(jets.is_forward)
    for option in qg.OPTIONS:
        h = score[{"option": option}].project("is_forward", "score")
        factor = np.ones(len(jets))
        if option != "none":
            variable = option.split("_")[0]
            row = np.digitize(jets.pt, qg.PT_EDGES) - 1
            column = np.digitize(jets[variable], qg.VALUES[variable].edges)  # 0 is the underflow
            factor = np.where(forward, 1.0, tables[option][row, column])
        for side in (True, False):
            here = forward == side
            w = (nominal * factor)[here]
            expected, _ = np.histogram(jets.score[here], qg.VALUES["score"].edges, weights=w)
            expected2, _ = np.histogram(jets.score[here], qg.VALUES["score"].edges, weights=w**2)
            assert h[side, :].values() == pytest.approx(expected)
            assert h[side, :].variances() == pytest.approx(expected2)


def test_every_variable_is_filled_by_flavour() -> None:
    """Labels 1, 2 and 3 are light, 4, 5 and 21 as they are; each jet counts its weight times the variation's."""
    jets = jets_of(np.random.default_rng(6))
    filled = qg.fill_nominal(jets, SimpleNamespace(weight="chosen"))
    assert list(filled) == ["pt", "eta", "ntrk", "width", "c1", "bdt", "score"]
    w = np.asarray(jets.weight * jets.chosen)
    for code, labels in ((1, [1, 2, 3]), (4, [4]), (5, [5]), (21, [21])):
        here = np.isin(jets.label, labels)
        for h in filled.values():
            total = h.to_hist()[{"flavour": hist.loc(code)}].sum(flow=True)
            assert total.value == pytest.approx(w[here].sum())
            assert total.variance == pytest.approx((w[here] ** 2).sum())
