"""Provider ``local``: this machine. Pilots are subprocesses, and workers come from a fork server.

loky 3.7 would do the same work. It was measured beside this (five interleaved rounds, two workers, 2,000 calls). Its
first answers came after 1.71 s. Those of the fork server came after 1.25 s: it has the workers' modules loaded. Each
further call took 359 and 377 microseconds. The fork server stays, for the earlier start, and because its workers end
with the driver.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from campaign.discovery.pooldir import PoolDir
from campaign.protocols import PilotHandle, Provider
from campaign.supervision.forkserver import child_setup, context, no_main, stop_fork_server, wake_fork_server
from campaign.supervision.identity import environment

CANCEL_S = 8.0  # between SIGTERM and SIGKILL: a pilot gives a busy server 6 s


class Options(BaseModel):
    """The local provider has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LocalProvider(Provider):
    """See `campaign.protocols.Provider`."""

    Options = Options
    one_node = True
    walltime_s = None

    def __init__(self, options: BaseModel, folder: Path) -> None:
        del options  # there are none
        self.folder = folder
        self._pools: list[ProcessPoolExecutor] = []
        self._carried: list[_Process] = []
        self._spawner = _Spawner()

    def __enter__(self) -> LocalProvider:
        self._spawner.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with ExitStack() as each:  # whatever one of them raises, the others are ended
            each.callback(stop_fork_server)
            each.callback(self._spawner.stop)
            each.callback(self._wait)
            for carried in self._carried:
                each.callback(carried.cancel)
            for pool in self._pools:
                each.callback(_end, pool)

    def _wait(self) -> None:
        """Wait until all cancelled pilots have ended. `poll` kills a pilot that takes too long."""
        end = time.monotonic() + CANCEL_S + 1
        while any(carried.poll() is None for carried in self._carried) and time.monotonic() < end:
            time.sleep(0.02)

    def tasks(self, workers: int) -> Executor:
        """A process pool. Its workers come from a fork server that never had an open gRPC channel."""
        pool = _Pool(workers, mp_context=context(), initializer=child_setup)
        pool.submit(os.getpid)  # the fork server and its imports start here and now
        self._pools.append(pool)
        return pool

    def why_broken(self, executor: Executor) -> str:
        """The signal or exit code of the worker that broke the executor."""
        return executor.why_broken() if isinstance(executor, _Pool) else ""

    def carry(self, argv: Sequence[str], count: int, folder: Path) -> list[PilotHandle]:
        """Subprocesses that get SIGTERM when this process dies."""
        started = [self._spawner.run(argv, PoolDir(folder).pilot_log(i)) for i in range(count)]
        self._carried += started
        return list(started)


class _Pool(ProcessPoolExecutor):
    """A process pool whose workers never import the user's ``__main__``. They are started when they are needed."""

    def _spawn_process(self) -> None:
        with no_main():
            super()._spawn_process()  # type: ignore[misc]  # private, unchanged from Python 3.9 to 3.14

    def why_broken(self) -> str:
        """How the worker ended that broke the pool. The other workers were then ended by SIGTERM."""
        codes = [p.exitcode for p in (self._processes or {}).values()]
        first = next((c for c in codes if c not in (None, 0, -signal.SIGTERM)), None)
        if first is None:
            return ""
        return f"a worker was ended by {signal.Signals(-first).name}" if first < 0 else f"a worker exited with {first}"


def _end(pool: ProcessPoolExecutor) -> None:
    """End workers at once. The results of their tasks are not needed any more."""
    processes = list((pool._processes or {}).values())
    manager: Any = pool._executor_manager_thread  # private, unchanged from Python 3.9 to 3.14
    pool.shutdown(wait=False, cancel_futures=True)
    wake_fork_server()
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(5)
    if manager is not None:
        manager.join(5)  # it holds semaphores, which the resource tracker must see go before it is ended


class _Process:
    """A pilot that is a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._until = math.inf

    def poll(self) -> int | None:
        """Exit code; None: it runs. A pilot that ignores `cancel` gets SIGKILL; its server watchdog then cleans up."""
        if self._process.poll() is None and time.monotonic() > self._until:
            self._process.kill()
            self._process.wait()
        return self._process.poll()

    def cancel(self) -> None:
        """Send SIGTERM, without waiting."""
        if self._process.poll() is None and self._until == math.inf:
            self._until = time.monotonic() + CANCEL_S
            self._process.terminate()


class _Spawner:
    """One thread that starts all pilots and lives as long as the provider.

    The kernel sends the parent-death signal when the *thread* that started the child ends.
    """

    def __init__(self) -> None:
        self._orders: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="campaign-spawner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Its children must have ended before."""
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def run(self, argv: Sequence[str], log: Path) -> _Process:
        """Start a process from the thread."""
        done: queue.Queue[_Process | OSError] = queue.Queue()

        def order() -> None:
            try:
                with log.open("ab") as stream:
                    done.put(
                        _Process(
                            subprocess.Popen(
                                list(argv),
                                stdin=subprocess.DEVNULL,
                                stdout=stream,
                                stderr=subprocess.STDOUT,
                                start_new_session=True,  # Ctrl-C in the terminal is for the driver alone
                                env={**environment(), "CAMPAIGN_PARENT": str(os.getpid())},
                            )
                        )
                    )
            except OSError as error:
                done.put(error)

        self._orders.put(order)
        answer = done.get()
        if isinstance(answer, OSError):
            raise answer
        return answer
