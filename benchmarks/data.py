"""The benchmarks' minitrees: TTrees with jagged jets, written once into the cache, the same for the same seed.

24 files of 100,000 events in baskets of 10,000 entries, ZLIB level 1; the selection of `peers/physics.py` leaves about
2.8 million jets of all of them. Real minitrees are TTrees; uproot writes RNTuples unless it is told otherwise.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from campaign.servers.environment import cache_dir

SEED = 20_261_122
FILES = 24
EVENTS = 100_000  # of one file
BASKET = 10_000  # entries
TREE = "nominal"

_EVENT = {
    "run": "int32",
    "event": "int64",
    "weight": "float32",
    "mu": "float32",  # from here on: there, and read by nobody
    "n_vertices": "int32",
    "met": "float32",
    "met_phi": "float32",
}
_JET = {
    "pt": "float32",
    "eta": "float32",
    "nTracks": "int32",
    "trackWidth": "float32",
    "trackC1": "float32",
    "phi": "float32",  # from here on: there, and read by nobody
    "m": "float32",
    "label": "int32",
}


def folder() -> Path:
    """Where benchmarks keep what they make: environments, data."""
    return cache_dir() / "benchmarks"


def minitrees(count: int = FILES, *, processes: int = 2) -> list[Path]:
    """Paths of the first ``count`` files; those that are not there yet are written."""
    stamp = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    paths = [folder() / f"minitrees-{stamp}" / f"jets_{number:02d}.root" for number in range(count)]
    missing = [(path, number) for number, path in enumerate(paths) if not path.exists()]
    if missing:
        print(f"writing {len(missing)} files of {EVENTS:,} events into {paths[0].parent}", flush=True)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(min(processes, os.cpu_count() or 1)) as pool:
            list(pool.map(write_file, *zip(*missing, strict=True)))
    return paths


def write_file(path: Path, number: int) -> None:
    """One file; it is seen under its name only when it is whole."""
    rng = np.random.default_rng([SEED, number])
    tree = dict(_EVENT) | {"jet": "var * {" + ", ".join(f"{name}: {kind}" for name, kind in _JET.items()) + "}"}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with uproot.recreate(aside, compression=uproot.ZLIB(1)) as file:
        made = file.mktree(TREE, tree)
        for start in range(0, EVENTS, BASKET):  # each extend makes one basket per branch
            made.extend(draw(rng, number, start, BASKET))
    aside.replace(path)


def draw(rng: np.random.Generator, number: int, start: int, count: int) -> dict[str, Any]:
    """Columns of ``count`` events; jets ordered as they come."""
    n_jets = rng.poisson(4.0, count)
    total = int(n_jets.sum())
    gluon = rng.random(total) < 0.5
    pt = 20_000 + rng.exponential(28_000, total)  # MeV
    jets = {
        "pt": pt,
        "eta": rng.normal(0, 2.0, total),
        "nTracks": rng.poisson(np.where(gluon, 14, 9) * (pt / 50_000) ** 0.3),
        "trackWidth": rng.gamma(np.where(gluon, 4.0, 2.5), 0.02),
        "trackC1": rng.beta(np.where(gluon, 6.0, 4.0), 14.0),
        "phi": rng.uniform(-np.pi, np.pi, total),
        "m": 0.1 * pt * rng.random(total),
        "label": np.where(gluon, 21, rng.integers(1, 6, total)),
    }
    flat = ak.zip({name: column.astype(_JET[name]) for name, column in jets.items()})
    mu = rng.normal(34, 8, count)
    events = {
        "run": np.full(count, 300_000 + number),
        "event": np.arange(start, start + count),
        "weight": rng.lognormal(0, 0.5, count),
        "mu": mu,
        "n_vertices": rng.poisson(np.maximum(mu, 1)),
        "met": rng.exponential(30_000, count),
        "met_phi": rng.uniform(-np.pi, np.pi, count),
    }
    return {name: column.astype(_EVENT[name]) for name, column in events.items()} | {"jet": ak.unflatten(flat, n_jets)}


if __name__ == "__main__":
    for path in minitrees():
        print(path)
