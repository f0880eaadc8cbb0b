"""Every path of a run: one class owns them. Files are written aside, then renamed; receipts are appended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from campaign.errors import RunDirBusy, SpecError


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces. NaN is refused, since no two are equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        state = hashlib.sha256()
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@contextmanager
def write_aside(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A stream whose content appears under ``path`` whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are for their owner alone, and colleagues read a run directory.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with aside.open(mode.replace("w", "x")) as stream:
            yield stream
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people: indented, whole or not at all."""
    with write_aside(path, "w") as stream:
        json.dump(value, stream, indent=1, allow_nan=False)
        stream.write("\n")


@dataclass(frozen=True)
class Receipt:
    """What a task says of one partial it has left.

    Attributes:
        key: Hash of everything the partial depends on; its name in the run directory.
        stage, dataset, variation, file: Where it belongs.
        kind: ``histograms``, ``columns`` or ``counts``.
        sha256: Of the partial's content in canonical form.
        size: Bytes of its file.
        rows: Rows the stage returned.
        events: Entries of the tree that were read for it (0 where it was made from an artefact).
        notes: Remarks for the report (weights that are no numbers, for example).
    """

    key: str
    stage: str
    dataset: str
    variation: str
    file: str
    kind: str
    sha256: str
    size: int
    rows: int
    events: int
    notes: tuple[str, ...] = ()


@dataclass
class Receipts:
    """Append-only log of receipts. A torn last line (the writer was killed) is passed over."""

    path: Path
    have: dict[str, Receipt] = field(default_factory=dict)
    frozen: dict[tuple[str, str], Receipt] = field(default_factory=dict)  # the latest by (stage, variation)
    _stream: IO[str] | None = None

    def read(self) -> None:
        """Read what earlier runs have left."""
        if not self.path.exists():
            return
        for line in self.path.read_text(errors="replace").splitlines():
            receipt = _parse(line)
            if receipt is not None:
                self._keep(receipt)

    def add(self, receipt: Receipt) -> None:
        """Record one; it is in the kernel's hands when this returns."""
        if self._stream is None:
            self._stream = self.path.open("a")
            self._stream.write("\n")  # ends a line that a killed writer may have torn
        text = canonical_json({**asdict(receipt), "notes": list(receipt.notes)})
        self._stream.write(f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n")
        self._stream.flush()
        self._keep(receipt)

    def _keep(self, receipt: Receipt) -> None:
        self.have[receipt.key] = receipt
        if receipt.kind == "frozen":
            self.frozen[receipt.stage, receipt.variation] = receipt

    def close(self) -> None:
        """Close the log."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _parse(line: str) -> Receipt | None:
    check, _, text = line.partition(" ")
    if len(check) != 16 or hashlib.sha256(text.encode()).hexdigest()[:16] != check:
        return None
    try:
        data = json.loads(text)
        return Receipt(**{**data, "notes": tuple(data["notes"])})
    except (ValueError, TypeError, KeyError):
        return None


SUFFIX = {"histograms": ".hists.npz", "columns": ".parquet", "counts": ".json"}


@dataclass(frozen=True)
class RunDir:
    """The folder of one run, the truth about what is done.

    Args:
        root: Absolute path of the folder.
    """

    root: Path

    @property
    def report(self) -> Path:
        """``report.json``."""
        return self.root / "report.json"

    @property
    def receipts(self) -> Path:
        """The log of receipts."""
        return self.root / "receipts.jsonl"

    @property
    def job(self) -> Path:
        """What every worker needs once: stages and settings."""
        return self.root / "job.pickle"

    @property
    def servers(self) -> Path:
        """Folder of the pool: lease, records, logs."""
        return self.root / "servers"

    @property
    def logs(self) -> Path:
        """Folder of the providers' own logs."""
        return self.root / "logs"

    @property
    def request_stop(self) -> Path:
        """A file whose presence asks the running campaign to stop."""
        return self.root / "stop"

    def partial(self, key: str, kind: str) -> Path:
        """Where the partial of a key lies."""
        return self.root / "partials" / key[:2] / (key + SUFFIX[kind])

    def frozen(self, stage: str, variation: str) -> Path:
        """Where a reduce stage's frozen value lies."""
        return self.root / "frozen" / stage / f"{variation}.json"

    def artefacts(self, stage: str, variation: str) -> Path:
        """Folder a reduce stage may write plots and tables into."""
        return self.root / "artefacts" / stage / variation

    def output(self, stage: str, dataset: str, variation: str, kind: str) -> Path:
        """Where a merged output lies; columns are a folder of Parquet files."""
        suffix = "" if kind == "columns" else SUFFIX[kind]
        return self.root / "outputs" / stage / dataset / f"{variation}{suffix}"

    def sweep(self) -> None:
        """Remove what writers that were killed have left unfinished. Only the owner may."""
        for aside in (self.root / "partials").glob("*/.*"):
            aside.unlink(missing_ok=True)

    def has(self, receipt: Receipt) -> bool:
        """Whether the partial of a receipt is there, whole by its size."""
        try:
            return self.partial(receipt.key, receipt.kind).stat().st_size == receipt.size
        except OSError:
            return False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder; the kernel gives it back however the owner ends.

        Raises:
            RunDirBusy: Another process owns it; its host and pid are named.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("a+")
        except OSError as error:
            raise SpecError(
                f"cannot be used as a run directory: {error.strerror}", where=str(self.root), remedy="give --run-dir"
            ) from error
        with lock as stream:
            if not _locked(stream, LOOK_S):
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise RunDirBusy(
                    f"is in use by {owner}",
                    where=str(self.root),
                    remedy="wait for it, stop it, or take another --run-dir",
                )
            stream.truncate(0)
            stream.write(f"{socket.gethostname()} pid {os.getpid()}")
            stream.flush()
            yield

    def owner(self) -> str:
        """Host and pid of the owner, empty if nobody owns it."""
        try:
            with (self.root / "lock").open("r+") as stream:
                return "" if _locked(stream, 0) else stream.read().strip()
        except OSError:
            return ""


LOOK_S = 0.5  # `owner` holds the lock for as long as a look takes; an owner-to-be waits that out


def _locked(stream: IO[str], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True


def read_json(path: Path) -> Mapping[str, Any] | None:
    """A JSON mapping, or None where there is no whole one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
