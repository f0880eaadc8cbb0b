"""One pilot by itself: whose it is, what it says of another server, and what its server watchdog knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from campaign import ServerPool
from campaign.discovery.records import name_of, new_record, read_records
from campaign.pool import server_log
from campaign.pool.pilot import Pilot
from campaign.util.files import write_json
from tests.conftest import PROJECT, wait_until

REPOSITORY = PROJECT / "tests" / "models"
MODELS = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}
X = np.arange(100, dtype=np.float32).reshape(-1, 1)
HOLDER = """
import json, sys, time
from pathlib import Path
from parsl.providers import LocalProvider
from campaign import ServerPool

if __name__ == "__main__":
    repository, folder, listen, models = sys.argv[1:]
    provider = LocalProvider(init_blocks=0, max_blocks=1)
    with ServerPool(
        repository, models=json.loads(models), count=2, folder=Path(folder), provider=provider, lease_s=3600,
        listen=listen,
    ) as pool:
        pool.wait_ready()
        print("ready", flush=True)
        time.sleep(600)
"""


def order(folder: Path, **changes: Any) -> None:
    """What a pool leaves for its pilots; of servers that are never started."""
    health = {"every_s": 1, "deadline_s": 1, "silent_s": 1}
    usual = {"pool": "ab", "count": 20, "lease_s": 3600, "start_deadline_s": 60, "restarts": 3, "health": health}
    write_json(folder / "pilot.json", {**usual, "kind": "none", "recipe": {"models": {}}, **changes})


def child(pid: int, module: str) -> list[int]:
    """Children of a process that run a module."""
    alive = [p for p in psutil.Process(pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p.pid for p in alive if module in p.cmdline()]


@pytest.mark.parametrize(
    "listen", [pytest.param("socket", marks=pytest.mark.slow), pytest.param("tls", marks=pytest.mark.faults)]
)
def test_pilots_of_the_run_before_end_where_it_is_started_again(tmp_path: Path, listen: str) -> None:
    """Driver and watchdog are dead, pilots of nobody's live on a long lease: they leave folder and records to the next.

    The next pool becomes ready with servers of its own alone, answers, and nothing of the first is left.
    """
    (tmp_path / "holder.py").write_text(HOLDER)
    folder = tmp_path / "pool"
    argv = [sys.executable, str(tmp_path / "holder.py"), str(REPOSITORY), str(folder), listen, json.dumps(MODELS)]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    old = read_records(folder, None)
    assert [r.name for r in old] == ["server-0", "server-1"]
    for pid in (*child(holder.pid, "campaign.supervision.driver_watchdog"), holder.pid):
        os.kill(pid, signal.SIGKILL)
    holder.communicate()
    assert all(psutil.pid_exists(r.pid) for r in old)
    with ServerPool(REPOSITORY, models=MODELS, count=2, folder=folder, lease_s=3600, restarts=0, listen=listen) as pool:
        assert not {r.pid for r in pool.records()} & {r.pid for r in old}
        pool.wait_ready()
        assert wait_until(lambda: not any(psutil.pid_exists(r.pid) for r in old), 30)
        assert not any(Path(r.private_dir).exists() or psutil.pid_exists(r.server_pid) for r in old)
        live = pool.servers()
        assert live.infer("slow", {"X": X})["Y"].tobytes() == X.tobytes()
        assert [(r.name, r.state) for r in pool.records()] == [("server-0", "ready"), ("server-1", "ready")]
        assert not live.refused
    assert [r.reason for r in pool.records()] == ["asked to stop"] * 2


def test_a_pilot_that_comes_for_another_pool_ends_quietly(tmp_path: Path) -> None:
    """One that has queued for longer than its pool has lived: exit code 0, and nothing is written."""
    argv = [sys.executable, "-m", "campaign.pool.pilot", str(tmp_path), "--pool=cd"]
    for prepare in (lambda: None, lambda: order(tmp_path)):
        prepare()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert {p.name for p in tmp_path.iterdir()} <= {"pilot.json"}


def test_the_server_watchdog_of_a_later_generation_knows_its_record(tmp_path: Path) -> None:
    """In the wait before its server's start, whoever guards a pilot that is killed closes its record."""
    order(tmp_path)
    argv = [sys.executable, "-m", "campaign.pool.pilot", str(tmp_path), "--slot=0", "--generation=1", "--wait=600"]
    pilot = subprocess.Popen(argv)
    path = tmp_path / "server-0.1.json"
    assert wait_until(lambda: path.exists() and child(pilot.pid, "campaign.supervision.server_watchdog"), 30)
    first = child(pilot.pid, "campaign.supervision.server_watchdog")
    os.kill(first[0], signal.SIGKILL)
    assert wait_until(lambda: child(pilot.pid, "campaign.supervision.server_watchdog") not in ([], first), 30)
    pilot.kill()
    pilot.wait()
    assert wait_until(lambda: json.loads(path.read_text())["state"] == "ended", 30)
    assert json.loads(path.read_text())["reason"] == "server-0.1: its pilot was killed"


