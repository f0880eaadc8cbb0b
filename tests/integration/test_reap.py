"""`campaign reap`: what a dead campaign left is found by identity and ended; nobody else's is touched."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from campaign import ServerPool
from campaign.supervision import identity
from campaign.supervision.cleanup import end_group
from campaign.supervision.identity import Identity, Mark
from tests.conftest import PROJECT, command, left, region, start, wait_until
from tests.integration.test_left_behind import (  # noqa: F401  two fixtures
    Before,
    before,
    below,
    reach_the_middle,
    records,
    slow,
    watchers,
)

SLEEP = "import time; time.sleep(600)"
SOLE = pytest.mark.usefixtures("sole_reaper")


def sleeper(mark: str = "", *argv: str) -> subprocess.Popen[bytes]:
    """A process that sleeps and bears a mark."""
    env = {**os.environ, **({identity.VARIABLE: mark} if mark else {})}
    return subprocess.Popen([sys.executable, "-c", SLEEP, *argv], env=env, start_new_session=True)


def dead_driver() -> Identity:
    """Of a process that has been here and is gone."""
    gone = subprocess.Popen([sys.executable, "-c", SLEEP])
    who = Identity.of(gone.pid)
    gone.kill()
    gone.wait()
    return who


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of one's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@contextlib.contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """See to it that they are gone at the end."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_an_identity_is_of_one_process_for_all_time() -> None:
    """A pid alone is used again: with its start it is not, and after a boot or elsewhere it is not taken for alive."""
    mine = Identity.of(os.getpid())
    assert Identity.parse(str(mine)) == mine
    assert mine.alive() is True
    assert Identity(mine.host, mine.boot, mine.space, mine.pid, mine.start - 1).alive() is False
    assert Identity(mine.host, "00000000", mine.space, mine.pid, mine.start).alive() is False
    assert Identity("elsewhere", mine.boot, mine.space, mine.pid, mine.start).alive() is None
    assert Identity(mine.host, mine.boot, "1", mine.pid, mine.start).alive() is None
    assert dead_driver().alive() is False
    assert identity.send(Identity(mine.host, mine.boot, mine.space, mine.pid, mine.start - 1), signal.SIGKILL) is False
    for text in ("", "a:b", "h:b:s:-1:2", "h:b:s:1:x", "@"):
        assert Identity.parse(text) is None
        assert Mark.parse(text) is None


@SOLE
def test_reap_ends_the_dead_and_no_other(state: Path, tmp_path: Path) -> None:
    """By its mark: not one of a living driver, not one of another machine, not one of the same name without a mark."""
    here = Identity.of(os.getpid())
    dead = str(Mark("d" * 16, dead_driver()))
    reused = str(Mark("e" * 16, Identity(here.host, here.boot, here.space, here.pid, here.start - 5)))
    victims = [sleeper(dead, "campaign.pool.pilot"), sleeper(reused)]
    others = [
        sleeper("", "-m", "campaign.pool.pilot", "/tmp/campaign-decoy"),
        sleeper(str(Mark("f" * 16, here)), "campaign.pool.pilot"),
        sleeper(str(Mark("a" * 16, Identity("elsewhere", here.boot, here.space, here.pid, here.start)))),
        sleeper(str(Mark("b" * 16, Identity(here.host, here.boot, "1", here.pid, here.start)))),
        sleeper("no mark at all"),
    ]
    with ended(*victims, *others):
        said = command("reap", "--dry-run", cwd=tmp_path)
        assert all(v.poll() is None for v in victims)
        assert f"would end process {victims[0].pid} " in said.stdout
        said = command("reap", cwd=tmp_path)
        assert said.returncode == 0, said.stderr
        assert [v.wait(10) for v in victims] == [-signal.SIGTERM, -signal.SIGTERM]
        assert all(o.poll() is None for o in others)
        assert f"ended process {victims[1].pid} " in said.stdout
        assert f"live process {others[1].pid} " in said.stdout
        assert f"its campaign's driver runs (pid {os.getpid()})" in said.stdout
        assert "its campaign's driver is on elsewhere" in said.stdout
        assert all(f"process {o.pid} " not in said.stdout for o in (others[0], others[4]))
        nothing = "nothing of a dead campaign was found"  # once what other sessions have killed has ended too
        assert wait_until(lambda: nothing in command("reap", cwd=tmp_path).stdout, 30)


