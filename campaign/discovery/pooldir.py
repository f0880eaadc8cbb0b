"""PoolDir: owns every path of the folder that a pool, its pilots and its clients share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PoolDir:
    """The folder of one pool. The driver, the pilots and the clients talk to each other through its files.

    Servers are called ``server-SLOT`` and ``server-SLOT.GENERATION`` (`campaign.discovery.records.name_of`).

    Args:
        root: Absolute path of the folder.
    """

    root: Path

    # The driver writes these.
    @property
    def order(self) -> Path:
        """``pilot.json``: which server each pilot is to start, and how."""
        return self.root / "pilot.json"

    @property
    def lease(self) -> Path:
        """The file of a counter. The driver increases it while it is alive; pilots end when it stands still."""
        return self.root / "lease"

    @property
    def stop(self) -> Path:
        """A file whose presence asks all pilots to stop."""
        return self.root / "stop"

    @property
    def jobs(self) -> Path:
        """The ids of the batch jobs that pilots run in, a line each."""
        return self.root / "job"

    def closed(self, name: str) -> Path:
        """A file whose presence tells a pilot that the driver has given up its server."""
        return self.root / f"closed-{name}"

    def certificate(self, name: str) -> Path:
        """The certificate that the driver has signed for a server or its pilot."""
        return self.root / f"{name}.crt"

    # Pilots write these.
    def claim(self, name: str) -> Path:
        """A file that exactly one pilot can create: this pilot starts the server of that name."""
        return self.root / f"claim-{name.removeprefix('server-')}"

    def record(self, name: str) -> Path:
        """The record of a server (`campaign.discovery.records.ServerRecord`)."""
        return self.root / f"{name}.json"

    def records(self) -> list[Path]:
        """The records of all servers that there are."""
        return sorted(self.root.glob("server-*.json"))

    def server_log(self, name: str) -> Path:
        """The text that a server has printed."""
        return self.root / f"{name}.log"

    def certificate_request(self, name: str) -> Path:
        """The request of a server or its pilot for a certificate."""
        return self.root / f"{name}.csr"

    def certificate_requests(self) -> list[Path]:
        """The requests for certificates that the driver has not answered."""
        return sorted(self.root.glob("*.csr"))

    # Clients write these.
    def trial(self, slot: str) -> Path:
        """A file that a client locks while it tries a suspect request on the server of this slot alone."""
        return self.root / f"trial-{slot}"

    def excused(self, name: str) -> Path:
        """A file that says: a request that was condemned has ended this server."""
        return self.root / f"excused-{name}"

    def excused_in_slot(self, slot: int) -> list[Path]:
        """The files of `excused` for the servers of one slot."""
        first = self.excused(f"server-{slot}").name
        return [*self.root.glob(first), *self.root.glob(f"{first}.*")]

    # Providers write these.
    def pilot_log(self, number: int) -> Path:
        """The text that a pilot has printed, where a provider gives each pilot a log."""
        return self.root / f"pilot-{number}.log"

    def provider_logs(self) -> list[Path]:
        """The logs of pilots, or else what batch jobs have printed as errors."""
        return sorted(self.root.glob("pilot-*.log")) or sorted(self.root.glob("*.stderr"))

    def clear(self) -> None:
        """Remove what an earlier pool has left in the folder. Other files stay."""
        for pattern in _OF_A_POOL:
            for path in self.root.glob(pattern):
                path.unlink()


_OF_A_POOL = (
    *("pilot.json", "lease", "stop", "job"),
    *("claim-*", "closed-*", "trial-*", "excused-*", "server-*.json", "*-*.log", "*.csr", "*.crt"),
)
