"""The driver watchdog: a process that ends what a killed driver has left running.

    python -m campaign.supervision.driver_watchdog IDENTITY_OF_THE_DRIVER

If it is killed too, pilots end by their lease and batch jobs by their time limit. Server watchdogs clean up behind
servers. ``campaign reap`` finds the rest.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from campaign.supervision import reap, run_registry
from campaign.supervision.identity import VARIABLE, Mark, environment
from campaign.supervision.watchdog import DetachedProcess, listen

SELF_S = (
    2.0  # workers, pilots and server watchdogs see a driver go, and are quicker than anybody who has to look for them
)


class _Held:
    """The driver watchdog of this process. All campaigns of the process share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.pid = 0
        self.process: DetachedProcess | None = None
        self.disorderly = False  # something may be left: `campaign reap` must know of it
        self.said = False


_held = _Held()


@contextlib.contextmanager
def hold(folder: Path, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep a driver watchdog while a campaign or a pool of this process lives.

    The entry of this process for ``campaign reap`` is removed at the end, unless an exception was raised now or at an
    earlier end: a job that could not be cancelled must be found.

    Args:
        folder: The run directory, or the pool's folder.
        say: Called once if the user's state directory cannot be written. Everything else works without it.

    Raises:
        OSError: The driver watchdog cannot be started.
    """
    with _held.lock:
        if _held.pid != os.getpid():  # forked from a driver: its driver watchdog is not ours
            _held.process, _held.users, _held.pid, _held.disorderly = None, 0, os.getpid(), False
        if _held.process is None:
            process = DetachedProcess("campaign.supervision.driver_watchdog", environment())
            process.tell()
            _held.process = process
        _held.users += 1
        refused = run_registry.remember(folder=folder)
    if refused and say is not None and not _held.said:
        _held.said = True
        say(f"cannot be written down for 'campaign reap': {refused}")
    try:
        yield
    except BaseException:
        _held.disorderly = True
        raise
    finally:
        with _held.lock:
            _held.users -= 1
            if _held.users == 0 and _held.process is not None:
                _held.process.end()
                _held.process = None
                if not _held.disorderly:
                    run_registry.forget()


def beat() -> None:
    """Start the driver watchdog again if it was killed. Called several times a second while a campaign runs."""
    with _held.lock, contextlib.suppress(OSError):  # no process can be started now: perhaps a second later
        if _held.process is not None and _held.pid == os.getpid():
            _held.process.beat()


def main() -> None:
    """Entry point of ``python -m campaign.supervision.driver_watchdog``."""
    import psutil  # noqa: F401  now, because the file system with the library may be away when it is needed

    heard = listen(sys.argv[1:])
    mark = Mark.parse(os.environ.get(VARIABLE, ""))
    if heard is None or mark is None:
        return
    until = time.monotonic() + SELF_S
    while reap.processes(mark.campaign) and time.monotonic() < until:
        time.sleep(0.1)
    reap.reap(only=mark)


if __name__ == "__main__":
    main()
