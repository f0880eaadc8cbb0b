"""Random victims, random signals, one campaign after the other: within 15 s nothing of any of them is left.

CAMPAIGN_SOAK_KILLS says how many (40), CAMPAIGN_SOAK_SEED which ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from campaign.discovery.records import ServerRecord
from tests.conftest import alive, campaign_dict, left, lying_about, make_small, ours, start, wait_until
from tests.integration.test_left_behind import records

KILLS = int(os.environ.get("CAMPAIGN_SOAK_KILLS", "40"))
SEED = int(os.environ.get("CAMPAIGN_SOAK_SEED", "20"))
GONE_S = 15.0

SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP]


@dataclass
class Live:
    """A campaign in its middle, and who belongs to it."""

    driver: subprocess.Popen[str]
    run_dir: Path
    record: ServerRecord | None = None
    blows: int = 0

    def look(self) -> bool:
        """Whether a server is ready, has answered, and has a request in flight; takes its record."""
        for r in reversed(records(self.run_dir)):
            mark = self.run_dir.parent / "in-flight" / str(r.server_pid)
            if r.state == "ready" and sum(n for _, n in r.statistics.values()) and mark.exists():
                self.record = r
                return psutil.pid_exists(self.pilot) and bool(
                    self.server_watchdog() and self.driver_watchdog() and self.workers()
                )
        return False

    @property
    def place(self) -> Path:
        return Path(self.record.private_dir)

    def pilot_lives(self) -> bool:
        return alive(self.pilot)

    def among(self, pid: int, word: str) -> list[int]:
        """Processes below one whose command line has a word."""
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(pid).children(recursive=True)
            return [p.pid for p in below if word in " ".join(cmdline(p))]
        return []

    @property
    def pilot(self) -> int:
        return int(self.record.pid or 0)

    @property
    def server(self) -> int:
        return int(self.record.server_pid or 0)

    def server_watchdog(self) -> list[int]:
        return self.among(self.pilot, "campaign.supervision.server_watchdog")

    def driver_watchdog(self) -> list[int]:
        return self.among(self.driver.pid, "campaign.supervision.driver_watchdog")

    def fork_server(self) -> list[int]:
        """The fork server and its workers look alike; it is the one whose parent is the driver."""
        found = self.among(self.driver.pid, "multiprocessing.forkserver")
        return [p for p in found if parent(p) == self.driver.pid]

    def workers(self) -> list[int]:
        return [p for p in self.among(self.driver.pid, "multiprocessing.forkserver") if p not in self.fork_server()]


def parent(pid: int) -> int:
    """Of a process that may have ended; 0 then."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return 0


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


# Whom a signal hits: by pid, or (negative) by process group.
VICTIMS: dict[str, Callable[[Live, random.Random], list[int]]] = {
    "driver": lambda live, dice: [live.driver.pid],
    "pilot": lambda live, dice: [live.pilot],
    "server watchdog": lambda live, dice: live.server_watchdog(),
    "driver watchdog": lambda live, dice: live.driver_watchdog(),
    "server": lambda live, dice: [live.server],
    "stub": lambda live, dice: live.among(live.server, "triton_python_backend_stub"),
    "worker": lambda live, dice: [dice.choice(live.workers())],
    "fork server": lambda live, dice: live.fork_server(),
    "driver's group": lambda live, dice: [-live.driver.pid],
    "pilot's group": lambda live, dice: [-live.pilot],
    "server's group": lambda live, dice: [-live.server],
    "pilot's and server's groups": lambda live, dice: [-live.pilot, -live.server],
    "all groups": lambda live, dice: [-live.driver.pid, -live.pilot, -live.server],
}


def strike(pids: list[int], signum: int) -> None:
    """Send it."""
    assert pids, "nobody to hit"
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(-pid, signum) if pid < 0 else os.kill(pid, signum)


def settled(live: Live, victim: str, signum: int, hit: list[int]) -> str:
    """What must have happened before the next blow may fall, where the campaign goes on; what has not, in words."""
    over = lambda: live.driver.poll() is not None  # noqa: E731
    if victim in ("server watchdog", "driver watchdog"):  # they ignore what can be ignored, and are replaced otherwise
        find = live.server_watchdog if victim == "server watchdog" else live.driver_watchdog
        if signum in (signal.SIGKILL, signal.SIGSTOP):
            ok = wait_until(lambda: over() or not live.pilot_lives() or (bool(find()) and find() != hit), GONE_S)
        else:
            ok = over() or not live.pilot_lives() or find() == hit
        return "" if ok else f"{victim} is not there any more"
    if victim in ("driver", "driver's group") and signum == signal.SIGSTOP:  # it cannot hold its lease
        return "" if wait_until(lambda: not live.place.exists(), GONE_S) else "a server outlived its lease"
    if victim not in ("worker", "driver", "driver's group", "fork server"):  # whatever replaces it, it sweeps
        wait_until(lambda: over() or not live.place.exists(), GONE_S if signum == signal.SIGSTOP else 1)
    return ""


