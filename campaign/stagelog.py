"""What stages print, and what warns inside them, goes to a log of their input file, and never to the terminal.

A worker's standard output and error are one file of its own from its first task on, for code in C too. What a task has
added there is moved to the log of its input file when the task has ended; of a worker that dies it stays where it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

LIMIT = 256 << 10  # bytes of one task; a stage that prints for each row must not fill the disk

_mine: dict[Path, StageLog] = {}


def log_of(folder: Path, url: str, dataset: str) -> Path:
    """The log of one input file.

    Args:
        folder: ``logs/stages`` of the run directory.
        url: The file.
        dataset: Its dataset.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", url.rstrip("/").rpartition("/")[2])[:80]
    return folder / dataset / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:6]}.log"


class StageLog:
    """Standard output and error of this process, from now on.

    Args:
        folder: ``logs/stages`` of the run directory.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._fd = os.open(
            folder / f".{socket.gethostname()}-{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600
        )
        self._cut = False
        _flush()
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed survives a crash

    def trim(self) -> None:
        """Let what is printed go nowhere for the rest of the task, once it is too much."""
        if not self._cut and os.fstat(self._fd).st_size > LIMIT:
            self._cut = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def printed(self) -> bool:
        """Whether anything has been printed since the last `move`."""
        _flush()
        return self._cut or os.fstat(self._fd).st_size > 0

    def move(self, path: Path, title: str) -> bool:
        """Move what has been printed to a log; whether there was anything.

        Args:
            path: The log.
            title: The line above it.
        """
        _flush()
        size = os.fstat(self._fd).st_size
        if self._cut:
            self._cut = False
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
        if not size:
            return False
        text = os.pread(self._fd, LIMIT, 0)
        more = f"\n[cut: stages of one file may print {LIMIT >> 10} KiB]\n" if size > LIMIT else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            log.write(f"--- {title}\n".encode() + text + more.encode())
        os.ftruncate(self._fd, 0)
        return True


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  once per task: suppress() would cost several times as much
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass


def stage_log(folder: Path, call: str) -> StageLog | None:
    """This process's own; None where it is no worker (``call`` is empty), so that its terminal is its own."""
    if not call or threading.current_thread() is not threading.main_thread():
        return None
    if folder not in _mine:
        _mine.clear()
        _mine[folder] = StageLog(folder)
    return _mine[folder]


def trim() -> None:
    """See `StageLog.trim`; nothing where this process has none."""
    for mine in _mine.values():
        mine.trim()


def tidy(folder: Path) -> int:
    """After the workers have ended: name what those that died have left, remove the empty files; the number of logs."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if path.stat().st_size:
                path.rename(folder / f"worker-{path.name[1:]}.log")
            else:
                path.unlink()
    return sum(1 for _ in folder.glob("**/*.log"))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """In a child that only tries stages: what they print is printed by the run itself, into its logs."""
    _flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        _flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for fd in (*kept, nowhere):
            os.close(fd)