@SOLE
def test_a_folder_is_known_by_the_owner_it_names(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead campaign's folder goes with its shared memory; a living one's, one without an owner, and a lie stay."""
    from campaign.supervision.identity import own

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine = str(Mark("f" * 16, Identity.of(os.getpid())))
    dead = str(Mark("d" * 16, dead_driver()))
    shared = region("reap_1")
    shared.touch(0o600)
    folders = {name: tmp_path / f"campaign-{name}" for name in ("dead", "live", "bare", "lie", "stranger")}
    for folder in folders.values():
        folder.mkdir(0o700)
        (folder / "models").mkdir()
    own(folders["dead"], dead, shm_prefix=region("reap_").name, folders=[], leader="")
    own(folders["live"], mine)
    (folders["lie"] / "owner.json").symlink_to(folders["dead"] / "owner.json")
    (folders["stranger"] / "owner.json").write_text('{"mark": 7}')
    try:
        said = command("reap", cwd=tmp_path)
        assert said.returncode == 0, said.stderr
        assert not folders["dead"].exists()
        assert not shared.exists()
        assert all(f.exists() for name, f in folders.items() if name != "dead"), said.stdout
    finally:
        shared.unlink(missing_ok=True)


def test_a_group_is_ended_only_if_it_is_ours() -> None:
    """Its leader gone, a group's number may be another's: of an earlier boot, or without our mark, it is left alone."""
    here = Identity.of(os.getpid())
    mark, other = (Mark(c * 16, here) for c in "ab")

    def group(bears: Mark | None) -> tuple[int, psutil.Process]:
        """A group whose leader has exited, and who is in it."""
        env = {**os.environ, **({identity.VARIABLE: str(bears)} if bears else {})}
        argv = ["bash", "-c", "sleep 600 & echo $!"]
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as leader:
            assert leader.stdout is not None
            member = psutil.Process(int(leader.stdout.readline()))
            leader.stdout.close()
        return leader.pid, member

    def ended(member: psutil.Process) -> bool:
        return not member.is_running() or member.status() == psutil.STATUS_ZOMBIE

    for bears, boot, ends in (
        (mark, "00000000", False), (None, here.boot, False), (other, here.boot, False), (mark, here.boot, True),
    ):  # fmt: skip
        pid, member = group(bears)
        try:
            end_group(Identity(here.host, boot, here.space, pid, 1), mark)
            assert ended(member) is ends, (bears, boot)
        finally:
            if not ended(member):
                member.kill()
    leader = sleeper()
    end_group(Identity.of(leader.pid), None)
    assert leader.wait(5) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users; CI is root")
def test_what_cannot_be_removed_keeps_nobody_from_the_rest(tmp_path: Path) -> None:
    """A file of another user under a region's name, a folder whose owner says nonsense: the others are swept."""
    stranger = region("sweep_evil")
    script = (
        "import os, sys, tempfile; from pathlib import Path\n"
        "from campaign.supervision.identity import own; from campaign.supervision.reap import abandoned, reap\n"
        "mark, holder, prefix = sys.argv[1:]\n"
        "os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)\n"
        "for sweep in (abandoned, reap):\n"
        "    made = [Path(tempfile.mkdtemp(prefix=f'campaign-{n}-')) for n in range(3)]\n"
        "    for folder, folders in zip(made, (7, [], [])):\n"
        "        own(folder, mark, holder=holder, leader='', shm_prefix=prefix, folders=folders)\n"
        "    own(made[2], mark, holder=holder, leader='', shm_prefix='/', folders=[])\n"
        "    mine = Path('/dev/shm', prefix + 'mine'); mine.touch()\n"
        "    sweep()\n"
        "    print([f.exists() for f in (*made, mine)])\n"
        "    __import__('shutil').rmtree(made[0])\n"
    )
    gone = dead_driver()
    (tmp_path / "t").mkdir()
    for folder in (tmp_path / "t", tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o1777 if folder.name == "t" else 0o755)
    stranger.touch(0o600)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(Mark("d" * 16, gone)), str(gone), stranger.name.removesuffix("evil")],
            env={**os.environ, "TMPDIR": str(tmp_path / "t"), "XDG_STATE_HOME": str(tmp_path / "state")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:2] == ["[True, False, False, False]"] * 2
        assert stranger.exists()
    finally:
        stranger.unlink()


