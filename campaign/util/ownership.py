"""Checks that a file, folder or socket belongs to this user, before it is believed or written to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST = 16 << 20  # bytes of a file that somebody else may have written to


def unfit(folder: Path | str) -> str:
    """The reason why another user may have written a folder's content; empty if only this user can have.

    Raises:
        OSError: It is not there.
    """
    return _unfit(Path(folder).stat(), str(folder))


def _unfit(found: os.stat_result, name: str) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return f"{name} is no folder"
    if found.st_uid != os.geteuid():
        return f"{name} belongs to uid {found.st_uid}"
    if found.st_mode & 0o022:
        return f"others may write to {name} (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def make_private(folder: Path) -> str:
    """Make a folder that only this user may enter, or close one that is there already.

    Returns:
        Why it cannot be used: it is somebody else's, or others could have put something into it. Empty: it can.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    why = unfit(folder)
    if not why and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return why


def read_own(path: Path) -> bytes:
    """A file's bytes, if it is this user's own and no link.

    Raises:
        PermissionError: It is somebody else's, or no file.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as stream:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to uid {found.st_uid}, or is no file")
        return stream.read(MOST)


def door(url: str) -> tuple[str, int]:
    """The way to a Unix socket in a folder of this user's own: through the folder as it is now, whatever comes after.

    The folder is opened, looked at, and the socket reached through it. Should it be removed and somebody else make one
    of that name, gRPC, which connects again by itself, still finds the folder that was looked at, and nobody in it.

    Args:
        url: ``unix:/folder/name``.

    Returns:
        What to give to gRPC, and the descriptor to keep open meanwhile. Where there is no such folder, or it is not
        this user's alone, the way leads nowhere (and the descriptor is -1): whoever takes it is told UNAVAILABLE.
    """
    folder, _, name = url.removeprefix("unix:").rpartition("/")
    fd = -1
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        own = not _unfit(os.fstat(fd), folder)  # what lies in it then is ours too, now or later
    except OSError:
        own = False
    if own:
        return f"unix:/proc/self/fd/{fd}/{name}", fd
    if fd >= 0:
        os.close(fd)
    return f"unix:/proc/self/fd/-1/{name}", -1
