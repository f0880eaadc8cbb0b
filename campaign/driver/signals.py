"""Handles signals that stop a run in order, and a terminal that was closed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from campaign.supervision.forkserver import wake_fork_server
from campaign.util.notebook import in_kernel


@contextmanager
def signals() -> Iterator[threading.Event]:
    """INT, TERM and HUP ask for an orderly end, once; a second one ends this process, and its children with it.

    Where HUP was ignored when this process began it stays so: ``nohup`` means it. INT is not left ignored: a shell does
    that to whatever it starts in the background, and whoever sends one all the same means it.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    seen: list[int] = []

    def handler(signum: int, _frame: object) -> None:
        if seen and signum == signal.SIGINT and in_kernel():
            return  # people press Interrupt twice; the notebook's variables must not be lost
        if seen:
            os._exit(130)  # pilots, workers, server watchdogs and the driver watchdog see this process go and clean up
        seen.append(signum)  # before `set`, which holds a lock: the next signal may come while this one is handled
        asked.set()
        wake_fork_server()  # this very thread may wait for it
        if signum == signal.SIGHUP:
            leave_terminal()

    kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    wanted = [signal.SIGINT, signal.SIGTERM] if kept else [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {s: signal.signal(s, handler) for s in wanted}
    try:
        yield asked
    finally:
        for s, old in before.items():
            signal.signal(s, old)


def leave_terminal() -> None:
    """Say nothing more to a terminal that has been closed: each word would be an error."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        try:
            termios.tcgetattr(fd)
        except termios.error as error:
            if error.args[0] != errno.EIO:  # no terminal: a file or a pipe is written to as before
                continue
        except OSError:
            continue
        with contextlib.suppress(OSError):
            os.dup2(null, fd)
    os.close(null)
