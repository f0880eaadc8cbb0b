"""The calibration of `examples/qg_calibration` without a campaign: a process pool per stage, pickles in between.

The example's own functions do the physics, with hist's own histograms, merged by ``+=`` in list order. This is the kind
version of what is done: one pool per stage for all variations together, the server starts while files are read, what
the variation of the weight needs is kept from the nominal pass, and nothing is repeated.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import hist
import numpy as np
import tritonclient.grpc as grpcclient
import uproot
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "qg_calibration"))
import qg

BATCH = 8192
VARIATIONS = ("nominal", "jes_up", "trk_eff", "pdf_7")
READ = ("nominal", "jes_up", "trk_eff")  # pdf_7 has the nominal jets and scores
EVENT = ["jet_fire", "pu_weight"]
JET = [f"jet_{name}" for name in qg._JET]


class Weighted(hist.Hist):
    """hist's own histogram of sums of w and w2, with the calls that the example's functions make."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"storage": hist.storage.Weight(), **settings})

    def fill_each(self, axis: str, weights: dict[str, Any], **columns: Any) -> None:
        for category, weight in weights.items():
            self.fill(**{axis: category}, **columns, weight=weight)


def fill_together(histograms: Iterable[hist.Hist], columns: dict[str, Any], weight: Any) -> None:
    for h in histograms:
        h.fill(**{axis.name: columns[axis.name] for axis in h.axes}, weight=weight)


qg.Histogram, qg.Histograms, qg.fill_together = Weighted, dict, fill_together


def select_file(job: tuple[str, dict[str, Any], str], folder: Path) -> Path:
    path, metadata, variation = job
    tree = "JET_JES_1up" if variation == "jes_up" else "nominal"
    with_pdf = metadata["is_mc"] and variation == "nominal"
    extra = ["jet_nTracks_EFF"] if variation == "trk_eff" else ["pdf_weight"] if with_pdf else []
    with uproot.open(path) as file:
        events = file[tree].arrays([*EVENT, *JET, *extra])
    if variation == "trk_eff":
        events["jet_nTracks"] = events["jet_nTracks_EFF"]
    events["nominal"] = np.ones(len(events))
    columns = qg.select(events, SimpleNamespace(weight="nominal", metadata=metadata))
    if with_pdf:
        events["pdf_7"] = ak.values_astype(events["pdf_weight"][:, 7], np.float64)
        columns |= qg.select(events, SimpleNamespace(weight="pdf_7", metadata=metadata))
    kind = "mc" if metadata["is_mc"] else "data"
    target = folder / f"{kind}.{variation}.{Path(path).parent.name}.{Path(path).stem}.pkl"
    target.write_bytes(pickle.dumps(columns, pickle.HIGHEST_PROTOCOL))
    return target


def infer_file(path: Path, url: str) -> Path:
    columns = pickle.loads(path.read_bytes())
    x = np.stack([columns[name] for name in ("pt", "ntrk", "width", "c1")], axis=1).astype(np.float32)
    scores = [np.empty(0, np.float32)]
    with grpcclient.InferenceServerClient(url) as client:
        for start in range(0, len(x), BATCH):
            rows = grpcclient.InferInput("X", x[start : start + BATCH].shape, "FP32")
            rows.set_data_from_numpy(x[start : start + BATCH])
            scores.append(client.infer("qg_tagger", [rows]).as_numpy("SCORE")[:, 0])
    columns["score"] = np.concatenate(scores)
    target = path.with_suffix(".scored.pkl")
    target.write_bytes(pickle.dumps(columns, pickle.HIGHEST_PROTOCOL))
    return target


def fill_first(job: tuple[Path, str]) -> dict[str, hist.Hist]:
    path, weight = job
    return qg.fill_nominal(ak.Array(pickle.loads(path.read_bytes())), SimpleNamespace(weight=weight))


