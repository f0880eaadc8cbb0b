"""The job file, which the driver writes once and every worker of the run reads; and the inputs of a batch."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.discovery.credentials import Credentials
from campaign.errors import PartialError
from campaign.storage.frozen_values import Frozen
from campaign.util.files import write_aside

if TYPE_CHECKING:
    from campaign.protocols import Source


@dataclass(frozen=True)
class Job:
    """The settings that all workers of a run share. The driver pickles them for its own workers only.

    Attributes:
        stages: `campaign.planning.stage_code.StageCode` by stage name.
        readers: The class that opens the files (`campaign.planning.stage_code.StageCode` of a `Source`), by dataset.
        servers: Address of the pool (`campaign.inference.client.PoolAddress`). None: the campaign has no servers.
        read_rows: Rows of one range.
        deadline_s: Seconds that one task may take.
        limit: Number of rows that are read of each file. None: all rows.
    """

    stages: Mapping[str, Any]
    readers: Mapping[str, Any]
    servers: Any
    read_rows: int
    deadline_s: float
    limit: int | None = None

    def entries(self, source: Source) -> int:
        """Return the number of rows of this file that the run reads: all of them, or at most ``limit``."""
        return source.entries if self.limit is None else min(source.entries, self.limit)


@dataclass(frozen=True)
class JobTicket:
    """Travels with each call to a worker. It names the job file and carries the secret, which no disk may hold.

    Attributes:
        path: The job file.
        digest: SHA-256 of the job file.
        secret: The credentials by which servers accept the worker.
    """

    path: str
    digest: str
    secret: Credentials | None = field(default=None, repr=False)

    def job(self) -> Job:
        """Read the job file, and put the secret into the job.

        Raises:
            PartialError: The file has changed since the driver of this run wrote it.
        """
        data = Path(self.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise PartialError("is not what this run's driver has written", where=self.path, remedy="run again")
        job: Job = pickle.loads(data)  # noqa: S301  the driver of this run wrote the file: it sent the digest
        if job.servers is not None and self.secret is not None:
            job = replace(job, servers=replace(job.servers, secret=self.secret))
        return job


@dataclass(frozen=True)
class BatchInputs:
    """Values that the tasks of a batch take besides their files. The driver sends them with the batch.

    Attributes:
        frozen: Path and SHA-256 of the frozen values that the steps take.
        expected: SHA-256 of the content of the artefact that each task reads. Empty: the tasks read events.
        marks: For each step, the digest of the frozen values that its partials are made with. Empty: no step takes any.
    """

    frozen: Frozen = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def pick(self, places: Iterable[int]) -> BatchInputs:
        """The inputs of some tasks of the batch."""
        return replace(self, expected=tuple(self.expected[i] for i in places)) if self.expected else self


def save_job(job: Job, path: Path) -> JobTicket:
    """Write the job file without the secret."""
    secret = job.servers.secret if job.servers is not None else None
    if secret is not None:
        job = replace(job, servers=replace(job.servers, secret=None))
    data = pickle.dumps(job)
    with write_aside(path) as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(data)
    return JobTicket(str(path), hashlib.sha256(data).hexdigest(), secret)
