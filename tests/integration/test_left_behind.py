"""However a campaign ends, within seconds nothing of it runs or lies about; and it can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from campaign.supervision.identity import Identity, mark_of
from tests.conftest import (
    alive,
    campaign_dict,
    command,
    hashes,
    left,
    lying_about,
    ours,
    regions_of,
    report_of,
    start,
    wait_until,
)

Before = tuple[set[int], set[str]]


@pytest.fixture
def slow(small: Path) -> Path:
    """The small campaign with a model that takes its time, so that there is a middle to interrupt."""
    made = campaign_dict("slow")
    made["servers"]["window"] = 2
    made["servers"]["models"]["slow"]["parameters"] = {"delay_s": 0.1, "mark": str(small / "in-flight")}
    (small / "in-flight").mkdir()
    (small / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return small


@pytest.fixture
def before() -> Before:
    """What was there before the campaign."""
    return set(ours()), lying_about()


def records(run_dir: Path) -> list[dict[str, Any]]:
    """What the pilots say."""
    return [json.loads(p.read_text()) for p in sorted((run_dir / "servers").glob("server-*.json"))]


def in_the_middle(run_dir: Path, servers: int = 1) -> bool:
    """Every server is ready, has answered, and has a request in flight at this moment: its model says so."""
    found = records(run_dir)
    return len(found) == servers and all(
        r["state"] == "ready"
        and sum(n for _, n in r["statistics"].values())
        and (run_dir.parent / "in-flight" / str(r["server_pid"])).exists()
        for r in found
    )


def reach_the_middle(driver: subprocess.Popen[str], run_dir: Path, servers: int = 1) -> None:
    """Wait for it, and see that the campaign still runs."""
    assert wait_until(lambda: in_the_middle(run_dir, servers), 120), driver.communicate(timeout=30)
    assert driver.poll() is None


FAULTS = pytest.mark.faults
LATE = "servers.models.slow.parameters.delay_s=0.5"  # so that it does not come to its end before it is hit


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGHUP, marks=FAULTS)],
)
def test_a_signal_in_the_middle_ends_it_in_order_and_it_resumes(slow: Path, before: Before, signum: int) -> None:
    """INT, TERM, HUP: exit 130 and nothing left within 5 s; run again, it completes as if nothing had been."""
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=slow)
    reach_the_middle(driver, slow / "r")
    os.killpg(driver.pid, signum)  # as a terminal does: the whole group gets it
    output, _ = driver.communicate(timeout=10)
    assert driver.returncode == 130, output
    assert wait_until(lambda: not left(before), 5), left(before)
    assert report_of(slow / "r")["status"] == "interrupted"
    assert "resume" in output
    if signum == signal.SIGTERM:
        assert command("run", "c.yaml", "--run-dir", "r", cwd=slow).returncode == 0
        assert command("run", "c.yaml", "--run-dir", "whole", "--servers", "2", cwd=slow).returncode == 0
        assert hashes(slow / "r") == hashes(slow / "whole")


@pytest.mark.faults
@pytest.mark.parametrize("asked", [True, False])
def test_a_stopped_fork_server_keeps_nobody(slow: Path, before: Before, asked: bool) -> None:
    """Without it no end of a worker is seen: the driver lets it go on, whether it was asked to stop or is done."""
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=slow)
    reach_the_middle(driver, slow / "r")
    forked = below(driver.pid, "multiprocessing.forkserver")
    (server,) = [pid for pid in forked if psutil.Process(pid).ppid() == driver.pid]
    os.kill(server, signal.SIGSTOP)
    if asked:
        os.kill(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == (130 if asked else 0), output
    assert wait_until(lambda: not left(before), 5), left(before)


@pytest.mark.faults
def test_stop_from_another_terminal(slow: Path, before: Before) -> None:
    """`campaign stop RUN_DIR` ends a running campaign in order."""
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=slow)
    reach_the_middle(driver, slow / "r")
    assert "running on" in command("status", "r", cwd=slow).stdout
    assert command("stop", "r", cwd=slow).returncode == 0
    assert driver.wait(10) == 130
    assert wait_until(lambda: not left(before), 5), left(before)


@pytest.mark.parametrize("provider", ["local", pytest.param("parsl", marks=FAULTS)])
def test_the_driver_killed_leaves_nothing(slow: Path, before: Before, provider: str) -> None:
    """SIGKILL of the driver alone: its pilots, servers and workers end by themselves."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--provider", provider, "--set", "servers.lease_s=3", cwd=slow)
    reach_the_middle(driver, slow / "r")
    driver.kill()
    driver.communicate(timeout=10)
    limit = 5 if provider == "local" else 15  # Parsl's workers notice by heartbeat, pilots by their lease
    assert wait_until(lambda: not left(before), limit), left(before)


