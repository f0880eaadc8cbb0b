"""Enforces the deadlines of tasks, also in C code, and writes a note that names the task if the worker dies."""

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

from campaign.errors import CampaignError, StageError
from campaign.worker.stage_log import of_dead

GRACE_S = 5.0  # after its deadline a task may clean up for so long
REARM_S = 1.0  # the watchdog is a thread of its own each time: not for every task of a few milliseconds
_HEAD = 64  # bytes that say which task it is; what the watchdog or a crash says comes behind them


class Watch:
    """What one worker process would leave behind: a small file that names its task, and a watchdog with a deadline.

    `faulthandler` does both in C, without the interpreter's lock: code that hangs in C with all signals blocked is
    ended, and code that crashes says where.

    Args:
        folder: Takes the file.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / f"{socket.gethostname()}-{os.getpid()}").open("wb", buffering=0)
        self._stream.seek(_HEAD)
        self._armed = -REARM_S
        faulthandler.enable(self._stream)

    def task(self, call: str, place: int, deadline_s: float) -> None:
        """A task begins: which of which call."""
        now = time.monotonic()
        if now - self._armed >= REARM_S:
            faulthandler.dump_traceback_later(deadline_s + GRACE_S, exit=True, file=self._stream)
            self._armed = now
        os.pwrite(self._stream.fileno(), f"{call} {place} {deadline_s:g}".ljust(_HEAD - 1).encode() + b"\n", 0)

    def idle(self) -> None:
        """Nothing is being done."""
        faulthandler.cancel_dump_traceback_later()
        self._armed = -REARM_S
        os.pwrite(self._stream.fileno(), b" " * _HEAD, 0)


_watches: dict[Path, Watch] = {}


def watch(folder: Path) -> Watch:
    """This process's own."""
    if folder not in _watches:
        _watches.clear()
        _watches[folder] = Watch(folder)
    return _watches[folder]


class Deadline:
    """Ends a task that takes too long: raises in the main thread, and where that is of no use ends the process.

    Args:
        seconds: Of one task.
        folder: Where the process says what it does; None: it is not a worker, and is not ended.
        call: The call, as the driver knows it.
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

    def _error(self) -> StageError:
        return late(f"ran longer than {self._seconds:g} s")

    def start(self, place: int = 0) -> None:
        """A task begins."""
        self._passed = False
        if self._watch:
            self._watch.task(self._call, place, self._seconds)
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        """It has ended."""
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def kept(self) -> None:
        """Refuse what a task has returned after it caught what was raised in it: it was cut short somewhere.

        Raises:
            StageError: It was late.
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


def late(how: str, where: str = "", log: str = "") -> StageError:
    """The error of a task beyond its deadline.

    Permanent: each try takes as long as the deadline, and nothing says that the next one would end; what hung because
    a machine did is tried again by the next run, which does nothing else.
    """
    error = StageError(how, where=where, log=log, remedy="raise 'task_deadline_s', or see where it hangs")
    error.__dict__["late"] = True
    return error


def is_late(error: CampaignError) -> bool:
    """Whether it is one."""
    return bool(getattr(error, "late", False))


# What the driver reads.
@dataclass(frozen=True)
class Death:
    """What a worker that died has left.

    Attributes:
        call: The call it was in.
        place: Of the task in it.
        late: Whether it was ended because of its deadline.
        how: In words.
        log: Where its threads stood.
    """

    call: str
    place: int
    late: bool
    how: str
    log: str


def deaths(folder: Path, logs: Path | None = None) -> list[Death]:
    """What workers that died have left since this was last asked; each is told once.

    Args:
        folder: Where workers say what they do.
        logs: ``logs/stages`` of the run directory: where what they have printed lies.
    """
    found = []
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError, ValueError, IndexError):  # foreign, or gone
            if path.stat().st_size <= _HEAD:
                continue
            text = path.read_bytes().decode(errors="replace")
            path.unlink()
            call, place, deadline = text[:_HEAD].split()
            said = text[_HEAD:].strip()
            late = said.startswith("Timeout")
            how = f"ran longer than {deadline} s" if late else said.splitlines()[0].removeprefix("Fatal Python error: ")
            printed = of_dead(logs, path.name) if logs is not None else None
            log = _tail(said) + (f"\nprinted output: {printed}" if printed else "")
            found.append(Death(call, int(place), late, how, log))
    return found


def _tail(said: str, most: int = 12) -> str:
    """The lines of the thread that matters: of a crash the one that says so; of a hang the main one, which is last."""
    stacks = [part for part in said.split("\n\n") if " (most recent call first)" in part]
    chosen = next((part for part in stacks if part.startswith("Current thread")), stacks[-1] if stacks else said)
    return "\n".join(chosen.splitlines()[:most])


def oom_kills() -> int:
    """Processes the kernel has ended on this machine for lack of memory, since it was started."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0
