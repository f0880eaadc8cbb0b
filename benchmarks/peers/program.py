"""What the peers' programs have in common: their arguments, and how the result is left for the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np

BATCH = 8192  # rows of one request


def arguments() -> argparse.Namespace:
    """Files, server, model, workers, and where the result goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="", help="host:port of the server, gRPC")
    parser.add_argument("--model", default="", help="its name there, or the path of the ONNX file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="for intermediate files and for result.npz")
    parser.add_argument("files", nargs="+")
    return parser.parse_args()


def save(histograms: Mapping[str, hist.Hist], folder: Path) -> None:
    """Leave sums of w and w2 (flow bins included) of every histogram in ``result.npz``."""
    sums: dict[str, Any] = {}
    for name, h in histograms.items():
        sums[f"{name}.w"], sums[f"{name}.w2"] = h.values(flow=True), h.variances(flow=True)
    np.savez(folder / "result.npz", **sums)
