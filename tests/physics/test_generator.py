"""Laws of the example's generator: what its files hold is what the calibration assumes, and no more."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml
from scipy.stats import ks_2samp

from tests.physics import laws  # noqa: F401  it puts the example on the path

import jets  # isort: skip
import make_data  # isort: skip

SIZE = 0.05
PER_EVENT = {"run": "int32_t", "event": "int64_t", "pu_weight": "float", "jet_fire": "int32_t", "njet": "int32_t"}
PER_JET = {
    "jet_pt": "float[]", "jet_eta": "float[]", "jet_nTracks": "int32_t[]", "jet_trackWidth": "float[]",
    "jet_trackC1": "float[]", "jet_trackBDT": "float[]", "jet_PartonTruthLabelID": "int32_t[]",
    "jet_cleaning": "int32_t[]",
}  # fmt: skip
EFFICIENCY = {"jet_nTracks_EFF": "int32_t[]"}
THEORY = {"mconly_weight": "float", "mcEventWeightsVector": "float[3]", "pdf_weight": "float[9]"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twentieth of the example's files."""
    folder = tmp_path_factory.mktemp("qg")
    make_data.make(folder, SIZE, seed=1)
    return folder


def files(folder: Path, kind: str) -> list[Path]:
    """Files of simulation ("mc") or data ("data")."""
    return sorted((folder / kind).glob("*/*.root"))


@cache
def events(folder: Path, kind: str, tree: str = "nominal") -> ak.Array:
    """All events of a kind, without the weights that only simulation has."""
    names = [*PER_EVENT, *PER_JET]
    return ak.concatenate([uproot.open(path)[tree].arrays(names) for path in files(folder, kind)])


def contents(folder: Path, kind: str) -> dict[str, bytes]:
    """The bytes of every branch of every tree of every file; a ROOT file itself holds the time it was written."""
    found = {}
    for path in files(folder, kind):
        with uproot.open(path) as file:
            for tree in file.keys(cycle=False):
                for name, column in zip(file[tree].keys(), ak.unzip(file[tree].arrays()), strict=True):
                    flat = ak.to_numpy(ak.flatten(column, axis=None))
                    counts = ak.to_numpy(ak.num(column)).tobytes() if column.ndim > 1 else b""
                    found[f"{path.relative_to(folder)}:{tree}:{name}"] = flat.tobytes() + counts
    return found


