"""Ends tasks that run too long, also in C code. Writes a note that names the task if the worker dies."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import TaskTimeout
from campaign.worker.stage_log import of_dead

GRACE_S = 5.0  # seconds that a task may take to clean up after its deadline
REARM_S = 1.0  # the watchdog starts a new thread each time: too slow for every task of a few milliseconds
_HEAD = 64  # bytes that name the task; the text of the watchdog or of a crash follows them


class Watch:
    """A small file that names the task of one worker process, and a watchdog with a deadline.

    If the process dies, the file remains and the driver reads it. `faulthandler` writes into it from C code, without
    the interpreter's lock. So it can end code that hangs in C with all signals blocked, and it can write the stack of
    code that crashes.

    Args:
        folder: The folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / f"{socket.gethostname()}-{os.getpid()}").open("wb", buffering=0)
        self._stream.seek(_HEAD)
        self._armed = -REARM_S
        faulthandler.enable(self._stream)

    def task(self, call: str, place: int, deadline_s: float) -> None:
        """A task begins.

        Args:
            call: The name that the driver gave the call.
            place: The place of the task in the call.
            deadline_s: Seconds that the task may take.
        """
        now = time.monotonic()
        if now - self._armed >= REARM_S:
            faulthandler.dump_traceback_later(deadline_s + GRACE_S, exit=True, file=self._stream)
            self._armed = now
        os.pwrite(self._stream.fileno(), f"{call} {place} {deadline_s:g}".ljust(_HEAD - 1).encode() + b"\n", 0)

    def idle(self) -> None:
        """The process waits for its next task."""
        faulthandler.cancel_dump_traceback_later()
        self._armed = -REARM_S
        os.pwrite(self._stream.fileno(), b" " * _HEAD, 0)


_watches: dict[Path, Watch] = {}


def watch(folder: Path) -> Watch:
    """The `Watch` of this process."""
    if folder not in _watches:
        _watches.clear()
        _watches[folder] = Watch(folder)
    return _watches[folder]


class Deadline:
    """Ends a task that takes too long: raises in the main thread, and ends the process if that does not help.

    Args:
        seconds: Seconds that one task may take.
        folder: The folder of the file that names the task. None: this process is not a worker, and is not ended.
        call: The name that the driver gave the call. Empty: this process is not a worker, and is not ended.
    """

    def __init__(self, seconds: float, folder: Path | None = None, call: str = "") -> None:
        self._seconds, self._call = seconds, call
        self._main = threading.current_thread() is threading.main_thread()
        self._watch = watch(folder) if self._main and call and folder is not None else None
        self._before: Any = None
        self._passed = False

    def _late(self, _signum: int, _frame: object) -> None:
        self._passed = True
        raise self._error()

    def _error(self) -> TaskTimeout:
        return late(f"ran longer than {self._seconds:g} s")

    def start(self, place: int = 0) -> None:
        """A task begins."""
        self._passed = False
        if self._watch:
            self._watch.task(self._call, place, self._seconds)
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        """The task has ended."""
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def kept(self) -> None:
        """Refuse the result of a task that ran too long and caught the error: its work was interrupted somewhere.

        Raises:
            TaskTimeout: The task ran too long.
        """
        self.stop()
        if self._passed:
            raise self._error()

    def __enter__(self) -> Deadline:
        if self._main:
            self._before = signal.signal(signal.SIGALRM, self._late)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._main:
            self.stop()
            signal.signal(signal.SIGALRM, self._before)
        if self._watch:
            self._watch.idle()


def late(how: str, where: str = "", log: str = "") -> TaskTimeout:
    """The error of a task beyond its deadline.

    Args:
        how: The message.
        where: The file of the task.
        log: The stack of the worker's threads.
    """
    return TaskTimeout(how, where=where, log=log, remedy="raise 'task_deadline_s', or see where it hangs")


# The driver reads the notes.
@dataclass(frozen=True)
class Death:
    """The note of a worker that died.

    Attributes:
        call: The name of the call that the worker was doing.
        place: The place of the task in the call.
        late: True if the worker was ended because of its deadline.
        how: The cause of death, in words.
        log: The stack of the worker's threads.
    """

    call: str
    place: int
    late: bool
    how: str
    log: str


def deaths(folder: Path, logs: Path | None = None) -> list[Death]:
    """Read and remove the notes of workers that have died since the last call.

    Args:
        folder: The folder of the notes.
        logs: ``logs/stages`` of the run directory, which holds the printed text of workers.
    """
    found = []
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError, ValueError, IndexError):  # another program's file, or removed
            if path.stat().st_size <= _HEAD:
                continue
            text = path.read_bytes().decode(errors="replace")
            path.unlink()
            call, place, deadline = text[:_HEAD].split()
            dump = text[_HEAD:].strip()  # written by faulthandler
            late = dump.startswith("Timeout")
            how = f"ran longer than {deadline} s" if late else dump.splitlines()[0].removeprefix("Fatal Python error: ")
            printed = of_dead(logs, path.name) if logs is not None else None
            log = _tail(dump) + (f"\nprinted output: {printed}" if printed else "")
            found.append(Death(call, int(place), late, how, log))
    return found


def _tail(dump: str, most: int = 12) -> str:
    """The stack of one thread: after a crash the thread that crashed; after a timeout the main thread, the last one."""
    stacks = [part for part in dump.split("\n\n") if " (most recent call first)" in part]
    chosen = next((part for part in stacks if part.startswith("Current thread")), stacks[-1] if stacks else dump)
    return "\n".join(chosen.splitlines()[:most])


def oom_kills() -> int:
    """Number of processes that the kernel has ended for lack of memory since the machine started."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0
