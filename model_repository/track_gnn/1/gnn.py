"""The edge classifier of the Exa.TrkX pipeline and the track building behind it, in numpy alone.

With x the space points (n, 3) and an edge a pair of them::

    h = [input(x), x]
    8 times:  s = sigmoid(edge([h[src], h[dst]]))
              m = sum over edges of s h[src] into dst, plus s h[dst] into src
              h = h + [node([m, h]), x]
    logits = edge([h[src], h[dst]])

A track is a connected component of the edges whose score, sigmoid(logit), is above 0.75.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCORE_CUT", "TrackGNN", "check_edges", "connected_components", "track_labels", "weight_shapes"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

FEATURES, HIDDEN, ITERATIONS, SCORE_CUT = 3, 64, 8, 0.75
EPSILON = np.float32(1e-5)  # of the layer normalisation, as in the checkpoint
EDGE_BLOCK = 2048  # edges classified at once: 67 float32 each stay in the second-level cache


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 36 arrays of a checkpoint: every linear layer but a network's last is normalised."""
    state = HIDDEN + FEATURES
    networks = {
        "input_network": ([FEATURES, HIDDEN, HIDDEN, HIDDEN], 3),
        "edge_network.network": ([2 * state, state, state, state, 1], 3),
        "node_network.network": ([2 * state, HIDDEN, HIDDEN, HIDDEN], 2),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (widths, normalised) in networks.items():
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            shapes[f"{name}.{3 * layer}.weight"] = (outputs, inputs)
            shapes[f"{name}.{3 * layer}.bias"] = (outputs,)
            if layer < normalised:
                shapes[f"{name}.{3 * layer + 1}.weight"] = (outputs,)
                shapes[f"{name}.{3 * layer + 1}.bias"] = (outputs,)
    return shapes


class _Linear:
    """Linear, and where the checkpoint has one, LayerNorm and ReLU behind it.

    The mean that LayerNorm takes away is taken out of the weights beforehand: what comes out of the product is
    centred already, which saves two passes over the rows.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.floating]], name: str, index: int) -> None:
        weight = weights[f"{name}.{index}.weight"].astype(np.float64)
        bias = weights[f"{name}.{index}.bias"].astype(np.float64)
        self.normalised = f"{name}.{index + 1}.weight" in weights
        if self.normalised:
            weight, bias = weight - weight.mean(axis=0), bias - bias.mean()
            self.gain = weights[f"{name}.{index + 1}.weight"].astype(np.float32)
            self.shift = weights[f"{name}.{index + 1}.bias"].astype(np.float32)
        self.weight: FloatArray = np.ascontiguousarray(weight.T, dtype=np.float32)
        self.bias: FloatArray = bias.astype(np.float32)

    def __call__(self, rows: FloatArray) -> FloatArray:
        return self.finish(rows @ self.weight)

    def finish(self, rows: FloatArray) -> FloatArray:
        """Everything behind the product, in place."""
        rows += self.bias
        if self.normalised:
            variance = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
            rows *= (np.float32(1.0) / np.sqrt(variance + EPSILON))[:, None]
            rows *= self.gain
            rows += self.shift
            np.maximum(rows, np.float32(0.0), out=rows)
        return rows


class TrackGNN:
    """The network, ready to classify one event after the other.

    Args:
        weights: The 36 arrays of a checkpoint, see `weight_shapes`.

    Raises:
        ValueError: If an array is missing or has another shape.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.floating]]) -> None:
        for name, shape in weight_shapes().items():
            if name not in weights:
                raise ValueError(f"weights have no array {name!r}; expected shape {shape}")
            if weights[name].shape != shape:
                raise ValueError(f"weights[{name!r}]: expected shape {shape}, got {weights[name].shape}")
        self._input = [_Linear(weights, "input_network", i) for i in (0, 3, 6)]
        self._edge_first, *self._edge_rest = (_Linear(weights, "edge_network.network", i) for i in (0, 3, 6, 9))
        self._node = [_Linear(weights, "node_network.network", i) for i in (0, 3, 6)]
        # [h[src], h[dst]] W = (h W_src)[src] + (h W_dst)[dst]: one product per node instead of one per edge.
        self._at_source, self._at_target = (w.copy() for w in np.vsplit(self._edge_first.weight, 2))

    def logits(self, features: FloatArray, edges: IntArray) -> FloatArray:
        """Classify the edges of one event.

        Args:
            features: Space points, float32 (n, 3).
            edges: Node indices of both ends, int64 (2, m), each in 0..n-1 (see `check_edges`).

        Returns:
            One logit per edge, float32 (m,).
        """
        if edges.shape[1] == 0:
            return np.empty(0, dtype=np.float32)
        messages = _Messages(edges)
        state = np.hstack([_run(self._input, features), features])
        for _ in range(ITERATIONS):
            received = messages.sum(state, _sigmoid(self._edge_logits(state, edges)))
            state[:, :HIDDEN] += _run(self._node, np.hstack([received, state]))
            state[:, HIDDEN:] += features
        return self._edge_logits(state, edges)

    def _edge_logits(self, state: FloatArray, edges: IntArray) -> FloatArray:
        at_source, at_target = state @ self._at_source, state @ self._at_target
        logits = np.empty(edges.shape[1], dtype=np.float32)
        for start in range(0, logits.size, EDGE_BLOCK):
            source, target = edges[:, start : start + EDGE_BLOCK]
            rows = at_source.take(source, axis=0)
            rows += at_target.take(target, axis=0)
            logits[start : start + EDGE_BLOCK] = _run(self._edge_rest, self._edge_first.finish(rows))[:, 0]
        return logits


