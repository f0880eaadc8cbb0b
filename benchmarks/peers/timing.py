"""One run of a whole process: wall from exec to exit, and the CPU of it and all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a command in ``folder``, as in its activated environment.

    Returns:
        Seconds of wall, and of CPU of the process and of those of its children that it has waited for.

    Raises:
        RuntimeError: It failed; with the last lines of what it said.
    """
    env = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    said = folder / "said.txt"
    with said.open("wb") as out:
        start = time.perf_counter()
        # A session of its own: if this benchmark is interrupted, all of it is asked to end.
        process = subprocess.Popen(list(command), cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            _end(process)
            raise
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = said.read_text(errors="replace").splitlines()[-25:]
        raise RuntimeError("\n".join([f"{' '.join(command[:3])} ... ended with {process.returncode}:", *lines]))
    return wall, used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
