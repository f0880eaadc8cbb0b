"""Write the known answer for given weights: `python make_canary.py [WEIGHTS.npz [CANARY.npz]]`.

The answer comes from `reference.py`, not from the code that serves, so the canary proves that code as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import Weights, reference_labels, reference_logits

HERE = Path(__file__).resolve().parent
N_TRACKS, N_LAYERS, N_EDGES, SEED = 5, 8, 60, 7
CLEARANCE = 0.02  # no logit nearer to the cut: rounding must not change a track
ATOL = 1e-3


def event(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A few tracks from the origin, points (r, phi, z) scaled as in the pipeline; true edges, then random ones."""
    rng = np.random.default_rng(seed)
    radius = np.linspace(0.03, 1.0, N_LAYERS)
    phi, bend, slope = (rng.uniform(-width, width, (N_TRACKS, 1)) for width in (1.0, 0.05, 1.0))
    points = [np.broadcast_to(radius, (N_TRACKS, N_LAYERS)), phi + bend * radius, slope * radius]
    features = np.stack(points, axis=-1).reshape(-1, 3).astype(np.float32)
    node = np.arange(len(features), dtype=np.int64).reshape(N_TRACKS, N_LAYERS)
    true = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()])
    return features, np.hstack([true, rng.integers(0, len(features), (2, N_EDGES - true.shape[1]))])


def make_canary(weights: Weights) -> dict[str, Any]:
    """The first event, counting up from `SEED`, none of whose logits is near the cut."""
    for seed in range(SEED, SEED + 1000):
        features, edges = event(seed)
        logits = reference_logits(weights, features, edges)
        if np.abs(logits - np.log(3.0)).min() > CLEARANCE:
            return {
                "input.FEATURES": features,
                "input.EDGES": edges,
                "output.LOGITS": logits.astype(np.float32),
                "output.LABELS": reference_labels(len(features), edges, logits),
                "rtol": np.float64(0.0),
                "atol": np.float64(ATOL),
            }
    raise SystemExit(f"no event keeps its logits {CLEARANCE} away from the cut with these weights")


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "1" / "weights.npz"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "canary.npz"
    with np.load(source) as loaded:
        np.savez(target, **make_canary(dict(loaded)))