def test_what_other_slots_have_done_is_no_reason_to_try_again(tmp_path: Path) -> None:
    """A first server that has given up by its own word is started again where its own slot has had one that worked."""
    order(tmp_path)
    pilot = Pilot(tmp_path, slot=1, generation=1)
    pilot.server = subprocess.Popen(["false"])
    pilot.server.wait()
    for slot, heals in ((10, False), (11, False), (1, True)):
        record = new_record(slot, 0, tmp_path, 3, "ab").model_copy(update={"ready_s": 1.0})
        record.ended("").write(tmp_path / f"{name_of(slot, 0)}.json")
        assert pilot.heals() is heals


@pytest.mark.parametrize("whose", ["folder", "order", "link"])
def test_a_pilot_believes_no_order_that_somebody_else_may_have_written(tmp_path: Path, whose: str) -> None:
    """What stands there decides which code it runs: a folder that others may write to, a file of theirs, a link."""
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    told = {"pool": "abc", "kind": f"{tmp_path}/evil.py:Kind", "count": 1, "restarts": 0, "lease_s": 5}
    folder = tmp_path / "servers"
    folder.mkdir(0o700)
    write_json(folder / "pilot.json", told | {"start_deadline_s": 5, "health": {}, "recipe": {}})
    if whose == "folder":
        folder.chmod(0o770)
    elif whose == "link":
        (folder / "pilot.json").rename(tmp_path / "theirs.json")
        (folder / "pilot.json").symlink_to(tmp_path / "theirs.json")
    elif os.geteuid() == 0:
        os.chown(folder / "pilot.json", 65534, 65534)
    else:
        folder.chmod(0o777)
    for pool in ([], ["--pool=abc"]):
        argv = [sys.executable, "-m", "campaign.pool.pilot", str(folder), *pool]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert not (tmp_path / "ran").exists()
        assert not list(folder.glob("claim-*"))
        assert pool or "cannot be believed" in ended.stderr, ended.stderr


@pytest.mark.parametrize(
    ("log", "heals"),
    [
        ("Started GRPCInferenceService\n", True),
        ("failed to load 'm' version 1: no weights\n", True),  # a model has printed it
        ("E1127 15:57:29.737 8 model_lifecycle.cc:642] \"failed to load 'm' version 1: no weights\"\n", False),
    ],
)
def test_a_first_server_that_has_said_why_is_not_tried_again_for_aborting_then(
    tmp_path: Path, log: str, heals: bool
) -> None:
    """Triton aborts on its way out at times: what it had said of a model before is its own word."""
    order(tmp_path)
    pilot = Pilot(tmp_path, slot=0)
    pilot.slot.log.write_text(log)
    pilot.server = subprocess.Popen(["sleep", "60"])
    pilot.server.send_signal(signal.SIGABRT)
    pilot.server.wait()
    assert pilot.heals() is heals


@pytest.mark.parametrize(
    ("line", "model", "said", "remedy"),
    [
        (
            ('E1127 16:03:40.703469 8 model_repository_manager.cc:1460] "Poll failed for model directory \'prio\': '
            'Only one priority level is allowed"'),
            "prio", "Poll failed for model directory 'prio': Only one priority level is allowed", "",
        ),
        (
            ("E1127 15:59:37.121942 9 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
            "ModuleNotFoundError: No module named 'torch.nn'\\n\\nAt:\\n  /tmp/p/models/m/1/model.py(1): <module>\""),
            "m",
            ("failed to load 'm' version 1: Internal: ModuleNotFoundError: No module named 'torch.nn' At: "
            "m/1/model.py(1): <module>"),
            "servers: {requirements: [torch]}",
        ),
        (
            ("I1127 15:56:59.112609 474 pb_stub.cc:2105]  Failed to preinitialize Python stub: Python model file not "
            "found in '/tmp/p/models/m/5/model.py'"),
            "m", "Python model file not found in 'm/5/model.py'", "",
        ),
        ("W1127 15:57:29.737 8 model_lifecycle.cc:111] \"ignore version directory 'x'\"", "", "", ""),
        ("my model: failed to load 'optional.cfg', going on without", "", "", ""),
    ],
)  # fmt: skip
def test_what_triton_says_of_a_model_that_does_not_load_is_found(tmp_path, line, model, said, remedy):
    """The model, the sentence without the server's private folder, and what to do; what models print is none of it."""
    (tmp_path / "log").write_text(f"I1127 15:56:58.1 8 server.cc:1] started\n{line}\n")
    assert server_log.load_failure(tmp_path / "log", "/tmp/p") == (model, said)
    assert remedy in server_log.remedy(said)
    assert bool(remedy) is bool(server_log.remedy(said))
