"""Turns errors of the operating system into ours: a full disk, a folder that cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from campaign.errors import CampaignError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def full(error: OSError, folder: Path) -> CampaignError | None:
    """The error in words where a file system has no room left or cannot be written any more; None for any other.

    Args:
        error: What the system said.
        folder: Where was written, if the error does not say.
    """
    if error.errno not in (*NO_ROOM, errno.EROFS):
        return None
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    said = os.strerror(error.errno or 0)
    if error.errno == errno.EROFS:
        return CampaignError(said, where=str(path), remedy="give --run-dir on another file system")
    return CampaignError(said, where=str(path), remedy=_room(path))


def in_words(error: OSError, folder: Path) -> CampaignError:
    """Any error of the system in words: a folder where a file should be, a file that may not be read, a full disk.

    Args:
        error: What the system said.
        folder: Where was worked, if the error does not say.
    """
    made = full(error, folder)
    if made is None:
        path = next((name for name in (error.filename2, error.filename) if isinstance(name, str)), str(folder))
        said = error.strerror or f"{type(error).__name__}: {error}"
        made = CampaignError(said, where=path, remedy="look at the files there, and at who may read and write them")
    return made


def no_room(errors: Iterable[str], folder: Path) -> list[str]:
    """The remedy for tasks that had no room to write, in at most one line."""
    said = [os.strerror(n) for n in NO_ROOM]
    return [f"{folder}: {_room(folder)}"] if any(text in error for error in errors for text in said) else []


def _room(path: Path) -> str:
    at = path.absolute()
    while not at.exists() or not at.is_mount():
        at = at.parent
    left = shutil.disk_usage(at).free / 1e6
    return f"make room on the file system at {at} ({left:.1f} MB are left), then run again to resume"
