"""A process pool per stage with pickles in between: what scripts do today."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
import uproot
from physics import BRANCHES, TREE, features, fill, select, weighted
from program import BATCH, arguments, save


def select_file(path: str, folder: Path) -> Path:
    with uproot.open(path) as file:
        columns = select(file[TREE].arrays(BRANCHES))
    target = folder / f"{Path(path).stem}.select.pkl"
    target.write_bytes(pickle.dumps(columns, pickle.HIGHEST_PROTOCOL))
    return target


def infer_file(path: Path, url: str, model: str) -> Path:
    columns = pickle.loads(path.read_bytes())
    x = features(columns)
    with grpcclient.InferenceServerClient(url) as client:
        scores = [infer_batch(client, model, x[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    columns["score"] = np.concatenate(scores)
    target = path.with_suffix(".infer.pkl")
    target.write_bytes(pickle.dumps(columns, pickle.HIGHEST_PROTOCOL))
    return target


def infer_batch(client: grpcclient.InferenceServerClient, model: str, rows: np.ndarray) -> np.ndarray:
    x = grpcclient.InferInput("X", rows.shape, "FP32")
    x.set_data_from_numpy(rows)
    return client.infer(model, [x]).as_numpy("SCORE")[:, 0]


def fill_file(path: Path) -> dict:
    columns = pickle.loads(path.read_bytes())
    return fill(columns, columns["score"], weighted)


def main() -> None:
    args = arguments()
    with ProcessPoolExecutor(args.workers) as pool:
        selected = list(pool.map(partial(select_file, folder=args.folder), args.files))
    with ProcessPoolExecutor(args.workers) as pool:
        inferred = list(pool.map(partial(infer_file, url=args.url, model=args.model), selected))
    with ProcessPoolExecutor(args.workers) as pool:
        total, *others = pool.map(fill_file, inferred)
    for histograms in others:
        for name, h in histograms.items():
            total[name] += h
    save(total, args.folder)


if __name__ == "__main__":
    main()
