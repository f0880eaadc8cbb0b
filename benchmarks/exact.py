"""What exactness costs: filling and merging exact histograms, as ratios to ``hist.Hist`` with Weight storage.

Run ``python benchmarks/exact.py``. Both sides take turns on the same data; medians are compared.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import hist
import numpy as np

from campaign.histogram.histogram import Histogram

ENTRIES = 1_000_000
ROUNDS = 15
PARTIALS = 10_000


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()  # both sides run on one thread; what others do on this machine does not count
    call()
    return time.process_time() - start


def in_turns(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Median CPU seconds of each, run in turns so that a noisy machine disturbs all alike."""
    for call in calls:
        call()
    taken = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def differential_axes(flow: bool = True) -> list[object]:
    """6 x 2 x 6 x 100 bins: jet momentum, kind, pseudorapidity, tagger score."""
    return [
        hist.axis.Variable([20, 40, 60, 100, 200, 400, 1000], name="pt", flow=flow),
        hist.axis.IntCategory([0, 1], name="kind", overflow=flow),
        hist.axis.Variable([0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4], name="eta", flow=flow),
        hist.axis.Regular(100, 0, 1, name="score", flow=flow),
    ]


def columns(count: int, axes: int, rng: np.random.Generator) -> list[np.ndarray]:
    score = rng.random(count)
    if axes == 1:
        return [score]
    return [rng.exponential(150, count) + 20, rng.integers(0, 2, count), rng.random(count) * 2.5, score]


def weights(kind: str, count: int, rng: np.random.Generator) -> np.ndarray | None:
    lognormal = rng.lognormal(size=count)
    return {"float32": lognormal.astype(np.float32).astype(np.float64), "float64": lognormal, "none": None}[kind]


def fill_line(label: str, axes: list[object], count: int, kind: str) -> None:
    """Fills a million entries, ``count`` at a time: no fill sees entries that the branch predictor remembers."""
    rng = np.random.default_rng(1)
    values, weight = columns(ENTRIES, len(axes), rng), weights(kind, ENTRIES, rng)
    parts = [slice(start, start + count) for start in range(0, ENTRIES, count)]
    mine, yours = Histogram(*axes), hist.Hist(*axes, storage=hist.storage.Weight())

    def fill(histogram: object) -> None:
        for part in parts:
            histogram.fill(*(column[part] for column in values), weight=None if weight is None else weight[part])

    ours, theirs = in_turns(lambda: fill(mine), lambda: fill(yours))
    nanoseconds = 1e9 / ENTRIES
    print(f"{label:44} {kind:8} {ours * nanoseconds:9.2f} {theirs * nanoseconds:9.2f} {ours / theirs:7.2f}")


def options_axes() -> list[object]:
    """7 options x 6 x 2 x 2 x 5 x 50 bins: what the second pass of the quark/gluon example fills."""
    edges = [500, 600, 800, 1000, 1200, 1500, 2000]
    return [
        hist.axis.StrCategory(list("abcdefg"), name="option", flow=False),
        hist.axis.Variable(edges, name="pt", flow=False),
        hist.axis.Boolean(name="leading"),
        hist.axis.Boolean(name="forward"),
        hist.axis.IntCategory([21, 1, 4, 5, -9999], name="flavour"),
        hist.axis.Regular(50, 0, 1, name="score"),
    ]


