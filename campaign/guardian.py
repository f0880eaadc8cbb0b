"""What outlives a pilot for as long as sweeping takes: a process that ends its server and removes what is left."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from campaign.rundir import write_json

PR_SET_PDEATHSIG = 1


def die_with_parent(signum: int) -> None:
    """Ask the kernel for a signal when the thread that started this process ends. Linux only, which is all there is."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def sweep(place: str, shm_prefix: str, folders: Iterable[str] = ()) -> None:
    """Remove a server's private folder, its shared memory, and the empty folders it made elsewhere."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in folders:
        with contextlib.suppress(OSError):  # gone already, or not empty and so not ours to remove
            Path(folder).rmdir()
    for path in Path("/dev/shm").glob(f"{shm_prefix}*") if len(shm_prefix) > 12 else ():  # noqa: S108  Triton's place
        path.unlink(missing_ok=True)


def guardian() -> int:
    """Fork a process that outlives this one by as long as sweeping takes; returns the pipe's end to keep open.

    Each line written to the pipe replaces what it knows: ``[group, folder, shm prefix, empty folders, record]``.
    """
    read, write = os.pipe()
    if os.fork():
        os.close(read)
        return write
    os.setsid()  # a signal to the pilot's group must not end it
    os.close(write)
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    text = b""
    while block := os.read(read, 65536):
        text += block
    lines = [line for line in text.decode().splitlines() if line]  # an empty one only says that the pilot lives
    group, place, prefix, folders, record = json.loads(lines[-1]) if lines else (0, "", "", [], "")
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)  # the stub unlinks its own regions as it dies; what is left then is swept
    if place:
        sweep(place, prefix, folders)
    if record:
        _close_record(Path(record))
    os._exit(0)


def _close_record(path: Path) -> None:
    """Say that a server has ended whose pilot could not say so itself."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(path.read_text())
        if told["state"] != "ended":
            write_json(path, {**told, "state": "ended", "why": f"{told['name']}: its pilot was killed", "told": False})
