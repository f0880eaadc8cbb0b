"""Watches the two places that all users of the machine share, beside a session of tests.

    python -m tests.lookout MARK REGIONS

A Triton server makes shared memory in ``/dev/shm`` and an empty folder in ``/tmp``, wherever TMPDIR points. The names
do not tell whose these are. At the moment when one is made, its server runs: then the environment of the server tells
whether the session has started it. A line on standard input asks what is the session's; the answer is a line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from campaign.supervision.env_folders import made_by

SHM, TEMP = Path("/dev/shm"), Path("/tmp")
CREATE, NONBLOCK_CLOEXEC = 0x100, 0o2004000
PREFIX = re.compile(r"shm-region-prefix-name=([^\0]+)")


class Lookout:
    """What the session's own servers have made in the shared places.

    Args:
        mark: ``NAME=value`` in the environment of what the session has started.
        regions: Names of regions that begin with it are the session's.
    """

    def __init__(self, mark: str, regions: str) -> None:
        self.mark = mark.encode()
        self.prefixes = [regions]
        self.own: set[str] = set()
        libc = ctypes.CDLL(None, use_errno=True)
        self.events = libc.inotify_init1(NONBLOCK_CLOEXEC)
        self.places = {libc.inotify_add_watch(self.events, str(p).encode(), CREATE): p for p in (SHM, TEMP)}
        if min(self.events, *self.places) < 0:
            raise OSError(ctypes.get_errno(), "the shared places cannot be watched: see fs.inotify in sysctl")

    def look(self) -> None:
        """Decide about all that was made since the last look."""
        with contextlib.suppress(BlockingIOError):
            while True:
                block, at = os.read(self.events, 65536), 0
                while at < len(block):
                    place, _, _, length = struct.unpack_from("iIII", block, at)
                    name = block[at + 16 : at + 16 + length].rstrip(b"\0").decode(errors="replace")
                    at += 16 + length
                    path = self.places.get(place, Path("/nonexistent")) / name
                    if self.is_own(path):
                        self.own.add(str(path))

    def is_own(self, path: Path) -> bool:
        """Whether it is surely the session's."""
        if path.parent == SHM and path.name.startswith("campaign_"):
            if not path.name.startswith(tuple(self.prefixes)):
                self.prefixes += [p for line, own, _ in servers(self.mark) if own for p in PREFIX.findall(line)]
            return path.name.startswith(tuple(self.prefixes))
        if path.parent == TEMP and path.name.startswith("python_env_"):
            return any(made_by(pid, {str(path)}) for _, own, pid in servers(self.mark) if own)
        return False


def servers(mark: bytes) -> Iterator[tuple[str, bool, int]]:
    """Command line, whether it bears the mark, and pid, of each Triton server that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if "tritonserver" in line.split("\0")[0]:
                yield line, mark in (folder / "environ").read_bytes().split(b"\0"), int(folder.name)


def main() -> None:
    """Watch until the session closes its end of the pipe."""
    lookout = Lookout(*sys.argv[1:])
    while True:
        asked = sys.stdin in select.select([sys.stdin, lookout.events], [], [])[0]
        if asked and not sys.stdin.readline():
            return
        lookout.look()
        if asked:
            print(json.dumps(sorted(lookout.own)), flush=True)


if __name__ == "__main__":
    main()
