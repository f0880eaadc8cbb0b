"""What outlives a driver for as long as tidying up takes: a process that ends what the driver could not end itself.

    python -m campaign.keeper IDENTITY_OF_THE_DRIVER

It is the first of several nets: where it is killed too, pilots end by their lease and jobs by their limit, each
server's guardian sweeps, and ``campaign reap`` finds the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from campaign import reap, runs
from campaign.apart import Apart, listen
from campaign.identity import VARIABLE, Mark, environment

SELF_S = 2.0  # workers, pilots and guardians see a driver go, and are quicker than anybody who has to look for them


class _Held:
    """One keeper for all campaigns of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.pid = 0
        self.apart: Apart | None = None
        self.remove: list[str] = []
        self.said = False


_held = _Held()


@contextlib.contextmanager
def hold(folder: Path, *, remove: tuple[Path, ...] = (), say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Have a keeper for as long as a campaign or a pool of this process lives.

    Args:
        folder: The run directory, or the pool's folder.
        remove: Files that must not outlive the driver.
        say: Told once if the user's state directory cannot be written; nothing else depends on it.
    """
    with _held.lock:
        if _held.pid != os.getpid():  # forked from a driver: its keeper is not ours
            _held.apart, _held.users, _held.pid, _held.remove = None, 0, os.getpid(), []
        _held.users += 1
        _held.remove += map(str, remove)
        _held.apart = _held.apart or Apart("campaign.keeper", environment())
        _held.apart.tell(remove=_held.remove)
        refused = runs.remember(folder=folder)
    if refused and say is not None and not _held.said:
        _held.said = True
        say(f"cannot be written down for 'campaign reap': {refused}")
    try:
        yield
    finally:
        with _held.lock:
            _held.users -= 1
            _held.remove = [r for r in _held.remove if r not in set(map(str, remove))]
            if _held.users == 0 and _held.apart is not None:
                _held.apart.end()
                _held.apart = None
                runs.forget()


def beat() -> None:
    """Called several times a second while a campaign runs: a keeper that was killed is started again."""
    with _held.lock:
        if _held.apart is not None:
            _held.apart.beat()


def main() -> None:
    """Entry point of ``python -m campaign.keeper``."""
    heard = listen(sys.argv[1:])
    mark = Mark.parse(os.environ.get(VARIABLE, ""))
    if heard is None or mark is None:
        return
    _, known = heard
    for path in known.get("remove", ()):
        shutil.rmtree(path, ignore_errors=True) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
    until = time.monotonic() + SELF_S
    while reap.processes(mark.campaign) and time.monotonic() < until:
        time.sleep(0.1)
    reap.reap(only=mark)


if __name__ == "__main__":
    main()
