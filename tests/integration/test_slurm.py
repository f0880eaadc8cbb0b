"""A real Slurm: its limit alone is enough, and `campaign reap` ends the jobs of the dead, and no others."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign.discovery.records import read_records
from tests.conftest import PROJECT, alive, command, left, lying_about, ours, wait_until
from tests.integration.test_left_behind import below

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.usefixtures("sole_reaper")]

HOLD = """
import signal
import sys
from pathlib import Path
import numpy as np
import parsl.launchers
from parsl.providers import SlurmProvider
from campaign import ServerPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in whatever it starts in the background
folder, launcher, walltime = Path(sys.argv[1]), getattr(parsl.launchers, sys.argv[2]), sys.argv[3]
options = {"overrides": "--ntasks-per-node=1"} if sys.argv[2] == "SrunLauncher" else {}
provider = SlurmProvider(
    nodes_per_block=1, init_blocks=0, max_blocks=1, walltime=walltime, exclusive=False, cmd_timeout=30,
    scheduler_options="#SBATCH --no-requeue", launcher=launcher(**options),
)
slow = {"parameters": {"delay_s": 0.5, "mark": str(folder)}}
with ServerPool(
    sys.argv[4], models={"slow": slow}, provider=provider, folder=folder / "pool", lease_s=3600, request_deadline_s=3000
) as pool:
    pool.wait_ready()
    while True:
        pool.servers().infer("slow", {"X": np.zeros((4, 1), np.float32)})
        (folder / "answered").touch()
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this one machine."""
    if os.getuid() or not all(shutil.which(p) for p in ("slurmctld", "slurmd", "munged", "sbatch")):
        pytest.fail("needs root and the packages munge, slurmctld, slurmd, slurm-client (.ci/run installs them)")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged wants every folder above its socket to be open
    script = [str(PROJECT / "tests" / "tools" / "slurm.sh")]
    port = str(random.randrange(20000, 30000))
    up = subprocess.run(
        ["bash", *script, "up", str(folder), port], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert up.returncode == 0, up.stdout + up.stderr
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    subprocess.run(["bash", *script, "down", str(folder)], stdin=subprocess.DEVNULL, timeout=60)
    del os.environ["SLURM_CONF"]


class Held:
    """A pool in a job of its own, with a request in flight."""

    def __init__(self, folder: Path, launcher: str, walltime: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "hold.py").write_text(HOLD)
        argv = [sys.executable, "hold.py", str(folder), launcher, walltime, str(PROJECT / "tests" / "models")]
        with (folder / "log").open("wb") as log:
            self.driver = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log, start_new_session=True)

    def in_flight(self) -> bool:
        """Whether the server has answered, and is at a request now."""
        assert self.driver.poll() is None, (self.folder / "log").read_text()
        if not (self.folder / "answered").exists():
            return False
        self.record = read_records(self.folder / "pool", None)[0]
        return (self.folder / str(self.record.server_pid)).exists()

    @property
    def job(self) -> str:
        return (self.folder / "pool" / "job").read_text().split()[1]

    def kill(self) -> None:
        """End the driver and its driver watchdog together: what remains is the scheduler's."""
        driver_watchdog = below(self.driver.pid, "campaign.supervision.driver_watchdog")
        assert len(driver_watchdog) == 1
        for pid in (*driver_watchdog, self.driver.pid):
            os.kill(pid, signal.SIGKILL)
        self.driver.wait()

    def there(self) -> bool:
        """Whether anything of its server is there."""
        shm = list(Path("/dev/shm").glob(self.record.shm_prefix + "*"))
        return bool(shm) or Path(self.record.private_dir).exists() or alive(self.record.server_pid)


def queue() -> dict[str, str]:
    """State of each job there is."""
    told = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in told.splitlines())


