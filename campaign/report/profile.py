"""Adds up where a run's seconds went, and names its limit: reading, CPU, servers or start-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from campaign.report.timing import AHEAD, RUN, WAIT, WRITE

READ = "read"
BUSY = 0.8  # servers that compute this much of the time are what everything waits for


@dataclass
class Profile:
    """The use of a run's time. All times are wall seconds.

    Attributes:
        began: When it was begun, seconds since the epoch.
        timeline: Seconds from there to: ``checked``, ``pool`` (pilots asked for), ``ready`` (first server), ``answer``
            (first prediction used), ``tasks`` (the last task and merge over), ``stopped`` (servers and workers gone).
        workers: Worker processes.
        stages: ``{stage: {run, wait, write, ahead}}``, summed over workers; ``read`` is a stage here.
        tasks_s: Time in tasks, summed over workers; what no stage accounts for is the engine's.
        worker_peak_mb: The most memory a worker has had, in MiB.
        computing: Part of the time from ready to the last task in which a server computed, by server.
    """

    began: float = 0.0
    timeline: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    tasks_s: float = 0.0
    worker_peak_mb: float = 0.0
    computing: dict[str, float] = field(default_factory=dict)

    @property
    def span_s(self) -> float:
        """From when workers could begin to the end of the last task."""
        t = self.timeline
        return max(0.0, t.get("tasks", 0.0) - t.get("checked", 0.0))

    @property
    def start_up_s(self) -> float:
        """From when workers could begin to the first server's readiness."""
        t = self.timeline
        return max(0.0, min(t.get("ready", 0.0) - t.get("checked", 0.0), self.span_s))

    def sums(self) -> dict[str, float]:
        """Worker seconds: ``reading``, ``CPU``, ``servers``, ``start-up``, ``writing``, ``engine``, ``idle``.

        Waiting for the first server to be ready counts as ``start-up``, for its answers as ``servers``.
        """
        total = {"reading": 0.0, "CPU": 0.0, "servers": 0.0, "writing": 0.0}
        for stage, spent in self.stages.items():
            total["writing"] += spent.get(WRITE, 0.0)
            if stage == READ:
                total["reading"] += spent.get(RUN, 0.0) + spent.get(WAIT, 0.0)
            else:
                total["CPU"] += spent.get(RUN, 0.0)
                total["servers"] += spent.get(WAIT, 0.0)
        total["start-up"] = min(total["servers"], self.workers * self.start_up_s)
        total["servers"] -= total["start-up"]
        total["engine"] = max(0.0, self.tasks_s - sum(total.values()))
        total["idle"] = max(0.0, self.workers * self.span_s - self.tasks_s)
        return total

    @property
    def bound_by(self) -> str:
        """``reading``, ``CPU`` or ``servers``; ``start-up`` where workers had nothing to do most of the time."""
        if not self.tasks_s:
            return "nothing: all of it was done before"
        sums = self.sums()
        work = {name: sums[name] for name in ("reading", "CPU", "servers")}
        work["CPU"] += sums["writing"] + sums["engine"]
        if sums["idle"] + sums["start-up"] > self.workers * self.span_s / 2:
            return "start-up"
        busy = sum(self.computing.values()) / len(self.computing) if self.computing else 0.0
        if busy > BUSY and work["servers"] > 0:
            return "servers"
        return max(work, key=lambda name: work[name])

    def lines(self) -> Iterator[str]:
        """A table for a terminal."""
        whole = f"{self.workers} workers x {self.span_s:.1f} s = {self.workers * self.span_s:.1f} worker seconds"
        yield f"  profile  {whole}; bound by: {self.bound_by}"
        columns = (RUN, WAIT, WRITE, AHEAD)
        yield f"    {'stage':<16}" + "".join(f"{name:>9}" for name in ("at work", "waiting", "writing", "ahead"))
        for stage, spent in self.stages.items():
            yield f"    {stage:<16}" + "".join(f"{spent.get(name, 0.0):>9.2f}" for name in columns)
        sums = self.sums()
        yield f"    {'engine':<16}{sums['engine']:>9.2f}"
        yield f"    {'idle':<16}{'':>9}{sums['idle']:>9.2f}"
        if sums["start-up"]:
            yield f"    of the waiting {sums['start-up']:.2f} s were for the first server to be ready"
        if self.computing:
            each = ", ".join(f"{name} {part:.0%}" for name, part in self.computing.items())
            yield f"    servers computing: {each}"
        steps = ", ".join(f"{name} {at:.2f}" for name, at in self.timeline.items())
        yield f"    seconds from the start: {steps}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """The profile that gave `to_json`."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        rounded = {k: _rounded(v) for k, v in asdict(self).items()}
        return {**rounded, "sums": _rounded(self.sums()), "bound_by": self.bound_by}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def by_stage(spent: Mapping[tuple[str, str], float], order: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds by stage and what was done, reading first, then in the order given."""
    found: dict[str, dict[str, float]] = {}
    for stage in (READ, *order):
        mine = {what: seconds for (name, what), seconds in spent.items() if name == stage}
        if mine:
            found[stage] = mine
    return found