@SOLE
@pytest.mark.slow
@pytest.mark.parametrize("provider", ["local", "parsl"])
def test_reap_ends_what_nothing_else_can(slow: Path, before: Before, provider: str) -> None:  # noqa: F811
    """Driver and both watchdogs killed at once, a lease of an hour: reap ends it all, and a live campaign stays."""
    late = ("--set", "servers.models.slow.parameters.delay_s=4")
    settings = ("--provider", provider, "--set", "servers.lease_s=3600", *late)
    live = start("run", "c.yaml", "--run-dir", "live", *late, cwd=slow)
    assert wait_until(lambda: any(r["state"] == "ready" for r in records(slow / "live")), 120)
    driver = start("run", "c.yaml", "--run-dir", "r", *settings, cwd=slow)
    reach_the_middle(driver, slow / "r")
    record = records(slow / "r")[0]
    killed = watchers(driver.pid, record)
    assert len(killed) == 2
    if provider == "local":  # pilots of this provider would see the driver go: as if they did not
        os.kill(record["pid"], signal.SIGSTOP)
    for pid in (*killed, driver.pid):
        os.kill(pid, signal.SIGKILL)
    driver.communicate(timeout=10)
    assert Path(record["place"]).exists()
    said = command("reap", cwd=slow)
    assert said.returncode == 0, said.stderr
    assert f"process {record['pid']} " in said.stdout, said.stdout
    assert not Path(record["place"]).exists()
    assert "its campaign's driver runs" in said.stdout
    assert live.poll() is None
    assert psutil.pid_exists(records(slow / "live")[0]["server_pid"])
    live.send_signal(signal.SIGINT)
    output, _ = live.communicate(timeout=60)
    assert live.returncode == 130, output
    assert wait_until(lambda: not left(before), 5), left(before)


def test_a_home_that_cannot_be_written_is_said_once_and_nothing_else(tmp_path: Path) -> None:
    """The state directory is a file, say: the campaign's driver watchdog is there all the same."""
    (tmp_path / "home").write_text("")
    script = (
        "import pathlib, os; from campaign.supervision import driver_watchdog, identity, reap\n"
        "said = []\n"
        "hold = driver_watchdog.hold\n"
        "with hold(pathlib.Path.cwd(), say=said.append), hold(pathlib.Path.cwd(), say=said.append):\n"
        "    print([f.what for f in reap.processes(identity.mark().campaign)])\n"
        "print(len(said), said[0])\n"
    )
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "['campaign.supervision.driver_watchdog']" in done.stdout
    assert "\n1 cannot be written down for 'campaign reap'" in done.stdout


def test_a_driver_watchdog_that_is_killed_is_replaced_in_a_script_of_ones_own(state: Path) -> None:
    """A pool that no engine runs looks after its driver watchdog too."""
    with ServerPool(PROJECT / "tests" / "models", models=["slow"]):
        (first,) = below(os.getpid(), "campaign.supervision.driver_watchdog")
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: below(os.getpid(), "campaign.supervision.driver_watchdog") not in ([], [first]), 20)
    assert not below(os.getpid(), "campaign.supervision.driver_watchdog")
    assert not list(state.rglob("*.json"))


@SOLE
def test_what_did_not_end_in_order_stays_written_down(state: Path, tmp_path: Path) -> None:
    """A driver watchdog that cannot be started has no user; what was raised at an end is remembered by later ones."""
    script = (
        "import pathlib, resource, contextlib\n"
        "from campaign.supervision import driver_watchdog, identity, reap, run_registry\n"
        "here, (soft, hard) = pathlib.Path.cwd(), resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "def ours(): return [f.what for f in reap.processes(identity.mark().campaign)]\n"
        "def told(): return len(list(run_registry.state_dir().glob('*.json'))), ours()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (5, hard))\n"
        "try:\n    driver_watchdog.hold(here).__enter__()\n"
        "except OSError as error:\n    refused = type(error).__name__\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "print(refused, *told())\n"
        "with driver_watchdog.hold(here): print(*told())\n"
        "print(*told())\n"
        "with contextlib.suppress(KeyError), driver_watchdog.hold(here): raise KeyError\n"
        "print(*told())\n"
        "with driver_watchdog.hold(here): pass\n"
        "print(*told())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "OSError 0 []",
        "1 ['campaign.supervision.driver_watchdog']",
        "0 []",
        "1 []",
        "1 []",
    ]
    assert command("reap", cwd=tmp_path).returncode == 0
    assert not list(state.rglob("*.json")), "its driver is gone, and nothing was left"
