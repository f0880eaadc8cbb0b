"""Writes the records of campaign's loggers into a file, with the time (UTC), the process and the module.

Each module has a logger of its own, ``logging.getLogger(__name__)``. Nothing is written unless a file is opened here or
the program that uses campaign sets up logging: the package's logger has a handler that does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

FORMAT = "%(asctime)s.%(msecs)03dZ %(process)d %(levelname)s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(_Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S"))
    return handler


class _File(logging.FileHandler):
    """A log file that is made, with its folder, when the first record is written."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a log that cannot be written is no reason to fail
            if self.stream is None:
                Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Go on without the record, if the disk is full, say."""


def _handler(path: Path) -> logging.Handler:
    return _formatted(_File(path, encoding="utf-8", delay=True))


def log_to_stderr() -> None:
    """Write records of level INFO and above to standard error, for the rest of this process."""
    logger = logging.getLogger("campaign")
    logger.addHandler(_formatted(logging.StreamHandler()))
    logger.setLevel(logging.INFO)


def keep_log(path: Path) -> None:
    """Write records of level INFO and above to a file, for the rest of this process.

    Args:
        path: The file; records are added to its end. If it cannot be written, the process goes on without it.
    """
    logger = logging.getLogger("campaign")
    logger.addHandler(_handler(path))
    logger.setLevel(logging.INFO)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write records of level INFO and above to a file, until the block is left.

    Args:
        path: The file; records are added to its end. If it cannot be written, the run goes on without it.
    """
    logger, handler = logging.getLogger("campaign"), _handler(path)
    before = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
