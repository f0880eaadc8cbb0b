"""ServerPool: starts pilots, renews their lease, waits until servers are ready, and stops them."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from campaign.discovery.address import PoolAddress
from campaign.discovery.credentials import Credentials
from campaign.discovery.pooldir import PoolDir
from campaign.discovery.records import ServerRecord, ServerState, causes, newest, read_records
from campaign.errors import CampaignError, ServerError, SpecError
from campaign.pool.local_models import DEADLINE_S, agree_and_tell, twin_of
from campaign.pool.restarts import Restarts
from campaign.pool.server_kind import make_kind
from campaign.protocols import PilotHandle, Provider, ServerKind
from campaign.spec.models import ServerSpec
from campaign.supervision import driver_watchdog
from campaign.supervision.forkserver import ask_child, fork_server_runs, stop_fork_server
from campaign.supervision.identity import OWNER, mark, own
from campaign.supervision.reap import clear_folder
from campaign.util import plugins
from campaign.util.card import Card, Shown
from campaign.util.files import read_json, write_aside, write_json
from campaign.util.ownership import make_private
from campaign.util.user_code import reference

if TYPE_CHECKING:
    from campaign.inference.client import Servers

GONE_S = 15.0  # the watchdog of a dead pilot, or the submitter, closes its record in a much shorter time
WEEK_S = 7 * 86400.0
ASK_S = 10.0  # for an attached server to say which versions it has
LOOK_S = 0.5  # between two looks for pilots that were lost
STOP_S = 12.0  # a busy server has 6 s of grace; after that and some more the machine's owner is asked
CANCELLED_S = 9.0  # a provider that can ends by force, after 8 s, what does not obey


def quiet(_text: str) -> None:
    """Say nothing."""


class ServerPool(Shown):
    """A pool of servers as a context manager. At its end all servers are ended and their files removed.

    In a script of your own::

        with ServerPool("model_repository", models=["qg_tagger"], count=2) as pool:
            pool.wait_ready()
            scores = pool.servers().infer("qg_tagger", {"X": x})

    ``pool.address`` travels to tasks. There, ``campaign.connect(address)`` opens the channels.

    Args:
        spec: The servers: a `ServerSpec`, or the path of a model repository.
        models: Models of that repository (if ``spec`` is a path).
        count: Number of servers (if ``spec`` is a path).
        provider: Starts the pilots: a name, a `Provider` that was entered, or any Parsl execution provider.
        folder: Folder for records and logs, which every machine sees. None: a private temporary folder.
        base: Relative paths start here.
        say: Called with progress lines.
        kind: The server kind of ``spec``, if it was made already. The models that it has seen are served.
        look: Called several times a second while the start waits for local twins. An exception ends the start.
        options: Further keys of `ServerSpec` or of the server kind.
    """

    def __init__(
        self,
        spec: ServerSpec | str | Path,
        *,
        models: Sequence[str] | Mapping[str, Any] = (),
        count: int | None = None,
        provider: Any = "local",
        folder: Path | None = None,
        base: Path | None = None,
        say: Callable[[str], None] = quiet,
        kind: ServerKind | None = None,
        look: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        if not isinstance(spec, ServerSpec):
            given = {"model_repository": str(spec), "models": models, "count": count or 1, **options}
            spec = ServerSpec.model_validate(given)
        self.spec, self.say, self._look = spec, say, look
        base = base or Path.cwd()
        self.kind = kind or make_kind(spec, base)
        if kind is None:
            self.kind.check()
        twins = (twin_of(self.kind, base, name, model) for name, model in spec.models.items())
        self.twins = tuple(twin for twin in twins if twin is not None)
        self._provider_given = provider
        self._folder_given = folder
        self._stack = ExitStack()
        self._carried: list[PilotHandle] = []
        self._refused = ""
        self._gone_since = math.inf  # monotonic; since when all pilots have ended
        self._beat: threading.Thread | None = None
        self._replacing: threading.Thread | None = None
        self._over, self._leaving = threading.Event(), threading.Event()
        self._live: Servers | None = None
        self._secret: Credentials | None = None
        self._versions: dict[str, int] = {}
        self._nonce = secrets.token_hex(8)  # pilots of an earlier pool in the same folder may still run
        self.folder = folder or Path()

    @property
    def _dir(self) -> PoolDir:
        return PoolDir(self.folder)

    def __reduce__(self) -> NoReturn:
        raise TypeError("ServerPool owns processes and does not travel; send its .address")

    def _card(self) -> Card:
        from campaign.pool.card import card

        return card(self)

    # Start.
    def __enter__(self) -> ServerPool:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        if self.twins:
            self._ask_twins()
        recipe = dict(self.kind.prepare(self.say))
        if not self.kind.managed:
            self._secret = self.kind.secret()
            self._versions = self._versions_there()
            return
        if self._folder_given is None:
            self.folder = Path(tempfile.mkdtemp(prefix="campaign-pool-"))
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            own(self.folder, str(mark()))
        why = make_private(self.folder)
        if why:
            raise SpecError(f"cannot be the folder of a pool: {why}", where=str(self.folder), remedy="give another")
        self._stack.enter_context(driver_watchdog.hold(self.folder, say=self.say))
        self._dir.clear()
        cls = type(self.kind)
        count = self.spec.count
        provider = self._provider()
        if self.kind.through_tls(provider.one_node):
            recipe["tls"] = self._open_gate(provider)
        write_json(
            self._dir.order,
            {
                "pool": self._nonce,
                "kind": reference(cls),
                "recipe": recipe,
                "count": count,
                "lease_s": self.spec.lease_s,
                "start_deadline_s": self.spec.start_deadline_s,
                "restarts": self.spec.restarts,
                "health": {
                    "every_s": self.spec.canary_s,
                    "deadline_s": self.spec.request_deadline_s,
                    "silent_s": self.spec.silent_s,
                },
            },
        )
        self._stack.callback(self._stop)
        self._beat = threading.Thread(target=self._hold, name="campaign-lease", daemon=True)
        self._beat.start()
        argv = [sys.executable, "-m", "campaign.pool.pilot", str(self.folder), f"--pool={self._nonce}"]
        self._carried = provider.carry(argv, count, self.folder)

        def carry(more: Sequence[str]) -> list[PilotHandle]:
            made = provider.carry([*argv, *more], 1, self.folder)
            self._carried += made
            return made

        slow_s = self.spec.start_deadline_s + 60.0
        replacer = Restarts(self.folder, self.spec.restarts, self.spec.lease_s, slow_s, carry, self.say, self._nonce)
        self._replacing = threading.Thread(target=self._replace, args=(replacer,), name="campaign-pilots", daemon=True)
        self._replacing.start()

    def _versions_there(self) -> dict[str, int]:
        """The versions of models that attached servers have now. All processes ask for these versions by number."""
        given = {name: v for name in self.spec.models if (v := self.kind.version(name)) is not None}
        found: dict[str, int] = {}
        if given.keys() == self.spec.models.keys():
            return found
        from campaign.inference.client import connect

        servers = connect(replace(self.address, start_deadline_s=ASK_S))
        try:
            for name in self.spec.models.keys() - given.keys():
                with suppress(CampaignError):  # the tasks that need it name a server that cannot be asked
                    version = servers.model(name).version
                    found |= {name: int(version)} if version else {}
        finally:
            servers.close()
        return found

    @property
    def versions(self) -> dict[str, int]:
        """For each model, the version that answers requests. Models of unknown version are left out."""
        known = {name: v for name in self.spec.models if (v := self.kind.version(name)) is not None}
        return {**self._versions, **known}

    def _ask_twins(self) -> None:
        there = fork_server_runs()
        try:
            wrong = ask_child(agree_and_tell, (self.twins,), DEADLINE_S, "local twins", self._look)
        finally:
            if not there:  # else a campaign uses it
                stop_fork_server()
        if wrong is not None:
            raise wrong

    def _open_gate(self, provider: Provider) -> dict[str, str]:
        from campaign.pool.certificates import CertificateIssuer

        walltime = provider.walltime_s or WEEK_S
        # Clients as long as the last server may live that fills a slot; a batch job may queue for as long as it runs.
        issuer = CertificateIssuer(self.folder, WEEK_S + (1 + self.spec.restarts) * walltime, walltime)
        self._stack.callback(issuer.stop)
        issuer.start()
        self._secret = issuer.secret
        return issuer.recipe

    def _provider(self) -> Provider:
        given = self._provider_given
        if isinstance(given, Provider):
            return given
        name = given if isinstance(given, str) else "parsl"
        cls = plugins.get(plugins.PROVIDERS, name, key=("provider",), of=Provider)
        options = cls.Options() if isinstance(given, str) else cls.Options(provider=given)
        return self._stack.enter_context(cls(options, self.folder))  # type: ignore[no-any-return]

    def _hold(self) -> None:
        count = 0
        while not self._over.wait(min(1.0, self.spec.lease_s / 5)):
            count += 1
            driver_watchdog.beat()
            try:
                with write_aside(self._dir.lease, "w") as stream:
                    stream.write(f"{self._nonce} {os.getpid()} {count}")
            except OSError as error:  # a full disk must not end the campaign before the lease does
                self._refused = f"; the pool's folder cannot be written: {error.strerror}"
                self.say(f"the lease cannot be written: {error.strerror}")

    def _replace(self, replacer: Restarts) -> None:
        while not self._leaving.wait(LOOK_S):
            try:
                replacer.look()
            except Exception as error:  # noqa: BLE001  thread boundary: the servers there are go on
                self.say(f"lost servers cannot be replaced: {type(error).__name__}: {error}")

    # While it runs.
    @property
    def address(self) -> PoolAddress:
        """The address that travels to tasks."""
        return PoolAddress(
            folder=str(self.folder) if self.kind.managed else "",
            batches={name: model.batch for name, model in self.spec.models.items()},
            tails={name: tuple(sorted(model.tails)) for name, model in self.spec.models.items() if model.tails},
            window=self.spec.window,
            start_deadline_s=self.spec.start_deadline_s + 10,
            request_deadline_s=self.spec.request_deadline_s,
            settle_s=self.spec.silent_s + self.spec.canary_s if self.kind.managed else 0.0,
            records=tuple(self._given_records()),
            secret=self._secret,
            twins=self.twins,
            versions=self.versions,
            pool=self._nonce if self.kind.managed else "",
        )

    def _given_records(self) -> list[ServerRecord]:
        """Records of servers that the pool has not started."""
        return [ServerRecord.model_validate(r, strict=False) for r in self.kind.addresses()]

    def records(self) -> list[ServerRecord]:
        """The records of all servers, those that have ended too."""
        return read_records(self.folder, self._nonce) if self.kind.managed else self._given_records()

    def current(self) -> list[ServerRecord]:
        """The record of the newest server in each slot."""
        return newest(self.records())

    def failure(self) -> ServerError | None:
        """Why the pool cannot be used any more. None: it can.

        It cannot be used if a server has failed to start and a restart cannot help, because the others would fail
        alike. It cannot be used if no server is left and none will start.
        """
        records = self.current()
        alive = [r for r in records if not r.state.over or r.server_expected]
        ended = [r for r in records if r.state.over and not r.server_expected]
        never = [r for r in ended if r.ready_s is None and not r.stop_requested and not r.generation]
        if not self.kind.managed:
            return None
        if alive and not never:
            return None if any(r.state.over for r in alive) else self._abandoned()
        if ended:
            return self._none_left((never or [r for r in ended if not r.stop_requested] or ended)[0])
        codes = [c.poll() for c in self._carried]
        if not records and self._carried and all(code is not None for code in codes):
            return self._never_came(codes)
        return None

    def _none_left(self, last: ServerRecord) -> ServerError:
        reason = last.reason
        if last.generation:
            reasons = causes(r for r in self.records() if r.state.over)
            times = max(self.spec.restarts, last.generation)
            if last.generation >= self.spec.restarts:
                reason = f"no server is left, each was replaced {times} times: {reasons}"
            else:
                reason = f"{reason}: {reasons}"
        remedy = "; ".join([*filter(None, [last.remedy]), f"see {last.log}"])
        return ServerError(reason, where=f"server {last.name}", remedy=remedy, log=last.tail)

    def _abandoned(self) -> ServerError | None:
        """The error for servers whose pilots have all ended, and whose records nobody can close: the disk is full."""
        codes = [c.poll() for c in self._carried]
        if not codes or any(code is None for code in codes):
            self._gone_since = math.inf
            return None
        self._gone_since = min(self._gone_since, time.monotonic())
        return self._never_came(codes) if time.monotonic() - self._gone_since > GONE_S else None

    def _never_came(self, codes: list[int | None]) -> ServerError:
        logs = self._dir.provider_logs()
        text = logs[0].read_text(errors="replace")[-2000:] if logs else ""
        return ServerError(
            f"all pilots ended (exit codes {codes}), and no server is left{self._refused}", where="pool", log=text
        )

    def wait_ready(self, count: int | None = None) -> None:
        """Wait until servers are ready.

        Args:
            count: Number of servers. None: all.

        Raises:
            ServerError: A server has failed, or the servers were not ready in time.
        """
        if not self.kind.managed:
            return
        wanted = self.spec.count if count is None else count
        end = time.monotonic() + self.spec.start_deadline_s + 10
        while sum(r.state is ServerState.READY for r in self.current()) < wanted:
            failure = self.failure()
            if failure:
                raise failure
            if time.monotonic() > end:
                raise ServerError(
                    f"not ready within {self.spec.start_deadline_s:g} s", where="pool", remedy="see its logs"
                )
            time.sleep(0.05)

    def servers(self) -> Servers:
        """Connections to the servers, for this process."""
        from campaign.inference.client import connect

        if self._live is None:
            self._live = connect(self.address)
        return self._live

    # Stop.
    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.close()
            self._live = None
        self._stack.close()

    def _stop(self) -> None:
        """Ask the pilots to stop, wait for them, and remove all that they have left on this node."""
        self._leaving.set()
        if self._replacing:
            self._replacing.join()  # no pilot is sent any more
        try:
            with write_aside(self._dir.stop, "w") as stream:
                stream.write("idle")  # all tasks have ended: no request is worth waiting for
        except OSError as error:  # a full disk: the lease ends, and the provider is asked
            self.say(f"the request to stop cannot be written: {error.strerror}")
            self._over.set()
        end = time.monotonic() + STOP_S
        while time.monotonic() < end and any(c.poll() is None for c in self._carried):
            if self._carried and self._all_ended() and self._claims_settled():
                break
            time.sleep(0.03)
        try:
            with ExitStack() as each:  # all are cancelled, whatever one of them raises
                for carried in self._carried:
                    each.callback(carried.cancel)
            end = time.monotonic() + CANCELLED_S
            while time.monotonic() < end and any(c.poll() is None for c in self._carried):
                if self._all_ended():
                    break
                time.sleep(0.03)
        finally:
            self._over.set()
            if self._beat:
                self._beat.join()
            self._sweep()

    def _all_ended(self) -> bool:
        return all(r.state is ServerState.ENDED for r in self.records())

    def _claims_settled(self) -> bool:
        # A carrier that only knows "running" may poll None for long: the records say more.
        return len(self.current()) >= self.spec.count

    def _sweep(self) -> None:
        import socket

        for record in self.records():
            if record.host == socket.gethostname() and record.private_dir:
                folder = Path(record.private_dir)
                known = {"shm_prefix": record.shm_prefix, "folders": list(record.folders)}
                # Where pilot and server watchdog were killed, the folder's own file names the server's processes.
                clear_folder(folder, {**known, **(read_json(folder / OWNER) or {})})

    def report(self) -> list[dict[str, Any]]:
        """One entry for the report per server, those that have ended too."""
        keep = {
            "name",
            "slot",
            "generation",
            "host",
            "state",
            "reason",
            "stop_requested",
            "warnings",
            "statistics",
            "times",
        }
        return [
            r.model_dump(mode="json", include={*keep, "ready_s", "log"}, exclude_unset=True) for r in self.records()
        ]
