"""A detached process at the other end of a pipe: it acts when the process that started it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from campaign.supervision.identity import Identity, send

BEAT_S = 1.0
SILENT_S = 5.0
OWN_GAP_S = 5.0  # a watcher that was itself stopped for so long gives the watched one its time again


class DetachedProcess:
    """A process's connection to its watchdog. Each message holds all the watchdog must know, so it can be restarted.

    Args:
        module: Run as ``python -m module IDENTITY_OF_THIS_PROCESS``; it calls `listen`.
        env: Its environment; None: this process's own.
        handed: What `hand_over` gave in this process before an ``exec``; empty: there was none.
    """

    def __init__(self, module: str, env: Mapping[str, str] | None = None, handed: str = "") -> None:
        self._argv = [sys.executable, "-m", module, str(Identity.of(os.getpid()))]
        self._env = dict(env) if env is not None else None
        self._pid, self._to, self._back = (int(n) for n in handed.split(":")) if handed else (0, -1, -1)
        for fd in (self._to, self._back) if handed else ():
            os.set_inheritable(fd, False)
        self._known: dict[str, Any] = {}
        self._beaten = 0.0
        self._asked: float | None = None  # since when a beat is unanswered

    def hand_over(self) -> str:
        """Keep it through an ``exec`` of this process, which keeps its identity."""
        for fd in (self._to, self._back) if self._pid else ():
            os.set_inheritable(fd, True)
        return f"{self._pid}:{self._to}:{self._back}" if self._pid else ""

    def tell(self, **known: Any) -> None:
        """Replace what it knows."""
        self._known = known
        self._write(json.dumps(known) + "\n")

    def beat(self) -> None:
        """Say that this process goes on; called often, it says so once a second.

        The process apart answers. One that does not has been killed or stopped, and is replaced.
        """
        now = time.monotonic()
        if now - self._beaten < BEAT_S:
            return
        self._beaten = now
        self._asked = None if self._answered() else self._asked
        if self._asked is not None and now - self._asked > SILENT_S:
            self._start()
        else:
            self._asked = self._asked or now
            self._write("\n")

    def end(self) -> None:
        """All is in order: it has nothing to do."""
        if not self._pid:
            return
        with contextlib.suppress(OSError):
            os.write(self._to, b'{"done": true}\n')
        until = time.monotonic() + 2
        while self._pid and time.monotonic() < until:
            try:
                gone = os.waitpid(self._pid, os.WNOHANG)[0]
            except ChildProcessError:  # somebody in this process waits for whatever ends
                gone = self._pid
            self._pid = 0 if gone else self._pid
            time.sleep(0 if gone else 0.005)
        self._kill()  # somebody has stopped it

    def _answered(self) -> bool:
        with contextlib.suppress(OSError):
            return not self._pid or bool(os.read(self._back, 65536))
        return False

    def _write(self, text: str) -> None:
        try:
            if self._pid:
                os.write(self._to, text.encode())
            else:
                self._start()
        except OSError:  # it was killed, or stopped until the pipe was full
            self._start()

    def _kill(self) -> None:
        if self._pid:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)  # a child that nobody has waited for: the pid is still its own
                os.waitpid(self._pid, 0)
        for fd in (self._to, self._back):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._pid, self._to, self._back, self._asked = 0, -1, -1, None

    def _start(self) -> None:
        self._kill()
        theirs, self._to = os.pipe()
        self._back, answers = os.pipe()
        os.set_blocking(self._to, False)
        os.set_blocking(self._back, False)
        try:
            process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=theirs,
                stdout=answers,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a signal to our group must not end it
            )
        finally:
            os.close(theirs)
            os.close(answers)
        self._pid = process.pid
        process.returncode = 0  # it is waited for here, by its pid, which an exec does not change
        os.write(self._to, (json.dumps(self._known) + "\n").encode())


def listen(argv: Sequence[str]) -> tuple[Identity, dict[str, Any]] | None:
    """In the process apart: wait until the one that started it ends; who that was and what it last told.

    One that told ``patience_s`` and then says nothing for so long has stopped or hangs: it is killed.

    Returns:
        None if it ended in order.
    """
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    watched = Identity.parse(argv[0])
    assert watched is not None
    known: dict[str, Any] = {}
    text, heard = b"", time.monotonic()
    looked = heard
    while True:
        ready = select.select([0], [], [], BEAT_S)[0]
        now = time.monotonic()
        if ready:
            block = os.read(0, 65536)
            if not block:
                break
            *lines, text = (text + block).split(b"\n")
            known = next((json.loads(line) for line in reversed(lines) if line), known)
            heard = now
            with contextlib.suppress(OSError):
                os.write(1, b".")
        if known.get("done"):
            return None
        if not ready and not watched.alive():
            break  # a child of its own still holds the pipe
        if now - looked > OWN_GAP_S:
            heard = now
        looked = now
        if now - heard > float(known.get("patience_s", float("inf"))):
            send(watched, signal.SIGKILL)
            break
    return watched, known
