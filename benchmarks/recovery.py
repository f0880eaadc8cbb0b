"""How long until requests are answered again after a pool of one server has lost it.

Run ``python benchmarks/recovery.py``. Each fault befalls the only server of a fresh pool while it is idle; the clock
runs from the fault to the first answer of the server that has come in its place. Beside it stands what a pool takes
from its start to its first answer.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from campaign import ServerPool
from campaign.discovery.records import ServerRecord

MODELS = Path(__file__).resolve().parent.parent / "tests" / "models"
X = np.zeros((8, 1), np.float32)


def stub(record: ServerRecord) -> int:
    children = psutil.Process(record.server_pid).children(recursive=True)
    return next(p.pid for p in children if "triton_python_backend_stub" in " ".join(p.cmdline()))


FAULTS: dict[str, Callable[[ServerRecord], None]] = {
    "server killed": lambda r: os.kill(r.server_pid, signal.SIGKILL),
    "process behind the model killed": lambda r: os.kill(stub(r), signal.SIGKILL),
    "server drained by somebody (SIGTERM)": lambda r: os.kill(r.server_pid, signal.SIGTERM),
    "server stopped (SIGSTOP), found after 10 s": lambda r: os.kill(r.server_pid, signal.SIGSTOP),
    "pilot killed, another sent": lambda r: os.kill(r.pid, signal.SIGKILL),
}


def once(fault: Callable[[ServerRecord], None]) -> tuple[float, float]:
    """Seconds from the fault to an answer, and from the pool's start to its first."""
    began = time.monotonic()
    with ServerPool(MODELS, models={"slow": {"batch": 8, "parameters": {"delay_s": 0}}}) as pool:
        live = pool.servers()
        live.infer("slow", {"X": X})
        start = time.monotonic() - began
        fault(pool.current()[0])
        lost = time.monotonic()
        while "server-0.1" not in live._connections.connections:  # what is going may still answer
            live.infer("slow", {"X": X})
        found = time.monotonic() - lost
    return found, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with ServerPool(MODELS, models=["slow"]) as pool:  # makes the server environment where there is none
        pool.wait_ready()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FAULTS}
    for _ in range(rounds):
        for name, fault in FAULTS.items():
            found[name].append(once(fault))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; 1 Triton; seconds to an answer, {rounds} rounds")
    print(f"{'':44} {'median':>7} {'best':>7} {'worst':>7} {'/ start':>7}")
    for name, values in found.items():
        times = [recovered for recovered, _ in values]
        ratio = statistics.median(recovered / start for recovered, start in values)
        print(f"{name:44} {statistics.median(times):7.2f} {min(times):7.2f} {max(times):7.2f} {ratio:7.2f}")
    starts = [start for values in found.values() for _, start in values]
    print(f"{'start of a pool to its first answer':44} {statistics.median(starts):7.2f} {min(starts):7.2f}")


if __name__ == "__main__":
    main()
