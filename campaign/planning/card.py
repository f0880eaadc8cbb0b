"""The card of a plan in a notebook."""

from __future__ import annotations

from collections import Counter

from campaign.planning.plan import Plan
from campaign.util.card import Card, Table
from campaign.util.messages import counted


def card(plan: Plan) -> Card:
    """Files, the steps of each stage, outputs and frozen values."""
    steps: Counter[str] = Counter()
    variations: dict[str, dict[str, None]] = {}
    for line in plan.lines:
        steps[line.stage] += len(line.keys)
        variations.setdefault(line.stage, {})[line.variation] = None
    for reduce in plan.reduces:
        steps[reduce.stage] += 1
        variations.setdefault(reduce.stage, {})[reduce.variation] = None
    kinds = {name: "reduce" if s.reduce is not None else "per file" for name, s in plan.campaign.stages.items()}
    return Card(
        f"Plan of {plan.campaign.campaign}",
        facts={
            "plan": plan.digest[:16],
            "tasks": f"{plan.total:,}",
            "outputs": counted(len(plan.outputs), "output") + ", " + counted(len(plan.reduces), "frozen value"),
        },
        tables={
            "Files": Table(("dataset", "files"), [(name, f"{len(files):,}") for name, files in plan.files.items()]),
            "Steps": Table(
                ("stage", "kind", "steps", "variations"),
                [(s, kinds[s], f"{steps[s]:,}", ", ".join(variations.get(s, ()))) for s in plan.campaign.stages],
            ),
        },
    )
