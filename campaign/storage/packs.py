"""Packs the small partials of one batch into one file. Each is checked by its own digest when it is read."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import ExitStack
from typing import IO, Any

from campaign.errors import PartialError
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.files import write_aside, writing

OPEN = 64  # packs a reader holds open


class PackWriter:
    """Writes a pack. The file appears complete when the block ends, or not at all; without partials there is no file.

    Args:
        rundir: The run directory.
    """

    def __init__(self, rundir: RunDir) -> None:
        self.name = secrets.token_hex(12)
        self._rundir, self._stack = rundir, ExitStack()
        self._stream: IO[bytes] | None = None

    def add(self, content: bytes) -> tuple[int, str]:
        """Append a partial; returns its offset and SHA-256 (hex).

        Raises:
            PartialError: It cannot be written.
        """
        with writing(self._rundir.pack(self.name)):
            if self._stream is None:
                self._stream = self._stack.enter_context(write_aside(self._rundir.pack(self.name)))
            at = self._stream.tell()  # asked, not counted: a deadline may have cut the write before
            self._stream.write(content)
        return at, hashlib.sha256(content).hexdigest()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)


class PackReader:
    """Reads partials back from their packs.

    Args:
        rundir: The run directory.
    """

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._open: dict[str, int] = {}

    def read(self, receipt: Receipt) -> bytes:
        """The partial of a receipt.

        Raises:
            PartialError: It is missing, torn or another one.
        """
        where = f"{self._rundir.pack(receipt.pack)} at {receipt.offset}"
        try:
            content = os.pread(self._file(receipt.pack), receipt.size, receipt.offset)
        except OSError as error:
            raise PartialError(f"cannot be read: {error.strerror}", where=where, remedy=AGAIN) from None
        if len(content) < receipt.size:  # pread gives at most 2 GiB at once, and less at the end
            content = self._long(receipt, content)
        if hashlib.sha256(content).hexdigest() != receipt.sha256:
            raise PartialError(f"has changed since it was written for {receipt.file}", where=where, remedy=AGAIN)
        return content

    def _long(self, receipt: Receipt, content: bytes) -> bytes:
        parts = [content]
        left, at = receipt.size - len(content), receipt.offset + len(content)
        while left > 0 and (more := os.pread(self._file(receipt.pack), left, at)):
            parts.append(more)
            left, at = left - len(more), at + len(more)
        return b"".join(parts)

    def _file(self, name: str) -> int:
        if name not in self._open:
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[name] = os.open(self._rundir.pack(name), os.O_RDONLY)
        return self._open[name]

    def __enter__(self) -> PackReader:
        return self

    def __exit__(self, *exc: Any) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open = {}


AGAIN = "run again: it is made again"
