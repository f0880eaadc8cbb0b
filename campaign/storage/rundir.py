"""RunDir: owns every path of a run directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from campaign.errors import CampaignError, RunDirBusy, SpecError
from campaign.util.files import _ASIDE

SUFFIX = {"histograms": ".hists.npz", "columns": ".parquet", "counts": ".json"}


@dataclass(frozen=True)
class RunDir:
    """The folder of one run. Its files alone say what is done.

    Args:
        root: Absolute path of the folder.
    """

    root: Path

    @property
    def report(self) -> Path:
        """``report.json``."""
        return self.root / "report.json"

    @property
    def page(self) -> Path:
        """``report.html``: the report as a page."""
        return self.root / "report.html"

    @property
    def page_notes(self) -> Path:
        """The contents of the page that the report lacks: times of workers and servers, the campaign file."""
        return self.root / "logs" / "page.json"

    @property
    def manifest(self) -> Path:
        """``manifest.json``: what a complete run was made from, and what it has made."""
        return self.root / "manifest.json"

    @property
    def plan_file(self) -> Path:
        """``plan.json``: what the last run set out to do."""
        return self.root / "plan.json"

    @property
    def begun(self) -> bool:
        """True if a run was started here; false for another tool's ``plan.json``. Reads only the start of the plan."""
        if self.receipts.exists():
            return True
        with suppress(OSError), self.plan_file.open("rb") as stream:
            return b'"plan"' in stream.read(4096)
        return False

    @property
    def receipts(self) -> Path:
        """The log of receipts."""
        return self.root / "receipts.jsonl"

    @property
    def job(self) -> Path:
        """The job file: stages and settings, read once by every worker."""
        return self.root / "job.pickle"

    @property
    def started(self) -> Path:
        """The progress at the start of the last run (`campaign.planning.plan_file.progress_of`)."""
        return self.root / "logs" / "started.json"

    @property
    def stage_logs(self) -> Path:
        """The logs of stages, one per input file (`campaign.worker.stage_log`)."""
        return self.root / "logs" / "stages"

    @property
    def workers(self) -> Path:
        """The notes of workers, which name their task if they die (`campaign.worker.deadline`)."""
        return self.root / "logs" / "workers"

    @property
    def late_job(self) -> Path:
        """The same, of a pool that was started later than the workers."""
        return self.root / "job-late.pickle"

    @property
    def servers(self) -> Path:
        """Folder of the pool: lease, records, logs."""
        return self.root / "servers"

    @property
    def logs(self) -> Path:
        """Folder of the providers' own logs."""
        return self.root / "logs"

    @property
    def driver_log(self) -> Path:
        """The log of the driver."""
        return self.logs / "driver.log"

    def worker_log(self, name: str) -> Path:
        """The log of a worker process."""
        return self.logs / f"worker-{name}.log"

    @property
    def request_stop(self) -> Path:
        """A file whose presence asks the running campaign to stop."""
        return self.root / "stop"

    @property
    def partials(self) -> Path:
        """Folder of what tasks leave."""
        return self.root / "partials"

    def columns(self, key: str) -> Path:
        """The file of the columns of a key. Merged outputs are hard links to it."""
        return self.partials / key[:2] / f"{key}.parquet"

    def pack(self, name: str) -> Path:
        """The file of a pack: the partials of one batch that are not columns, one after another."""
        return self.partials / name[:2] / f"{name}.pack"

    def leaf(self, name: str) -> Path:
        """The file of the merged partials of some of an output's files, until all of them are there."""
        return self.partials / "leaves" / name

    def frozen(self, stage: str, variation: str) -> Path:
        """The file of a reduce stage's frozen value."""
        return self.root / "frozen" / stage / f"{variation}.json"

    def artefacts(self, stage: str, variation: str) -> Path:
        """Folder a reduce stage may write plots and tables into."""
        return self.root / "artefacts" / stage / variation

    def output(self, stage: str, dataset: str, variation: str, kind: str) -> Path:
        """The path of a merged output. Columns are a folder of Parquet files."""
        suffix = "" if kind == "columns" else SUFFIX[kind]
        return self.root / "outputs" / stage / dataset / f"{variation}{suffix}"

    def sweep(self, packs: Container[str]) -> None:
        """Remove what writers that were killed have left: unfinished files, and packs no receipt knows.

        Only the owner may.
        """
        shutil.rmtree(self.leaf(""), ignore_errors=True)
        for pattern in ("", "servers", "frozen/*", "outputs/*/*"):
            for some in self.root.glob(pattern) if pattern else (self.root,):
                for entry in _scan(some):
                    if _ASIDE.fullmatch(entry.name) and entry.is_file():
                        Path(entry.path).unlink(missing_ok=True)
        for folder in _scan(self.partials):
            for entry in _scan(folder.path):
                unfinished = entry.name.startswith(".")  # columns that grew there have another name
                if unfinished or (entry.name.endswith(".pack") and entry.name.removesuffix(".pack") not in packs):
                    Path(entry.path).unlink(missing_ok=True)

    def has_columns(self, key: str, size: int) -> bool:
        """True if the columns of a key exist with their full size."""
        try:
            return self.columns(key).stat().st_size == size
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
        """Host and pid of the run's driver; empty if there is none. Read access to the folder is enough.

        Raises:
            CampaignError: It cannot be told.
        """
        lock = self.root / "lock"
        try:
            with lock.open() as stream:
                return "" if _locked(stream, 0, fcntl.LOCK_SH) else stream.read().strip() or "another process"
        except PermissionError as error:
            text = f"cannot find out whether a campaign runs there: {error.strerror}"
            raise CampaignError(text, where=str(lock), remedy="ask whose it is") from None
        except OSError:
            return ""


LOOK_S = 0.5  # `owner` holds the lock for as long as a look takes; an owner-to-be waits that out


def _locked(stream: IO[str], patience_s: float, how: int = fcntl.LOCK_EX) -> bool:
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
