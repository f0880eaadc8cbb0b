"""What the engine adds per task: empty one-file tasks, receipts and the merge included.

Run ``python benchmarks/overhead.py``; ``--files 20000 --small 2000`` for a short one. Every campaign runs in a process
of its own, so that its peak memory is its own; small and large ones take turns, and differences of medians are told.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STAGES = '''
import awkward as ak
import hist
import numpy as np
from campaign import Counts, Histogram, Histograms

NOTHING = ak.Array({"x": np.empty(0)})


class Nothing:
    """A reader that opens nothing."""

    entries = 0

    def __init__(self, url, tree, branches):
        pass

    def read(self, start, stop):
        return NOTHING

    def weight(self, expression, batch):
        return np.empty(0)

    def close(self):
        pass


def counts(batch, ctx):
    return Counts(files=1)


def histograms(batch, ctx):
    return Histograms(h=Histogram(hist.axis.Regular(50, 0, 1, name="x")).fill(np.array([0.5])))


def events(batch, ctx):
    return Counts(events=len(batch.x))
'''


def campaign(folder: Path, name: str, stage: str, reader: str, pattern: str) -> Path:
    path = folder / f"{name}.json"  # YAML too
    made = {
        "campaign": name,
        "datasets": {"d": {"files": pattern, "tree": "events", "reader": reader}},
        "stages": {stage: {"use": f"stages.py:{stage}"}},
        "workers": 2,
    }
    path.write_text(json.dumps(made))
    return path


def one(file: Path, run_dir: Path, provider: str) -> None:
    """Run one campaign in this very process; tell what it took as JSON."""
    from campaign.driver import run
    from campaign.spec import yaml_file

    start = time.perf_counter()
    report = run.run(yaml_file.load(file), run_dir=run_dir, provider=provider, progress=False)
    wall = time.perf_counter() - start
    mine, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    told = {
        "wall": wall,
        "done": report.tasks["done"],
        "rss_mb": mine.ru_maxrss / 1024,
        "driver": mine.ru_utime + mine.ru_stime,
        "workers": others.ru_utime + others.ru_stime,
        "sha256": next(iter(report.outputs.values()))["sha256"],
    }
    print(json.dumps(told))


def apart(file: Path, run_dir: Path, provider: str) -> dict[str, Any]:
    """Run one campaign in a process of its own."""
    command = [sys.executable, __file__, "--one", str(file), str(run_dir), provider]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr + done.stdout)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": time.perf_counter() - start}


def slope(folder: Path, small: tuple[Path, int], large: tuple[Path, int], provider: str, rounds: int) -> str:
    """Milliseconds per task that the larger campaign has more, in turns."""
    found: dict[str, list[float]] = {"wall": [], "driver": [], "workers": []}
    for _ in range(rounds):
        told = [apart(file, folder / "run", provider) for file, _ in (small, large) if fresh(folder / "run")]
        for what, values in found.items():
            values.append(1e3 * (told[1][what] - told[0][what]) / (large[1] - small[1]))
    wall, driver, workers = (statistics.median(found[what]) for what in ("wall", "driver", "workers"))
    cpu = f"{workers:.3f} the workers" if provider == "local" else "its workers are not our children"
    return f"{wall:8.3f} ms per task   (processor time: {driver:.3f} the driver, {cpu})"


def fresh(run_dir: Path) -> bool:
    shutil.rmtree(run_dir, ignore_errors=True)
    return True


def empty_files(folder: Path, counts: set[int]) -> None:
    for n in counts:
        (folder / f"{n}").mkdir()
        for i in range(n):
            (folder / f"{n}" / f"file-{i:06d}.bin").touch()


def root_files(folder: Path, n: int) -> None:
    import numpy as np
    import uproot

    (folder / "root").mkdir()
    first = folder / "root" / "file-000000.root"
    with uproot.recreate(first) as file:
        file["events"] = {"x": np.zeros(1)}
    for i in range(1, n):
        shutil.copyfile(first, folder / "root" / f"file-{i:06d}.root")
    (folder / "root-few").mkdir()
    for i in range(n // 10):
        shutil.copyfile(first, folder / "root-few" / f"file-{i:06d}.root")


def lines(a: argparse.Namespace, folder: Path) -> Iterator[str]:
    (folder / "stages.py").write_text(STAGES)
    empty_files(folder, {a.tiny, a.small, a.files, *((a.middle,) if a.more else ())})
    counts = {
        n: campaign(folder, f"c{n}", "counts", "stages.py:Nothing", f"{n}/*.bin") for n in (a.tiny, a.small, a.files)
    }
    pair = (counts[a.small], a.small), (counts[a.files], a.files)
    yield f"{os.cpu_count()} cores, 2 workers, load {os.getloadavg()[0]:.1f}; {a.files:,} against {a.small:,} tasks"
    for provider in a.providers:
        yield f"  {provider:24} {slope(folder, *pair, provider, a.rounds)}"
    few, _ = apart(counts[a.tiny], folder / "few", "local"), fresh(folder / "run")
    many = apart(counts[a.files], folder / "run", "local")
    yield (
        f"  driver's peak memory     {many['rss_mb']:.0f} MB at {a.files:,}, {few['rss_mb']:.0f} MB at {a.tiny:,}: "
        f"ratio {many['rss_mb'] / few['rss_mb']:.2f}"
    )
    again = [apart(counts[a.files], folder / "run", "local") for _ in range(3)]
    assert all(r["done"] == 0 and r["sha256"] == many["sha256"] for r in again)
    took, cpu = (statistics.median(r[what] for r in again) for what in ("process", "driver"))
    yield f"  resumed, complete        {took:.1f} s from start to end of the process ({cpu:.1f} s processor time)"
    if a.more:
        hists = [
            (campaign(folder, f"h{n}", "histograms", "stages.py:Nothing", f"{n}/*.bin"), n) for n in (a.tiny, a.middle)
        ]
        yield f"  50 bins, not a count     {slope(folder, hists[0], hists[1], 'local', a.rounds)}"
        root_files(folder, a.root)
        real = [
            (campaign(folder, name, "events", "read", f"{name}/*.root"), n)
            for name, n in (("root-few", a.root // 10), ("root", a.root))
        ]
        yield f"  ROOT files of one event  {slope(folder, real[0], real[1], 'local', a.rounds)}"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="tasks of the large campaign")
    parser.add_argument("--small", type=int, default=10_000, help="tasks of the small one")
    parser.add_argument("--tiny", type=int, default=1_000, help="tasks of the one that memory is compared with")
    parser.add_argument("--middle", type=int, default=20_000, help="tasks with histograms")
    parser.add_argument("--root", type=int, default=2_000, help="ROOT files")
    parser.add_argument("--rounds", type=int, default=1, help="how often small and large take turns")
    parser.add_argument("--providers", nargs="+", default=["local", "parsl"])
    parser.add_argument("--no-more", dest="more", action="store_false", help="leave out histograms and ROOT files")
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        for line in lines(parser.parse_args(), Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
