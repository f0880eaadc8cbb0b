"""Identifies processes by boot, pid and start time, and by the mark that a campaign's processes carry."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.util.files import write_json

VARIABLE = "CAMPAIGN_RUN"
ROLE, SERVER_WATCHDOG = "CAMPAIGN_ROLE", "server watchdog"  # in the environment of a server watchdog
OWNER = "owner.json"  # in a private folder: to whom it belongs


@dataclass(frozen=True)
class Identity:
    """Identifies one process for all time. No other process ever has the same identity.

    Attributes:
        host: Name of the machine.
        boot: First 8 characters of the kernel's random number of this boot.
        space: Inode of the pid namespace. In a container the same process id means another process.
        pid: Process id in that namespace.
        start: When the process began, in clock ticks since the boot. Changes of the clock do not change it.
    """

    host: str
    boot: str
    space: str
    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Identity of a running process of this machine.

        Raises:
            ProcessLookupError: There is no such process.
        """
        began = start_time(pid)
        if began is None:
            raise ProcessLookupError(pid)
        return cls(*_here(), pid, began)

    def __str__(self) -> str:
        return f"{self.host}:{self.boot}:{self.space}:{self.pid}:{self.start}"

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """Parse the text of an identity. None: the text is no identity."""
        parts = text.split(":")
        if len(parts) != 5 or not (parts[3].isdecimal() and parts[4].isdecimal()):
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))

    def here(self) -> bool:
        """True if the process id is one of this machine, of this boot and of this container."""
        return (self.host, self.boot, self.space) == _here()

    def alive(self) -> bool | None:
        """True if the process runs. None: not known, because it is on another machine or in another container."""
        host, boot, space = _here()
        if self.host != host:
            return None
        if self.boot != boot:
            return False  # the machine was booted again
        return start_time(self.pid) == self.start if self.space == space else None


@dataclass(frozen=True)
class Mark:
    """The mark that every process of a campaign carries in its environment. Only its own user can read it.

    Attributes:
        campaign: Random name of the campaign, 16 hexadecimal digits.
        driver: The process that started the campaign.
    """

    campaign: str
    driver: Identity

    def __str__(self) -> str:
        return f"{self.campaign}@{self.driver}"

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """Parse the text of a mark. None: the text is no mark."""
        name, _, who = text.partition("@")
        driver = Identity.parse(who)
        return cls(name, driver) if driver is not None and len(name) == 16 and name.isalnum() else None


def _here() -> tuple[str, str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return socket.gethostname(), boot, str(Path("/proc/self/ns/pid").stat().st_ino)


def start_time(pid: int, *, zombie: bool = False) -> int | None:
    """When a process began, in clock ticks since the boot. None: there is no such process.

    This is not psutil's ``create_time``: that is a time of day, which changes with the machine's clock. Ticks since the
    boot are the same for every process that looks, at any time. They identify a process in files and on pipes.

    Args:
        pid: Process id.
        zombie: Also of a process that has ended while its parent has not waited for it.
    """
    try:
        after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if after[0] in "ZX" and not zombie else int(after[19])


def environment_of(pid: int) -> Mapping[str, str]:
    """The environment of a process of this user. Empty: there is no such process, or it is another user's."""
    import psutil  # not at the top: this module is imported at every start, and few processes look at others

    try:
        process = psutil.Process(pid)
        # root may read the environment of every process, but other users' processes are not ours
        return process.environ() if process.uids().effective == os.geteuid() else {}
    except (psutil.Error, OSError):
        return {}


def mark_of(pid: int) -> Mark | None:
    """The mark that a process carries. None: it carries none, or it is another user's process."""
    return Mark.parse(environment_of(pid).get(VARIABLE, ""))


_own: list[Mark] = []


def mark() -> Mark:
    """The mark of the processes that this process starts. It is made once, and again after a fork."""
    if not _own or _own[0].driver.pid != os.getpid():
        _own[:] = [Mark(secrets.token_hex(8), Identity.of(os.getpid()))]
    return _own[0]


def environment() -> dict[str, str]:
    """The environment of this process, with its mark."""
    return {**os.environ, VARIABLE: str(mark())}


_changing = threading.RLock()


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Processes that start inside this context carry the mark. For libraries that take no environment.

    The environment belongs to the whole process, so processes that other threads start meanwhile carry the mark too.
    Keep the context short, and use `environment` where it can be given.
    """
    with _changing:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(mark())
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


def send(who: Identity, signum: int) -> bool:
    """Send a signal to this process, never to another one with its process id. Returns True if it was there."""
    try:
        handle = os.pidfd_open(who.pid)
    except OSError:
        return False
    try:
        if start_time(who.pid) != who.start:  # the handle cannot change its process any more
            return False
        signal.pidfd_send_signal(handle, signum)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def own(folder: Path, mark: str, **more: Any) -> None:
    """Write into a private folder to whom it belongs, so that others can remove it when its owner is gone."""
    with contextlib.suppress(OSError):  # a full disk: the owner itself removes the folder
        write_json(folder / OWNER, {"mark": mark, **more})
