"""One contract for every registered provider; a new one is tested by being registered."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl import launchers as parsl_launchers
from parsl import providers as parsl_providers
from parsl.executors import HighThroughputExecutor

from campaign.protocols import Provider
from campaign.supervision.identity import VARIABLE, mark, mark_of
from campaign.util import plugins
from tests.conftest import PROJECT, ours, wait_until

PROVIDERS = plugins.names(plugins.PROVIDERS)


def make(name: str, folder: Path) -> Provider:
    """The provider with its defaults."""
    cls = plugins.get(plugins.PROVIDERS, name)
    made: Provider = cls(cls.Options(), folder)
    return made


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """Each registered provider, entered; its workers can import this file."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    with make(request.param, tmp_path) as made:
        yield made


def identity() -> tuple[int, int]:
    """Who computes."""
    time.sleep(0.2)
    return os.getpid(), os.getppid()


def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


def children() -> set[int]:
    """Our child processes, zombies left out."""
    return {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}


def test_a_provider_says_where_its_machines_are_and_for_how_long(tmp_path: Path) -> None:
    """On one node servers listen on sockets; certificates are good for the walltime of the pilots' jobs."""
    for name in PROVIDERS:
        made = make(name, tmp_path)
        assert made.one_node is True, "its defaults are this machine"
        assert made.walltime_s is None or made.walltime_s > 0
    parsl = plugins.get(plugins.PROVIDERS, "parsl")

    def told(**options: Any) -> tuple[bool, float | None]:
        made: Provider = parsl(parsl.Options(**options), tmp_path)
        return made.one_node, made.walltime_s

    slurm, here = {"class": "SlurmProvider", "walltime": "26:30:00"}, {"class": "LocalProvider"}
    assert told(provider=slurm) == (False, 26.5 * 3600)
    assert told(provider=here, server_provider={"class": "SlurmProvider", "walltime": "00:30:00"}) == (False, 1800)
    assert told(provider=slurm, server_provider=here) == (False, None)
    assert told(provider=parsl_providers.SlurmProvider(walltime="00:10:00")) == (False, 600)
    assert told(provider=parsl_providers.SlurmProvider(walltime="1-02:30:00")) == (False, 26.5 * 3600)
    assert told(provider=parsl_providers.LocalProvider()) == (True, None)
    simple, srun = parsl_launchers.SimpleLauncher(), parsl_launchers.SrunLauncher()
    assert told(provider=parsl_providers.LocalProvider(launcher=simple)) == (True, None)
    assert told(provider=parsl_providers.LocalProvider(launcher=srun)) == (False, None), (
        "in an allocation of many nodes"
    )
    assert told(provider={**here, "launcher": {"class": "SrunLauncher"}}) == (False, None)
    assert told(provider={**here, "nodes_per_block": 2}) == (False, None)
    assert told(provider=here, server_provider={**here, "nodes_per_block": 2}) == (False, None)


def test_making_one_starts_nothing(tmp_path: Path) -> None:
    """Until it is entered a provider has no process and no file."""
    before = children()
    for name in PROVIDERS:
        make(name, tmp_path / name)
        assert not (tmp_path / name).exists()
    assert children() == before


@pytest.mark.slow
def test_tasks_run_in_as_many_other_processes(provider: Provider) -> None:
    """Two workers are two processes, neither of them this one."""
    executor = provider.tasks(2)
    pids = {f.result(timeout=60)[0] for f in [executor.submit(identity) for _ in range(12)]}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_what_a_task_raises_arrives(provider: Provider) -> None:
    """The exception's type and text come back; the worker goes on."""
    executor = provider.tasks(1)
    with pytest.raises(ValueError, match="as it was"):
        executor.submit(fail, "as it was").result(timeout=60)
    assert executor.submit(abs, -3).result(timeout=60) == 3


@pytest.mark.slow
def test_a_dead_worker_ends_its_task_and_another_executor_can_be_had(provider: Provider) -> None:
    """A killed worker is an exception of the future, never a hang; then `tasks` gives one that works."""
    executor = provider.tasks(1)
    with pytest.raises(Exception, match=r"(?i)abrupt|lost|worker|manager"):
        executor.submit(os._exit, 1).result(timeout=90)
    try:
        answer = executor.submit(abs, -5).result(timeout=60)
    except Exception:  # noqa: BLE001  an executor may be broken for good
        answer = provider.tasks(1).submit(abs, -5).result(timeout=60)
    assert answer == 5


def test_pilots_are_carried_as_often_as_asked(provider: Provider, tmp_path: Path) -> None:
    """The command runs ``count`` times at once, and ``poll`` never says "running" of what has ended."""
    script = "import os, sys, time; open(sys.argv[1] + '/pid-%d' % os.getpid(), 'w').close(); time.sleep(1)"
    carried = provider.carry([sys.executable, "-c", script, str(tmp_path)], 3, tmp_path)
    assert wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 3, 20)
    assert wait_until(lambda: all(c.poll() is not None for c in carried), 20)
    for c in carried:
        c.cancel()


