"""The pilot: a process on the servers' node that starts one server, watches it, and cleans up after it.

    python -m campaign.pool.pilot POOL_FOLDER [--pool NONCE --slot N --generation N --wait S]

The pilot claims a slot and starts the server in a private folder of the node. It asks each model for its known answer
and publishes the server's record. Then it watches the server and its models, the stop file, the lease, and signals. A
server that is lost is replaced: the pilot becomes, by ``exec``, the pilot of the slot's next generation. It keeps its
process id, its allocation and its server watchdog. When the pilot ends, the server watchdog sees its end of a pipe
close. It then kills the server's process group and removes the server's folder and its ``/dev/shm`` regions.

A pool is known by a nonce. A run may be started again in its folder while pilots of the earlier run still live. These
pilots find another nonce there, or none. They end and write nothing more.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from campaign.discovery.credentials import Credentials
from campaign.discovery.records import ModelTimes, ServerRecord, ServerState, backoff, name_of
from campaign.errors import CampaignError, ModelError, ServerError
from campaign.pool import sandbox, server_log
from campaign.pool.slot import Slot, StopCause, StopRequest
from campaign.supervision.cleanup import regions, sweep
from campaign.supervision.env_folders import env_folders, made_by
from campaign.supervision.linux import die_with_parent
from campaign.supervision.reap import abandoned
from campaign.supervision.server_watchdog import Closing, ServerWatchdog
from campaign.util.logs import log_to_stderr
from campaign.util.threads import aside
from campaign.util.user_code import named

if TYPE_CHECKING:
    from campaign.pool.health import Health
    from campaign.protocols import Launch

T = TypeVar("T")
POLL_S = 0.1
BEAT_S = 1.0  # between two signs of life for the server watchdog, and the least between two for the submitter
GRACE_S = 6.0  # of a server that may be busy, between SIGTERM and SIGKILL
SETTLE_S = 0.3  # between the end of a server's child and that of the server, if the server ends itself
SILENT_S = 5.0  # beyond the lease: a pilot that has not looked around for so long is ended by its server watchdog
EXCUSE_S = 1.0  # within so long a client condemns a request that a server has died of
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


logger = logging.getLogger("campaign.pool.pilot")  # __name__ is "__main__" in a pilot


class Pilot:
    """Runs one server from its start to its end.

    Args:
        folder: The pool's folder, shared with the driver.
        slot: Place of the server in the pool. None: the first place that no pilot has claimed.
        generation: How many servers were in this slot before.
        inherited: The server watchdog of the server before (`DetachedProcess.hand_over`). Empty: there is none yet.
        pool: Nonce of the pool that the pilot was sent for. Empty: the pool in the folder.
    """

    def __init__(
        self, folder: Path, slot: int | None = None, generation: int = 0, inherited: str = "", pool: str = ""
    ) -> None:
        self.slot = Slot(folder, slot, generation, pool)
        self.stop_request: StopRequest | None = None
        self.state = ServerState.STARTING
        self.restart_expected = self.slot.restart_allowed
        self.server: subprocess.Popen[bytes] | None = None
        self.health: Health | None = None
        self.place, self.shm, self.url = "", "", ""
        self.folders: list[str] = []
        self.folders_seen: set[str] = set()
        self.watchdog = ServerWatchdog(inherited)
        # Large files of a model are looked at first.
        self.slow_s = float(self.slot.order["start_deadline_s"]) + 60.0
        self.beaten = 0.0
        self.ready_s: float | None = None
        self.warnings: list[str] = []
        self.started = time.time()

    def wait_for_excuse(self) -> None:
        """If this was the last server, wait a moment: a client may condemn the request that it tried here alone."""
        end = time.monotonic() + EXCUSE_S if self.slot.restarts else 0.0
        while time.monotonic() < end and not self.slot.restart_allowed and self.slot.on_trial:
            time.sleep(POLL_S)

    def run(self, wait_s: float = 0.0) -> int:
        """Run the server until a request to stop comes. Does not return if another server replaces it.

        Args:
            wait_s: Seconds to wait before the server is started.

        Returns:
            Exit code: 0 if the server was asked to stop, 1 if it failed.
        """
        for s in SIGNALS:
            signal.signal(s, self._signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the generation before has held them back
        reason, log, remedy, heals = "", "", "", False
        try:
            if self.slot.generation:  # a server watchdog that is started again meanwhile must know what to sweep
                self.tell_server_watchdog(self.slow_s)
            self.record(ServerState.STARTING)
            self.bide(wait_s)
            self.start()
            self.prove()
            self.ready_s = round(time.monotonic() - self.began, 3)
            self.record(ServerState.READY)
            reason = self.watch()
        except _Stop as stop:
            reason = str(stop)
        except CampaignError as error:
            reason, log = f"{error.where}: {error.message}" if error.where else error.message, error.log
            remedy, heals = error.remedy, self.heals()
            self.stop_request = None
        except Exception as error:  # noqa: BLE001  process boundary: the submitter gets type, text and traceback
            reason, log, heals = f"{type(error).__name__}: {error}", traceback.format_exc(), self.heals()
            self.stop_request = None
        requested = self.stop_request is not None
        if heals:
            self.wait_for_excuse()
        self.restart_expected = self.slot.restart_allowed and (heals or (requested and not self.slot.stopped))
        # From now on clients send it nothing. If it is the last server, they know that no input file is to blame.
        self.record(ServerState.STOPPING, reason, requested, remedy, log or ("" if requested else self.tail()))
        self.stop()
        again = self.restart_expected and not requested and self.next_published()
        self.record(ServerState.ENDED, reason, requested, remedy, log or ("" if requested else self.tail()))
        if again:
            self.replace()
        self.watchdog.end()
        return 0 if requested else 1

    def heals(self) -> bool:
        """True if another server may work although this one failed.

        It may if a server of this slot has worked before, or if a signal has ended the server (out of memory, a kill).
        It may not if nothing could be started. Nor if the first server of a slot ended by an exit code, gave a wrong
        answer, or gave the cause in its log (Triton may abort at its end): the next one would fail alike.
        """
        if self.server is None:
            return False
        worked = self.ready_s is not None or self.slot.has_worked
        return worked or ((self.server.poll() or 0) < 0 and not server_log.cause(self.slot.log))

    def next_published(self) -> bool:
        """Publish the record of the next server, and tell the server watchdog. True if that succeeded."""
        path = self.slot.publish_next()
        if path is not None:
            self.watchdog.guard(0, "", "", [], self.last_words(self.slot.generation + 1), self.slow_s)
        return path is not None

    def replace(self) -> None:
        """Become the pilot of the next server, by ``exec``: no thread and no channel of this process is left."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the next generation can take them
        if self.stop_request:  # a moment ago
            self.slot.withdraw_next(self.stop_request.reason)
            return
        slot, later = self.slot, self.slot.generation + 1
        options = [f"--pool={slot.pool}", f"--slot={slot.slot}", f"--generation={later}"]
        options.append(f"--wait={backoff(later):.2f}")
        options.append(f"--watchdog={self.watchdog.hand_over()}")
        os.execv(sys.executable, [sys.executable, "-m", "campaign.pool.pilot", str(slot.folder), *options])  # noqa: S606

    def _signalled(self, signum: int, _frame: object) -> None:
        request = StopRequest(StopCause.SIGNAL, f"signal {signal.Signals(signum).name}")
        self.stop_request = self.stop_request or request

    def record(
        self, state: ServerState, reason: str = "", stop_requested: bool = False, remedy: str = "", tail: str = ""
    ) -> None:
        """Publish the server's record."""
        if state is not self.state:
            logger.info("%s: %s %s", self.slot.name, state.value, reason)
        self.state, counted = state, self.health.counted if self.health else {}
        new = self.slot.new_record(self.slot.generation)
        record = ServerRecord(
            name=new.name,
            state=state,
            url=self.url,
            pool=new.pool,
            slot=new.slot,
            generation=new.generation,
            restart_expected=self.restart_expected,
            host=new.host,
            pid=os.getpid(),
            server_pid=self.server.pid if self.server else None,
            private_dir=self.place,
            shm_prefix=self.shm,
            folders=tuple(self.folders),
            log=new.log,
            reason=reason,
            remedy=remedy,
            tail=tail,
            stop_requested=stop_requested,
            warnings=tuple(self.warnings),
            statistics={m: n[:2] for m, n in counted.items()},
            times={m: ModelTimes(computing_s=n[2] / 1e9, queueing_s=n[3] / 1e9) for m, n in counted.items()},
            started=self.started,
            ready_s=self.ready_s,
        )
        self.slot.publish(record)

    # Start.
    def start(self) -> None:
        """Start the server in a private folder, its whole group tied to this process."""
        abandoned()
        self.started, self.began = time.time(), time.monotonic()
        self.place = tempfile.mkdtemp(prefix="campaign-")
        self.tell_server_watchdog(self.slow_s)
        self.folders_before = env_folders()
        launch = self.laid_out()
        self.launch, self.url, self.shm = launch, launch.url, launch.shm_prefix
        argv, env = sandbox.command(launch, Path(self.place), self.slot.folder, self.slot.name)

        def child() -> None:
            die_with_parent(signal.SIGKILL)
            for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(s, signal.SIG_DFL)

        with self.slot.log.open("ab") as log:
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
        self.tell_server_watchdog(self.slow_s)
        self.record(ServerState.STARTING)

    def laid_out(self) -> Launch:
        """Fill the server's folder, in a thread: all files of the models are read, and these may be gigabytes."""
        kind = named(str(self.slot.order["kind"]))
        laid = aside("laying-out", kind.launch, self.slot.order["recipe"], Path(self.place), self.slot.name)
        while not laid.done():
            self.pause(laid)
        launch: Launch = laid.result()
        return launch

    def tell_server_watchdog(self, patience_s: float) -> None:
        """Tell it what to end and to remove if this process dies, or does not `pause` for so long."""
        server = self.server.pid if self.server else 0
        closing = self.last_words(self.slot.generation)
        self.watchdog.guard(server, self.place, self.shm, self.folders, closing, patience_s)

    def last_words(self, generation: int) -> Closing:
        """The end of a record, which the server watchdog writes if this process is killed."""
        name = name_of(self.slot.slot, generation)
        last = {"state": ServerState.ENDED, "reason": f"{name}: its pilot was killed", "stop_requested": False}
        return Closing(self.slot.dir.record(name), {"pool": self.slot.pool}, last)

    def pause(self, until: Future[Any] | None = None) -> None:
        """Wait a moment. Check the server, requests to stop, and the lease.

        Args:
            until: The pause ends when this is done.

        Raises:
            ServerError: The server ended by itself.
        """
        self.watchdog.beat()
        code = self.server.poll() if self.server else None
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            why = server_log.cause(self.slot.log, self.place) if self.ready_s is None else ""
            raise ServerError(
                f"the server ended {how}{why}",
                where=self.slot.name,
                remedy=server_log.remedy(why),
                log=self.tail(),
            )
        self.stop_request = self.stop_request or self.slot.stop_request()
        self.beat()
        if self.stop_request:
            raise _Stop(self.stop_request.reason)
        if until is None:
            time.sleep(POLL_S)
        else:
            wait([until], POLL_S)

    def beat(self) -> None:
        """Write the record as a sign of life. With a long lease, this is done more rarely."""
        now = time.monotonic()
        if now - self.beaten < BEAT_S:
            return
        self.beaten = now
        if not self.restart_expected and self.slot.restart_allowed:  # servers before it were excused meanwhile
            self.restart_expected = True
            self.record(self.state)
        if now - self.slot.recorded > max(BEAT_S, self.slot.lease.lease_s / 5):
            self.record(self.state)
        lost = self.slot.lost_request()
        if lost:
            self.stop_request, self.restart_expected = self.stop_request or lost, False

    def bide(self, seconds: float) -> None:
        """Wait for some seconds, and `pause` all the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pause()

    def aside(self, do: Callable[..., T], *args: Any) -> T:
        """Call a function that may block, in a thread, and `pause` meanwhile."""
        assert self.health is not None
        done = self.health.threads.submit(do, *args)
        while not done.done():
            self.pause(done)
        return done.result()

    def prove(self) -> None:
        """Wait until the server answers. Then ask each model for its known answer.

        Raises:
            ServerError: Not in time.
            ModelError: A model does not load or answers wrongly.
        """
        from campaign.inference import canary
        from campaign.pool.health import Health

        end = time.monotonic() + float(self.slot.order["start_deadline_s"])
        told = self.slot.order["recipe"]["models"]
        models = {model: what["canary"] for model, what in told.items()}
        assumed = [model for model, what in told.items() if what.get("rows_assumed")]
        client = canary.client_of(self.slot.name, self.url, self._let_in(end))
        self.health = Health(client, models, **self.slot.order["health"], rows_assumed=assumed)
        while not self.aside(canary.ready, client):
            failed, said = server_log.load_failure(self.slot.log, str(self.place))
            if failed:
                where = f"model {failed} on {self.slot.name}"
                raise ModelError(f"does not load: {said}", where=where, remedy=server_log.remedy(said), log=self.tail())
            if time.monotonic() > end:
                raise ServerError(
                    f"not ready within {self.slot.order['start_deadline_s']:g} s",
                    where=self.slot.name,
                    log=self.tail(),
                )
            self.find_folders()
            self.pause()
        for model in models:
            left = max(1.0, end - time.monotonic())
            try:
                warning = self.aside(self.health.prove, model, left)
            except ModelError as error:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.server.wait(POLL_S) if self.server else None  # did it fall while it was asked?
                where = f"model {model} on {self.slot.name}"
                raise ModelError(error.message, where=where, remedy=error.remedy, log=self.tail()) from None
            if warning:
                self.warnings.append(warning)
        for region in regions(self.shm):  # Triton makes them readable by everybody
            with contextlib.suppress(OSError):
                region.chmod(0o600)
            if _SHARED not in self.warnings:
                self.warnings.append(_SHARED)
        if sandbox.unmounted(Path(self.place)):
            self.warnings.append(_KEY)
        self.folders_seen.clear()
        self.find_folders()
        self.tell_server_watchdog(self.slot.lease.lease_s + SILENT_S)

    def find_folders(self) -> None:
        """Tell the server watchdog which empty folders in ``/tmp`` the server has made, as soon as they are there."""
        new = env_folders() - self.folders_before
        if self.server and new - self.folders_seen - {*self.folders}:
            self.folders_seen = new  # those that another server has made are not looked for again
            self.folders = self.aside(made_by, self.server.pid, new)
            self.tell_server_watchdog(self.slow_s)

    def _let_in(self, end: float) -> Credentials | None:
        """The certificates with which this process asks the server. None: the server has a socket in our folder."""
        if not self.launch.ca:
            return None
        from campaign.pool.certificates import PILOT, CertificateClient

        recipe, asked = (
            self.slot.order["recipe"]["tls"],
            CertificateClient(self.slot.folder, self.slot.name + PILOT),
        )
        asked.ask()
        while (found := asked.answer()) is None:
            if time.monotonic() > end:
                raise ServerError("the driver gave it no certificate", where=self.slot.name)
            self.pause()
        return Credentials(recipe["ca"].encode(), *found, domain=recipe["domain"])

    # Watch and stop.
    def watch(self) -> str:
        """Watch the server until a request to stop comes, and keep the statistics in the record up to date.

        Returns:
            Reason of the request.

        Raises:
            ServerError: The server has ended, hangs, or does not give its known answers any more.
        """
        from campaign.pool.server_processes import ServerProcesses  # psutil is not needed before

        assert self.health is not None
        assert self.server is not None
        told = self.health.counted
        family = ServerProcesses(self.server.pid, float(self.slot.order["health"]["silent_s"]))
        while True:
            try:
                self.pause()
            except _Stop as stop:
                self.health.settle()
                return str(stop)
            reason = family.look()
            if reason:
                self.bide(SETTLE_S)  # a server that ends itself ends its children first, and its own end says more
            reason = reason or self.health.look()
            if reason:
                raise ServerError(reason, where=self.slot.name, log=self.tail())
            if told != self.health.counted and time.monotonic() - self.slot.recorded > BEAT_S:
                told = self.health.counted
                self.record(ServerState.READY)

    def stop(self) -> None:
        """End the server's process group: at once if it is idle, else by SIGTERM first. Then remove its files."""
        if self.place:
            self.tell_server_watchdog(GRACE_S + 10 * SILENT_S)
        if self.server is not None:
            if self.ready_s is None:  # else they were looked for when it was ready
                found = made_by(self.server.pid, env_folders() - self.folders_before)
                self.folders = sorted({*self.folders, *found})
            # One that is not well would not end by itself, and what it was asked is asked of others.
            if self.stop_request and self.server.poll() is None and self.ready_s is not None and not self._idle():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.server.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.server.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            time.sleep(0.02)
        if self.health is not None:
            self.health.close()
        if self.place:
            for _ in range(50):  # it may still be being laid out: a folder that is gone is not made again
                sweep(self.place, self.shm, self.folders)
                if not Path(self.place).exists():
                    break
                time.sleep(POLL_S)

    def _idle(self) -> bool:
        # An idle Triton takes seconds to obey SIGTERM; the submitter says when no request can be under way.
        gone = self.stop_request is not None and self.stop_request.cause is StopCause.LEASE_EXPIRED
        return self.slot.idle or gone

    def tail(self) -> str:
        """The end of the server's log."""
        return server_log.tail(self.slot.log)


_KEY = "its TLS key is in its private folder on the node while it runs: no private memory is available to this user"
_SHARED = "its shared memory is in the node's /dev/shm: other users may have seen it for an instant when it was made"


class _Stop(Exception):
    """The pilot must end the server. The text is the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m campaign.pool.pilot``."""
    parser = argparse.ArgumentParser(prog="campaign.pool.pilot")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pool", default="")
    parser.add_argument("--slot", type=int)
    parser.add_argument("--generation", type=int, default=0)
    parser.add_argument("--watchdog", default="")
    parser.add_argument("--wait", type=float, default=0.0)
    given = parser.parse_args(argv)
    log_to_stderr()  # a file in the pool's folder
    parent = os.environ.pop("CAMPAIGN_PARENT", "")
    if parent:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != int(parent):
            return 1  # it died before this line
    return Pilot(given.folder, given.slot, given.generation, given.watchdog, given.pool).run(given.wait)


if __name__ == "__main__":
    sys.exit(main())
