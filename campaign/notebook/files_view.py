"""Shows a run by the files in its run directory: a run of another process, or one that is over."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

from campaign.planning.plan_file import progress_of
from campaign.report.card import TONES
from campaign.report.live import ServerUse
from campaign.report.report import Report
from campaign.storage.rundir import RunDir
from campaign.util.card import Bar, Card, Table
from campaign.util.notebook import Places

EVERY_S = 2.0  # between two looks at the files


class FilesView:
    """A view of a run directory.

    Args:
        root: The run directory.
    """

    def __init__(self, root: Path) -> None:
        self._rundir = RunDir(root)
        self._use = ServerUse(self._rundir.servers)
        self._places = Places()
        self._refreshed = -math.inf

    def card(self, status: str) -> Card:
        """What it shows now.

        Args:
            status: Of the run.
        """
        owner = self._rundir.owner()
        report = None if owner else Report.load(self._rundir.root)
        if report is not None:
            return report._card()
        total, done = progress_of(self._rundir)
        rows = [(s, Bar(done.get(s, 0) / n if n else 1.0, f"{done.get(s, 0)}/{n}")) for s, n in total.items()]
        facts = {"run directory": str(self._rundir.root)}
        if owner:
            facts["runs on"] = owner
        return Card(
            "Campaign",
            state=status,
            tone=TONES.get(status, "wait"),
            facts=facts,
            tables={
                "Stages": Table(("stage", "files and variations"), rows),
                "Servers": Table(("server", "state", "host", "busy"), self._use.rows() if owner else []),
            },
            notes=[] if owner else ["The run has left no report: it was killed. Run the campaign again to resume."],
        )

    def show(self, status: str) -> None:
        """Show it below the cell that runs now."""
        card = self.card(status)
        self._places.add(card.html(), card.text())

    def refresh(self, status: str, *, now: bool = False) -> None:
        """Look at the files again and update what is shown, if it is time to."""
        if not self._places or (not now and time.monotonic() - self._refreshed < EVERY_S):
            return
        self._refreshed = time.monotonic()
        with contextlib.suppress(OSError):
            card = self.card(status)
            self._places.update(card.html(), card.text())
