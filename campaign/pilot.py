"""Runs where the servers run: owns ONE server from start to sweep, and obeys a lease.

    python -m campaign.pilot POOL_FOLDER

It claims a number, starts the server in a private node-local folder, proves it by a known answer per model, publishes
its record, and then watches: the server, the stop file, the lease, and signals. However it ends, a guardian process
that sees its end of a pipe close kills the server's group and removes its folder and its ``/dev/shm`` regions.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from campaign import enclose
from campaign.address import Secret
from campaign.errors import CampaignError, ModelError, ServerError
from campaign.guardian import Guardian, die_with_parent, sweep
from campaign.rundir import write_json
from campaign.userfile import named

POLL_S = 0.1
GRACE_S = 6.0  # of a server that may be busy, between SIGTERM and SIGKILL
SILENT_S = 5.0  # beyond the lease: a pilot that has not looked around for so long is ended by its guardian


class Pilot:
    """One server's life.

    Args:
        folder: The pool's folder, shared with the submitter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order: Mapping[str, Any] = json.loads((folder / "pilot.json").read_text())
        self.number = self._claim()
        self.name = f"server-{self.number}"
        self.log = folder / f"{self.name}.log"
        self.asked = ""
        self.lease = _Lease(folder / "lease", float(self.order["lease_s"]))
        self.server: subprocess.Popen[bytes] | None = None
        self.place, self.shm, self.url = "", "", ""
        self.folders: list[str] = []
        self.guardian = Guardian()
        self.slow_s = float(self.order["start_deadline_s"]) + 60.0  # a model may take that long to load and answer
        self.ready_s: float | None = None
        self.warnings: list[str] = []
        self.baseline: dict[str, list[int]] = {}
        self.statistics: dict[str, list[int]] = {}
        self.started = time.time()

    def _claim(self) -> int:
        for number in range(int(self.order["count"])):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.folder / f"claim-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                return number
        raise SystemExit(0)  # more were started than are wanted

    def run(self) -> int:
        """Serve until told to stop; the exit code is 0 if it was told so."""
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(s, self._signalled)
        why, log, remedy = "", "", ""
        self.record("starting")
        try:
            self.start()
            self.prove()
            self.ready_s = round(time.time() - self.started, 3)
            self.record("ready")
            why = self.watch()
        except _Stop as stop:
            why = str(stop)
        except CampaignError as error:
            why, log = f"{error.where}: {error.message}" if error.where else error.message, error.log
            remedy = error.remedy
            self.asked = ""
        except Exception as error:  # noqa: BLE001  process boundary: the submitter gets type, text and traceback
            why, log = f"{type(error).__name__}: {error}", traceback.format_exc()
        told = bool(self.asked)
        self.record("stopping")  # clients send it nothing more
        self.stop()
        self.record("ended", why=why, told=told, remedy=remedy, tail=log or ("" if told else self.tail()))
        self.guardian.end()
        return 0 if told else 1

    def _signalled(self, signum: int, _frame: object) -> None:
        self.asked = self.asked or f"signal {signal.Signals(signum).name}"

    def record(self, state: str, **more: Any) -> None:
        """Publish what is known of the server, by atomic rename."""
        with contextlib.suppress(OSError):  # the folder may be gone: then nobody reads it
            write_json(
                self.folder / f"{self.name}.json",
                {
                    "name": self.name,
                    "state": state,
                    "url": self.url,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "server_pid": self.server.pid if self.server else None,
                    "place": self.place,
                    "shm_prefix": self.shm,
                    "folders": self.folders,
                    "log": str(self.log),
                    "warnings": self.warnings,
                    "statistics": {m: n[:2] for m, n in self.statistics.items()},
                    "times": {
                        m: {"computing_s": n[2] / 1e9, "queueing_s": n[3] / 1e9} for m, n in self.statistics.items()
                    },
                    "started": self.started,
                    "ready_s": self.ready_s,
                    **more,
                },
            )

    # Start.
    def start(self) -> None:
        """Start the server in a private folder, its whole group tied to this process."""
        self.place = tempfile.mkdtemp(prefix="campaign-")
        self.tell_guardian(self.slow_s)
        self.folders_before = _python_env_folders()
        launch = named(str(self.order["kind"])).launch(self.order["recipe"], Path(self.place), self.name)
        self.launch, self.url, self.shm = launch, launch.url, launch.shm_prefix
        argv, env = enclose.command(launch, Path(self.place), self.folder, self.name)

        def child() -> None:
            die_with_parent(signal.SIGKILL)
            for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(s, signal.SIG_DFL)

        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=child,
                cwd=self.place,
            )
        self.tell_guardian(self.slow_s)
        self.record("starting")

    def tell_guardian(self, patience_s: float) -> None:
        """What is to be ended and swept if this process dies, or does not `pause` for so long."""
        server = self.server.pid if self.server else 0
        record = self.folder / f"{self.name}.json"
        self.guardian.guard(server, self.place, self.shm, self.folders, record, patience_s)

    def pause(self) -> None:
        """One look around; raises when it is time to stop, or when the server has ended.

        Raises:
            ServerError: The server ended by itself.
        """
        assert self.server is not None
        self.guardian.beat()
        code = self.server.poll()
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise ServerError(f"the server ended {how}{self._cause()}", where=self.name, log=self.tail())
        if (self.folder / "stop").exists():
            self.asked = self.asked or "asked to stop"
        if self.lease.expired():
            self.asked = self.asked or "the lease ran out: the submitter is gone"
        if self.asked:
            raise _Stop(self.asked)
        time.sleep(POLL_S)

    def _cause(self) -> str:
        """The line of the log that says which model does not load, if there is one."""
        with contextlib.suppress(OSError):
            for line in self.log.read_text(errors="replace").splitlines():
                if "failed to load '" in line:
                    return ": " + line[line.index("failed to load '") :].rstrip('"')
        return ""

    def prove(self) -> None:
        """Wait until the server answers, then ask each model what is known.

        Raises:
            ServerError: Not in time.
            ModelError: A model does not load or answers wrongly.
        """
        from campaign import canary

        end = time.monotonic() + float(self.order["start_deadline_s"])
        client = canary.client_of(self.name, self.url, self._let_in(end))
        while not canary.ready(client):
            if time.monotonic() > end:
                raise ServerError(
                    f"not ready within {self.order['start_deadline_s']:g} s", where=self.name, log=self.tail()
                )
            self.pause()
        for model, what in self.order["recipe"]["models"].items():
            left = max(1.0, end - time.monotonic())
            try:
                warning = canary.prove(client, model, what["canary"], left)
            except ModelError as error:
                raise ModelError(error.message, where=f"model {model} on {self.name}", log=self.tail()) from None
            if warning:
                self.warnings.append(warning)
        for region in list(Path("/dev/shm").glob(f"{self.shm}*")):  # noqa: S108  Triton makes them readable by everybody
            region.chmod(0o600)
            if _SHARED not in self.warnings:
                self.warnings.append(_SHARED)
        # The Python backend makes an empty folder in /tmp, wherever TMPDIR points, and leaves it when it is killed.
        self.folders = sorted(_python_env_folders() - self.folders_before)
        self.tell_guardian(self.lease.lease_s + SILENT_S)
        self.baseline = canary.counted(client, self.order["recipe"]["models"])  # what the canaries were is not counted
        self.client = client

    def _let_in(self, end: float) -> Secret | None:
        """What lets this process ask the server, from the driver; None where the server has a socket in our folder."""
        if not self.launch.ca:
            return None
        from campaign.tls import PILOT, Applicant

        recipe, asked = self.order["recipe"]["tls"], Applicant(self.folder, self.name + PILOT)
        asked.ask()
        while (found := asked.answer()) is None:
            if time.monotonic() > end:
                raise ServerError("the driver gave it no certificate", where=self.name)
            self.pause()
        return Secret(recipe["ca"].encode(), *found, domain=recipe["domain"])

    # Watch and stop.
    def watch(self) -> str:
        """Until told to stop; keeps the statistics in the record fresh."""
        looked = time.monotonic()
        while True:
            try:
                self.pause()
            except _Stop as stop:
                time.sleep(0.05)  # the server counts a request a moment after it has answered
                self._count()
                return str(stop)
            if time.monotonic() - looked > 1:
                before = dict(self.statistics)
                self._count()
                looked = time.monotonic()
                if before != self.statistics:
                    self.record("ready")

    def _count(self) -> None:
        from campaign import canary

        now = canary.statistics(self.client)
        if now:
            self.statistics = {
                m: [a - b for a, b in zip(n, self.baseline.get(m, canary.NOTHING), strict=True)] for m, n in now.items()
            }

    def stop(self) -> None:
        """End the server's group: at once where it is known idle, else by SIGTERM first. Then sweep."""
        if self.place:
            self.tell_guardian(GRACE_S + 10 * SILENT_S)
        if self.server is not None:
            if self.server.poll() is None and self.ready_s is not None and not self._idle():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.server.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.server.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            time.sleep(0.02)
        if self.place:
            self.folders = self.folders or sorted(_python_env_folders() - self.folders_before)
            sweep(self.place, self.shm, self.folders)

    def _idle(self) -> bool:
        # An idle Triton takes seconds to obey SIGTERM; the submitter says when no request can be under way.
        with contextlib.suppress(OSError):
            return (self.folder / "stop").read_text().strip() == "idle" or bool(self.asked.startswith("the lease"))
        return self.asked.startswith("the lease")

    def tail(self, lines: int = 25) -> str:
        """The end of the server's log, without what every start without a GPU says."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace").splitlines()
            return "\n".join([x for x in text if not any(noise in x for noise in _NOISE)][-lines:])
        return ""


_SHARED = "its shared memory lies in the node's /dev/shm: other users may have seen it for an instant when it was made"
_NOISE = ("NVML", "DCGM", "CUDA driver version", "CUDA memory pool disabled", "cudaGetDeviceCount")


def _python_env_folders() -> set[str]:
    """Folders of this user's Triton Python backends that nothing was put into."""
    found = set()
    for path in Path("/tmp").glob("python_env_*"):  # noqa: S108  its place is fixed in Triton
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and not any(path.iterdir()):
                found.add(str(path))
    return found


class _Stop(Exception):
    """Time to stop, and why."""


class _Lease:
    """A counter the submitter raises, aged by this machine's own monotonic clock: file times play no part."""

    def __init__(self, path: Path, lease_s: float) -> None:
        self.path, self.lease_s = path, lease_s
        self.seen, self.since = "", time.monotonic()

    def expired(self) -> bool:
        try:
            now = self.path.read_text()
        except OSError:
            now = self.seen
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > self.lease_s


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m campaign.pilot``."""
    folder = Path((argv or sys.argv[1:])[0])
    parent = os.environ.pop("CAMPAIGN_PARENT", "")
    if parent:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != int(parent):
            return 1  # it died before this line
    return Pilot(folder).run()


if __name__ == "__main__":
    sys.exit(main())
