"""SIGKILL of the driver at whatever moment: nothing is left, and run again it ends as if nothing had been."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from campaign.storage.receipts import MERGED, Receipt, Receipts
from tests.conftest import (
    campaign_dict,
    command,
    hashes,
    left,
    lying_about,
    make_small,
    ours,
    report_of,
    start,
    wait_until,
)

KILLS = int(os.environ.get("CAMPAIGN_RESUME_KILLS", "10"))
PARTIALS, OUTPUTS = 46, 14  # of the small campaign

Sign = Callable[[Path], bool]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the small campaign, whose model takes its time, and the hashes of a run nobody disturbed."""
    folder = make_small(tmp_path_factory.mktemp("resume"))
    made = campaign_dict("slow")
    made["servers"]["models"]["slow"]["parameters"] = {"delay_s": 0.02}
    (folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    done = command("run", "c.yaml", "--run-dir", "whole", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, hashes(folder / "whole")


# Signs that a run gives of itself, by phase; k is drawn anew for each kill.


def there(name: str) -> Sign:
    """A file of that name is there."""
    return lambda run: (run / name).exists()


def receipts(k: int) -> Sign:
    """So many lines stand in the log."""
    return lambda run: lines(run) >= k


def lines(run: Path) -> int:
    """Lines of the log."""
    log = run / "receipts.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def outputs(k: int) -> Sign:
    """So many merged outputs have appeared."""
    return lambda run: len([p for p in run.glob("outputs/*/*/*") if not p.name.startswith(".")]) >= k


def moments(rng: random.Random) -> Iterator[tuple[str, Sign, float]]:
    """Phases in turn; in each a sign, and how long after it the signal comes, seconds."""
    early = ["", "lock", "job.pickle", "plan.json", "servers/pilot.json", "servers/server-0.json"]
    while True:
        yield "start-up", there(rng.choice(early)), rng.uniform(0, 0.4)
        yield "fan-out", receipts(rng.randint(1, PARTIALS)), rng.uniform(0, 0.05)
        yield "merge", outputs(rng.randint(1, OUTPUTS)), rng.uniform(0, 0.05)
        yield "teardown", there(rng.choice(["servers/stop", "report.json"])), rng.uniform(0, 0.3)
        yield "any", there("lock"), rng.uniform(0, 3)


def kill_at(folder: Path, run: Path, sign: Sign, delay_s: float) -> bool:
    """Start the campaign and kill its driver at a moment; False if it ended before."""
    driver = start("run", "c.yaml", "--run-dir", run.name, cwd=folder)
    end = time.monotonic() + 60
    while driver.poll() is None and not sign(run) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay_s)  # no synchronisation: the moment itself is what is drawn
    driver.kill()
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode in (-9, 0), output
    return driver.returncode == -9


def in_the_log(run: Path) -> Counter[tuple[str, str, str, str, str]]:
    """How often each task and frozen value stands in the log.

    Not merges: one whose frozen value comes into force only during the run is made again, from the same partials.
    """

    def what(r: Receipt) -> tuple[str, str, str, str, str]:
        return r.kind, r.stage, r.dataset, r.variation, r.key

    return Counter(what(r) for r in Receipts(run / "receipts.jsonl") if r.kind != MERGED)


@pytest.mark.faults
@pytest.mark.soak
@pytest.mark.timeout(60 + 120 * KILLS)
def test_the_driver_killed_at_random_moments(undisturbed: tuple[Path, dict[str, str]]) -> None:
    """After each kill: nothing left within 15 s; run again: the same hashes, and nothing done twice that was done."""
    folder, whole = undisturbed
    before, told, kills = (set(ours()), lying_about()), Counter[str](), 0
    for number, (phase, sign, delay_s) in enumerate(moments(random.Random(4))):
        run = folder / f"r{number}"
        if kill_at(folder, run, sign, delay_s):
            kills += 1
            told[phase] += 1
        began = time.monotonic()
        assert wait_until(lambda: not left(before), 15), (phase, left(before))
        told["slowest to clean, ms"] = max(told["slowest to clean, ms"], int(1000 * (time.monotonic() - began)))
        had = in_the_log(run)
        told["receipts kept"] += sum(had.values())
        done = command("run", "c.yaml", "--run-dir", run.name, cwd=folder)
        assert done.returncode == 0, (phase, done.stdout, done.stderr)
        assert hashes(run) == whole, phase
        again = in_the_log(run)
        assert {at: again[at] for at in had} == dict.fromkeys(had, 1), phase
        assert not [p for p in run.rglob(".*") if p.is_file()], "what the killed driver was writing is swept"
        reused = report_of(run)["tasks"]["reused"]
        told["tasks reused"] += reused
        if kills >= KILLS:
            break
    print(f"\n{kills} kills: {dict(told)}")
    assert set(told) >= {"start-up", "fan-out", "merge", "teardown"}
