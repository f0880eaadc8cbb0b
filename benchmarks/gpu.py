"""Torch networks on a GPU, through the pool and without it: rows per second and how busy the GPU is.

Run ``python benchmarks/gpu.py`` on a machine with a GPU; ``--device cpu`` runs the same, small, on any. The server
environment with torch is made once, where all server environments lie.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from campaign import ServerPool
from campaign.servers import environment

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "model_repository" / "track_gnn" / "1" / "weights.npz"
TORCH = "torch==2.13.0"
ROUNDS = 3

CONFIG = """
backend: "python"
max_batch_size: {batch}
{tensors}
instance_group [ {{ count: 1 kind: {kind} }} ]
parameters {{ key: "network" value {{ string_value: "{name}" }} }}
"""
ROWS = """
input [ {{ name: "X" data_type: TYPE_FP32 dims: {inputs} }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: {outputs} }} ]
"""
GRAPH = """
input [
  { name: "FEATURES" data_type: TYPE_FP32 dims: [ -1, 3 ] },
  { name: "EDGES" data_type: TYPE_INT64 dims: [ 2, -1 ] }
]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


@dataclass(frozen=True)
class Case:
    """One network: what one request holds, and how many are sent per round."""

    name: str
    tensors: str
    output: str
    batch: int
    requests: int

    def inputs(self) -> dict[str, np.ndarray]:
        """One request."""
        rng = np.random.default_rng(1)
        if self.name == "track_gnn":  # rows are edges: one event
            points = rng.standard_normal((self.batch // 8, 3), dtype=np.float32)
            return {"FEATURES": points, "EDGES": rng.integers(0, len(points), (2, self.batch))}
        shape = (16,) if self.name == "mlp" else (64, 7)
        return {"X": rng.standard_normal((self.batch, *shape), dtype=np.float32)}


CASES = [
    Case("mlp", ROWS.format(inputs=[16], outputs=[1]), "Y", 65_536, 100),
    Case("particlenet", ROWS.format(inputs=[64, 7], outputs=[5]), "Y", 1024, 50),
    Case("track_gnn", GRAPH, "LOGITS", 200_000, 30),
]
SMALL = {"mlp": (2048, 40), "particlenet": (16, 10), "track_gnn": (2000, 10)}


def lay_out(case: Case, repository: Path, kind: str) -> None:
    """Writes the model into a repository."""
    version = repository / case.name / "1"
    version.mkdir(parents=True)
    batch = 0 if case.name == "track_gnn" else case.batch
    text = CONFIG.format(batch=batch, tensors=case.tensors, kind=kind, name=case.name)
    (version.parent / "config.pbtxt").write_text(text)
    for source in (HERE / "gpu_models" / "model.py", HERE / "gpu_models" / "networks.py", WEIGHTS):
        shutil.copy(source, version)
    np.savez(version / "inputs.npz", **case.inputs())


@contextmanager
def gpu_watched(told: list[float]) -> Iterator[None]:
    """Appends the mean utilisation of the GPU in percent, by nvidia-smi, five times a second; nothing without one."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watch:
        try:
            yield
        finally:
            watch.terminate()
            seen = [float(line) for line in (watch.stdout or ()) if line.strip().isdigit()]
            told.append(statistics.mean(seen) if seen else float("nan"))


def direct(case: Case, folder: Path, device: str, python: Path) -> float:
    """Seconds per request of the same network in a process of its own; its answer is left in the folder."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as the server has it
    argv = [python, folder / "networks.py", case.name, device, folder / "inputs.npz", str(case.requests)]
    done = subprocess.run(argv, env={**os.environ, **one_thread}, check=True, capture_output=True, text=True)
    return float(done.stdout)


def served(case: Case, pool: ServerPool) -> tuple[float, np.ndarray]:
    """Seconds per request through the pool, and the answer to one."""
    inputs = case.inputs()
    start = time.perf_counter()
    if case.name == "track_gnn":
        answers = pool.servers().infer_events(case.name, [inputs] * case.requests)
    else:
        whole = {name: np.concatenate([array] * case.requests) for name, array in inputs.items()}
        start = time.perf_counter()
        answers = [pool.servers().infer(case.name, whole)]
    taken = (time.perf_counter() - start) / case.requests
    return taken, answers[0][case.output][: case.batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    device = parser.parse_args().device
    cases = CASES
    if device == "cpu":
        cases = [replace(case, batch=SMALL[case.name][0], requests=SMALL[case.name][1]) for case in CASES]
    with tempfile.TemporaryDirectory(prefix="campaign-gpu-") as temporary:
        repository = Path(temporary) / "models"
        for case in cases:
            lay_out(case, repository, "KIND_GPU" if device == "cuda" else "KIND_CPU")
        models = {case.name: {} if case.name == "track_gnn" else {"batch": case.batch} for case in cases}
        options = {"requirements": [TORCH], "start_deadline_s": 300.0}
        with ServerPool(repository, models=models, say=print, **options) as pool:
            pool.wait_ready()
            python = environment.environment([TORCH]).path / "bin" / "python"
            titles = (
                f"{'rows':>9} {'direct':>12} {'served':>12}  rows/s {'ratio':>7} {'GPU busy':>9} {'differs by':>11}"
            )
            print(f"{'':14}{titles}")
            for case in cases:
                report(case, pool, repository / case.name / "1", device, python)


def report(case: Case, pool: ServerPool, folder: Path, device: str, python: Path) -> None:
    """One line: medians of interleaved rounds."""
    alone, through, busy = [], [], []
    for _ in range(ROUNDS):
        alone.append(direct(case, folder, device, python))
        with gpu_watched(busy):
            seconds, answer = served(case, pool)
        through.append(seconds)
    one, other = statistics.median(alone), statistics.median(through)
    differs = float(np.abs(answer - np.load(folder / "answer.npy")).max())
    told = f"{statistics.median(busy):.0f} %" if busy else "-"
    rates = f"{case.batch / one:12.0f} {case.batch / other:12.0f}"
    print(f"{case.name:14}{case.batch:9} {rates}         {one / other:7.2f} {told:>9} {differs:11.1e}")


if __name__ == "__main__":
    main()
