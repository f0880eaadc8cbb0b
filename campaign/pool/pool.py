"""ServerPool: starts pilots, renews their lease, waits until servers are ready, and stops them."""

from __future__ import annotations

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
from campaign.discovery.records import GOING, causes, found, newest, on_the_way
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

_OWN_FILES = (
    *("pilot.json", "lease", "stop", "job"),
    *("claim-*", "closed-*", "trial-*", "excused-*", "server-*.json", "*-*.log", "*.csr", "*.crt"),
)
WEEK_S = 7 * 86400.0
ASK_S = 10.0  # for an attached server to say which versions it has
LOOK_S = 0.5  # between two looks for pilots that were lost
STOP_S = 12.0  # a busy server has 6 s of grace; after that and some more the machine's owner is asked
CANCELLED_S = 9.0  # a provider that can ends by force, after 8 s, what does not obey


def quiet(_text: str) -> None:
    """Say nothing."""


class ServerPool(Shown):
    """A pool of servers as a context manager; leaving it leaves nothing behind.

    In a script of one's own::

        with ServerPool("model_repository", models=["qg_tagger"], count=2) as pool:
            pool.wait_ready()
            scores = pool.servers().infer("qg_tagger", {"X": x})

    ``pool.address`` is a small recipe that travels to tasks; there, ``campaign.connect(address)`` makes it live.

    Args:
        spec: What to serve: a `ServerSpec`, or the path of a model repository.
        models: Models of that repository (where ``spec`` is a path).
        count: Servers (where ``spec`` is a path).
        provider: Who carries the pilots: a name, a `Provider` that was entered, or any Parsl execution provider.
        folder: Where records and logs go, seen by every machine; None: a private temporary folder, removed at the end.
        base: Where relative paths start.
        say: Called with progress lines.
        kind: Of ``spec``, where one was made already: the models it has seen are the ones that are served.
        look: Called several times a second while entering waits for local twins; what it raises ends that.
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
        self._beat: threading.Thread | None = None
        self._replacing: threading.Thread | None = None
        self._over, self._leaving = threading.Event(), threading.Event()
        self._live: Servers | None = None
        self._secret: Credentials | None = None
        self._versions: dict[str, int] = {}
        self._nonce = secrets.token_hex(8)  # pilots of an earlier pool in the same folder may still run
        self.folder = folder or Path()

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
        for name in _OWN_FILES:  # of an earlier run of the same directory; whatever else lies there is not ours
            for old in self.folder.glob(name):
                old.unlink()
        cls = type(self.kind)
        count = self.spec.count
        provider = self._provider()
        if self.kind.through_tls(getattr(provider, "one_node", False)):
            recipe["tls"] = self._open_gate(provider)
        write_json(
            self.folder / "pilot.json",
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
        """The versions that attached servers answer with now: asked for by number from now on, in every process."""
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
        """The version of each model that answers, where it is known."""
        known = {name: v for name in self.spec.models if (v := self.kind.version(name)) is not None}
        return {**self._versions, **known}

    def _ask_twins(self) -> None:
        there = fork_server_runs()
        try:
            wrong = ask_child(agree_and_tell, (self.twins,), DEADLINE_S, "local twins", self._look)
        finally:
            if not there:  # else it is a campaign's, which has use for it
                stop_fork_server()
        if wrong is not None:
            raise wrong

    def _open_gate(self, provider: Provider) -> dict[str, str]:
        from campaign.pool.certificates import CertificateIssuer

        walltime = getattr(provider, "walltime_s", None) or WEEK_S
        # Clients as long as the last server may live that fills a slot; a batch job may queue for as long as it runs.
        issuer = CertificateIssuer(self.folder, WEEK_S + (1 + self.spec.restarts) * walltime, walltime)
        self._stack.callback(issuer.stop)
        issuer.start()
        self._secret = issuer.secret
        return issuer.recipe

    def _provider(self) -> Provider:
        given = self._provider_given
        if isinstance(given, str) or not hasattr(given, "carry"):
            name = given if isinstance(given, str) else "parsl"
            cls = plugins.get(plugins.PROVIDERS, name, key=("provider",))
            options = cls.Options() if isinstance(given, str) else cls.Options(provider=given)
            return self._stack.enter_context(cls(options, self.folder))  # type: ignore[no-any-return]
        provider: Provider = given
        return provider

    def _hold(self) -> None:
        count = 0
        while not self._over.wait(min(1.0, self.spec.lease_s / 5)):
            count += 1
            driver_watchdog.beat()
            try:
                with write_aside(self.folder / "lease", "w") as stream:
                    stream.write(f"{self._nonce} {os.getpid()} {count}")
            except OSError as error:  # a full disk must not end the campaign before the lease does
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
        """The recipe that travels to tasks."""
        return PoolAddress(
            folder=str(self.folder) if self.kind.managed else "",
            batches={name: model.batch for name, model in self.spec.models.items()},
            tails={name: tuple(sorted(model.tails)) for name, model in self.spec.models.items() if model.tails},
            window=self.spec.window,
            start_deadline_s=self.spec.start_deadline_s + 10,
            request_deadline_s=self.spec.request_deadline_s,
            settle_s=self.spec.silent_s + self.spec.canary_s if self.kind.managed else 0.0,
            records=tuple(self.kind.addresses()),
            secret=self._secret,
            twins=self.twins,
            versions=self.versions,
            pool=self._nonce if self.kind.managed else "",
        )

    def records(self) -> list[dict[str, Any]]:
        """What the pilots say of their servers."""
        if not self.kind.managed:
            return [dict(r) for r in self.kind.addresses()]
        return [dict(r) for r in found(self.folder, self._nonce)]

    def current(self) -> list[dict[str, Any]]:
        """Of each server the record of its last incarnation."""
        return [dict(r) for r in newest(self.records())]

    def failure(self) -> ServerError | None:
        """Why the pool cannot be used any more, or None while it can.

        It cannot when a server failed to start in a way that cannot heal (the others would fail alike), or when none
        is left and none is coming.
        """
        records = self.current()
        alive = [r for r in records if r["state"] in ("starting", "ready") or on_the_way(r)]
        ended = [r for r in records if r["state"] in GOING and not on_the_way(r)]
        never = [r for r in ended if r["ready_s"] is None and not r["told"] and not r["generation"]]
        if not self.kind.managed or (alive and not never):
            return None
        if ended:
            return self._none_left((never or [r for r in ended if not r["told"]] or ended)[0])
        codes = [c.poll() for c in self._carried]
        if not records and self._carried and all(code is not None for code in codes):
            return self._never_came(codes)
        return None

    def _none_left(self, last: Mapping[str, Any]) -> ServerError:
        why = str(last["why"])
        if last["generation"]:
            told = causes(r for r in self.records() if r["state"] in GOING)
            spent = last["generation"] >= self.spec.restarts
            why = (
                f"no server is left, each was replaced {max(self.spec.restarts, last['generation'])} times: {told}"
                if spent
                else f"{why}: {told}"
            )
        return ServerError(
            why,
            where=f"server {last['name']}",
            remedy="; ".join([*filter(None, [str(last.get("remedy") or "")]), f"see {last['log']}"]),
            log=str(last.get("tail", "")),
        )

    def _never_came(self, codes: list[int | None]) -> ServerError:
        logs = sorted(self.folder.glob("pilot-*.log")) or sorted(self.folder.glob("*.stderr"))
        text = logs[0].read_text(errors="replace")[-2000:] if logs else ""
        return ServerError(f"pilots ended (exit codes {codes}) before a server was started", where="pool", log=text)

    def wait_ready(self, count: int | None = None) -> None:
        """Wait until servers have proved themselves.

        Args:
            count: How many; None: all.

        Raises:
            ServerError: One failed, or they were not ready in time.
        """
        if not self.kind.managed:
            return
        wanted = self.spec.count if count is None else count
        end = time.monotonic() + self.spec.start_deadline_s + 10
        while sum(r["state"] == "ready" for r in self.current()) < wanted:
            failure = self.failure()
            if failure:
                raise failure
            if time.monotonic() > end:
                raise ServerError(
                    f"not ready within {self.spec.start_deadline_s:g} s", where="pool", remedy="see its logs"
                )
            time.sleep(0.05)

    def servers(self) -> Servers:
        """A live handle for this process."""
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
        """Tell the pilots, wait for them, and see that nothing of theirs is left on this node."""
        self._leaving.set()
        if self._replacing:
            self._replacing.join()  # nobody is sent for any more
        try:
            with write_aside(self.folder / "stop", "w") as stream:
                stream.write("idle")  # tasks have ended or were ended: no request of ours is worth waiting for
        except OSError as error:  # a full disk: the lease is let go of, and the machine's owner asked
            self.say(f"the request to stop cannot be written: {error.strerror}")
            self._over.set()
        end = time.monotonic() + STOP_S
        while time.monotonic() < end and any(c.poll() is None for c in self._carried):
            if self._carried and not any(r["state"] != "ended" for r in self.records()) and self._claims_settled():
                break
            time.sleep(0.03)
        try:
            with ExitStack() as each:  # all are told, whatever one of them raises
                for carried in self._carried:
                    each.callback(carried.cancel)
            end = time.monotonic() + CANCELLED_S
            while time.monotonic() < end and any(c.poll() is None for c in self._carried):
                if all(r["state"] == "ended" for r in self.records()):
                    break
                time.sleep(0.03)
        finally:
            self._over.set()
            if self._beat:
                self._beat.join()
            self._sweep()

    def _claims_settled(self) -> bool:
        # A carrier that only knows "running" may poll None for long: the records say more.
        return len(self.current()) >= self.spec.count

    def _sweep(self) -> None:
        import socket

        for record in self.records():
            if record["host"] == socket.gethostname() and record["place"]:
                place = Path(
                    record["place"]
                )  # who lives there still, where pilot and server watchdog were killed, it says
                told = {"shm_prefix": record["shm_prefix"], "folders": record["folders"]}
                clear_folder(place, {**told, **(read_json(place / OWNER) or {})})

    def report(self) -> list[dict[str, Any]]:
        """One entry per incarnation of each server for the report."""
        keep = ["name", "slot", "generation", "host", "state", "why", "warnings"]
        keep += ["statistics", "times", "ready_s", "log"]
        return [{k: r[k] for k in keep if k in r} for r in self.records()]