def test_a_cancelled_pilot_gets_sigterm_and_is_gone(provider: Provider, tmp_path: Path) -> None:
    """``cancel`` gives a process the chance to clean up, and works twice."""
    script = (
        "import signal, sys, time, os\n"
        "def bye(*_):\n    open(sys.argv[1] + '/bye', 'w').close(); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\nopen(sys.argv[1] + '/up', 'w').write(str(os.getpid()))\ntime.sleep(100)\n"
    )
    (tmp_path / "s.py").write_text(script)
    carried = provider.carry([sys.executable, str(tmp_path / "s.py"), str(tmp_path)], 1, tmp_path)
    assert wait_until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text() != "", 20)
    for _ in range(2):
        for c in carried:
            c.cancel()
    assert wait_until(lambda: (tmp_path / "bye").exists(), 10)


def test_all_it_starts_bears_the_mark(provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, pilots and what lies between; a script's own children do not, not even while Parsl's parts start."""
    seen: list[str | None] = []
    begin = HighThroughputExecutor.start

    def spied(self: HighThroughputExecutor) -> None:
        seen.append(os.environ.get(VARIABLE))
        begin(self)

    monkeypatch.setattr(HighThroughputExecutor, "start", spied)
    before = children() | set(ours())
    provider.tasks(1).submit(abs, -1).result(timeout=60)
    provider.carry([sys.executable, "-c", "import time; time.sleep(100)"], 1, tmp_path)
    made = {pid: mark_of(pid) for pid in (children() | set(ours())) - before}
    assert len(made) >= 3
    assert set(made.values()) == {mark()}, {pid: psutil.Process(pid).cmdline() for pid, m in made.items() if not m}
    assert set(seen) <= {None}
    assert VARIABLE not in os.environ


STUBBORN = (
    "import signal, sys, time, os\n"
    "signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1] + f'/told-{os.getpid()}', 'w').close())\n"
    "open(sys.argv[1] + f'/up-{os.getpid()}', 'w').close()\n"
    "while True:\n    time.sleep(100)\n"
)


@pytest.mark.parametrize("name", PROVIDERS)
def test_one_that_does_not_obey_or_cannot_be_cancelled_keeps_nobody_waiting(name: str, tmp_path: Path) -> None:
    """All are told before one is waited for, and whatever is raised for one, the others are ended."""
    (tmp_path / "s.py").write_text(STUBBORN)
    argv = [sys.executable, str(tmp_path / "s.py"), str(tmp_path)]
    before = children()
    made = make(name, tmp_path)

    def refuse(cancel: Callable[[], None]) -> None:
        cancel()
        raise RuntimeError("as asked")

    def leave() -> None:
        monkeypatch.setattr("campaign.providers.local.CANCEL_S", 0.5, raising=False)
        with made:
            for carried in (c for _ in range(3) for c in made.carry(argv, 1, tmp_path)):
                monkeypatch.setattr(carried, "cancel", partial(refuse, carried.cancel))
            assert wait_until(lambda: len(list(tmp_path.glob("up-*"))) == 3, 20)

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(RuntimeError, match="as asked"):
        leave()
    pids = [int(p.name.removeprefix("up-")) for p in tmp_path.glob("up-*")]
    try:
        assert wait_until(lambda: len(list(tmp_path.glob("told-*"))) == 3, 10)
        assert name != "local" or wait_until(lambda: not children() - before, 5), "by force in the end"
    finally:
        for pid in filter(psutil.pid_exists, pids):  # Parsl has no such force
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", PROVIDERS)
def test_leaving_it_ends_everything_at_once(name: str, tmp_path: Path) -> None:
    """Busy workers and running pilots are gone when the ``with`` block is left, though nobody waited for them."""
    before = children()
    with make(name, tmp_path) as made:
        futures = [made.tasks(2).submit(time.sleep, 100) for _ in range(2)]
        made.carry([sys.executable, "-c", "import time; time.sleep(100)"], 2, tmp_path)
        wait(futures, timeout=1)
        assert children() - before
    assert wait_until(lambda: not children() - before, 5), [psutil.Process(p).cmdline() for p in children() - before]


def test_parsl_takes_a_users_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``parsl.Config`` in Python: its executor's provider and address carry tasks and pilots; it stays untouched."""
    import parsl
    from parsl.providers import LocalProvider as Local

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    theirs = Local(worker_init="export OF_THEIR_CONFIG=1", init_blocks=1)
    config = parsl.Config(executors=[HighThroughputExecutor(address="127.0.0.1", provider=theirs)])
    cls = plugins.get(plugins.PROVIDERS, "parsl")
    with cls(cls.Options(config=config), tmp_path) as made:
        assert made.tasks(1).submit(os.getenv, "OF_THEIR_CONFIG").result(timeout=60) == "1"
    assert theirs.resources == {}


def test_options_refuse_what_they_do_not_know() -> None:
    """Every provider publishes its options as a model that forbids others."""
    for name in PROVIDERS:
        options: Any = plugins.get(plugins.PROVIDERS, name).Options
        with pytest.raises(ValueError, match="extra"):
            options(no_such_option=1)
        assert options.model_json_schema()["additionalProperties"] is False
