"""What a campaign adds before its first prediction and after its last task.

Run ``python benchmarks/startup.py``. A small campaign over real files is run as a command, again and again; the
report's timeline tells what happened when, the shell's clock when the command began and when the prompt came back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uproot

PROJECT = Path(__file__).resolve().parent.parent
EVENTS, FILES = 20_000, 4

CAMPAIGN = f"""
campaign: startup
datasets:
  mc: {{files: "data/*.root", tree: events}}
servers:
  model_repository: {PROJECT / "model_repository"}
  models: {{qg_tagger: {{batch: 4096}}}}
stages:
  predict: {{use: infer, model: qg_tagger, inputs: {{X: [pt, ntrk, width, c1]}}, outputs: {{score: SCORE}}}}
  fill: {{use: fill, from: predict, histograms: {{score: {{score: {{bins: 50, range: [0, 1]}}}}}}}}
"""


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(FILES):
        with uproot.recreate(folder / f"{i}.root", compression=uproot.ZLIB(1)) as file:
            columns = {
                "pt": rng.uniform(500, 2000, EVENTS), "ntrk": rng.poisson(20, EVENTS).astype(float),
                "width": rng.uniform(0, 0.3, EVENTS), "c1": rng.uniform(0, 0.4, EVENTS),
            }  # fmt: skip
            tree = file.mktree("events", dict.fromkeys(columns, "float32"))
            tree.extend({name: column.astype(np.float32) for name, column in columns.items()})


def run_once(folder: Path, number: int) -> dict[str, float]:
    command = [
        str(Path(sys.executable).with_name("campaign")),
        "run",
        "c.yaml",
        "--run-dir",
        f"run-{number}",
        "--quiet",
    ]
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    prompt = time.time()
    report = json.loads((folder / f"run-{number}" / "report.json").read_text())
    told = report["profile"]
    at = {name: told["began"] - began + seconds for name, seconds in told["timeline"].items()}
    server = report["servers"][0]["ready_s"]
    return {
        "pool asked for": at["pool"],
        "the server's own start": server,
        "first prediction": at["answer"],
        "command to first prediction, less the server's start": at["answer"] - server,
        "end of last task to prompt": prompt - at["tasks"],
        "whole": prompt - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="campaign-startup-") as name:
        folder = Path(name)
        write_data(folder / "data")
        (folder / "c.yaml").write_text(CAMPAIGN)
        run_once(folder, 0)  # makes the server environment where there is none
        runs = [run_once(folder, number) for number in range(1, rounds + 1)]
    print(f"{os.cpu_count()} cores; {FILES} files, {FILES * EVENTS:,} rows, 1 Triton; seconds, {rounds} runs")
    targets = {"command to first prediction, less the server's start": 1.0, "end of last task to prompt": 2.0}
    print(f"{'':54} {'median':>7} {'best':>7} {'worst':>7} {'target':>7}")
    for what in runs[0]:
        values = [run[what] for run in runs]
        target = f"{targets[what]:.1f}" if what in targets else ""
        print(f"{what:54} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f} {target:>7}")


if __name__ == "__main__":
    main()
