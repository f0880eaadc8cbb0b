"""Finds the empty folders in ``/tmp`` that the Python backends of a Triton server have made.

Each backend that is written in Python makes a ``/tmp/python_env_XXXXXX`` as it starts, wherever TMPDIR points, and
leaves the folder there when it is killed. Several servers of one user may start at the same moment, so a new folder may
be another server's. The server that made a folder has the folder's name in its memory, and no other server has.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST = 4096  # pages that are read at once: a model may fill gigabytes
_NAME = 64  # bytes; no name is longer, and none is missed where one block ends and the next begins
_THERE = 3 << 62  # bits of an entry of /proc/PID/pagemap: the page is in memory, or in the swap


def env_folders() -> set[str]:
    """Folders of this user's Triton Python backends that nothing was put into."""
    found = set()
    for path in Path("/tmp").glob("python_env_*"):  # noqa: S108  its place is fixed in Triton
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and not any(path.iterdir()):
                found.add(str(path))
    return found


def made_by(server: int, folders: set[str]) -> list[str]:
    """Those of the folders that a server has made.

    Args:
        server: The server's process id.
        folders: Names of folders in ``/tmp``.

    Returns:
        The names found in the server's memory. None where the server has ended, or where the kernel lets nobody read
        its memory: an empty folder that stays does less harm than another server's folder removed.
    """
    found: set[str] = set()
    if folders:
        with contextlib.suppress(OSError):
            for block in _memory(server):
                found.update(name for name in folders if name.encode() in block)
    return sorted(found)


def _memory(pid: int) -> Iterator[bytes]:
    """The private memory that a process has written. Untouched pages are left out."""
    folder = Path(f"/proc/{pid}")
    with (folder / "mem").open("rb", 0) as memory, (folder / "pagemap").open("rb", 0) as pages:
        for line in (folder / "maps").read_text().splitlines():
            span, mode, _, _, inode = line.split()[:5]
            if not mode.startswith("rw") or inode != "0" or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(address, 16) // _PAGE for address in span.split("-"))
            pages.seek(8 * start)
            there = array("Q", pages.read(8 * (end - start)))
            for (written, _), run in groupby(range(len(there)), lambda i: (bool(there[i] & _THERE), i // _MOST)):  # noqa: B023
                numbers = list(run)
                if written:
                    with contextlib.suppress(OSError):  # given back meanwhile
                        memory.seek((start + numbers[0]) * _PAGE)
                        yield memory.read(len(numbers) * _PAGE + _NAME)
