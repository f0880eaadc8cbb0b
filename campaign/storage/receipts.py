"""Receipts of finished tasks, in an append-only log that says which partials exist."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError

CHECK = 16  # characters of each line's own digest
BLOCK = 1 << 16  # bytes of the log that are read at once
FROZEN, MERGED = "frozen", "merged"  # kinds beside those of partials
UNFINISHED = "0" * 64  # key of a frozen value that was to be made again: what lies in its place is nobody's word
_HUGE = 1 << 62


@dataclass(frozen=True)
class Receipt:
    """The receipt of one partial, frozen value or merged output.

    Attributes:
        key: Hash of everything it depends on.
        stage, dataset, variation, file: Where it belongs.
        kind: ``histograms``, ``columns`` or ``counts``; `FROZEN`; `MERGED`.
        sha256: Of its content: of the bytes in a pack, of columns in canonical form.
        size: Bytes.
        rows: Rows the stage returned.
        events: Entries of the tree that were read for it (0 where it was made from an artefact).
        pack: Name of the pack it lies in; empty: it is a file of its own.
        offset: Its place in the pack, bytes.
        notes: Remarks for the report (weights that are no numbers, for example).
        more: What else is to be known: of a merged output, its files and gaps; of a frozen value, what it was made from
            and its plots and tables; of a partial, a digest of the frozen values it was made with.
        bytes_sha256: Of the file's bytes, where the partial is a file of its own: its container's bytes count as well.
    """

    key: str
    stage: str
    dataset: str
    variation: str
    file: str
    kind: str
    sha256: str
    size: int
    rows: int = 0
    events: int = 0
    pack: str = ""
    offset: int = 0
    notes: tuple[str, ...] = ()
    more: str = ""
    bytes_sha256: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """`more` of a frozen value or a merged output; empty where there is nothing of the kind."""
        try:
            found = json.loads(self.more)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def line(self) -> bytes:
        """Its line in the log: a digest of the rest, then JSON."""
        text = _ENCODE(list(self.__dict__.values())).encode()  # fields, in their order
        return b"%s %s\n" % (hashlib.sha256(text).hexdigest()[:CHECK].encode(), text)


_NAMES = tuple(f.name for f in fields(Receipt))
_DECODE = json.JSONDecoder().raw_decode
_NOTES = _NAMES.index("notes")
_TYPES = [{"int": int, "str": str}.get(str(f.type), list) for f in fields(Receipt)]  # as JSON holds them
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def parse(line: bytes) -> Receipt | None:
    """The receipt of a line; None for a torn, altered or foreign one."""
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if len(check) != CHECK or hashlib.sha256(text).hexdigest()[:CHECK].encode() != check:
        return None
    try:
        given, _ = _DECODE(text.decode())
        if not isinstance(given, list) or list(map(type, given)) != _TYPES:
            return None
        given[_NOTES] = tuple(given[_NOTES])
        receipt = object.__new__(Receipt)  # 100,000 of them are read when a run begins; a frozen __init__ takes thrice
        receipt.__dict__.update(zip(_NAMES, given, strict=True))
    except (ValueError, RecursionError):
        return None
    return receipt if _sound(receipt) else None


def _sound(r: Receipt) -> bool:
    """True if a task can have written it: key and pack become file names, numbers become places in these files."""
    if not r.key.isalnum() or (r.pack and not r.pack.isalnum()) or not all(type(note) is str for note in r.notes):
        return False
    numbers = (r.size, r.offset, r.rows, r.events)
    return min(numbers) >= 0 and max(numbers) < _HUGE


class Receipts:
    """Append-only log. A torn last line (the writer was killed) is passed over.

    Args:
        path: The log; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: FileIO | None = None
        self._end = 0

    def __iter__(self) -> Iterator[Receipt]:
        """The receipts in the order in which they were written. The last one of a key counts."""
        return (receipt for _, receipt in self.scan())

    def scan(self) -> Iterator[tuple[int, Receipt]]:
        """Receipts and where in the log they begin."""
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:  # taken for an empty one, all would be done again
            raise self._unusable(error) from None
        at = 0
        with stream:
            for line in stream:
                receipt = parse(line) if line.endswith(b"\n") else None
                if receipt is not None:
                    yield at, receipt
                at += len(line)

    def append(self, lines: bytes) -> int:
        """Record lines; they are in the kernel's hands when this returns their place in the log."""
        stream = self._open()
        at, view = self._end, memoryview(lines)
        while view:
            view = view[stream.write(view) :]
        self._end += len(lines)
        return at

    @property
    def end(self) -> int:
        """Place of what will be appended next, bytes: what lies before it was there already."""
        self._open()
        return self._end

    def add(self, receipt: Receipt, *, durable: bool = False) -> int:
        """Record one; ``durable``: on the disk before what comes next."""
        at = self.append(receipt.line())
        if durable:
            os.fsync(self._open().fileno())
        return at

    def lines(self, places: Sequence[int]) -> list[bytes]:
        """The lines at places of the log; neighbours are read together."""
        fd, found, start, block = self._open().fileno(), [], 0, b""
        for at in places:
            end = block.find(b"\n", at - start) + 1 if start <= at < start + len(block) else 0
            while not end:
                size = max(BLOCK, 2 * len(block)) if start == at else BLOCK  # a line may be longer
                start, block = at, os.pread(fd, size, at)
                end = block.find(b"\n") + 1
                if not end and len(block) < size:
                    end = len(block)  # the log is not what it was; who parses the line will see
                    break
            found.append(block[at - start : end])
        return found

    def _open(self) -> FileIO:
        if self._stream is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = FileIO(str(self.path), "a+")
            except OSError as error:
                raise self._unusable(error) from None
            self._end = self._stream.seek(0, os.SEEK_END)
            if self._end:
                self._end += self._stream.write(b"\n")  # ends a line that a killed writer may have torn
        return self._stream

    def _unusable(self, error: OSError) -> CampaignError:
        text = f"the log of receipts cannot be used: {error.strerror}"
        return CampaignError(text, where=str(self.path), remedy="look at the files there, or take another --run-dir")

    def close(self) -> None:
        """Close the log."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Receipts:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
