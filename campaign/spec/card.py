"""The card of a campaign in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from campaign.spec.models import Campaign, Dataset, StageSpec, Variation, campaign_workers
from campaign.util.card import Card, Table


def card(campaign: Campaign) -> Card:
    """Datasets, stages, variations, servers and who lends the machines."""
    facts = {"provider": campaign.provider.kind, "workers": str(campaign_workers(campaign))}
    servers = campaign.servers
    if servers is not None:
        models = ", ".join(servers.models) or "no model"
        facts["servers"] = f"{servers.count} of kind {servers.kind}, with {models}"
    if campaign.limit is not None:
        facts["limit"] = f"the first {campaign.limit:,} rows of each file: a try"
    facts["paths start at"] = str(campaign.base)
    return Card(
        f"Campaign {campaign.campaign}",
        facts=facts,
        tables={
            "Datasets": Table(("name", "files", "tree", "kind"), [_dataset(*d) for d in campaign.datasets.items()]),
            "Stages": Table(("name", "runs", "takes", "datasets"), [_stage(*s) for s in campaign.stages.items()]),
            "Variations": Table(("name", "changes", "of"), [_variation(*v) for v in campaign.variations.items()]),
        },
    )


def _dataset(name: str, d: Dataset) -> tuple[str, ...]:
    files = d.files if isinstance(d.files, str) else ", ".join(d.files)
    return name, files, d.tree, "simulation" if d.is_mc else "data"


def _stage(name: str, s: StageSpec) -> tuple[str, ...]:
    takes = f"merged {s.reduce}" if s.reduce is not None else s.from_ or "events"
    takes += f", frozen {', '.join(s.with_)}" if s.with_ else ""
    return name, named(s.use), takes, ", ".join(s.datasets) if s.datasets else "all of these"


def named(use: str | Callable[..., Any]) -> str:
    """A stage's code as a person names it."""
    return use if isinstance(use, str) else str(getattr(use, "__qualname__", type(use).__qualname__))


def _variation(name: str, v: Variation) -> tuple[str, ...]:
    changes = [f"tree {v.tree}"] if v.tree is not None else []
    changes += [f"{a} is read from {b}" for a, b in v.branches.items()]
    changes += [f"weight {v.weight}"] if v.weight is not None else []
    changes += ["files"] if v.files is not None else []
    changes += ["metadata"] if v.metadata is not None else []
    return name, ", ".join(changes), ", ".join(v.datasets) if v.datasets else "all datasets"
