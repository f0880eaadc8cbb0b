"""Ray Data: files to rows, the model in its own processes (actors), rows to histograms."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import ray
import uproot
from physics import BRANCHES, TREE, features, fill, select, weighted
from program import BATCH, arguments, save


def read(files: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for path in files["item"]:
        with uproot.open(str(path)) as file:
            columns = select(file[TREE].arrays(BRANCHES))
        yield columns | {"x": features(columns)}


class Tagger:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (score,) = self.session.run(["SCORE"], {"X": np.ascontiguousarray(rows.pop("x"))})
        return rows | {"score": score[:, 0]}


def fill_rows(rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
    return {"histograms": [pickle.dumps(fill(rows, rows["score"], weighted))]}


def main() -> None:
    args = arguments()
    here = str(Path(__file__).resolve().parent)
    ray.init(num_cpus=args.workers, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
    ray.data.DataContext.get_current().enable_progress_bars = False
    filled = (
        ray.data.from_items(args.files, override_num_blocks=len(args.files))
        .map_batches(read, batch_size=1)
        .map_batches(Tagger, fn_constructor_args=[args.model], batch_size=BATCH, concurrency=1)
        .map_batches(fill_rows, batch_size=None)
        .take_all()
    )
    total, *others = (pickle.loads(row["histograms"]) for row in filled)
    for histograms in others:
        for name, h in histograms.items():
            total[name] += h
    save(total, args.folder)
    ray.shutdown()


if __name__ == "__main__":
    main()