class _Messages:
    """Sums over the edges of each node, laid out once per event.

    The receiving nodes are ordered by falling degree and their edges by rank: first the first edge of every node, then
    the second edge of every node that has two, and so on. Each rank is then one contiguous block that is added to the
    first nodes of the result, which is several times faster than a segmented sum over sorted edges.
    """

    def __init__(self, edges: IntArray) -> None:
        receiver, sender = np.concatenate([edges[1], edges[0]]), np.concatenate([edges[0], edges[1]])
        degree = np.bincount(receiver)
        by_receiver = np.argsort(receiver, kind="stable")
        rank = np.empty_like(receiver)
        rank[by_receiver] = np.arange(receiver.size) - np.repeat(np.cumsum(degree) - degree, degree)
        self._nodes = np.argsort(-degree, kind="stable")[: np.count_nonzero(degree)]
        place = np.empty(degree.size, dtype=np.int64)
        place[self._nodes] = np.arange(self._nodes.size)
        order = np.lexsort((place[receiver], rank))
        self._sender, self._edge = sender[order], order % edges.shape[1]
        self._ends = np.cumsum(np.bincount(rank)).tolist()

    def sum(self, state: FloatArray, score: FloatArray) -> FloatArray:
        """Sum over a node's edges of score times the state at the other end; (n, width)."""
        rows = state.take(self._sender, axis=0)
        rows *= score.take(self._edge)[:, None]
        total = rows[: self._ends[0]]
        for start, end in pairwise(self._ends):
            total[: end - start] += rows[start:end]
        received = np.zeros_like(state)
        received[self._nodes] = total
        return received


def _run(layers: list[_Linear], rows: FloatArray) -> FloatArray:
    for layer in layers:
        rows = layer(rows)
    return rows


def _sigmoid(x: FloatArray) -> FloatArray:
    # tanh does not overflow where exp(-x) does.
    half = np.float32(0.5)
    score: FloatArray = half * np.tanh(half * x) + half
    return score


def check_edges(edges: IntArray, n_nodes: int) -> str:
    """What is wrong with the edges of an event of n nodes: one sentence naming the index, or nothing."""
    wrong = (edges < 0) | (edges >= n_nodes)
    if not wrong.any():
        return ""
    end, edge = (int(i) for i in np.argwhere(wrong)[0])
    allowed = f"0..{n_nodes - 1}" if n_nodes else "none, the event has no nodes"
    return f"EDGES[{end}, {edge}] = {edges[end, edge]} is not a node of FEATURES: allowed are {allowed}"


def connected_components(n_nodes: int, edges: IntArray) -> IntArray:
    """Number the connected components of an undirected graph.

    Roots are hooked onto the least neighbouring root and the trees flattened by pointer jumping until nothing moves
    (O(log^2 n) rounds: Liu, Tarjan, "Simple concurrent labeling algorithms for connected components", 2019).

    Args:
        n_nodes: Number of nodes.
        edges: Node indices of both ends, int64 (2, m).

    Returns:
        The component of each node, int64 (n,), numbered 0.. by their first node; a node without edges is one too.
    """
    root = np.arange(n_nodes, dtype=np.int64)
    while True:
        one, other = root[edges[0]], root[edges[1]]
        apart = one != other
        if not apart.any():
            # A root is the least node of its component, so the order of the roots is that of the first nodes.
            return np.unique(root, return_inverse=True)[1].astype(np.int64).reshape(n_nodes)
        one, other = one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        root = _flatten(root)


def _flatten(root: IntArray) -> IntArray:
    while True:
        above = root[root]
        if np.array_equal(above, root):
            return root
        root = above


def track_labels(n_nodes: int, edges: IntArray, logits: FloatArray) -> IntArray:
    """The track of each space point: components of the edges whose score is above `SCORE_CUT`; int64 (n,)."""
    cut = math.log(SCORE_CUT / (1.0 - SCORE_CUT))
    return connected_components(n_nodes, edges[:, logits > cut])
