"""The empty folders that Triton's Python backends make in ``/tmp``: each server takes its own, and no others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from campaign import ServerPool
from campaign.supervision.env_folders import env_folders, made_by
from tests.conftest import PROJECT, wait_until

MODELS = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}


def test_each_server_takes_the_folder_that_it_has_made() -> None:
    """Two servers start at once, and a third of the same user makes its folder then: that one is not removed."""
    other = Path("/nonexistent")
    try:
        with ServerPool(PROJECT / "tests" / "models", models=MODELS, count=2) as pool:
            assert wait_until(lambda: [bool(r["server_pid"]) for r in pool.records()] == [True, True], 60)
            other = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
            pool.wait_ready()
            assert wait_until(lambda: all(r["state"] == "ready" for r in pool.records()), 60)
            folders = [r["folders"] for r in pool.records()]
            assert [len(f) for f in folders] == [1, 1]
            assert len({str(other), *folders[0], *folders[1]}) == 3
            assert {str(other), *folders[0], *folders[1]} <= env_folders()
        assert [Path(f).exists() for (f,) in folders] == [False, False]
        assert other.exists()
    finally:
        other.rmdir()


def test_a_name_is_found_in_the_memory_of_the_process_that_has_it() -> None:
    """In the middle of many pages too; nothing is found where the process has ended."""
    code = (
        "import sys, time; name = sys.stdin.readline().strip(); page = b'x' * 4096\n"
        "held = page * 5000 + name.encode() + page * 5000\n"
        "del name; print(flush=True); time.sleep(600)"
    )
    names = {"/tmp/python_env_aaaaaa", "/tmp/python_env_bbbbbb"}
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("/tmp/python_env_aaaaaa", file=process.stdin, flush=True)
        process.stdout.readline()
        assert made_by(process.pid, names) == ["/tmp/python_env_aaaaaa"]
        assert made_by(process.pid, {"/tmp/python_env_bbbbbb"}) == []
        assert made_by(process.pid, set()) == []
        process.kill()
        process.wait()
        assert made_by(process.pid, names) == []
