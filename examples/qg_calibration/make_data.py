"""Write the example's minitrees: simulation in slices and periods, and data with a known change in their gluons.

``python make_data.py`` fills `data/` beside this file (about 200 MB, some ten seconds): `mc/PERIOD/*.root` with the
trees `nominal` and `JET_JES_1up`, `data/PERIOD/*.root`, and `samples.yaml`, which says what each file is. The same seed
and size give the same events.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import jets
import numpy as np
import onnxruntime
import uproot
import yaml
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "model_repository" / "qg_tagger" / "1" / "model.onnx"

LUMINOSITY_PB = {"A": 36_200.0, "D": 44_300.0, "E": 58_500.0}
SLICES_GEV = {"JZ5": (500.0, 900.0), "JZ6": (900.0, 1400.0), "JZ7": (1400.0, jets.PT_RANGE_GEV[1])}
FILTER_EFFICIENCY = {"JZ5": 0.0125, "JZ6": 0.0098, "JZ7": 0.0133}
MC_PER_DATA = 5.0
N_DATA = 160_000  # of which about 120,000 survive the selection
EVENTS_PER_FILE = 16_500
BIG = ("JZ5", "E")  # this sample lies in one file, ten times larger than the others
PDF_MEMBERS = 9
ABSURD_WEIGHT = 1e6  # of a few events: what the cut on |event weight| is for; no sum of weights holds them
BATCH = 50_000  # events drawn and written at once: bounds the memory, and is part of what the seed means
FAIL = {"trigger": 0.03, "cleaning": 0.015, "tracks": 0.002, "label": 0.003, "weight": 2e-5, "third_jet": 0.2}
Columns = dict[str, Any]

_JET_BRANCHES = {
    "pt": "float32",
    "eta": "float32",
    "nTracks": "int32",
    "nTracks_EFF": "int32",
    "trackWidth": "float32",
    "trackC1": "float32",
    "trackBDT": "float32",
    "PartonTruthLabelID": "int32",
    "cleaning": "int32",
}
_MC_WEIGHTS = {
    "mconly_weight": "float32",
    "mcEventWeightsVector": ("float32", (3,)),
    "pdf_weight": ("float32", (PDF_MEMBERS,)),
}


@dataclass(frozen=True)
class Sample:
    """The events of one slice and period, or of one period of data."""

    folder: Path
    stem: str
    slice_gev: tuple[float, float]
    n_events: int
    is_mc: bool
    one_file: bool = False

    @property
    def pattern(self) -> str:
        """Which files are this sample's, in the words of the side file."""
        return f"{self.folder.parent.name}/{self.folder.name}/{self.stem}_*.root"

    def files(self) -> Iterator[tuple[Path, int]]:
        """Each file of this sample with its number of events."""
        n_files = 1 if self.one_file else max(1, math.ceil(self.n_events / EVENTS_PER_FILE))
        for i in range(n_files):
            yield (
                self.folder / f"{self.stem}_{i:03d}.root",
                (self.n_events * (i + 1)) // n_files - (self.n_events * i) // n_files,
            )


