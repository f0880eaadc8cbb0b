"""What a machine does to a campaign: a full disk, a read-only home, a clock that jumps, a terminal that goes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, change, command, hashes, left, report_of, wait_until
from tests.integration.test_left_behind import (  # noqa: F401  two fixtures
    LATE,
    Before,
    before,
    in_the_middle,
    reach_the_middle,
    records,
    slow,
)

FAULTS, SLOW = pytest.mark.faults, pytest.mark.slow
RUN = [sys.executable, "-m", "campaign.cli", "run", "c.yaml", "--run-dir", "r"]


def apart(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A shell script in a mount namespace of its own; ``$RUN`` runs the campaign of the folder."""
    assert os.getuid() == 0, "mounting needs root; CI has it"
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-uc", script],
        cwd=cwd, env={**os.environ, "RUN": " ".join(RUN), **env}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


@pytest.mark.parametrize("room", [pytest.param("0 60", marks=FAULTS), pytest.param("16 120", marks=SLOW)])
def test_a_full_disk_is_named_and_after_making_room_it_resumes(small: Path, room: str) -> None:
    """Wherever in a run it becomes full: exit 1, the file system and what to do, nothing left; then the same bits."""
    assert command("run", "c.yaml", "--run-dir", "whole", cwd=small).returncode == 0
    (small / "r").mkdir()
    done = apart(
        """
        mount -t tmpfs -o size=4m tmpfs r
        for left in $ROOM; do
            dd if=/dev/zero of=r/filler bs=1k count=$(($(df --output=avail -k r | tail -1) - left)) status=none
            $RUN >log 2>&1; echo "exit $?"
            grep -c 'make room on the file system at' log
            grep -q Traceback log && cat log
            ls -d $TMPDIR/campaign-* 2>/dev/null
            rm r/filler
        done
        $RUN >log 2>&1; echo "exit $?"
        cp r/report.json resumed.json
        """,
        small,
        ROOM=room,
    )
    assert done.stdout.split() == ["exit", "1", "1"] * 2 + ["exit", "0"], done.stdout + done.stderr
    resumed = json.loads((small / "resumed.json").read_text())
    assert {name: o["sha256"] for name, o in resumed["outputs"].items()} == hashes(small / "whole")


@FAULTS
def test_a_small_dev_shm_is_named(small: Path, before: Before) -> None:  # noqa: F811
    """Where a server cannot have its shared memory the campaign says so, and leaves none; with its own, it can."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    done = apart(f"{mount}; $RUN --set servers.private_shm=false; echo exit $?; ls /dev/shm", small)
    assert done.stdout.split()[-2:] == ["exit", "1"], done.stdout
    assert "shared memory" in done.stdout + done.stderr
    done = apart(f"{mount}; $RUN; echo exit $?; ls /dev/shm", small)
    assert done.stdout.split()[-2:] == ["exit", "0"], done.stdout
    assert wait_until(lambda: not left(before), 5), left(before)


@FAULTS
def test_a_home_that_cannot_be_written(small: Path) -> None:
    """The server environment that is there serves; where it has to be made, CAMPAIGN_CACHE is named."""
    script = "mkdir -p home && mount -t tmpfs -o ro tmpfs home; $RUN; echo exit $?"
    home = {"HOME": str(small / "home"), "XDG_STATE_HOME": ""}  # the state directory in it, as it is for most users
    here = os.environ.get("CAMPAIGN_CACHE") or str(Path.home() / ".cache" / "inference-campaign")
    done = apart(script, small, **home, CAMPAIGN_CACHE=here)
    assert done.stdout.split()[-2:] == ["exit", "0"], done.stdout + done.stderr
    assert done.stderr.count("cannot be written down for 'campaign reap'") == 1
    done = apart(script, small, **home, CAMPAIGN_CACHE=str(small / "home" / "cache"))
    assert done.stdout.split()[-2:] == ["exit", "0"], "nothing is to be done"
    change(small, read_rows=800)
    done = apart(script, small, **home, CAMPAIGN_CACHE=str(small / "home" / "cache"))
    assert done.stdout.split()[-2:] == ["exit", "1"], done.stdout + done.stderr
    assert "remedy: set CAMPAIGN_CACHE" in done.stdout + done.stderr


@FAULTS
def test_a_jump_of_the_clock_ends_nothing_and_leaves_nothing(slow: Path, before: Before) -> None:  # noqa: F811
    """A day on, then two days back, in the middle of a run: no lease, no deadline and no bit of the result minds."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    assert library, "needs the package faketime (.ci/run installs it)"
    sleep = slow / "sleep.so"
    source = PROJECT / "tests" / "tools" / "sleep.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(sleep), str(source)], check=True)
    now = slow / "now"
    now.write_text("+0\n")
    env = {
        "LD_PRELOAD": f"{sleep}:{library}", "FAKETIME_TIMESTAMP_FILE": str(now), "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip
    driver = subprocess.Popen(
        [*RUN, "--set", "servers.lease_s=5"], cwd=slow, env={**os.environ, **env}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    reach_the_middle(driver, slow / "r")
    for jump in ("+1d\n", "-1d\n"):
        now.write_text(jump)
        answered = sum(n for _, n in records(slow / "r")[0]["statistics"].values())
        more = lambda: sum(n for _, n in records(slow / "r")[0]["statistics"].values()) > answered  # noqa: B023, E731
        assert wait_until(lambda: more() or driver.poll() is not None, 60)  # noqa: B023
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    assert wait_until(lambda: not left(before), 15), left(before)
    assert report_of(slow / "r")["wall_s"] >= 0
    assert all(t >= 0 for t in report_of(slow / "r")["profile"]["timeline"].values())
    assert command("run", "c.yaml", "--run-dir", "whole", "--servers", "2", cwd=slow).returncode == 0
    assert hashes(slow / "r") == hashes(slow / "whole")


@FAULTS
@pytest.mark.parametrize("nohup", [False, True])
def test_the_terminal_is_closed(slow: Path, before: Before, nohup: bool) -> None:  # noqa: F811
    """A real one: the run ends in order and can be resumed; under nohup it goes on."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(slow)
        os.execvp(*(("nohup", ["nohup", *RUN]) if nohup else (RUN[0], RUN)))
    os.set_blocking(terminal, False)

    def middle() -> bool:
        with contextlib.suppress(OSError):  # nothing to read now; or, under nohup, nobody who would write
            os.read(terminal, 65536)  # a terminal that nobody reads would stop who writes to it
        return in_the_middle(slow / "r")

    assert wait_until(middle, 120)
    os.close(terminal)
    assert wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 200 if nohup else 15)
    assert wait_until(lambda: not left(before), 15), left(before)
    assert report_of(slow / "r")["status"] == ("complete" if nohup else "interrupted")
