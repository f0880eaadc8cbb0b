"""One event per request: the track GNN served to two client processes, beside the same code in a plain process.

    .venv/bin/python benchmarks/ragged.py [--rounds 5]

Events are of 314 space points and 584 edges on average, each of another size, and go out of one ragged buffer by
`infer_ragged`. On a machine without an accelerator the model itself runs on the cores that clients and server need,
so four things are measured in turn: direct, one process, event after event; direct, two processes at once (all that
two cores can do); served by one instance of the model (as much model as one direct process); served by two. Medians of
the rounds, and where the CPU time of an event goes. Takes about three minutes. On a machine that others use too,
more processes get more of it: then only the CPU times and the bound they imply say something, not the ratios of rates.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from campaign import ServerPool, connect
from campaign.inference.client import PoolAddress, Ragged

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
EVENTS, POINTS, EDGES = 100, 314, 584
MEASURE_S, WARM_S = 4.0, 1.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def events() -> dict[str, Ragged]:
    """The same events in every process."""
    rng = np.random.default_rng(314)
    points, edges = rng.poisson(POINTS, EVENTS), rng.poisson(EDGES, EVENTS)
    features = rng.uniform(-1, 1, (points.sum(), 3)).astype(np.float32)
    pairs = np.concatenate([rng.integers(0, n, 2 * m) for n, m in zip(points, edges, strict=True)])
    return {
        "FEATURES": Ragged(features.reshape(-1), points, (-1, 3)),
        "EDGES": Ragged(pairs, edges, (2, -1)),
    }


def direct(begin: Any, out: Any) -> None:
    """One process, one event after the other."""
    sys.path.insert(0, str(REPOSITORY / "track_gnn" / "1"))
    from gnn import TrackGNN, check_edges, track_labels

    with np.load(REPOSITORY / "track_gnn" / "1" / "weights.npz") as weights:
        network = TrackGNN(dict(weights))
    given = events()
    pairs = list(zip(given["FEATURES"], given["EDGES"], strict=True))

    def once(features: Any, edges: Any) -> None:
        assert not check_edges(edges, len(features))
        track_labels(len(features), edges, network.logits(features, edges))

    def work() -> int:
        for features, edges in pairs[:10]:
            once(features, edges)
        return 10

    timed(work, begin, out)


def client(address: PoolAddress, begin: Any, out: Any) -> None:
    """One client process."""
    servers, given = connect(address), events()
    servers.model("track_gnn")
    previous = servers.start("track_gnn", given)

    def work() -> int:
        nonlocal previous
        coming = servers.start("track_gnn", given)
        assert len(previous.result()["LABELS"]) == EVENTS
        previous = coming
        return EVENTS

    timed(work, begin, out)
    previous.cancel()
    servers.close()


def timed(work: Any, begin: Any, out: Any) -> None:
    """Do the work for some seconds; events/s and CPU seconds per event."""
    begin.wait()
    start = time.perf_counter()
    while time.perf_counter() < start + WARM_S:
        work()
    first, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < first + MEASURE_S:
        done += work()
    spent = time.process_time() - cpu
    out.put((done / (time.perf_counter() - first), spent / done))


def measure(target: Any, args: tuple[Any, ...], processes: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    begin, out = context.Barrier(processes), context.Queue()
    running = [context.Process(target=target, args=(*args, begin, out)) for _ in range(processes)]
    for one in running:
        one.start()
    found = [out.get(timeout=120) for _ in running]
    for one in running:
        one.join(30)
    return sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found)


def cpu_of(pool: ServerPool) -> tuple[float, float]:
    """CPU seconds so far of the server itself, and of the Python processes of its model."""
    server = int(pool.records()[0].server_pid)
    spent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[2]) == server:  # its process group
            spent[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) * TICK_S
    own = spent.pop(server)
    return own, sum(spent.values())


def served(pool: ServerPool, found: dict[str, list[float]], name: str) -> None:
    before, requests = cpu_of(pool), executions(pool)
    rate, cpu = measure(client, (pool.address,), 2)
    server, model = (b - a for a, b in zip(before, cpu_of(pool), strict=True))
    answered = executions(pool) - requests
    for what, value in (("", rate), (" client", cpu), (" server", server / answered), (" model", model / answered)):
        found.setdefault(name + what, []).append(value)


def executions(pool: ServerPool) -> int:
    time.sleep(1.5)  # the pilot looks once a second
    return int(pool.records()[0].statistics.get("track_gnn", [0, 0])[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {}
    for library in ("OPENBLAS", "OMP", "MKL"):  # for the processes to come: one core each, as in the server
        os.environ[f"{library}_NUM_THREADS"] = "1"
    with (
        ServerPool(REPOSITORY, models={"track_gnn": {"instances": 1}}) as one,
        ServerPool(REPOSITORY, models={"track_gnn": {"instances": 2}}) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        for _ in range(rounds):
            for processes in (1, 2):
                rate, cpu = measure(direct, (), processes)
                found.setdefault(f"direct {processes}", []).append(rate)
                found.setdefault(f"direct {processes} cpu", []).append(cpu)
            served(one, found, "served 1")
            served(two, found, "served 2")
    report({name: statistics.median(values) for name, values in found.items()}, found, rounds)


def report(median: dict[str, float], found: dict[str, list[float]], rounds: int) -> None:
    print(f"{os.cpu_count()} cores, numpy {np.__version__}; {POINTS} space points, {EDGES} edges; {rounds} rounds")
    print(f"{'':42} {'events/s':>9} {'CPU ms per event':>17}")
    for n in (1, 2):
        text = f"direct, {n} process{'es' * (n > 1)}"
        print(f"{text:42} {median[f'direct {n}']:9.1f} {1e3 * median[f'direct {n} cpu']:17.2f}")
    for n in (1, 2):
        name, text = f"served {n}", f"served, {n} instance{'s' * (n > 1)}, 2 client processes"
        parts = [1e3 * median[f"{name} {what}"] for what in ("model", "server", "client")]
        print(f"{text:42} {median[name]:9.1f} {sum(parts):17.2f}", end="")
        print(" = {:.2f} model's process + {:.2f} server + {:.2f} client".format(*parts))

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(found[a], found[b], strict=True))

    overhead = sum(median[f"served 2 {what}"] for what in ("model", "server", "client"))
    print(f"bound by CPU time, all cores busy on both sides      {median['direct 2 cpu'] / overhead:.2f}")
    print(f"served by one instance over direct in one process   {ratio('served 1', 'direct 1'):.2f}")
    print(f"served by two instances over direct in one process  {ratio('served 2', 'direct 1'):.2f}")
    print(f"served by two instances over direct in two          {ratio('served 2', 'direct 2'):.2f}")


if __name__ == "__main__":
    main()