def load_score(path: Path = MODEL) -> jets.Score:
    """The shipped tagger as a function of its inputs (n, 4), run in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(inputs: jets.Floats) -> jets.Floats:
        return np.asarray(session.run(["SCORE"], {"X": inputs})[0][:, 0], dtype=np.float32)

    return score


def draw_events(rng: np.random.Generator, n: int, sample: Sample, draw: Any) -> tuple[Columns, NDArray[np.bool_]]:
    """Per-jet columns (n, 3), pT-ordered, in the units and conventions of a minitree, and which of the jets exist."""
    event = jets.draw_dijets(rng, n, *sample.slice_gev)
    third_pt = (event.pt[:, 1] * rng.uniform(0.1, 0.6, n)).astype(np.float32)
    third_eta = rng.uniform(-2.4, 2.4, n).astype(np.float32)
    pt = np.column_stack([event.pt, third_pt])
    label = np.column_stack([event.label, jets.draw_labels(rng, rng.random(n) < 0.3)])
    features = draw(rng, label.ravel(), pt.ravel())
    exists = np.ones((n, 3), dtype=bool)
    exists[:, 2] = rng.random(n) < FAIL["third_jet"]
    exists[rng.random(n) < 0.004, 1:] = False  # single jets ...
    exists[rng.random(n) < 0.001] = False  # ... and events with none
    ntrk = np.where(rng.random((n, 3)) < FAIL["tracks"], rng.integers(0, 2, (n, 3)), features.ntrk.reshape(n, 3))
    unmatched = rng.random((n, 3)) < FAIL["label"]
    columns = {
        "pt": pt * np.float32(1000),
        "eta": np.column_stack([event.eta, third_eta]),
        "nTracks": ntrk,
        "nTracks_EFF": rng.binomial(ntrk, 0.97),
        "trackWidth": features.width.reshape(n, 3),
        "trackC1": features.c1.reshape(n, 3),
        "trackBDT": features.bdt.reshape(n, 3),
        "PartonTruthLabelID": np.where(unmatched, -1, label) if sample.is_mc else np.full((n, 3), -9999),
        "cleaning": np.where(rng.random((n, 3)) < FAIL["cleaning"], 1, 2),
    }
    return columns, exists


def event_columns(rng: np.random.Generator, n: int, first: int, sample: Sample) -> Columns:
    """Per-event columns of the tree `nominal`, theory weights not included."""
    weight = np.ones(n, dtype=np.float32)
    if sample.is_mc:
        weight = rng.lognormal(-0.02, 0.2, n).astype(np.float32)
        weight[rng.random(n) < FAIL["weight"]] = ABSURD_WEIGHT
    fired = rng.random(n) >= FAIL["trigger"]
    run = 284_500 if sample.is_mc else 300_000 + ord(sample.folder.name)
    return {
        "run": np.full(n, run, dtype=np.int32),
        "event": np.arange(first, first + n, dtype=np.int64),
        "pu_weight": weight,
        "jet_fire": fired.astype(np.int32),
    }


def theory_columns(rng: np.random.Generator, columns: Columns, lead_pt_gev: jets.Floats) -> Columns:
    """Weights of simulation only: PDF members are factors on the event weight, close to 1 and smooth in pT."""
    tilt = np.log(lead_pt_gev / 1000.0)[:, None] * np.linspace(-0.06, 0.06, PDF_MEMBERS)
    spread = 0.01 * rng.standard_normal((len(tilt), PDF_MEMBERS))
    scales = columns["pu_weight"][:, None] * np.array([1.0, 0.9, 1.1])
    return {
        "mconly_weight": columns["pu_weight"],
        "mcEventWeightsVector": scales.astype(np.float32),
        "pdf_weight": (1.0 + tilt + spread).astype(np.float32),
    }


def jagged(columns: Columns, exists: NDArray[np.bool_]) -> ak.Array:
    """One record of jets per event from columns (n, 3) and the mask of the jets that exist."""
    flat = ak.zip({name: column[exists].astype(_JET_BRANCHES[name]) for name, column in columns.items()})
    return ak.unflatten(flat, exists.sum(axis=1))


def jes_up(columns: Columns) -> Columns:
    """The same jets with their energy scale one sigma up: 1 % at 500 GeV, 1.5 % at 2 TeV."""
    pt_gev = columns["pt"] / np.float32(1000)
    shift = 1.01 + 0.005 * np.log(np.maximum(pt_gev, 1) / 500) / np.log(4)
    return columns | {"pt": (columns["pt"] * shift).astype(np.float32)}


def write_file(path: Path, n: int, first: int, sample: Sample, rng: np.random.Generator, draw: Any) -> float:
    """Write one file of n events; real minitrees are TTrees, so these are too. Returns its sum of weights."""
    total = 0.0
    per_event: dict[str, Any] = {"run": "int32", "event": "int64", "pu_weight": "float32", "jet_fire": "int32"}
    per_jet = {name: kind for name, kind in _JET_BRANCHES.items() if sample.is_mc or name != "nTracks_EFF"}
    jet = {"jet": "var * {" + ", ".join(f"{name}: {kind}" for name, kind in per_jet.items()) + "}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path, compression=uproot.LZ4(1)) as file:
        nominal = file.mktree("nominal", per_event | (_MC_WEIGHTS if sample.is_mc else {}) | jet)
        shifted = file.mktree("JET_JES_1up", per_event | jet) if sample.is_mc else None
        for start in range(0, n, BATCH):
            size = min(BATCH, n - start)
            columns = event_columns(rng, size, first + start, sample)
            drawn, exists = draw_events(rng, size, sample, draw)
            drawn = {name: drawn[name] for name in per_jet}
            theory = theory_columns(rng, columns, drawn["pt"][:, 0] / np.float32(1000)) if sample.is_mc else {}
            nominal.extend(columns | theory | {"jet": jagged(drawn, exists)})
            if shifted is not None:
                shifted.extend(columns | {"jet": jagged(jes_up(drawn), exists)})
            weight = columns["pu_weight"]
            total += float(weight[weight < ABSURD_WEIGHT].sum(dtype=np.float64))
    return total


def plan_samples(out: Path, size: float) -> tuple[list[Sample], dict[str, Columns]]:
    """All samples, and for each sample of simulation what the side file says about it."""
    total_lumi = sum(LUMINOSITY_PB.values())
    samples, side = [], {}
    for period, lumi in LUMINOSITY_PB.items():
        share = N_DATA * size * lumi / total_lumi
        samples.append(Sample(out / "data" / period, "data", jets.PT_RANGE_GEV, round(share), is_mc=False))
        for name, edges in SLICES_GEV.items():
            expected = share * jets.spectrum_integral(*edges)
            n = round(MC_PER_DATA * expected)
            one_file = (name, period) == BIG
            samples.append(Sample(out / "mc" / period, f"mc_{name}", edges, n, is_mc=True, one_file=one_file))
            side[samples[-1].pattern] = {
                "slice": name,
                "period": period,
                "cross_section": expected / (lumi * FILTER_EFFICIENCY[name]),
                "filter_efficiency": FILTER_EFFICIENCY[name],
                "sum_of_weights": 0.0,  # known when the files are written
                "luminosity": lumi,
            }
    return samples, side


def make(out: Path, size: float = 1.0, seed: int = 1, change: bool = True) -> None:
    """Write everything into `out`.

    Args:
        out: Folder to fill.
        size: Scale factor on the number of events.
        seed: Seed of all randomness; every file has its own stream.
        change: Whether the data's gluons are changed; without, data are drawn from the simulation's densities.
    """
    samples, side = plan_samples(out, size)
    changed = partial(jets.draw_changed_features, score=load_score())
    empty = Sample(out / "mc" / "D", "mc_JZ7_empty", SLICES_GEV["JZ7"], 0, is_mc=True)
    for i, sample in enumerate([*samples, empty]):
        draw = changed if change and not sample.is_mc else jets.draw_features
        first = 0
        for k, (path, n) in enumerate(sample.files()):
            total = write_file(path, n, first, sample, np.random.default_rng((seed, i, k)), draw)
            if sample.pattern in side:
                side[sample.pattern]["sum_of_weights"] += total
            first += n
    header = (
        "# What each file of simulation is: cross_section in pb, luminosity in 1/pb,\n"
        f"# sum_of_weights of the sample's events, but the few whose weight is {ABSURD_WEIGHT:g}.\n"
    )
    (out / "samples.yaml").write_text(header + yaml.safe_dump(side, sort_keys=False))


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=HERE / "data", help="folder to fill (default: data/ beside this file)"
    )
    parser.add_argument("--size", type=float, default=1.0, help="scale factor on the number of events (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all randomness (default 1)")
    parser.add_argument("--no-change", action="store_true", help="data's gluons as simulated: every scale factor is 1")
    options = parser.parse_args()
    make(options.out, options.size, options.seed, change=not options.no_change)
    print(f"wrote {sum(1 for _ in options.out.rglob('*.root'))} files below {options.out}")


if __name__ == "__main__":
    main()