def finish(live: Live, dice: random.Random) -> None:
    """The driver ends in order, at once, or by force."""
    how = dice.choice(("order", "order", "at once", "force"))
    if how == "force" or psutil.Process(live.driver.pid).status() == psutil.STATUS_STOPPED:
        live.driver.kill()
        return
    live.driver.send_signal(signal.SIGINT)
    if how == "at once":  # two signals that come together may be one
        wait_until(lambda: (live.run_dir / "servers" / "stop").exists() or live.driver.poll() is not None, 10)
        live.driver.send_signal(signal.SIGINT)


class Soak:
    """One campaign after the other, each hit until it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_small(folder)
        self.dice = random.Random(SEED)
        self.live: Live | None = None
        self.begun = 0
        self.before: tuple[set[int], set[str]] = (set(), set())
        self.counts, self.slowest = Counter[str](), Counter[str]()
        self.leaks: list[str] = []
        (self.folder / "in-flight").mkdir()
        made = campaign_dict("slow")
        made["servers"] |= {"window": 2, "lease_s": 3, "restarts": 1000}
        made["servers"]["models"]["slow"]["parameters"] = {"delay_s": 0.3, "mark": str(self.folder / "in-flight")}
        (self.folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))

    def middle(self) -> Live:
        """A campaign with a server ready and a request in flight at this moment: the one there is, else a new one."""
        if self.live is None:
            self.before = set(ours()), lying_about()
            self.begun += 1
            name = f"r{self.begun}"
            self.live = Live(start("run", "c.yaml", "--run-dir", name, cwd=self.folder), self.folder / name)
        live = self.live
        if wait_until(lambda: live.driver.poll() is not None or live.look(), 120 if live.blows == 0 else 20):
            if live.driver.poll() is None:
                return live
            assert live.blows, live.driver.communicate()
        self.over("it went on to its end" if live.driver.poll() is not None else "it does not go on")
        return self.middle()

    def over(self, after: str) -> None:
        """See the campaign end, and that nothing of it is left."""
        live, self.live = self.live, None
        assert live is not None
        if live.driver.poll() is None:
            finish(live, self.dice)
        began = time.monotonic()
        output, _ = live.driver.communicate(timeout=60)
        ended = time.monotonic() - began
        if not wait_until(lambda: not left(self.before), GONE_S):
            self.leak(f"{after}: {left(self.before)}\n{output}")
        took = round(time.monotonic() - began, 1)
        self.slowest[after] = max(self.slowest[after], took)
        print(f"   {after}: exit {live.driver.returncode} after {ended:.1f} s, nothing left after {took} s", flush=True)

    def leak(self, text: str) -> None:
        """Something was left, or went wrong."""
        print(f"LEAK {text}", flush=True)
        self.leaks.append(text)

    def blow(self, victim: str, signum: int) -> None:
        """One kill in the middle of a campaign."""
        live = self.middle()
        hit = VICTIMS[victim](live, self.dice)
        strike(hit, signum)
        live.blows += 1
        name = f"{victim} {signal.Signals(signum).name}"
        self.counts[name] += 1
        wrong = settled(live, victim, signum, hit)
        if wrong:
            self.leak(f"{name}: {wrong}")
        lethal = victim in ("driver", "driver's group", "all groups")
        if lethal or live.driver.poll() is not None or self.dice.random() < 0.3:
            self.over(name)


@pytest.mark.soak
@pytest.mark.timeout(60 + 30 * KILLS)
def test_random_kills_leave_nothing(tmp_path: Path) -> None:
    """Whoever is hit by whatever in the middle of a campaign: it goes on or ends, and then nothing of it is there."""
    soak = Soak(tmp_path)
    names = list(VICTIMS)
    for number in range(KILLS):
        print(f"{number}:", end="", flush=True)
        soak.blow(names[number] if number < len(names) else soak.dice.choice(names), soak.dice.choice(SIGNALS))
    if soak.live:
        soak.over("the end")
    print(f"\n{sum(soak.counts.values())} kills of {soak.begun} campaigns, {len(soak.leaks)} leaks, "
          f"slowest: {soak.slowest.most_common(8)}")  # fmt: skip
    assert not soak.leaks, "\n".join(soak.leaks)
