"""What a server's log has to say."""

from __future__ import annotations

import contextlib
from pathlib import Path

_NOISE = ("NVML", "DCGM", "CUDA driver version", "CUDA memory pool disabled", "cudaGetDeviceCount")


def cause(log: Path) -> str:
    """The line that says which model does not load, if there is one."""
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            if "failed to load '" in line:
                return ": " + line[line.index("failed to load '") :].rstrip('"')
    return ""


def tail(log: Path, lines: int = 25) -> str:
    """The end of it, without what every start without a GPU says."""
    with contextlib.suppress(OSError):
        text = log.read_text(errors="replace").splitlines()
        return "\n".join([x for x in text if not any(noise in x for noise in _NOISE)][-lines:])
    return ""
