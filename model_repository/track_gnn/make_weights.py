"""Write the small untrained default weights, `1/weights.npz`: random numbers with which the folder serves by itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SEED = 20260101
# Of the last layer: scores on both sides of the cut, so that the tracks of the canary are not trivial.
LAST = "edge_network.network.9"
SPREAD, SHIFT = 12.0, 4.0


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as `1/gnn.py` wants them (a folder called 1 cannot be imported by name)."""
    spec = importlib.util.spec_from_file_location("track_gnn_math", HERE / "1" / "gnn.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[int, ...]] = module.weight_shapes()
    return found


def make_weights() -> dict[str, NDArray[np.float32]]:
    """Uniform numbers of the size customary for a linear layer; normalisations start at gain 1, shift 0."""
    rng = np.random.default_rng(SEED)
    weights = {}
    for name, shape in shapes().items():
        network, index, kind = name.rsplit(".", 2)
        if int(index) % 3 == 1:
            weights[name] = np.full(shape, float(kind == "weight"), dtype=np.float32)
            continue
        fan_in = shapes()[f"{network}.{index}.weight"][1]
        bound = (SPREAD if name.startswith(LAST) else 1.0) / np.sqrt(fan_in)
        weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    weights[f"{LAST}.bias"] += np.float32(SHIFT)
    return weights


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "1" / "weights.npz"
    arrays: dict[str, Any] = {**make_weights()}
    np.savez(target, **arrays)
