"""Report: the result of a run, written as JSON and printed as text."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError
from campaign.report.profile import Profile
from campaign.report.rungs import RUNGS
from campaign.util.card import Card, Shown
from campaign.util.files import read_json, write_json
from campaign.util.messages import counted

COMPLETE, INCOMPLETE, FAILED, INTERRUPTED = "complete", "incomplete", "failed", "interrupted"
EXIT = {COMPLETE: 0, INCOMPLETE: 0, FAILED: 1, INTERRUPTED: 130}


@dataclass
class Report(Shown):
    """A run's report, also in ``RUN_DIR/report.json``.

    Attributes:
        status: ``complete``, ``incomplete``, ``failed`` or ``interrupted``.
        reproducible: Whether the outputs' hashes depend on nothing but what is named here.
        campaign: Its name.
        limit: Rows of each file that were read, None: all.
        run_dir: Where everything lies.
        datasets: ``{name: {files, events}}``, events read once from the nominal tree.
        outputs: ``{stage/dataset/variation: {path, kind, sha256, ...}}``; histograms also ``root`` and ``uhi``; where
            files are missing from it, or from what its frozen values were made of, also ``incomplete: true``,
            ``missing: {files, entries, sum_of_weights}`` (null: unknown) and ``because``: incomplete outputs it
            depends on.
        lost: Files that failed for good: ``{file, dataset, error, entries, sum_of_weights}`` (null: unknown).
        tasks: Counts: total, done (in this run), reused (from earlier ones), failed.
        servers: What each server was and did.
        models: ``{name: {version}}`` of the models that were asked: the version that answered.
        artefacts: ``{name: path}`` of plots and tables.
        rows: Inferred rows by how they were answered.
        printed: Logs of what stages have printed, in ``logs/stages``.
        errors: What failed, one text each.
        warnings: What a reader should know.
        wall_s: Seconds.
        profile: Where they went (`campaign.report.profile.Profile`).
        versions: Of what the numbers depend on.
    """

    campaign: str
    run_dir: str
    limit: int | None = None
    status: str = FAILED
    reproducible: bool = True
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("total", "done", "reused", "failed"), 0))
    servers: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: list[dict[str, Any]] = field(default_factory=list)
    artefacts: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RUNGS, 0))
    printed: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    profile: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return EXIT[self.status]

    def save(self) -> None:
        """Write ``report.json``."""
        write_json(Path(self.run_dir) / "report.json", asdict(self), durable=True)

    @classmethod
    def load(cls, run_dir: Path) -> Report | None:
        """The report of a run directory; None if it has none."""
        data = read_json(run_dir / "report.json")
        if data is None:
            return None
        plain = asdict(cls("", "", limit=1 if data.get("limit") is not None else None))
        known = {k: v for k, v in data.items() if k in plain}
        if not {"campaign", "run_dir"} <= set(known) or any(not _alike(v, plain[k]) for k, v in known.items()):
            raise CampaignError("is no report", where=str(run_dir / "report.json"), remedy=_AGAIN)
        return cls(**known)

    def __str__(self) -> str:
        """The text that the command line prints."""
        return self.text()

    def text(self, *, profile: bool = False) -> str:
        """For a terminal; with ``profile``, also where the time went."""
        try:
            told = list(self._lines())
            if profile and self.profile:
                told += Profile.from_json(self.profile).lines()
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            where = f"{self.run_dir}/report.json"
            raise CampaignError(f"is not a complete report: {error}", where=where, remedy=_AGAIN) from error
        return "\n".join(told)

    def _lines(self) -> Iterator[str]:
        yield f"campaign {self.campaign}: {self.status} in {self.wall_s:.1f} s"
        if self.limit is not None:
            yield f"  A TRY     only the first {self.limit:,} rows of each file were read: no result of the campaign"
        for name, d in self.datasets.items():
            yield f"  dataset  {name}: {counted(d['files'], 'file')}, {counted(d['events'], 'event')}"
        t = self.tasks
        yield f"  tasks    {t['total']}: {t['done']} done, {t['reused']} reused, {t['failed']} failed"
        rows = {k: v for k, v in self.rows.items() if v}
        if rows:
            yield "  rows     " + ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in rows.items()) + " answered"
        yield f"  outputs  {len(self.outputs)} in {self.run_dir}/outputs"
        yield from self._gaps()
        if self.artefacts:
            yield f"  plots and tables  {len(self.artefacts)} in {self.run_dir}/artefacts"
        if self.printed:
            yield f"  printed  by stages: {counted(self.printed, 'log')} in {self.run_dir}/logs/stages"
        for warning in self.warnings:
            yield f"  note: {warning}"
        for error in self.errors:
            yield f"  error: {error}"
        yield f"  report   {self.run_dir}/report.json"

    def _gaps(self) -> Iterator[str]:
        without = {name: o for name, o in self.outputs.items() if o.get("incomplete")}
        if not without:
            return
        yield f"  INCOMPLETE  {len(without)} of {len(self.outputs)} outputs; failed files: {len(self.lost)}"
        for lost in self.lost:
            entries = "unknown" if lost["entries"] is None else f"{lost['entries']:,}"
            weights = "unknown" if lost["sum_of_weights"] is None else f"{lost['sum_of_weights']:.17g}"
            yield f"    lost {lost['file']} ({lost['dataset']}): entries {entries}, sum of weights {weights}"
        for name, o in without.items():
            count = len(o.get("missing", {}).get("files", ()))
            why = [f"{count} file{'s' if count > 1 else ''}"] if count else []
            why += [f"what {source} lacks" for source in o["because"]]
            yield f"    {name}: without {' and '.join(why)}"

    _repr_pretty_ = Shown._repr_pretty_  # IPython would take the dataclass's own __repr__

    def _card(self) -> Card:
        from campaign.report.card import card

        return card(self)


_AGAIN = "run the campaign again: finished work is kept"


def _alike(value: Any, default: Any) -> bool:
    """True if a value from a file has the type of the class's default."""
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def versions() -> dict[str, str]:
    """Versions of what the outputs depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "executable": sys.executable}
    for name in ("inference-campaign", "numpy", "awkward", "uproot", "hist", "pyarrow", "tritonclient", "parsl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
