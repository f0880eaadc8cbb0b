"""The executor of provider ``parsl``: a HighThroughputExecutor that ends with its driver and notices lost blocks."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import parsl.providers
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

from campaign.errors import ProviderError
from campaign.supervision import run_registry
from campaign.supervision.identity import VARIABLE, mark, marked

WATCH_S = 1.0


def remember_job(provider: Any, job: Any, name: str) -> None:
    """Note a batch job of this run, so that ``campaign reap`` finds it after the driver was killed."""
    # Called with an empty number before the job is submitted, so that a driver that is killed then has noted the name.
    if not isinstance(provider, parsl.providers.LocalProvider):  # its jobs are processes of this machine
        run_registry.remember(job=run_registry.BatchJob(type(provider).__name__, str(job), name))


def _beside_python(program: str) -> str:
    """The path of a program of this environment, which may not be on PATH."""
    own = Path(sys.executable).parent / program
    return str(own) if own.exists() else program


def worker_command() -> str:
    """The command that starts the workers of a block."""
    program, _, arguments = DEFAULT_LAUNCH_CMD.partition(" ")
    return f"{shlex.join([sys.executable, '-m', 'campaign.providers.block', _beside_python(program)])} {arguments}"


def interchange_command() -> list[str]:
    """The command that starts Parsl's interchange. The interchange ends with this process."""
    # SPT_NOENV: without it the process title overwrites the environment, which holds the mark of this run.
    command = ["env", f"{VARIABLE}={mark()}", "SPT_NOENV=1", _beside_python("interchange.py")]
    # Parsl's interchange does not watch its parent: it and its workers would run on after the driver was killed.
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    # A session of its own: Ctrl-C in the terminal reaches only the driver, which then ends everything in order.
    return ["setsid", *command] if shutil.which("setsid") else command


class HtexExecutor(Executor):
    """A HighThroughputExecutor with the interface of ``concurrent.futures``. It breaks when all its blocks are lost."""

    def __init__(self, htex: Any, blocks: int) -> None:
        self._htex, self._blocks = htex, blocks
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="campaign-htex", daemon=True)

    def start(self) -> None:
        """Start the interchange and request the blocks.

        Raises:
            ProviderError: The provider refused a block.
        """
        remember_job(self._htex.provider, "", self._htex.label)
        self._htex.start()
        if self._htex.cert_dir:
            run_registry.remember(secret=Path(self._htex.cert_dir))
        with marked():
            started = self._htex.scale_out_facade(self._blocks)
        for job in self._htex.blocks_to_job_id.values():
            remember_job(self._htex.provider, job, self._htex.label)
        if not started:
            said = "; ".join(str(s.message) for s in self._htex.status_facade.values())
            self.end()
            raise ProviderError(f"no block of workers was given: {said}", where=type(self._htex.provider).__name__)
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call.

        Raises:
            BrokenExecutor: All blocks are lost.
        """
        if self._htex.bad_state_is_set:
            raise BrokenExecutor(str(self._htex.executor_exception))
        future: Future[Any] = self._htex.submit(fn, {}, *args, **kwargs)
        return future

    def _watch(self) -> None:
        """Break the executor when all blocks have ended. Parsl itself would wait for ever."""
        while not self._over.wait(WATCH_S):
            jobs = list(self._htex.blocks_to_job_id.values())
            statuses = self._htex.provider.status(jobs) if jobs else []
            if statuses and all(s.terminal for s in statuses) and not self._over.is_set():
                time.sleep(0.2)
                said = "; ".join(filter(None, (str(s.message or "") for s in statuses)))
                text = f"all blocks of workers have ended {said}{_stderr(statuses)}"
                self._htex.set_bad_state_and_fail_all(BrokenExecutor(text))
                return

    def end(self) -> None:
        """Give the blocks back and end the interchange."""
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with contextlib.suppress(Exception):
            self._htex.scale_in_facade(len(self._htex.blocks_to_job_id))
        self._htex.shutdown()
        if self._htex.cert_dir:  # keys that nobody needs any more
            shutil.rmtree(self._htex.cert_dir, ignore_errors=True)
        process = self._htex.interchange_proc
        if process is not None:
            process.wait(5)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``concurrent.futures.Executor``."""
        del wait, cancel_futures
        self.end()


def _stderr(statuses: Sequence[Any]) -> str:
    for status in statuses:
        text = str(getattr(status, "stderr_summary", "") or "").strip()
        if text:
            return ": " + text[-800:]
    return ""
