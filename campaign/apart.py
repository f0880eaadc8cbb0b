"""A process apart, at the other end of a pipe: it acts when this process ends, however that happens."""

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

from campaign.identity import Identity, send

BEAT_S = 1.0
OWN_GAP_S = 5.0  # a watcher that was itself stopped for so long gives the watched one its time again


class Apart:
    """What a process says to one that watches it: each time all there is to know, so that it can be started again.

    Args:
        module: Run as ``python -m module IDENTITY_OF_THIS_PROCESS``; it calls `listen`.
        env: Its environment; None: this process's own.
    """

    def __init__(self, module: str, env: Mapping[str, str] | None = None) -> None:
        self._argv = [sys.executable, "-m", module, str(Identity.of(os.getpid()))]
        self._env = dict(env) if env is not None else None
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[str, Any] = {}
        self._beaten = 0.0

    def tell(self, **known: Any) -> None:
        """Replace what it knows."""
        self._known = known
        self._write(json.dumps(known) + "\n")

    def beat(self) -> None:
        """Say that this process goes on; called often, it says so once a second."""
        now = time.monotonic()
        if now - self._beaten > BEAT_S:
            self._beaten = now
            self._write("\n")

    def end(self) -> None:
        """All is in order: it has nothing to do."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            os.write(process.stdin.fileno(), b'{"done": true}\n')
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            process.kill()
            process.wait()
        self._process = None

    def _write(self, text: str) -> None:
        try:
            if self._process is None or self._process.stdin is None:
                self._start()
            else:
                os.write(self._process.stdin.fileno(), text.encode())
        except OSError:  # it was killed, or stopped until the pipe was full
            self._start()

    def _start(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = subprocess.Popen(
            self._argv,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to our group must not end it
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.write(self._process.stdin.fileno(), (json.dumps(self._known) + "\n").encode())


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
