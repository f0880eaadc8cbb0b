"""The state of one worker process: its job, its open files, its connection to the pool."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from campaign.errors import StageError
from campaign.inference.client import Servers, connect
from campaign.planning.task import Task
from campaign.protocols import Source
from campaign.worker.job import Job, JobTicket


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of arrays it has let go, instead of asking the kernel for zeroed pages again.

    Ranges of a file need the same arrays one after the other; their page faults took up to a third of the time. The
    numbers are glibc's ``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` (32 MiB: the most it takes).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 128 << 20)
        libc.mallopt(-3, 32 << 20)


@cache
def worker_of(ticket: JobTicket) -> Worker:
    """The state of this process for a run: made at its first task, kept for the next ones."""
    _keep_freed_memory()
    return Worker(ticket.job())


class Worker:
    """What a worker process keeps between tasks of one run: stages, and a handle on the pool."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stages: dict[str, Any] = {}
        self._readers: dict[str, Any] = {}
        self._servers: Servers | None = None
        self._touched: dict[tuple[Any, ...], set[str]] = {}

    def stage(self, name: str) -> Callable[..., Any]:
        """A stage, loaded once."""
        if name not in self._stages:
            code = self.job.stages[name]
            try:
                self._stages[name] = code.load()
            except Exception as error:  # process boundary: the user's module may raise anything
                raise StageError(
                    f"{code.where} cannot be loaded here: {type(error).__name__}: {error}", where=f"stage {name}"
                ) from error
        return self._stages[name]  # type: ignore[no-any-return]

    @property
    def servers(self) -> Servers | None:
        """The pool, None for a campaign without one."""
        if self._servers is None and self.job.servers is not None:
            self._servers = connect(self.job.servers)
        return self._servers

    def connected(self) -> Servers:
        """The pool, where the campaign has one."""
        assert self.servers is not None
        return self.servers

    @property
    def by_twin(self) -> int:
        """Rows that this process has answered itself, by a model's local twin."""
        return self._servers.rows["local_twin"] if self._servers else 0

    @property
    def parked(self) -> int:
        """Rows of this process that no server was there for."""
        return self._servers.rows["parked"] if self._servers else 0

    @property
    def waited_s(self) -> float:
        """Seconds this process has waited for servers."""
        return self._servers.waited_s if self._servers else 0.0

    def open(self, task: Task) -> Any:
        """The source of a task's events; what the same steps used of other files is known to it from the start."""
        s = task.source
        if s.dataset not in self._readers:
            self._readers[s.dataset] = self.job.readers[s.dataset].thing()
        source = self._readers[s.dataset](s.file.url, s.tree, dict(s.branches))
        if hasattr(source, "touched"):
            source.touched.update(self._touched.get(_reading(task), ()))
        return source

    def remember(self, task: Task, source: Source) -> None:
        """What a task has used of its file, the next one with the same steps will use too."""
        if hasattr(source, "touched"):
            self._touched.setdefault(_reading(task), set()).update(source.touched)


def _reading(task: Task) -> tuple[Any, ...]:
    """What two tasks have in common that read the same branches."""
    return (task.source.dataset, task.source.tree, task.source.branches, tuple(s.stage for s in task.steps))
