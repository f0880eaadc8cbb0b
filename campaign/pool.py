"""The submitter's side of the servers: start pilots, hold their lease, wait until they are ready, stop them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from campaign import registry
from campaign.address import PoolAddress
from campaign.errors import ServerError, SpecError
from campaign.guardian import sweep
from campaign.processes import ask_child
from campaign.protocols import Carried, Provider, ServerKind
from campaign.rundir import read_json, write_aside, write_json
from campaign.spec import ServerSpec
from campaign.twin import DEADLINE_S, agree_and_tell, twin_of
from campaign.userfile import reference

if TYPE_CHECKING:
    from campaign.client import Servers

_OWN_FILES = ("pilot.json", "lease", "stop", "job", "claim-*", "server-*.json", "server-*.log", "pilot-*.log")
STOP_S = 12.0  # a busy server has 6 s of grace; after that and some more the machine's owner is asked


def quiet(_text: str) -> None:
    """Say nothing."""


def make_kind(spec: ServerSpec, base: Path) -> ServerKind:
    """The server kind a spec names, with its options checked.

    Raises:
        SpecError: No such kind, or an option of it is wrong.
    """
    from campaign.checks import check_options

    cls = registry.get(registry.SERVERS, spec.kind, key=("servers", "kind"), base=base)
    check_options(cls.Options, spec.given, ("servers",), ServerSpec)
    kind: ServerKind = cls(spec, base)
    return kind


class ServerPool:
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
        **options: Any,
    ) -> None:
        if not isinstance(spec, ServerSpec):
            given = {"model_repository": str(spec), "models": models, "count": count or 1, **options}
            spec = ServerSpec.model_validate(given)
        self.spec, self.say = spec, say
        self.kind = make_kind(spec, base or Path.cwd())
        self.kind.check()
        found = (twin_of(self.kind, base or Path.cwd(), name, model) for name, model in spec.models.items())
        self.twins = tuple(twin for twin in found if twin is not None)
        self._provider_given = provider
        self._folder_given = folder
        self._stack = ExitStack()
        self._carried: list[Carried] = []
        self._beat: threading.Thread | None = None
        self._over = threading.Event()
        self._live: Servers | None = None
        self.folder = folder or Path()

    def __reduce__(self) -> NoReturn:
        raise TypeError("ServerPool owns processes and does not travel; send its .address")

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
            wrong = ask_child(agree_and_tell, (self.twins,), DEADLINE_S, "local twins")
            if wrong is not None:
                raise wrong
        recipe = self.kind.prepare(self.say)
        if not self.kind.managed:
            return
        if self._folder_given is None:
            self.folder = Path(tempfile.mkdtemp(prefix="campaign-pool-"))
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in _OWN_FILES:  # of an earlier run of the same directory; whatever else lies there is not ours
            for old in self.folder.glob(name):
                old.unlink()
        cls = type(self.kind)
        count = self.spec.count
        write_json(
            self.folder / "pilot.json",
            {
                "kind": reference(cls),
                "recipe": recipe,
                "count": count,
                "lease_s": self.spec.lease_s,
                "start_deadline_s": self.spec.start_deadline_s,
            },
        )
        provider = self._provider()
        self._stack.callback(self._stop)
        self._beat = threading.Thread(target=self._hold, name="campaign-lease", daemon=True)
        self._beat.start()
        self._carried = provider.carry([sys.executable, "-m", "campaign.pilot", str(self.folder)], count, self.folder)

    def _provider(self) -> Provider:
        given = self._provider_given
        if isinstance(given, str) or not hasattr(given, "carry"):
            name = given if isinstance(given, str) else "parsl"
            cls = registry.get(registry.PROVIDERS, name, key=("provider",))
            options = cls.Options() if isinstance(given, str) else cls.Options(provider=given)
            return self._stack.enter_context(cls(options, self.folder))  # type: ignore[no-any-return]
        provider: Provider = given
        return provider

    def _hold(self) -> None:
        count = 0
        while not self._over.wait(min(1.0, self.spec.lease_s / 5)):
            count += 1
            try:
                with write_aside(self.folder / "lease", "w") as stream:
                    stream.write(f"{os.getpid()} {count}")
            except OSError as error:  # a full disk must not end the campaign before the lease does
                self.say(f"the lease cannot be written: {error.strerror}")

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
            records=tuple(self.kind.addresses()),
            twins=self.twins,
        )

    def records(self) -> list[dict[str, Any]]:
        """What the pilots say of their servers."""
        if not self.kind.managed:
            return [dict(r) for r in self.kind.addresses()]
        found = [read_json(p) for p in sorted(self.folder.glob("server-*.json"))]
        return [dict(r) for r in found if r is not None]

    def failure(self) -> ServerError | None:
        """Why the pool cannot be used any more, or None while it can.

        It cannot when a server failed to start (the next would fail alike), or when none is left.
        """
        records = self.records()
        ended = [r for r in records if r["state"] == "ended"]
        alive = [r for r in records if r["state"] in ("starting", "ready")]
        never = [r for r in ended if r["ready_s"] is None and not r["told"]]
        if not self.kind.managed or (alive and not never):
            return None
        if ended:
            first = (never or [r for r in ended if not r["told"]] or ended)[0]
            return ServerError(
                str(first["why"]),
                where=f"server {first['name']}",
                remedy=str(first.get("remedy") or f"see {first['log']}"),
                log=str(first.get("tail", "")),
            )
        codes = [c.poll() for c in self._carried]
        if not records and self._carried and all(code is not None for code in codes):
            return self._never_came(codes)
        return None

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
        while sum(r["state"] == "ready" for r in self.records()) < wanted:
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
        from campaign.client import connect

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
        for carried in self._carried:
            carried.cancel()
        self._over.set()
        if self._beat:
            self._beat.join()
        self._sweep()

    def _claims_settled(self) -> bool:
        # A carrier that only knows "running" may poll None for long: the records say more.
        return len(self.records()) >= self.spec.count

    def _sweep(self) -> None:
        import socket

        for record in self.records():
            if record["host"] == socket.gethostname() and record["place"]:
                sweep(str(record["place"]), str(record["shm_prefix"]), record["folders"])

    def report(self) -> list[dict[str, Any]]:
        """One entry per server for the report."""
        keep = ("name", "host", "state", "why", "warnings", "statistics", "times", "ready_s", "log")
        return [{k: r[k] for k in keep if k in r} for r in self.records()]


def check_provider(name: str) -> None:
    """Refuse a provider nobody registered.

    Raises:
        SpecError: The message lists those there are.
    """
    if name not in registry.names(registry.PROVIDERS):
        raise SpecError(registry.unknown(name, registry.names(registry.PROVIDERS), "providers"), key=("provider",))