def test_one_seed_one_content(made: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes in every branch of every file, another seed others."""
    for seed in (1, 2):
        make_data.make(tmp_path / str(seed), SIZE, seed=seed)
    for kind in ("mc", "data"):
        first = contents(made, kind)
        assert contents(tmp_path / "1", kind) == first
        other = contents(tmp_path / "2", kind)
        assert other.keys() == first.keys()
        assert all(other[name] != first[name] for name in first if name.endswith("jet_pt") and first[name])
    side = (made / "samples.yaml").read_text()
    assert (tmp_path / "1" / "samples.yaml").read_text() == side != (tmp_path / "2" / "samples.yaml").read_text()


def test_simulation_knows_nothing_of_the_change(made: Path, tmp_path: Path) -> None:
    """With and without the change simulation is the same; data are not, but for their size and kinematics."""
    make_data.make(tmp_path, SIZE, seed=1, change=False)
    assert contents(tmp_path, "mc") == contents(made, "mc")
    assert (tmp_path / "samples.yaml").read_text() == (made / "samples.yaml").read_text()
    changed, plain = events(made, "data"), events(tmp_path, "data")
    assert len(changed) == len(plain)
    for name in ("jet_pt", "jet_eta"):
        assert ks_2samp(ak.flatten(changed[name]), ak.flatten(plain[name])).pvalue > 1e-3
    assert ks_2samp(ak.flatten(changed.jet_nTracks), ak.flatten(plain.jet_nTracks)).pvalue < 1e-6


@pytest.mark.parametrize(
    ("kind", "tree", "branches"),
    [
        ("mc", "nominal", PER_EVENT | PER_JET | EFFICIENCY | THEORY),
        ("mc", "JET_JES_1up", PER_EVENT | PER_JET | EFFICIENCY),
        ("data", "nominal", PER_EVENT | PER_JET),
    ],
)
def test_every_file_has_the_branches_and_types_of_a_minitree(
    made: Path, kind: str, tree: str, branches: dict[str, str]
) -> None:
    """Names and types as the analysis knows them, in every file, the empty one too; variations in simulation only."""
    assert files(made, kind)
    for path in files(made, kind):
        with uproot.open(path) as file:
            assert file[tree].typenames() == branches
            assert set(file.keys(cycle=False)) == ({"nominal", "JET_JES_1up"} if kind == "mc" else {"nominal"})


@pytest.mark.parametrize("kind", ["mc", "data"])
def test_values_are_in_the_units_and_conventions_of_a_minitree(made: Path, kind: str) -> None:
    """Momenta in MeV and falling within an event; labels of partons, -9999 in data; trigger and cleaning as codes."""
    found = events(made, kind)
    lead = found.jet_pt[ak.num(found.jet_pt) > 0][:, 0]
    assert ak.min(lead) >= 500e3
    assert ak.max(lead) <= 2080e3
    assert ak.all(found.jet_pt[:, :-1] >= found.jet_pt[:, 1:])
    labels = {-1, 1, 2, 3, 4, 5, 21} if kind == "mc" else {-9999}
    assert set(ak.flatten(found.jet_PartonTruthLabelID).tolist()) == labels
    assert set(found.jet_fire.tolist()) == {0, 1}
    assert set(ak.flatten(found.jet_cleaning).tolist()) == {1, 2}
    assert set(ak.num(found.jet_pt).tolist()) == {0, 1, 2, 3}
    assert ak.all(abs(found.jet_eta) < 2.5)
    assert ak.all(abs(found.jet_trackBDT) <= 1)
    assert kind == "mc" or ak.all(found.pu_weight == 1)


def test_an_event_is_known_by_its_number(made: Path) -> None:
    """Numbers of a sample are 0, 1, 2 ... over its files; the shifted tree has the same events."""
    for kind in ("mc", "data"):
        by_sample: dict[tuple[Path, str], list[Any]] = {}
        for path in files(made, kind):
            numbers = uproot.open(path)["nominal"]["event"].array(library="np")
            by_sample.setdefault((path.parent, path.stem[:-4]), []).append(numbers)
        for numbers in by_sample.values():
            assert np.array_equal(np.concatenate(numbers), np.arange(sum(map(len, numbers))))
    nominal, shifted = (events(made, "mc", tree) for tree in ("nominal", "JET_JES_1up"))
    assert ak.all(nominal.event == shifted.event)
    ratio = ak.flatten(shifted.jet_pt / nominal.jet_pt)
    assert 1.0 < ak.min(ratio) < 1.0101
    assert 1.0149 < ak.max(ratio) < 1.0152
    assert ak.all(nominal.jet_nTracks == shifted.jet_nTracks)


def test_one_file_is_empty(made: Path) -> None:
    """Exactly one file has no events; it is in simulation, and the side file covers it like any other."""
    empty = [path for path in files(made, "mc") if uproot.open(path)["nominal"].num_entries == 0]
    assert [path.name for path in empty] == ["mc_JZ7_empty_000.root"]
    assert uproot.open(empty[0])["JET_JES_1up"].num_entries == 0
    assert all(uproot.open(path)["nominal"].num_entries for path in files(made, "data"))


def test_at_full_size_one_file_is_ten_times_larger() -> None:
    """Of more than fifty files one has about ten times the events of any other; simulation is five times data."""
    samples, _ = make_data.plan_samples(Path("data"), 1.0)
    sizes = sorted((n, path.name) for sample in samples for path, n in sample.files())
    assert len(sizes) > 50
    assert 8 < sizes[-1][0] / sizes[-2][0] < 12
    assert sizes[-1][1] == "mc_JZ5_000.root"
    total = {is_mc: sum(sample.n_events for sample in samples if sample.is_mc == is_mc) for is_mc in (True, False)}
    assert total[True] / total[False] == pytest.approx(5, rel=1e-3)
    for sample in samples:
        assert sum(n for _, n in sample.files()) == sample.n_events


def test_the_side_file_covers_each_file_once_and_sums_its_weights(made: Path) -> None:
    """One pattern per slice and period; `sum_of_weights` is the sum over its files, the absurd weights left out."""
    side = yaml.safe_load((made / "samples.yaml").read_text())
    assert {(s["slice"], s["period"]) for s in side.values()} == {(s, p) for s in make_data.SLICES_GEV for p in "ADE"}
    names = {path: str(path.relative_to(made)) for path in files(made, "mc")}
    assert all(sum(fnmatch(name, pattern) for pattern in side) == 1 for name in names.values())
    for pattern, sample in side.items():
        inside = [uproot.open(path)["nominal"] for path, name in names.items() if fnmatch(name, pattern)]
        weights = np.concatenate([tree["pu_weight"].array(library="np") for tree in inside])
        expected = weights[weights < make_data.ABSURD_WEIGHT].sum(dtype=np.float64)
        assert sample["sum_of_weights"] == pytest.approx(expected, rel=1e-12)


def test_an_absurd_weight_is_in_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some events weigh a million; the sum of weights that normalises their sample does not hold them."""
    monkeypatch.setitem(make_data.FAIL, "weight", 0.05)
    sample = make_data.Sample(tmp_path, "mc", (500.0, 900.0), 1000, is_mc=True)
    path = tmp_path / "mc_000.root"
    total = make_data.write_file(path, 1000, 0, sample, np.random.default_rng(3), jets.draw_features)
    weights = uproot.open(path)["nominal"]["pu_weight"].array(library="np")
    assert 20 < (weights == make_data.ABSURD_WEIGHT).sum() < 90
    assert total == pytest.approx(weights[weights < 100].sum(dtype=np.float64))
    assert 900 < total < 1000


def test_simulation_is_normalised_to_data(made: Path) -> None:
    """Luminosity x cross-section x efficiency is each slice's number of data events, in all what was recorded."""
    side = yaml.safe_load((made / "samples.yaml").read_text()).values()
    expected = sum(s["luminosity"] * s["cross_section"] * s["filter_efficiency"] for s in side)
    assert expected == pytest.approx(len(events(made, "data")), rel=1e-3)


def forward_first(array: ak.Array) -> tuple[np.ndarray[Any, Any], ...]:
    """Of the two leading jets of matched events, pT in GeV and label; columns forward and central."""
    array = array[ak.num(array.jet_pt) >= 2]
    pt, eta, label = (
        ak.to_numpy(array[f"jet_{name}"][:, :2]).reshape(-1, 2) for name in ("pt", "eta", "PartonTruthLabelID")
    )
    order = np.argsort(-np.abs(eta), axis=1)
    matched = (label > 0).all(axis=1)
    return tuple(np.take_along_axis(values, order, axis=1)[matched] for values in (pt / 1000, label))


@pytest.mark.parametrize(("region", "fraction"), [(0, 0.65), (1, 0.35)])
def test_quark_fractions_are_what_the_method_needs(made: Path, region: int, fraction: float) -> None:
    """Of forward jets 65 % are quarks, of central jets 35 %, in every pT bin within four standard deviations."""
    pt, label = (values[:, region] for values in forward_first(events(made, "mc")))
    edges = [500, 600, 800, 1000, 1200, 1500, 2000]
    for low, high in zip(edges, edges[1:], strict=False):
        here = label[(pt >= low) & (pt < high)]
        assert len(here) > 2000
        sigma = np.sqrt(fraction * (1 - fraction) / len(here))
        assert abs((here != jets.GLUON).mean() - fraction) < 4 * sigma, f"{low}-{high} GeV"


@pytest.mark.parametrize("flavour", ["gluon", "quark"])
@pytest.mark.parametrize("feature", ["nTracks", "trackWidth", "trackC1", "trackBDT"])
def test_shapes_do_not_know_eta(made: Path, feature: str, flavour: str) -> None:
    """At given pT and flavour a jet's features are distributed alike at small and at large |eta|."""
    array = events(made, "mc")
    label, eta = ak.flatten(array.jet_PartonTruthLabelID), ak.flatten(abs(array.jet_eta))
    pt = ak.to_numpy(ak.flatten(array.jet_pt)) / 1000
    right = label == jets.GLUON if flavour == "gluon" else (label > 0) & (label != jets.GLUON)
    value = ak.to_numpy(ak.flatten(array[f"jet_{feature}"]))
    for low in (500, 620, 800, 1100):  # 5 % wide: within them features hardly change with pT
        here = ak.to_numpy(right) & (pt >= low) & (pt < 1.05 * low)
        central, forward = (value[here & side] for side in (ak.to_numpy(eta < 0.8), ak.to_numpy(eta > 1.2)))
        assert min(len(central), len(forward)) > 300
        assert ks_2samp(central, forward).pvalue > 1e-3, f"at {low} GeV"


def test_quark_and_gluon_shapes_differ(made: Path) -> None:
    """The same comparison, between flavours, sees what it looks for: gluons have more tracks and are wider."""
    array = events(made, "mc")
    label = ak.flatten(array.jet_PartonTruthLabelID)
    for feature in ("nTracks", "trackWidth", "trackC1", "trackBDT"):
        value = ak.flatten(array[f"jet_{feature}"])
        gluon, quark = value[label == 21], value[(label > 0) & (label < 4)]
        assert ks_2samp(gluon, quark).pvalue < 1e-9
        assert ak.mean(gluon) > ak.mean(quark)


def test_the_change_touches_gluons_only() -> None:
    """From one stream of random numbers, quarks stay bit by bit; gluons alone are drawn anew, towards quarks."""
    score = make_data.load_score()
    n = 60_000
    label = np.where(np.arange(n) % 2, 21, np.arange(n) % 5 + 1).astype(np.int32)
    pt = np.linspace(500, 2000, n, dtype=np.float32)
    plain = jets.draw_features(np.random.default_rng(4), label, pt)
    changed = jets.draw_changed_features(np.random.default_rng(4), label, pt, score)
    gluon = label == jets.GLUON
    for name in ("ntrk", "width", "c1", "bdt"):
        before, after = getattr(plain, name), getattr(changed, name)
        assert np.array_equal(before[~gluon], after[~gluon])
        assert 0.1 < (before[gluon] != after[gluon]).mean() < 0.9
    ones, others = (score(features.inputs(pt))[gluon] for features in (plain, changed))
    weight = 1 + 0.5 * (1 - 2 * ones.astype(np.float64))
    for cut in (0.3, 0.5, 0.7, 0.9):  # the change is the reweighting it says it is
        expected = weight[ones > cut].sum() / weight.sum()
        sigma = np.sqrt(2 * expected * (1 - expected) / gluon.sum())
        assert abs((others > cut).mean() - expected) < 4 * sigma
    assert others.mean() < ones.mean() - 0.02
