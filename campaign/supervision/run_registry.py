"""Registers the campaigns that this user has started on this machine, so that leftovers can be found."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from campaign.supervision.identity import Mark, mark
from campaign.util.files import read_json, write_json


def state_dir() -> Path:
    """``inference-campaign/runs`` in the user's state directory."""
    return Path(platformdirs.user_state_dir("inference-campaign"), "runs")


class BatchJob(NamedTuple):
    """A job that a driver has submitted to a batch system.

    Attributes:
        kind: Class name of the Parsl provider.
        number: Number of the job. Empty: the job is about to be submitted, or was refused.
        name: Name of the job. It holds the campaign's random name.
    """

    kind: str
    number: str
    name: str


@dataclass
class Entry:
    """One driver, and all that it has started or made outside its own processes.

    Attributes:
        mark: Mark of the driver's campaigns.
        path: File of this entry.
        folders: Run directories and folders of pools.
        temporary: Folder in which the driver makes private folders.
        jobs: Batch jobs.
        secrets: Folders with keys. Nobody needs them after the driver has ended.
    """

    mark: Mark
    path: Path
    folders: list[str] = field(default_factory=list)
    temporary: str = ""
    jobs: list[BatchJob] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write the entry to its file.

        Raises:
            OSError: The folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        told = {"folders": self.folders, "temporary": self.temporary, "jobs": self.jobs, "secrets": self.secrets}
        write_json(self.path, {"mark": str(self.mark), **told})

    @classmethod
    def load(cls, path: Path) -> Entry | None:
        """Read an entry. None: the file holds none."""
        told: Any = read_json(path) or {}
        found = Mark.parse(str(told.get("mark", "")))
        if found is None or path.stem != found.campaign:
            return None
        folders, jobs, secrets = (told.get(name, []) for name in ("folders", "jobs", "secrets"))
        if not all(isinstance(some, list) for some in (folders, jobs, secrets)) or any(not _three(j) for j in jobs):
            return None
        temporary = str(told.get("temporary", ""))
        return cls(
            found, path, list(map(str, folders)), temporary, [BatchJob(*j) for j in jobs], list(map(str, secrets))
        )


def _three(job: Any) -> bool:
    return isinstance(job, list) and len(job) == 3 and all(isinstance(part, str) for part in job)


def entries() -> Iterator[Entry]:
    """The entries of this user."""
    with contextlib.suppress(OSError):
        for path in sorted(state_dir().glob("*.json")):
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.geteuid() and (entry := Entry.load(path)) is not None:
                    yield entry


_mine: list[Entry] = []
_changing = threading.Lock()


def remember(*, folder: Path | None = None, job: BatchJob | None = None, secret: Path | None = None) -> str:
    """Add something to the entry of this process. Returns why it could not be written; empty: it was written."""
    with _changing:
        if not _mine or _mine[0].mark != mark():
            _mine[:] = [Entry(mark(), state_dir() / f"{mark().campaign}.json", temporary=tempfile.gettempdir())]
        entry = _mine[0]
        entry.folders += [str(folder)] if folder is not None and str(folder) not in entry.folders else []
        entry.jobs += [job] if job is not None and job not in entry.jobs else []
        entry.secrets += [str(secret)] if secret is not None else []
        try:
            entry.save()
        except OSError as error:
            return f"{entry.path.parent}: {error.strerror}"
        return ""


def forget() -> None:
    """Remove the entry of this process, because nothing is left of its campaigns."""
    with _changing:
        for entry in _mine:
            with contextlib.suppress(OSError):
                entry.path.unlink()
        _mine.clear()
