"""The job file: what every worker of a run needs to know, written once by the driver."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.discovery.credentials import Credentials
from campaign.errors import PartialError
from campaign.util.files import write_aside

if TYPE_CHECKING:
    from campaign.protocols import Source


@dataclass(frozen=True)
class Job:
    """What every worker of a run needs once; pickled by the driver for its own workers only.

    Attributes:
        stages: `campaign.planning.stage_code.StageCode` by stage name.
        readers: What opens the files (`campaign.planning.stage_code.StageCode` of a `Source`), by dataset.
        servers: Where the pool is found (`campaign.inference.client.PoolAddress`), None without one.
        read_rows: Rows of one range.
        deadline_s: Of one task.
        limit: Rows of each file that are read; None: all.
    """

    stages: Mapping[str, Any]
    readers: Mapping[str, Any]
    servers: Any
    read_rows: int
    deadline_s: float
    limit: int | None = None

    def entries(self, source: Source) -> int:
        """The rows of a file that the run reads."""
        return source.entries if self.limit is None else min(source.entries, self.limit)


@dataclass(frozen=True)
class JobTicket:
    """What travels with each call to a worker: where its job lies, and what must lie on no disk.

    Attributes:
        path: The job's file.
        digest: SHA-256 of it.
        secret: What lets the worker in at the servers.
    """

    path: str
    digest: str
    secret: Credentials | None = field(default=None, repr=False)

    def job(self) -> Job:
        """The job, with the secret in its place.

        Raises:
            PartialError: The file is not the one that this run's driver left.
        """
        data = Path(self.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise PartialError("is not what this run's driver has written", where=self.path, remedy="run again")
        job: Job = pickle.loads(data)  # noqa: S301  written by this run's own driver: the digest came from it
        if job.servers is not None and self.secret is not None:
            job = replace(job, servers=replace(job.servers, secret=self.secret))
        return job


def save_job(job: Job, path: Path) -> JobTicket:
    """Leave the job for workers, without its secret."""
    secret = job.servers.secret if job.servers is not None else None
    if secret is not None:
        job = replace(job, servers=replace(job.servers, secret=None))
    data = pickle.dumps(job)
    with write_aside(path) as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(data)
    return JobTicket(str(path), hashlib.sha256(data).hexdigest(), secret)
