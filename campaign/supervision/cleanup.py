"""Ends the process group of a server and removes its files: shared memory, sockets, private folders, its record."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from campaign.supervision.identity import OWNER, VARIABLE, Identity, Mark, mark_of, send
from campaign.util.files import write_json


def regions(shm_prefix: str) -> list[Path]:
    """A server's shared memory in the node's ``/dev/shm``: this user's alone, for anybody may use its names there."""
    found = []
    for path in Path("/dev/shm").glob(f"{shm_prefix}*") if len(shm_prefix) > 12 else ():  # noqa: S108  Triton's place
        with contextlib.suppress(OSError):  # gone already
            found += [path] if path.lstat().st_uid == os.geteuid() else []
    return found


def sweep(place: str, shm_prefix: str, folders: Iterable[str] = ()) -> None:
    """Remove a server's shared memory, the empty folders it made elsewhere, and its private folder.

    The file that says whose the folder is goes last, so that whatever is cut short can be taken up by another.
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
    """Kill the process group and the session that a process led; never one that has its number by now.

    As long as the leader is there, the number is its own. Later the number may be another's of this user: then only
    those are killed who bear the campaign's mark.
    """
    if leader is None or not leader.here():
        return
    if Path(f"/proc/{leader.pid}").exists():
        if not leader.alive() and not _zombie(leader):
            return  # the group is gone: the kernel gives no number away that a group still bears
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        left = [send(who, signal.SIGKILL) for who in _members(leader.pid, mark)]
        if not any(left) and not leader.alive():
            break
        time.sleep(0.02)


def _members(group: int, mark: Mark | None) -> list[Identity]:
    """Who is in a process group or session and bears a campaign's mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            who = Identity.of(int(folder.name))
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if group in map(int, fields[2:4]):
                its = mark_of(who.pid)
                found += [who] if mark is not None and its is not None and its.campaign == mark.campaign else []
    return found


def _zombie(leader: Identity) -> bool:
    with contextlib.suppress(OSError):
        after = Path(f"/proc/{leader.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(after[19]) == leader.start
    return False


def clear(known: dict[str, Any]) -> None:
    """End what is left of a server and remove what it had."""
    mark = Mark.parse(str(known.get("mark") or os.environ.get(VARIABLE, "")))
    end_group(Identity.parse(str(known.get("leader", ""))), mark)
    if known.get("place"):
        sweep(str(known["place"]), str(known["shm_prefix"]), known["folders"])


def _close_record(path: Path, pool: str) -> None:
    """Say that a server has ended whose pilot could not say so itself."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        told = json.loads(path.read_text())
        if told["state"] != "ended" and told["pool"] == pool:
            write_json(path, {**told, "state": "ended", "why": f"{told['name']}: its pilot was killed", "told": False})
