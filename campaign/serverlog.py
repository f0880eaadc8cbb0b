"""What a server's log has to say."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_NOISE = ("NVML", "DCGM", "CUDA driver version", "CUDA memory pool disabled", "cudaGetDeviceCount")


def cause(log: Path) -> str:
    """The line that says which model does not load, if there is one."""
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            if "failed to load '" in line:
                return ": " + line[line.index("failed to load '") :].rstrip('"')
    return ""


_STUB = "Failed to preinitialize Python stub: "


def load_failure(log: Path, place: str) -> tuple[str, str]:
    """The model that has failed to load, and the server's own sentence about it; both empty while none has.

    The server need not end by itself after this: where its Python stub cannot begin, Triton 2.51 waits for ever.

    Args:
        log: The server's log.
        place: The server's private folder; the sentence names files of its models without it.
    """
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            if _STUB in line:
                said = line.partition(_STUB)[2].replace(f"{place}/models/", "")
                found = re.search(r"'([^'/]+)/", said)
                return (found[1] if found else "?"), said.strip().rstrip('"')
            if "failed to load '" in line:
                said = line[line.index("failed to load '") :].rstrip('"')
                return said.split("'")[1], said
    return "", ""


def tail(log: Path, lines: int = 25) -> str:
    """The end of it, without what every start without a GPU says."""
    with contextlib.suppress(OSError):
        text = log.read_text(errors="replace").splitlines()
        return "\n".join([x for x in text if not any(noise in x for noise in _NOISE)][-lines:])
    return ""
