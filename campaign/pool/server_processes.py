"""Watches the child processes of a server: a model whose process ends is lost, and the server does not say so."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


class ServerProcesses:
    """The processes that a server has started itself, as they are now.

    Triton never starts the Python process behind a model again, calls the model READY all the same, and lets the
    request that it died with, and those behind it, wait for their deadline. What a model starts in its turn is the
    model's own: it may come and go.

    Args:
        server: The server's process id.
        silent_s: A process that has been stopped for so long hangs.
    """

    def __init__(self, server: int, silent_s: float) -> None:
        self.silent_s = silent_s
        self._names: dict[tuple[int, str], str] = {}
        self._stopped: dict[int, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            with suppress(OSError, IndexError):
                stat = _stat(pid)
                if int(stat[1]) == server and stat[0] != "Z":
                    argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    self._names[pid, stat[19]] = " ".join([Path(argv[0]).name, *argv[1:2]])

    def look(self) -> str:
        """Why the server is to be replaced: one of its processes has ended or is stopped; nothing while all live."""
        now = time.monotonic()
        for (pid, began), name in self._names.items():
            state = ""
            with suppress(OSError, IndexError):
                stat = _stat(pid)
                state = stat[0] if stat[19] == began else ""  # else the number is another's by now
            if state in ("", "Z", "X"):
                return f"its process {name} has ended"
            if state != "T":
                self._stopped.pop(pid, None)
            elif now - self._stopped.setdefault(pid, now) > self.silent_s:
                return f"its process {name} has been stopped for {now - self._stopped[pid]:.0f} s"
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` after the name, which may hold anything: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
