"""Holds the state of one worker process: its job, its loaded stages and readers, its connection to the pool."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from campaign.errors import StageError
from campaign.inference.client import Servers, connect
from campaign.planning.task import Task
from campaign.protocols import Source
from campaign.storage.rundir import RunDir
from campaign.util.logs import keep_log
from campaign.worker.job import Job, JobTicket
from campaign.worker.stage_errors import at_stage, own_errors

logger = logging.getLogger(__name__)


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of arrays it has freed, instead of asking the kernel for zeroed pages again.

    Each range of a file needs arrays of the same size. Without this setting, page faults took up to a third of the
    time. The numbers are glibc's ``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` (glibc allows at most 32 MiB).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 128 << 20)
        libc.mallopt(-3, 32 << 20)


@cache
def worker_of(ticket: JobTicket) -> Worker:
    """The state of this process for a run. The first task creates it, and the next tasks use it again."""
    _keep_freed_memory()
    rundir = RunDir(Path(ticket.path).parent)
    if rundir.logs.is_dir():  # a look before the run has no run directory
        keep_log(rundir.worker_log(f"{platform.node()}-{os.getpid()}"))
        logger.info("worker started, job %s", ticket.digest[:16])
    return Worker(ticket.job())


class Worker:
    """Keeps stages, readers and the connection to the pool between the tasks of one run.

    Args:
        job: The job of the run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stages: dict[str, Any] = {}
        self._readers: dict[str, Any] = {}
        self._servers: Servers | None = None
        self._touched: dict[tuple[Any, ...], set[str]] = {}

    def stage(self, name: str) -> Callable[..., Any]:
        """A stage. It is loaded at the first call.

        Raises:
            StageError: The user's module cannot be imported on this machine.
        """
        if name not in self._stages:
            code = self.job.stages[name]

            def not_loaded(error: Exception | SystemExit) -> StageError:
                text = f"{code.where} cannot be loaded here: {type(error).__name__}: {error}"
                return StageError(text, where=f"stage {name}")

            with own_errors(not_loaded), at_stage(name):
                self._stages[name] = code.load()
        return self._stages[name]  # type: ignore[no-any-return]

    @property
    def servers(self) -> Servers | None:
        """The connection to the pool. None for a campaign without servers."""
        if self._servers is None and self.job.servers is not None:
            self._servers = connect(self.job.servers)
        return self._servers

    def connected(self) -> Servers:
        """The connection to the pool of a campaign that has servers."""
        assert self.servers is not None
        return self.servers

    @property
    def by_twin(self) -> int:
        """Number of rows that local models in this process have answered."""
        return self._servers.rows["local_twin"] if self._servers else 0

    @property
    def parked(self) -> int:
        """Number of rows of this process that no server was available for."""
        return self._servers.rows["parked"] if self._servers else 0

    @property
    def waited_s(self) -> float:
        """Seconds that this process has waited for servers."""
        return self._servers.waited_s if self._servers else 0.0

    def open(self, task: Task) -> Any:
        """Open the file of a task and return its source.

        The source is told which branches the same steps used in earlier files. A source without ``touched`` is not.
        """
        s = task.source
        if s.dataset not in self._readers:
            self._readers[s.dataset] = self.job.readers[s.dataset].thing()
        source = self._readers[s.dataset](s.file.url, s.tree, dict(s.branches))
        if hasattr(source, "touched"):
            source.touched.update(self._touched.get(_reading(task), ()))
        return source

    def remember(self, task: Task, source: Source) -> None:
        """Note the branches that a task used of its file. The next task with the same steps will use them too."""
        if hasattr(source, "touched"):
            self._touched.setdefault(_reading(task), set()).update(source.touched)


def _reading(task: Task) -> tuple[Any, ...]:
    """A key that is equal for tasks that read the same branches."""
    return (task.source.dataset, task.source.tree, task.source.branches, tuple(s.stage for s in task.steps))


class AnsweredRows:
    """Counts the rows that a process sends from now on, by the way they are answered.

    Args:
        servers: The connection to the pool, None without a pool.
    """

    def __init__(self, servers: Servers | None) -> None:
        self._servers = servers
        self._before = Counter(servers.rows) if servers else Counter[str]()

    @property
    def rungs(self) -> Counter[str]:
        """Number of rows by answer (`campaign.inference.client.RUNGS`)."""
        return Counter(self._servers.rows) - self._before if self._servers else Counter()

    @property
    def refused(self) -> set[str]:
        """Servers whose identity this process did not accept, and the reasons."""
        return self._servers.refused if self._servers else set()
