"""Finds the cause of a failure in a server's log."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_NOISE = ("NVML", "DCGM", "CUDA driver version", "CUDA memory pool disabled", "cudaGetDeviceCount")


def cause(log: Path, place: str = "") -> str:
    """The server's sentence about a model that does not load, behind a colon; empty if there is none."""
    said = load_failure(log, place)[1]
    return f": {said}" if said else ""


# The head of a line that Triton itself has written; what models print is in the same log.
_TRITON = re.compile(r"[EWI]\d{4} [\d:.]+\s+\d+ (model_lifecycle|model_repository_manager|pb_stub)\.cc:\d+\]")
_STUB = "Failed to preinitialize Python stub: "
_POLL = "Poll failed for model directory '"  # a configuration that Triton does not take
_LOAD = "failed to load '"


def load_failure(log: Path, place: str = "") -> tuple[str, str]:
    """The model that has failed to load, and the server's own sentence about it; both empty while none has.

    The server need not end by itself after this: where its Python stub cannot begin, Triton 2.51 waits for ever.

    Args:
        log: The server's log.
        place: The server's private folder; the sentence names files of its models without it.
    """
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            mark = next((mark for mark in (_STUB, _POLL, _LOAD) if mark in line), None)
            if mark is None or not _TRITON.match(line):
                continue
            said = line.partition(_STUB)[2] if mark == _STUB else line[line.index(mark) :]
            said = said.replace(f"{place}/models/", "") if place else said
            said = " ".join(said.strip().rstrip('"').replace("\\n", " ").split())  # Triton writes line breaks so
            found = re.search(r"'([^'/]+)", said)
            return (found[1] if found else "?"), said
    return "", ""


def remedy(said: str) -> str:
    """The remedy for a model that does not load, from the server's sentence; empty: unknown."""
    found = re.search(r"No module named '([^'.]+)", said)
    if found:
        return f"the server's Python has no {found[1]}: name its package, servers: {{requirements: [{found[1]}]}}"
    if "no GPUs are available" in said:
        return "use kind: KIND_AUTO, or a provider whose nodes have a GPU"
    return ""


def tail(log: Path, lines: int = 25) -> str:
    """The end of it, without what every start without a GPU says."""
    with contextlib.suppress(OSError):
        text = log.read_text(errors="replace").splitlines()
        return "\n".join([x for x in text if not any(noise in x for noise in _NOISE)][-lines:])
    return ""
