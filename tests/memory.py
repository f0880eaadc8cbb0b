"""Real ends for lack of memory: a control group with a limit, whose members the kernel kills when they exceed it."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 64 << 20

# For code of stages: `exhaust(text of the file that `limited` gives)`.
EXHAUST = """
def exhaust(procs):
    import os, signal
    held = []
    if procs:
        with open(procs, "w") as file:
            file.write(str(os.getpid()))
        while True:
            held.append(b"x" * (1 << 24))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextlib.contextmanager
def limited() -> Iterator[str]:
    """A control group of 64 MiB: the file that takes the number of the process to join it.

    Empty where none can be made (no root, no controller): `exhaust` is then the signal alone that the kernel sends.
    """
    name = f"campaign-test-{secrets.token_hex(4)}"
    for root, limits in (
        (Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes",)),  # version 1
        (Path("/sys/fs/cgroup"), ("memory.max", "memory.swap.max")),  # version 2
    ):
        group = root / name
        try:
            if not (root / "cgroup.procs").exists():
                continue
            group.mkdir()
        except OSError:
            continue
        try:
            with contextlib.suppress(OSError):
                (group / limits[0]).write_text(str(LIMIT))
                for other in limits[1:]:
                    (group / other).write_text("0")
                if _kills(group):
                    yield str(group / "cgroup.procs")
                    return
        finally:
            _remove(group)
    yield ""


def _kills(group: Path) -> bool:
    """Whether the kernel ends who exceeds the limit, and not merely says that it would."""
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); b'x' * (1 << 28)"
    ended = subprocess.run([sys.executable, "-c", code, str(group / "cgroup.procs")], check=False, capture_output=True)
    return ended.returncode == -signal.SIGKILL


def _remove(group: Path) -> None:
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:  # its last member is not yet buried
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{group} still has members: {(group / 'cgroup.procs').read_text()}")