@pytest.mark.faults
def test_the_pilot_killed_leaves_nothing_of_its_server(slow: Path, before: Before) -> None:
    """SIGKILL of the pilot: its watchdog ends the server's group and sweeps; without restarts the campaign fails."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--set", "servers.restarts=0", cwd=slow)
    reach_the_middle(driver, slow / "r")
    record = records(slow / "r")[0]
    os.kill(record["pid"], signal.SIGKILL)
    assert wait_until(lambda: not alive(record["server_pid"]), 5)
    assert wait_until(lambda: not Path(record["place"]).exists(), 5)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1, output


def kill_server(record: dict[str, Any]) -> None:
    """SIGKILL the server itself."""
    os.kill(record["server_pid"], signal.SIGKILL)


@pytest.mark.slow
def test_one_of_two_servers_killed_changes_no_bit(slow: Path) -> None:
    """Its requests move to the other server; the outputs are those of an undisturbed run."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--servers", "2", cwd=slow)
    reach_the_middle(driver, slow / "r", servers=2)
    kill_server(records(slow / "r")[0])
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    report = report_of(slow / "r")
    assert report["rows"]["other_server"] > 0
    assert report["servers"][0]["why"].startswith("server-0: the server ended by signal 9")
    assert command("run", "c.yaml", "--run-dir", "whole", cwd=slow).returncode == 0
    assert hashes(slow / "r") == hashes(slow / "whole")


@pytest.mark.slow
def test_every_server_killed_fails_the_campaign_and_says_so(slow: Path) -> None:
    """No twin and no restart: exit 1, the cause by name, what is done stays done, and a second run completes it."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--servers", "2", "--set", "servers.restarts=0", cwd=slow)
    reach_the_middle(driver, slow / "r", servers=2)
    for record in records(slow / "r"):
        kill_server(record)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1, output
    report = report_of(slow / "r")
    assert report["status"] == "failed"
    assert report["rows"]["local_twin"] == 0
    assert any("the server ended by signal 9" in e for e in report["errors"])
    assert command("run", "c.yaml", "--run-dir", "r", cwd=slow).returncode == 0


@pytest.mark.faults
def test_a_run_leaves_no_port_and_its_sockets_are_private(slow: Path) -> None:
    """On one node a server listens on no TCP port at all; its socket lies in a folder only its owner may enter."""
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=slow)
    reach_the_middle(driver, slow / "r")
    record = records(slow / "r")[0]
    server = psutil.Process(record["server_pid"])
    listening: Callable[[psutil.Process], list[Any]] = lambda p: [  # noqa: E731  one line, used twice
        c for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    family = [server, *server.children(recursive=True)]
    assert len(family) > 1
    drivers = {getattr(mark_of(p.pid), "driver", None) for p in family}
    assert drivers == {Identity.of(driver.pid)}, "a process that does not bear the mark would not be ended"
    assert not listening(server)
    assert not [c for child in server.children(recursive=True) for c in listening(child)]
    place = Path(record["place"])
    assert place.stat().st_mode & 0o777 == 0o700
    assert Path(record["url"].removeprefix("unix:")).is_socket()
    assert regions_of(record)
    assert not list(Path("/dev/shm").glob(f"{record['shm_prefix']}*")), "they lie in a /dev/shm of the server's own"
    assert driver.wait(60) == 0
    driver.communicate()
    assert not place.exists()


def below(root: int, word: str) -> list[int]:
    """Processes that a process has started, with a word on their command line; zombies left out."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for p in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [p.pid] if any(word in part for part in p.cmdline()) else []
    return found


def watchers(driver: int, record: dict[str, Any]) -> list[int]:
    """The driver's driver watchdog and the pilot's server watchdog."""
    return [
        *below(driver, "campaign.supervision.driver_watchdog"),
        *below(record["pid"], "campaign.supervision.server_watchdog"),
    ]


