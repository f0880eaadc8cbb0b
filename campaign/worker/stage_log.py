"""Writes what stages print, and their warnings, to a log per input file, and never to the terminal.

From its first task on, a worker's standard output and error go to one file of the worker, also from C code. At the end
of a task, its text is moved to the log of its input file. The text of a worker that dies stays in the worker's file.
Text beyond the limit is dropped, so that a stage that prints for each row does not fill the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import linecache
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from campaign.util.user_code import PREFIX

LIMIT = 256 << 10  # bytes of one task
LOG_LIMIT = 1 << 20  # bytes of one log, for all runs together
WORKER_LIMIT = 64 << 20  # bytes of one worker; after them the limit of a task is LEAST
LEAST = 4 << 10
LOOK_S = 0.5  # seconds between two checks of the text from C code

_mine: dict[Path, StageLog] = {}


def log_of(folder: Path, url: str, dataset: str) -> Path:
    """The log of one input file.

    Args:
        folder: ``logs/stages`` of the run directory.
        url: The file.
        dataset: Its dataset.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", url.rstrip("/").rpartition("/")[2])[:80]
    digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()  # a name may hold bytes that are no text
    return folder / dataset / f"{name}-{digest[:6]}.log"


class StageLog:
    """Takes standard output and error of this process from now on.

    Args:
        folder: ``logs/stages`` of the run directory.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._fd = os.open(
            folder / f".{socket.gethostname()}-{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600
        )
        self._cut = self._closed = False
        self._lock = threading.RLock()  # the thread that checks the text must not run during a move
        self._limit, self._printed, self._moved = LIMIT, 0, 0
        _flush()
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)
        sys.stdout, sys.stderr = self._stream(1), self._stream(2)
        warnings.showwarning = _show_warning
        threading.Thread(target=self._look, name="campaign-stage-log", daemon=True).start()

    def _stream(self, fd: int) -> TextIO:
        raw = io.BufferedWriter(_Bounded(fd, self))
        # Line-buffered: the text survives a crash.
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def _look(self) -> None:
        while not self._closed:
            time.sleep(LOOK_S)
            self.trim()

    def room(self, size: int) -> int:
        """How many of ``size`` more bytes the task may still write."""
        self._printed += size
        return 0 if self._cut else max(0, min(size, size + self._limit - self._printed))

    def trim(self) -> None:
        """Drop the text of the rest of the task, if there is too much text."""
        with self._lock:
            if not self._closed and os.fstat(self._fd).st_size > self._limit:
                self.drop()

    def close(self) -> None:
        """Close the file: another log replaces this one."""
        with self._lock:
            self._closed = True
            os.close(self._fd)

    def drop(self) -> None:
        """Drop the text of the rest of the task."""
        with self._lock:
            if self._cut or self._closed:
                return
            self._cut = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def printed(self) -> bool:
        """True if there is text since the last `move`."""
        _flush()
        return self._cut or os.fstat(self._fd).st_size > 0

    def move(self, path: Path, title: str) -> bool:
        """Move the text to a log. True if there was text.

        Args:
            path: The log.
            title: The line above the text.
        """
        with self._lock:
            return self._move(path, title)

    def _move(self, path: Path, title: str) -> bool:
        _flush()
        size, cut = os.fstat(self._fd).st_size, self._cut
        if cut:
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
            self._cut = False
        limit, self._printed = self._limit, 0
        if not size and not cut:
            return False
        text = os.pread(self._fd, limit, 0)
        if cut or size > limit:
            text = _whole(text) + f"\n[cut: stages of one file may print {limit >> 10} KiB]\n".encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, f"--- {title}\n".encode() + text)
        os.ftruncate(self._fd, 0)
        self._moved += len(text)
        if self._moved > WORKER_LIMIT:
            self._limit = LEAST
        return True


class _Bounded(io.FileIO):
    """Standard output or error, which drops text beyond the limit at each write."""

    def __init__(self, fd: int, log: StageLog) -> None:
        super().__init__(fd, "w", closefd=False)
        self._log = log

    def write(self, data: Any, /) -> int:
        """Write the text, or drop it and report it as written."""
        text = memoryview(data).cast("B")
        room = self._log.room(len(text))
        if room == len(text):
            return super().write(text)
        super().write(text[:room])
        self._log.drop()
        return len(text)


def _whole(text: bytes) -> bytes:
    """The text without an incomplete character at its end."""
    end = len(text)
    while end and len(text) - end < 3 and text[end - 1] & 0xC0 == 0x80:  # the bytes of a character after its first
        end -= 1
    if not end or text[end - 1] < 0xC0:
        return text
    wanted = 2 + (text[end - 1] >= 0xE0) + (text[end - 1] >= 0xF0)
    return text if len(text) - end + 1 >= wanted else text[: end - 1]


def _append(path: Path, text: bytes) -> None:
    """Add text to a log. If the log becomes too long, its older half is removed."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size + len(text) > LOG_LIMIT:
            kept = path.read_bytes()[-LOG_LIMIT // 2 :].partition(b"\n")[2]
            path.write_bytes(b"[older lines were removed]\n" + kept)
    with path.open("ab") as log:
        log.write(text)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Like `warnings.showwarning`, but adds the line of the user's file that called the library."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    frame = sys._getframe(1)
    while frame.f_back is not None and not str(frame.f_globals.get("__name__", "")).startswith(PREFIX):
        frame = frame.f_back
    code = frame.f_code.co_filename
    if str(frame.f_globals.get("__name__", "")).startswith(PREFIX) and (code, frame.f_lineno) != (filename, lineno):
        text += f"  called from {code}:{frame.f_lineno}: {linecache.getline(code, frame.f_lineno).strip()}\n"
    (file or sys.stderr).write(text)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  once per task: suppress() would cost several times as much
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass


def stage_log(folder: Path, call: str) -> StageLog | None:
    """The log of this process. None if ``call`` is empty: the process is not a worker, and keeps its terminal."""
    if not call or threading.current_thread() is not threading.main_thread():
        return None
    if folder not in _mine:
        before = [_mine.pop(other) for other in list(_mine)]
        _mine[folder] = StageLog(folder)
        for log in before:  # standard output goes to the new log now
            log.close()
    return _mine[folder]


def trim() -> None:
    """See `StageLog.trim`. Does nothing if this process has no log."""
    for mine in _mine.values():
        mine.trim()


def logs(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of each log."""
    found = {}
    for path in folder.glob("**/*.log"):
        with contextlib.suppress(OSError):
            found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def of_dead(folder: Path, worker: str) -> Path | None:
    """Rename the file of a dead worker to its log. Returns the log; None if the worker printed nothing.

    Args:
        folder: ``logs/stages`` of the run directory.
        worker: ``HOST-PID``.
    """
    path, named = folder / f".{worker}", folder / f"worker-{worker}.log"
    with contextlib.suppress(OSError):
        if path.stat().st_size:
            path.rename(named)
            return named
    return None


def tidy(folder: Path, before: Mapping[Path, tuple[int, int]] | None = None) -> int:
    """Called after the workers have ended: rename the files of dead workers to logs, and remove empty files.

    Args:
        folder: ``logs/stages`` of the run directory.
        before: The `logs` at the start of the run.

    Returns:
        The number of logs that are new or have changed since.
    """
    for path in folder.glob(".*"):
        if of_dead(folder, path.name[1:]) is None:
            path.unlink(missing_ok=True)
    return len(logs(folder).items() - (before or {}).items())


@contextlib.contextmanager
def silent(path: Path | None = None) -> Iterator[None]:
    """Keep the text of stages from the terminal, in a child that only tries them. The run will log the same text.

    Args:
        path: Takes the text, for the error of a stage that ends the child. None: the text is dropped.
    """
    _flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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
