"""The law that nothing of ours is left: it finds each kind of leak, and blames nobody for what others leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import PROJECT, SESSION

LEAKY = '''
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tests.conftest as session
from campaign.supervision.cleanup import regions, sweep
from campaign.supervision.identity import own
from campaign.supervision.env_folders import env_folders, made_by
from campaign.servers.triton import Triton
from campaign.spec.models import ServerSpec

session.GONE_S = 0.5
SLEEP = "import time; print(flush=True); time.sleep({})"
cleanup = contextlib.ExitStack()


def teardown_module():
    cleanup.close()


def remove(path):
    cleanup.callback(path.rmdir if path.is_dir() else path.unlink)
    print("made", path)


def start(argv, **more):
    process = subprocess.Popen(argv, start_new_session=True, **more)
    cleanup.callback(process.wait)
    cleanup.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
    return process


def sleeper(seconds, **more):
    argv = [sys.executable, "-c", SLEEP.format(seconds), "campaign.pool.pilot"]
    process = start(argv, stdout=subprocess.PIPE, **more)
    cleanup.callback(process.stdout.close)
    process.stdout.readline()  # by now its command line and environment can be read
    return process


def others():
    """The environment without the session."""
    return {k: v for k, v in os.environ.items() if k not in (session.SESSION, "TMPDIR", "XDG_STATE_HOME")}


def killed_server(folder, mine):
    """A server killed together with its processes: what it leaves in the places that all users share."""
    place = Path(tempfile.mkdtemp(prefix="campaign-", dir=folder))
    spec = ServerSpec(models={"slow": {"batch": 8}}, model_repository=str(session.PROJECT / "tests" / "models"))
    launch = Triton.launch(Triton(spec, place).prepare(print), place, place.name)
    env = dict(launch.env)
    if not mine:
        del env[session.SESSION]
    before = env_folders()
    with (place / "log").open("w") as log:
        server = start(launch.argv, env=env, stdout=log, stderr=log)
    assert session.wait_until(lambda: "Started GRPCInferenceService" in (place / "log").read_text(), 60)
    (folder,) = made_by(server.pid, env_folders() - before)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    assert regions(launch.shm_prefix)
    for path in (*regions(launch.shm_prefix), Path(folder)):
        remove(path)


def test_process():
    print("made", sleeper(600).pid)


@pytest.mark.parametrize("kind", ["campaign-", "pymp-"])
def test_folder(kind):
    remove(Path(tempfile.mkdtemp(prefix=kind)))


def test_folder_of_a_process():
    code = "import tempfile; print(tempfile.mkdtemp(prefix='campaign-'))"
    remove(Path(subprocess.check_output([sys.executable, "-c", code], text=True).strip()))


def test_region():
    session.region("x").touch()
    remove(session.region("x"))


def test_server(tmp_path):
    killed_server(tmp_path, True)


def test_what_others_leave(tmp_path):
    sleeper(600, env=others())
    for kind in ("campaign-", "pymp-", "python_env_"):
        remove(Path(tempfile.mkdtemp(prefix=kind, dir="/tmp")))
    region = Path("/dev/shm", f"campaign_{os.getpid()}x_1")
    region.touch()
    remove(region)
    killed_server(tmp_path, False)


def test_what_ends_in_time():
    session.GONE_S = 30
    sleeper(0.3)
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """Of each test of a session that leaks on purpose: what it is blamed for, and what it made."""
    folder = tmp_path_factory.mktemp("leaky")
    (folder / "test_leaky.py").write_text(LEAKY)
    (folder / "pytest.ini").write_text("[pytest]\njunit_logging = system-out\n")
    session = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-q", "--junitxml=out.xml", "test_leaky.py"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(session, cwd=folder, env=env, capture_output=True, text=True, timeout=200)
    found = {}
    for case in ET.parse(folder / "out.xml").iter("testcase"):
        blamed = " ".join(e.attrib["message"] for e in (*case.findall("error"), *case.findall("failure")))
        made = [line.split()[1] for line in (case.findtext("system-out") or "").splitlines() if line[:5] == "made "]
        found[case.attrib["name"]] = (blamed, made)
    assert len(found) == 8, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("test", "number"),
    [("process", 1), ("folder[campaign-]", 1), ("folder[pymp-]", 1), ("folder_of_a_process", 1), ("region", 1),
     ("server", 2)],
)  # fmt: skip
def test_each_kind_of_leak_is_found(told: dict[str, tuple[str, list[str]]], test: str, number: int) -> None:
    """A process, a private folder, a region, and a killed server's region and folder in /tmp: each is named."""
    blamed, made = told[f"test_{test}"]
    assert len(made) == number
    assert "left behind: [" in blamed
    assert [m for m in made if m not in blamed] == []


def test_what_others_leave_is_not_blamed(told: dict[str, tuple[str, list[str]]]) -> None:
    """Of another session or campaign: its process, its folders in the machine's own places, its killed server's."""
    blamed, made = told["test_what_others_leave"]
    assert len(made) == 6
    assert blamed == ""
    assert told["test_what_ends_in_time"] == ("", [])


def test_a_session_has_a_temporary_directory_of_its_own(told: dict[str, tuple[str, list[str]]]) -> None:
    """What a session starts makes its folders there, and the directory goes with the session."""
    (folder,) = told["test_folder_of_a_process"][1]
    assert Path(folder).parent.name.startswith("ct-")
    assert not Path(folder).parent.exists()
    assert str(Path(folder).parent) != os.environ[SESSION]
