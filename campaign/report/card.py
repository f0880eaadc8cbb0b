"""The card of a report in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from campaign.util.card import Card, Table

if TYPE_CHECKING:
    from campaign.report.report import Report

TONES = {"complete": "good", "incomplete": "wait", "interrupted": "wait", "failed": "bad"}
NAMED = 200  # outputs in the table


def card(report: Report) -> Card:
    """Everything that the command prints, and a table of the outputs."""
    first, *lines = report.text().splitlines()
    outputs = [
        (name, str(o["kind"]), str(o["sha256"])[:12], "incomplete" if o.get("incomplete") else "")
        for name, o in report.outputs.items()
    ]
    more = len(outputs) - NAMED
    return Card(
        f"Report of {report.campaign}",
        state=first.partition(": ")[2],
        tone=TONES.get(report.status, ""),
        tables={"Outputs": Table(("output", "kind", "sha256", ""), outputs[:NAMED])},
        notes=[f"and {more} more outputs in {report.run_dir}/report.json"] if more > 0 else [],
        log=[line.removeprefix("  ") for line in lines],
    )
