"""Peak memory of a worker against the size of the file it works on: flat, because files are streamed.

Run ``python benchmarks/memory.py``. Files of 10, 100 and 1000 MB (TTree, ZLIB 1, jagged jets) go one by one through a
whole campaign with one worker: read, select, infer, keep the columns, fill.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

PROJECT = Path(__file__).resolve().parent.parent
BASKET = 20_000

STAGES = '''
import awkward as ak
import numpy as np

def select(events, ctx):
    """One row per jet above 30 GeV."""
    kept = events.jet_pt > 30_000
    columns = {name: ak.flatten(events[f"jet_{name}"][kept]) for name in ("pt", "ntrk", "width", "c1")}
    counts = ak.sum(kept, axis=1)
    return columns | {ctx.weight: np.repeat(ak.to_numpy(events[ctx.weight]), ak.to_numpy(counts))}
'''

CAMPAIGN = f"""
campaign: memory
datasets:
  mc: {{files: "FILE", tree: nominal}}
servers:
  model_repository: {PROJECT / "model_repository"}
  models: {{qg_tagger: {{batch: 8192}}}}
workers: 1
stages:
  select: {{use: "stages.py:select"}}
  predict:
    {{use: infer, from: select, model: qg_tagger, inputs: {{X: [pt, ntrk, width, c1]}}, outputs: {{score: SCORE}},
      keep: true}}
  fill: {{use: fill, from: predict, histograms: {{score: {{score: {{bins: 50, range: [0, 1]}}}}}}}}
"""


def write(path: Path, megabytes: float) -> int:
    """A file of about this size; returns its events."""
    rng = np.random.default_rng(1)
    events = 0
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        tree = None
        while tree is None or path.stat().st_size < megabytes * 1e6:
            counts = rng.poisson(3, BASKET)
            columns = {"run": np.full(BASKET, 1, np.int32), "weight": rng.lognormal(size=BASKET).astype(np.float32)}
            for name in ("pt", "ntrk", "width", "c1", "eta", "phi"):
                values = rng.exponential(40_000, counts.sum()).astype(np.float32)
                columns[f"jet_{name}"] = ak.unflatten(values, counts)
            if tree is None:
                tree = file.mktree("nominal", {k: ak.type(ak.Array(v)).content for k, v in columns.items()})
            tree.extend(columns)
            events += BASKET
    return events


def peak(folder: Path, name: str) -> tuple[float, float]:
    """Peak memory (MB) of the worker and seconds of the run."""
    (folder / "c.yaml").write_text(CAMPAIGN.replace("FILE", name))
    command = [str(Path(sys.executable).with_name("campaign")), "run", "c.yaml", "--run-dir", f"run-{name}", "--quiet"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((folder / f"run-{name}" / "report.json").read_text())
    return report["profile"]["worker_peak_mb"], report["wall_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 100, 1000], metavar="MB")
    sizes = parser.parse_args().sizes
    print(f"{os.cpu_count()} cores; one worker; read, select, infer, keep, fill")
    print(f"{'file, MB':>10} {'events':>12} {'peak, MB':>10} {'ratio':>7} {'seconds':>8}")
    first = 0.0
    with tempfile.TemporaryDirectory(prefix="campaign-memory-") as name:
        folder = Path(name)
        (folder / "stages.py").write_text(STAGES)
        for size in sizes:
            path = folder / f"{size:g}.root"
            events = write(path, size)
            megabytes, wall = peak(folder, path.name)
            first = first or megabytes
            print(
                f"{path.stat().st_size / 1e6:10.0f} {events:12,} {megabytes:10.0f} {megabytes / first:7.2f} {wall:8.1f}"
            )
            path.unlink()


if __name__ == "__main__":
    main()