def options_line(kind: str, count: int) -> None:
    """Fills the same entries under 7 options, each with its own weight, ``count`` entries at a time."""
    rng, entries = np.random.default_rng(3), ENTRIES // 4
    values = {
        "pt": rng.uniform(500, 2000, entries),
        "leading": rng.random(entries) < 0.5,
        "forward": rng.random(entries) < 0.5,
        "flavour": rng.choice([21, 1, 4, 5], entries),
        "score": rng.random(entries),
    }
    options = {option: weights(kind, entries, rng) for option in "abcdefg"}
    parts = [slice(start, start + count) for start in range(0, entries, count)]
    axes = options_axes()
    mine, once, yours = Histogram(*axes), Histogram(*axes), hist.Hist(*axes, storage=hist.storage.Weight())

    def fill_each() -> None:
        for part in parts:
            chosen = {option: weight[part] for option, weight in options.items()}
            mine.fill_each("option", chosen, **{name: column[part] for name, column in values.items()})

    def fill(histogram: object) -> None:
        for part in parts:
            for option, weight in options.items():
                columns = {name: column[part] for name, column in values.items()}
                histogram.fill(option=option, weight=weight[part], **columns)

    ours, apart, theirs = in_turns(fill_each, lambda: fill(once), lambda: fill(yours))
    each, label = 1e9 / entries / len(options), f"(d) 7 weights on one index, {count} entries"
    print(f"{label:44} {kind:8} {ours * each:9.2f} {theirs * each:9.2f} {ours / theirs:7.2f}")
    print(f"{'    the same, by 7 fills':44} {kind:8} {apart * each:9.2f} {theirs * each:9.2f} {apart / theirs:7.2f}")


def memory_line() -> None:
    """How much the peak memory of a process of its own grows while it merges 10,000 partials."""
    done = subprocess.run([sys.executable, __file__, "--memory"], check=True, capture_output=True, text=True)
    print(f"10,000 partials of 7,200 bins: peak memory grows by {done.stdout.strip()} MB after the first ten")


def merged_memory() -> float:
    """Megabytes of peak memory between the 10th and the 10,000th partial, each read anew from its bytes."""
    rng, axes = np.random.default_rng(4), differential_axes(flow=False)
    values, weight = columns(100_000, len(axes), rng), weights("float64", 100_000, rng)
    header, arrays = Histogram(*axes).fill(*values, weight=weight).state()
    total, before = Histogram(*axes), 0
    for number in range(PARTIALS):
        total += Histogram.from_state(header, {name: array.copy() for name, array in arrays.items()})
        if number == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def merge_line(kind: str, flow: bool) -> None:
    """10,000 partials of 7,200 bins (19,584 with flow): 20 different ones in turn, each added 500 times."""
    rng = np.random.default_rng(2)
    axes = differential_axes(flow)
    exact, plain = [], []
    for _ in range(20):
        values, weight = columns(100_000, len(axes), rng), weights(kind, 100_000, rng)
        exact.append(Histogram.from_state(*Histogram(*axes).fill(*values, weight=weight).state()))
        plain.append(hist.Hist(*axes, storage=hist.storage.Weight()).fill(*values, weight=weight))
    mine, yours = Histogram(*axes), hist.Hist(*axes, storage=hist.storage.Weight())

    def merge(total: object, parts: list[object]) -> None:
        for number in range(PARTIALS):
            total += parts[number % len(parts)]

    ours, theirs = in_turns(lambda: merge(mine, exact), lambda: merge(yours, plain), rounds=5)
    each, label = 1e6 / PARTIALS, f"10,000 partials of {mine.to_hist().view(flow=True).size} bins, us each"
    print(f"{label:44} {kind:8} {ours * each:9.2f} {theirs * each:9.2f} {ours / theirs:7.2f}")


def main() -> None:
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, hist {hist.__version__}; ns per entry, w and w^2 together")
    print(f"{'':44} {'weights':8} {'exact':>9} {'hist':>9} {'ratio':>7}")
    for kind in ("float32", "float64", "none"):
        fill_line("(a) 1 M entries into 6 x 2 x 6 x 100 bins", differential_axes(), ENTRIES, kind)
        fill_line("(b) 10 k entries into the same", differential_axes(), 10_000, kind)
        fill_line("(c) 1 M entries into 100 bins", [hist.axis.Regular(100, 0, 1, name="score")], ENTRIES, kind)
    for kind in ("float32", "float64"):
        options_line(kind, 250_000)
        options_line(kind, 10_000)
    for kind in ("float32", "float64"):
        merge_line(kind, flow=False)
        merge_line(kind, flow=True)
    memory_line()


if __name__ == "__main__":
    if sys.argv[1:] == ["--memory"]:
        print(f"{merged_memory():.1f}")
    else:
        main()
