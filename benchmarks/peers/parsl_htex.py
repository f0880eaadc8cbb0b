"""Plain Parsl: the HighThroughputExecutor on this machine, one app per file."""

from __future__ import annotations

from pathlib import Path

import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from program import arguments, save


@python_app
def one_file(path: str, url: str, model: str) -> dict:
    import numpy as np
    import tritonclient.grpc as grpcclient
    import uproot
    from physics import BRANCHES, TREE, features, fill, select, weighted
    from program import BATCH

    with uproot.open(path) as file:
        columns = select(file[TREE].arrays(BRANCHES))
    rows, scores = features(columns), []
    with grpcclient.InferenceServerClient(url) as client:
        for start in range(0, len(rows), BATCH):
            x = grpcclient.InferInput("X", rows[start : start + BATCH].shape, "FP32")
            x.set_data_from_numpy(rows[start : start + BATCH])
            scores.append(client.infer(model, [x]).as_numpy("SCORE")[:, 0])
    return fill(columns, np.concatenate(scores), weighted)


def main() -> None:
    args = arguments()
    here = Path(__file__).resolve().parent
    executor = HighThroughputExecutor(
        label="local",
        max_workers_per_node=args.workers,
        provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={here}"),
    )
    with parsl.load(Config(executors=[executor], run_dir=str(args.folder / "runinfo"))):
        futures = [one_file(path, args.url, args.model) for path in args.files]
        total, *others = (future.result() for future in futures)
    for histograms in others:
        for name, h in histograms.items():
            total[name] += h
    save(total, args.folder)


if __name__ == "__main__":
    main()
