"""The network of `1/gnn.py` once more, line by line from its definition, in float64: what the canary is made with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Weights", "reference_labels", "reference_logits"]

Weights = Mapping[str, NDArray[np.floating]]
Array = NDArray[np.float64]


def reference_logits(weights: Weights, features: NDArray[np.floating], edges: NDArray[np.int64]) -> Array:
    """Logits of an event's edges: float64 (m,)."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = features.astype(np.float64)
    src, dst = edges
    h = np.concatenate([_mlp(w, "input_network", 3, x), x], axis=1)

    def classify() -> Array:
        return _mlp(w, "edge_network.network", 4, np.concatenate([h[src], h[dst]], axis=1))[:, 0]

    for _ in range(8):
        score = 1.0 / (1.0 + np.exp(-classify()))
        message = np.zeros_like(h)
        np.add.at(message, dst, score[:, None] * h[src])
        np.add.at(message, src, score[:, None] * h[dst])
        h = h + np.concatenate([_mlp(w, "node_network.network", 3, np.concatenate([message, h], axis=1)), x], axis=1)
    return classify()


def reference_labels(n_nodes: int, edges: NDArray[np.int64], logits: Array) -> NDArray[np.int64]:
    """Tracks by walking the graph from each node not yet seen: int64 (n,)."""
    neighbours: list[list[int]] = [[] for _ in range(n_nodes)]
    for a, b in edges.T[1.0 / (1.0 + np.exp(-logits)) > 0.75].tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    labels = np.full(n_nodes, -1, dtype=np.int64)
    for first in range(n_nodes):
        if labels[first] >= 0:
            continue
        track, border = labels.max() + 1, [first]
        while border:
            node = border.pop()
            if labels[node] < 0:
                labels[node] = track
                border += neighbours[node]
    return labels


def _mlp(w: Mapping[str, Array], name: str, layers: int, y: Array) -> Array:
    for i in range(0, 3 * layers, 3):
        y = y @ w[f"{name}.{i}.weight"].T + w[f"{name}.{i}.bias"]
        if f"{name}.{i + 1}.weight" in w:
            centred = y - y.mean(axis=1, keepdims=True)
            y = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
            y = np.maximum(y * w[f"{name}.{i + 1}.weight"] + w[f"{name}.{i + 1}.bias"], 0.0)
    return y