def fill_second(job: tuple[Path, str, dict[str, Any]]) -> dict[str, hist.Hist]:
    path, weight, factors = job
    ctx = SimpleNamespace(weight=weight, frozen={"factors": factors})
    return qg.fill_options(ak.Array(pickle.loads(path.read_bytes())), ctx)


def extract(job: tuple[str, dict[str, Any]], folder: Path) -> None:
    variation, merged = job
    qg.extract(merged, SimpleNamespace(variation=variation, artefacts=folder))


def merge(parts: list[dict[str, hist.Hist]]) -> dict[str, hist.Hist]:
    total, *others = parts
    for histograms in others:
        for name, h in histograms.items():
            total[name] += h
    return total


class Calibration:
    """All stages of both passes, each with a pool of its own."""

    def __init__(self, data: Path, folder: Path, workers: int, url: str) -> None:
        self.folder, self.workers, self.url = folder, workers, url
        samples = yaml.safe_load((data / "samples.yaml").read_text())
        self.jobs = []
        for variation in READ:
            for path in sorted(map(str, data.glob("mc/*/*.root"))):
                (metadata,) = (m for pattern, m in samples.items() if fnmatch.fnmatch(path, f"*/{pattern}"))
                self.jobs.append((path, {"is_mc": True, **metadata}, variation))
        self.jobs += [(str(path), {"is_mc": False}, "nominal") for path in sorted(data.glob("data/*/*.root"))]

    def map(self, function: Any, jobs: list[Any]) -> list[Any]:
        with ProcessPoolExecutor(self.workers) as pool:
            return list(pool.map(function, jobs))

    def select(self) -> None:
        self.paths = self.map(partial(select_file, folder=self.folder), self.jobs)

    def infer(self) -> None:
        self.paths = self.map(partial(infer_file, url=self.url), self.paths)

    def of(self, dataset: str, variation: str) -> list[tuple[Path, str]]:
        """Pickles of a dataset in a variation, and the name of the weight in them."""
        read, weight = ("nominal", variation) if variation == "pdf_7" else (variation, "nominal")
        if dataset == "data":
            read, weight = "nominal", "nominal"
        return [(path, weight) for path in self.paths if path.name.startswith(f"{dataset}.{read}.")]

    def first(self) -> None:
        jobs = {v: self.of("mc", v) for v in VARIATIONS}
        filled = iter(self.map(fill_first, [job for v in VARIATIONS for job in jobs[v]]))
        merged = {v: merge([next(filled) for _ in jobs[v]]) for v in VARIATIONS}
        self.factors = {v: qg.reweighting_factors({"mc": merged[v]}, None) for v in VARIATIONS}

    def second(self) -> None:
        which = [(v, dataset) for v in VARIATIONS for dataset in ("mc", "data")]
        jobs = {(v, d): [(*job, self.factors[v]) for job in self.of(d, v)] for v, d in which}
        filled = iter(self.map(fill_second, [job for at in which for job in jobs[at]]))
        merged = {at: merge([next(filled) for _ in jobs[at]]) for at in which}
        results = [(v, {d: merged[v, d] for d in ("mc", "data")}) for v in VARIATIONS]
        self.map(partial(extract, folder=self.folder), results)


def wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    with grpcclient.InferenceServerClient(url) as client:
        while server.poll() is None:
            try:
                if client.is_model_ready("qg_tagger"):
                    return
            except grpcclient.InferenceServerException:
                pass
            time.sleep(0.05)
    raise RuntimeError("the server has ended")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, help="shell script that starts the server")
    parser.add_argument("--url", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    took: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        took[name], last = round(now - last, 3), now

    server = subprocess.Popen(["bash", args.server], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        calibration = Calibration(args.data, args.folder, args.workers, args.url)
        calibration.select()
        lap("select")
        wait_ready(args.url, server)
        lap("wait for the server")
        for stage in ("infer", "first", "second"):
            getattr(calibration, stage)()
            lap(stage)
    finally:
        server.terminate()
        server.wait()
        lap("stop the server")
    (args.folder / "took.json").write_text(json.dumps(took))


if __name__ == "__main__":
    main()
