"""Networks in torch for `gpu.py`, of three shapes: small rows, sets of particles, graphs.

As a program, in the server environment: how fast a network is without a server, and its answer to the first input.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

NEIGHBOURS, ITERATIONS = 16, 8


class Mlp(nn.Module):
    """16 features to one score by three hidden layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, 256, 256, 256]
        hidden = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 16) to (n, 1)."""
        return torch.sigmoid(self.layers(x))


class EdgeConv(nn.Module):
    """The block of ParticleNet (Qu, Gouskos, 2020): a network on pairs of neighbours, averaged over the neighbours."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pair = nn.Sequential(
            nn.Linear(2 * inputs, outputs),
            nn.ReLU(),
            nn.Linear(outputs, outputs),
            nn.ReLU(),
            nn.Linear(outputs, outputs),
        )
        self.shortcut = nn.Linear(inputs, outputs)

    def forward(self, points: Tensor, x: Tensor) -> Tensor:
        """Coordinates (n, particles, c) and features (n, particles, inputs) to (n, particles, outputs)."""
        nearest = torch.cdist(points, points).topk(NEIGHBOURS + 1, largest=False).indices[:, :, 1:]
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        around, own = x[batch, nearest], x[:, :, None].expand(-1, -1, NEIGHBOURS, -1)
        return torch.relu(self.pair(torch.cat([own, around - own], -1)).mean(2) + self.shortcut(x))


class ParticleNet(nn.Module):
    """64 particles of 7 features, the first two their place, to 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EdgeConv(7, 32), EdgeConv(32, 64), EdgeConv(64, 128)])
        self.head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 64, 7) to (n, 5)."""
        points = x[:, :, :2]
        for block in self.blocks:
            x = block(points, x)
            points = x
        return torch.softmax(self.head(x.mean(1)), -1)


class TrackGnn(nn.Module):
    """The edge classifier of `model_repository/track_gnn`, see `gnn.py` there, with its weights."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with np.load(weights) as found:
            self.input = _mlp(found, "input_network")
            self.edge = _mlp(found, "edge_network.network")
            self.node = _mlp(found, "node_network.network")

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Space points (n, 3) and ends of edges (2, m) to logits (m,)."""
        source, target = edges
        h = torch.cat([self.input(x), x], 1)
        for _ in range(ITERATIONS):
            score = torch.sigmoid(self._classify(h, source, target))[:, None]
            message = torch.zeros_like(h).index_add(0, target, score * h[source])
            message = message.index_add(0, source, score * h[target])
            h = h + torch.cat([self.node(torch.cat([message, h], 1)), x], 1)
        return self._classify(h, source, target)

    def _classify(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return self.edge(torch.cat([h[source], h[target]], 1))[:, 0]


def _mlp(weights: dict[str, np.ndarray], name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    index = 0
    while f"{name}.{index}.weight" in weights:
        out, inputs = weights[f"{name}.{index}.weight"].shape
        layers.append(_loaded(nn.Linear(inputs, out), weights, f"{name}.{index}"))
        if f"{name}.{index + 1}.weight" in weights:
            layers += [_loaded(nn.LayerNorm(out), weights, f"{name}.{index + 1}"), nn.ReLU()]
        index += 3
    return nn.Sequential(*layers)


def _loaded(layer: nn.Module, weights: dict[str, np.ndarray], name: str) -> nn.Module:
    kinds = ("weight", "bias")
    layer.load_state_dict({kind: torch.from_numpy(weights[f"{name}.{kind}"].astype(np.float32)) for kind in kinds})
    return layer


def build(name: str, device: str, folder: Path) -> nn.Module:
    """A network by name, the same weights each time; those of ``track_gnn`` lie in ``folder``."""
    torch.manual_seed(1)
    made = {"mlp": Mlp, "particlenet": ParticleNet, "track_gnn": lambda: TrackGnn(folder / "weights.npz")}[name]()
    return made.eval().to(device)


def answer(network: nn.Module, device: str, arrays: list[np.ndarray]) -> np.ndarray:
    """What it answers to one request, arrays in and out."""
    with torch.inference_mode():
        return network(*(torch.from_numpy(array).to(device) for array in arrays)).cpu().numpy()


def main(name: str, device: str, inputs: str, requests: int) -> None:
    """Answers one request of ``inputs`` many times; prints seconds per request, leaves the answer beside them."""
    network = build(name, device, Path(inputs).parent)
    with np.load(inputs) as found:
        arrays = [found[key] for key in sorted(found, reverse=name == "track_gnn")]
    for _ in range(3):
        result = answer(network, device, arrays)
    start = time.perf_counter()
    for _ in range(requests):
        answer(network, device, arrays)
    print((time.perf_counter() - start) / requests)
    np.save(Path(inputs).with_name("answer.npy"), result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
