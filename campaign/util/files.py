"""Files that appear under their name only when they are complete, and JSON in files."""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from campaign.errors import PartialError


@contextmanager
def write_aside(path: Path, mode: str = "wb", *, durable: bool = False) -> Iterator[IO[Any]]:
    """A stream whose content appears under ``path`` whole, or not at all.

    What is read again is checked by its digest, so a power cut can lose work but make none wrong, and tasks wait for
    no disk. ``durable`` is for what says that a run is complete, and for frozen values: it waits until the disk has the
    file and its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are for their owner alone, and colleagues read a run directory.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with aside.open(mode.replace("w", "x")) as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        aside.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert OSError into PartialError, so that a failed write is not blamed on an input file.

    Raises:
        PartialError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        raise PartialError(text, where=str(path), remedy="is there room?") from error


def sync_folder(folder: Path) -> None:
    """See the names in a folder on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system that cannot: FUSE and some network ones
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(folder: Path) -> None:
    """See all on the disk that was written to the folder's file system: one call, however many files there are."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None).syncfs(fd) != 0:
            os.sync()
    except (AttributeError, OSError):  # another C library
        os.sync()
    finally:
        os.close(fd)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a JSON file for people: indented, whole or not at all."""
    with write_aside(path, "w", durable=durable) as stream:
        json.dump(value, stream, indent=1, allow_nan=False)
        stream.write("\n")


_ASIDE = re.compile(r"\..+\.[0-9a-f]{12}")  # names that `write_aside` gives


def read_json(path: Path) -> Mapping[str, Any] | None:
    """A JSON mapping, or None where there is no whole one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
