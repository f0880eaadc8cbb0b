"""How busy are the servers kept? Rows/s of our client over the pool's limit and over perf_analyzer's best.

    .venv/bin/python benchmarks/saturation.py [--rounds 3]

The servers are stand-ins for accelerators: real Tritons whose model takes 50 ms per request and no core of this
machine. 1, 2 and 4 of them are called by one and by two client processes (window: auto) and by one perf_analyzer per
server (concurrency 4 and 8, the better one counts), in turn; medians of the rounds are printed. First over the pool's
own Unix sockets, then over TCP with mutual TLS through `attach` (needs trustme, of the extra `test`). perf_analyzer
comes out of the tritonclient 2.49 wheel, which is downloaded once. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from campaign import ServerPool, connect
from campaign.inference.client import PoolAddress
from campaign.servers.environment import cache_dir, environment
from campaign.servers.triton import Triton
from campaign.spec.models import ServerSpec
from campaign.supervision.cleanup import sweep
from campaign.supervision.env_folders import env_folders, made_by

MODELS = Path(__file__).resolve().parent / "models"
BATCH, DELAY_S, MOST = 8192, 0.05, 4
MEASURE_S, WARM_S = 4.0, 1.0
WHEEL = "tritonclient==2.49.0"


def perf_analyzer() -> tuple[Path, Path]:
    """The program and the folder of the libraries it needs; made once."""
    home = cache_dir() / "benchmarks" / "perf_analyzer"
    program, libraries = home / "perf_analyzer", home / "lib"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
            pip = [f"{folder}/venv/bin/python", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            pip += ["--python-version", "3.8", "--platform", "manylinux1_x86_64", "-d", folder, WHEEL]
            subprocess.run(pip, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                inside = next(n for n in wheel.namelist() if n.endswith("/bin/perf_analyzer"))
                (Path(folder) / "program").write_bytes(wheel.read(inside))
            (Path(folder) / "program").chmod(0o755)
            (Path(folder) / "program").rename(program)
    libraries.mkdir(exist_ok=True)
    bundled = environment().site / "nvidia_pytriton.libs"
    for pattern, name in (("libcudart-*.so.12*", "libcudart.so.12"), ("libb64-*.so.0d", "libb64.so.0d")):
        (libraries / name).unlink(missing_ok=True)
        (libraries / name).symlink_to(next(bundled.glob(pattern)))
    return program, libraries


def analyzed(records: Sequence[Any], concurrency: int) -> float:
    """Rows/s of one perf_analyzer per server, all at once."""
    program, libraries = perf_analyzer()
    running = []
    for record in records:
        argv = [str(program), "-m", "stand_in", "-u", record["url"], "-i", "grpc", "-b", str(BATCH), "-a"]
        argv += ["--concurrency-range", str(concurrency), "--measurement-interval", "2000", "-s", "90", "-r", "3"]
        if record.get("tls"):
            tls = record["tls"]
            argv += ["--ssl-grpc-use-ssl", "true", "--ssl-grpc-root-certifications-file", tls["ca"]]
            argv += ["--ssl-grpc-private-key-file", tls["key"], "--ssl-grpc-certificate-chain-file", tls["cert"]]
        env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        running.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    total = 0.0
    for program_ in running:
        text = program_.communicate(timeout=120)[0]
        line = next((x for x in text.splitlines() if "Throughput:" in x), None)
        if line is None:
            raise SystemExit(f"perf_analyzer gave no throughput:\n{text}")
        total += float(line.split(":")[1].split()[0])
    return total


def client(address: PoolAddress, begin: Any, out: Any) -> None:
    """One client process: ranges of two batches, as many under way as a chain would have; its rows/s and CPU share."""
    servers = connect(address)
    x = np.random.default_rng(os.getpid()).random((2 * BATCH, 4), dtype=np.float32)
    servers.model("stand_in")
    begin.wait()
    start = time.perf_counter()
    under_way = deque(servers.start("stand_in", {"X": x}) for _ in range(16))
    times: list[float] = []
    cpu = 0.0
    while not times or times[-1] < start + WARM_S + MEASURE_S:
        assert len(under_way.popleft().result()["SCORE"]) == len(x)
        under_way.append(servers.start("stand_in", {"X": x}))
        if time.perf_counter() > start + WARM_S:
            cpu = cpu or time.process_time()
            times.append(time.perf_counter())
    busy = (time.process_time() - cpu) / (times[-1] - times[0])
    servers.close()
    out.put(((len(times) - 1) * len(x) / (times[-1] - times[0]), busy))


def ours(address: PoolAddress, processes: int) -> tuple[float, float]:
    """Rows/s of so many client processes, and the share of a core each of them needed."""
    context = multiprocessing.get_context("spawn")
    begin, out = context.Barrier(processes), context.Queue()
    clients = [context.Process(target=client, args=(address, begin, out)) for _ in range(processes)]
    for one in clients:
        one.start()
    found = [out.get(timeout=120) for _ in clients]
    for one in clients:
        one.join(30)
    return sum(rate for rate, _ in found), sum(busy for _, busy in found) / processes


@contextmanager
def plain() -> Iterator[PoolAddress]:
    """Stand-ins as a campaign starts them, on Unix sockets."""
    models = {"stand_in": {"batch": BATCH, "parameters": {"delay_s": DELAY_S}}}
    with ServerPool(MODELS, models=models, count=MOST) as pool:
        pool.wait_ready()
        yield replace(pool.address, folder="", records=tuple(pool.records()))


@contextmanager
def with_tls() -> Iterator[PoolAddress]:
    """Stand-ins on TCP that demand a client certificate."""
    import trustme

    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-saturation-")))
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(home / "ca.pem"))
        for name in ("server", "client"):
            cert = ca.issue_cert("localhost", "127.0.0.1")
            cert.private_key_pem.write_to_path(str(home / f"{name}.key"))
            cert.cert_chain_pems[0].write_to_path(str(home / f"{name}.pem"))
        urls = [stack.enter_context(tls_server(home, i)) for i in range(MOST)]
        tls = {"ca": str(home / "ca.pem"), "cert": str(home / "client.pem"), "key": str(home / "client.key")}
        given = {"kind": "attach", "models": {"stand_in": {"batch": BATCH}}, "urls": urls, "tls": tls}
        pool = stack.enter_context(ServerPool(ServerSpec(**given), base=home))
        yield pool.address


@contextmanager
def tls_server(home: Path, number: int) -> Iterator[str]:
    spec = ServerSpec(
        models={"stand_in": {"parameters": {"delay_s": DELAY_S}}}, model_repository=str(MODELS)
    )  # fmt: skip
    place = home / f"place-{number}"
    place.mkdir()
    launch = Triton.launch(Triton(spec, home).prepare(lambda _text: None), place, f"stand-in-{number}")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    argv = [a for a in launch.argv if not a.startswith("--grpc-")]
    argv += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", "--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true"]
    argv += [f"--grpc-server-cert={home}/server.pem", f"--grpc-server-key={home}/server.key"]
    argv += [f"--grpc-root-cert={home}/ca.pem"]
    before = env_folders()
    with (place / "log").open("w") as log:
        server = subprocess.Popen(argv, env=dict(launch.env), stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while "Started GRPCInferenceService" not in (place / "log").read_text():
            if time.monotonic() > end or server.poll() is not None:
                raise SystemExit((place / "log").read_text()[-2000:])
            time.sleep(0.1)
        folders = made_by(server.pid, env_folders() - before)
        yield f"localhost:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        time.sleep(0.05)
        sweep(str(place), launch.shm_prefix, folders)


def measure(address: PoolAddress, rounds: int) -> dict[tuple[int, str], float]:
    """Median rows/s by number of servers and who called them."""
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for n in (1, 2, 4):
            some = replace(address, records=address.records[:n])
            for processes in (1, 2):
                rate, busy = ours(some, processes)
                found.setdefault((n, f"{processes} client"), []).append(rate)
                found.setdefault((n, f"{processes} busy"), []).append(busy)
            best = max(analyzed(some.records, c) for c in (4, 8))
            found.setdefault((n, "perf_analyzer"), []).append(best)
    return {key: statistics.median(values) for key, values in found.items()}


def table(title: str, found: dict[tuple[int, str], float]) -> None:
    print(f"\n{title}: fractions of the limit {BATCH / DELAY_S:,.0f} rows/s per server; core: CPU per client process")
    print(
        f"{'servers':>8} {'perf_analyzer':>14} {'1 client':>9} {'/p.a.':>6} {'core':>5} {'2 clients':>10} {'/p.a.':>6}"
    )
    for n in (1, 2, 4):
        limit, reference = n * BATCH / DELAY_S, found[n, "perf_analyzer"]
        one, two = found[n, "1 client"], found[n, "2 client"]
        print(
            f"{n:8} {reference / limit:14.3f} {one / limit:9.3f} {one / reference:6.3f} {found[n, '1 busy']:5.2f} "
            f"{two / limit:10.3f} {two / reference:6.3f}"
        )
    for who in ("1 client", "2 client"):
        print(f"4 servers over one, {who}: {found[4, who] / found[1, who]:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores; stand-ins of {1e3 * DELAY_S:g} ms, batch {BATCH}, 4 float32 -> 1; {rounds} rounds")
    with plain() as address:
        perf_analyzer()
        table("Unix sockets", measure(address, rounds))
    with with_tls() as address:
        table("TCP, mutual TLS", measure(address, rounds))


if __name__ == "__main__":
    main()