def test_the_schedulers_limit_alone_is_enough(slurm: None, tmp_path: Path) -> None:
    """No driver, no driver watchdog, a lease of an hour: cancelled or out of time, a job leaves nothing."""
    before = set(ours()), lying_about()
    pools = [
        Held(tmp_path / "cancelled", "SrunLauncher", "00:10:00"),
        Held(tmp_path / "default", "SingleNodeLauncher", "00:10:00"),
        Held(tmp_path / "limit", "SingleNodeLauncher", "00:01:00"),
    ]
    for pool in pools:
        assert wait_until(pool.in_flight, 120), (pool.folder / "log").read_text()
    for pool in pools:
        pool.kill()
    assert all(pool.there() for pool in pools)
    for pool in pools[:2]:
        subprocess.run(["scancel", pool.job], check=True)
        began = time.monotonic()
        assert wait_until(lambda: not pool.there(), 15), pool.folder  # noqa: B023  called at once
        print(f"{pool.folder.name}: nothing there after {time.monotonic() - began:.1f} s")
    assert wait_until(lambda: queue().get(pools[2].job) != "RUNNING", 150), queue()
    began = time.monotonic()
    assert wait_until(lambda: not pools[2].there(), 15)
    print(f"limit: nothing there after {time.monotonic() - began:.1f} s")
    assert wait_until(lambda: not queue(), 40), queue()
    assert wait_until(lambda: not left(before), 5), left(before)


KILLED = """
import os, signal, sys
from pathlib import Path
import parsl.providers
from campaign import ServerPool

class SlurmProvider(parsl.providers.SlurmProvider):
    def submit(self, *args, **kwargs):
        print(super().submit(*args, **kwargs), flush=True)
        for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if b"campaign.supervision.driver_watchdog" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

provider = SlurmProvider(walltime="00:10:00", exclusive=False, init_blocks=0, cmd_timeout=30)
with ServerPool(sys.argv[1], models=["slow"], provider=provider, folder=Path("pool"), lease_s=3600):
    pass
"""


def test_reap_finds_a_job_whose_number_nobody_has_written_down(
    slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver and its watchdog killed at the very moment sbatch has answered: the job is found by its name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = set(ours()), lying_about()
    (tmp_path / "killed.py").write_text(KILLED)
    argv = [sys.executable, "killed.py", str(PROJECT / "tests" / "models")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    job = done.stdout.split()[0]
    assert not (tmp_path / "pool" / "job").exists()
    assert queue()[job] in ("PENDING", "RUNNING")
    said = command("reap", cwd=tmp_path)
    assert f"ended job {job} " in said.stdout, said.stdout + said.stderr
    assert wait_until(lambda: not queue(), 40), queue()
    assert wait_until(lambda: not left(before), 15), left(before)


def test_reap_ends_the_jobs_of_the_dead_and_no_others(
    slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is a dead campaign's by the random name it bears: one of like name, and a living campaign's, stay."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    dead, live = (Held(tmp_path / name, "SrunLauncher", "00:10:00") for name in ("dead", "live"))
    sbatch = ["sbatch", "--parsable", "--output=/dev/null", "--job-name=campaign-0123456789abcdef-servers.1"]
    decoy = subprocess.run([*sbatch, "--wrap=sleep 600"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        for pool in (dead, live):
            assert wait_until(pool.in_flight, 120), (pool.folder / "log").read_text()
        dead.kill()
        said = command("reap", "--dry-run", cwd=tmp_path)
        assert f"would end job {dead.job} " in said.stdout, said.stdout + said.stderr
        assert queue()[dead.job] == "RUNNING"
        said = command("reap", cwd=tmp_path)
        assert f"ended job {dead.job} " in said.stdout, said.stdout + said.stderr
        assert wait_until(lambda: not dead.there(), 15)
        assert wait_until(lambda: dead.job not in queue(), 40), queue()
        assert {queue()[live.job], queue()[decoy]} == {"RUNNING"}
        assert live.in_flight() or live.driver.poll() is None
        assert "ended" not in command("reap", cwd=tmp_path).stdout
    finally:
        live.driver.send_signal(signal.SIGINT)
        live.driver.wait(30)
        subprocess.run(["scancel", decoy], check=False)
    assert wait_until(lambda: not queue(), 40), queue()
