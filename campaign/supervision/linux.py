"""Linux system calls by ctypes: a process that dies with its parent."""

from __future__ import annotations

import ctypes

PR_SET_PDEATHSIG = 1


def die_with_parent(signum: int) -> None:
    """Ask the kernel for a signal when the thread that started this process ends. Linux only, which is all there is."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
