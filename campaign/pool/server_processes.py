"""Watches the child processes of a server: a model whose process ends is lost, and the server does not say so."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil


class ServerProcesses:
    """The child processes of a server that run when this object is made.

    Triton never starts the Python process behind a model again. It calls the model READY all the same, and the requests
    that were in this process wait for their deadline. Processes that a model starts belong to the model: they may come
    and go, and are not watched.

    Args:
        server: Process id of the server.
        silent_s: A process that has been stopped for so long hangs.
    """

    def __init__(self, server: int, silent_s: float) -> None:
        self.silent_s = silent_s
        self._names: dict[psutil.Process, str] = {}
        self._stopped: dict[psutil.Process, float] = {}
        with suppress(psutil.Error):
            for child in psutil.Process(server).children():
                with suppress(psutil.Error):
                    if child.status() != psutil.STATUS_ZOMBIE:
                        argv = child.cmdline() or [child.name()]
                        self._names[child] = " ".join([Path(argv[0]).name, *argv[1:2]])

    def look(self) -> str:
        """Why the server must be replaced: one of its processes has ended or is stopped. Empty: all of them run."""
        now = time.monotonic()
        for process, name in self._names.items():
            try:
                # is_running is False if the process id belongs to another process by now
                status = process.status() if process.is_running() else psutil.STATUS_DEAD
            except psutil.NoSuchProcess:
                status = psutil.STATUS_DEAD
            if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return f"its process {name} has ended"
            if status != psutil.STATUS_STOPPED:
                self._stopped.pop(process, None)
            elif now - self._stopped.setdefault(process, now) > self.silent_s:
                return f"its process {name} has been stopped for {now - self._stopped[process]:.0f} s"
        return ""