@pytest.mark.faults
def test_an_explicit_stop_alone_is_enough(slow: Path, before: Before) -> None:
    """With a lease of an hour, no driver watchdog and no scheduler, what the driver says at its end suffices."""
    settings = ("--provider", "parsl", "--set", "servers.lease_s=3600", "--set", LATE)
    driver = start("run", "c.yaml", "--run-dir", "r", *settings, cwd=slow)
    reach_the_middle(driver, slow / "r")
    for pid in watchers(driver.pid, records(slow / "r")[0]):
        os.kill(pid, signal.SIGKILL)  # replaced a second later, unless they come too late
    os.kill(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130, output
    assert wait_until(lambda: not left(before), 15), left(before)


@pytest.mark.faults
@pytest.mark.usefixtures("sole_reaper")
def test_the_lease_alone_is_enough(slow: Path, before: Before) -> None:
    """Driver and watchdog killed at once, pilots without a signal of a parent's death: they end with their lease."""
    settings = ("--provider", "parsl", "--set", "servers.lease_s=3", "--set", LATE)
    driver = start("run", "c.yaml", "--run-dir", "r", *settings, cwd=slow)
    reach_the_middle(driver, slow / "r")
    record = records(slow / "r")[0]
    driver_watchdogs = below(driver.pid, "campaign.supervision.driver_watchdog")
    assert driver_watchdogs
    for pid in (*driver_watchdogs, driver.pid):
        os.kill(pid, signal.SIGKILL)
    driver.communicate(timeout=15)
    gone = lambda: not (alive(record["pid"]) or alive(record["server_pid"]) or Path(record["place"]).exists())  # noqa: E731
    assert wait_until(gone, 15)
    assert records(slow / "r")[-1]["why"].startswith("the lease ran out")
    assert command("reap", cwd=slow).returncode == 0  # two nets cut at once: folders of the driver itself remain for it
    assert wait_until(lambda: not left(before), 15), left(before)


@pytest.mark.faults
@pytest.mark.parametrize("blow", ["group", "twice"])
def test_the_driver_gone_at_once_leaves_nothing(slow: Path, before: Before, blow: str) -> None:
    """SIGKILL of its whole process group, or a second Ctrl-C before it is done: 15 s later nothing, under Parsl too."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--provider", "parsl", "--set", LATE, cwd=slow)
    reach_the_middle(driver, slow / "r")
    if blow == "group":
        os.killpg(driver.pid, signal.SIGKILL)
    else:
        os.killpg(driver.pid, signal.SIGINT)
        assert wait_until((slow / "r" / "servers" / "stop").exists, 15), "it is on its way out in order: a busy server"
        os.killpg(driver.pid, signal.SIGINT)
    driver.communicate(timeout=15)
    assert driver.returncode == (-signal.SIGKILL if blow == "group" else 130)
    assert wait_until(lambda: not left(before), 15), left(before)
    assert not (slow / "r" / "report.json").exists(), "it has gone at once, without a last word"
    assert not list((slow / "r").rglob("*.key_secret")), "keys of Parsl's channels"
    assert command("plan", "c.yaml", "--run-dir", "r", cwd=slow).returncode == 0


@pytest.mark.faults
def test_a_pilot_that_stops_is_ended_by_its_server_watchdog(slow: Path, before: Before) -> None:
    """SIGSTOP of the pilot: its server goes with it, though the server watchdog had to be replaced before."""
    settings = ("--set", "servers.lease_s=3", "--set", LATE)
    driver = start("run", "c.yaml", "--run-dir", "r", *settings, cwd=slow)
    reach_the_middle(driver, slow / "r")
    record = records(slow / "r")[0]
    (server_watchdog,) = below(record["pid"], "campaign.supervision.server_watchdog")
    os.kill(server_watchdog, signal.SIGKILL)
    assert wait_until(
        lambda: below(record["pid"], "campaign.supervision.server_watchdog") not in ([], [server_watchdog]), 15
    )
    os.kill(record["pid"], signal.SIGSTOP)
    gone = lambda: not (alive(record["pid"]) or alive(record["server_pid"]) or Path(record["place"]).exists())  # noqa: E731
    assert wait_until(gone, 15)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=30)
    assert wait_until(lambda: not left(before), 15), left(before)


@pytest.mark.slow
def test_a_driver_killed_while_it_tries_the_stages_leaves_nothing(small: Path, before: Before) -> None:
    """Before there is any server: its child ends too, no temporary folder is left; the next run removes the notes."""
    code = next(small.glob("*.py"))
    text = code.read_text()
    code.write_text(text.replace("def select(batch, ctx):", "def select(batch, ctx):\n    import time; time.sleep(60)"))
    assert code.read_text() != text
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert wait_until(lambda: (small / "r" / "job.pickle.at").exists(), 60), driver.communicate(timeout=5)
    assert driver.poll() is None
    driver.kill()
    driver.wait(10)
    assert wait_until(lambda: not left(before), 15), left(before)
    code.write_text(text)
    assert command("run", "c.yaml", "--run-dir", "r", "--quiet", cwd=small).returncode == 0
    assert not list((small / "r").glob("job*"))
