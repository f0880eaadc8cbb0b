"""Ends the process group of a server and removes its files: shared memory, sockets, private folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from campaign.supervision.identity import OWNER, VARIABLE, Identity, Mark, mark_of, send, start_time


def regions(shm_prefix: str) -> list[Path]:
    """A server's regions in the node's ``/dev/shm``. Only files of this user: other users may use the same names."""
    found = []
    for path in Path("/dev/shm").glob(f"{shm_prefix}*") if len(shm_prefix) > 12 else ():  # noqa: S108  Triton's place
        with contextlib.suppress(OSError):  # gone already
            found += [path] if path.lstat().st_uid == os.geteuid() else []
    return found


def sweep(place: str, shm_prefix: str, folders: Iterable[str] = ()) -> None:
    """Remove a server's shared memory, the empty folders that it has made elsewhere, and its private folder.

    The file that names the owner of the private folder is removed last. If this process is killed, another one can go
    on.
    """
    for path in regions(shm_prefix):
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in folders:
        with contextlib.suppress(OSError):  # gone already, or not empty and so not ours to remove
            Path(folder).rmdir()
    with contextlib.suppress(OSError):
        for path in Path(place).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != OWNER:
                path.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def end_group(leader: Identity | None, mark: Mark | None) -> None:
    """Kill the process group and the session of a leader, and never another group with the same number.

    While the leader exists, the number is the leader's own. Later another group of this user may have the number. Then
    only processes with the campaign's mark are killed.
    """
    if leader is None or not leader.here():
        return
    if Path(f"/proc/{leader.pid}").exists():
        if start_time(leader.pid, zombie=True) != leader.start:
            return  # the group is gone: while a group exists, the kernel gives its number to no process
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        left = [send(who, signal.SIGKILL) for who in _members(leader.pid, mark)]
        if not any(left) and not leader.alive():
            break
        time.sleep(0.02)


def _members(group: int, mark: Mark | None) -> list[Identity]:
    """Processes of a process group or session that carry the mark of a campaign."""
    import psutil  # not at the top: the pilot imports this module at its start, and seldom needs this

    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it ended while we looked
            who = Identity.of(pid)
            if group in (os.getpgid(pid), os.getsid(pid)):
                its = mark_of(pid)
                found += [who] if mark is not None and its is not None and its.campaign == mark.campaign else []
    return found


def clear(known: dict[str, Any]) -> None:
    """End all processes of a server and remove its files."""
    mark = Mark.parse(str(known.get("mark") or os.environ.get(VARIABLE, "")))
    end_group(Identity.parse(str(known.get("leader", ""))), mark)
    if known.get("place"):
        sweep(str(known["place"]), str(known["shm_prefix"]), known["folders"])
