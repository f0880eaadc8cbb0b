"""What a pool of servers shows of itself in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from campaign.util.card import Card, Table

if TYPE_CHECKING:
    from campaign.pool.pool import ServerPool


def card(pool: ServerPool) -> Card:
    """Its servers, as their records say."""
    records = pool.current()
    ready = sum(r.get("state") == "ready" for r in records) if pool.kind.managed else len(records)
    state = f"{ready} of {pool.spec.count} ready" if records else "not running"
    models = ", ".join(f"{name} {pool.versions.get(name, '')}".strip() for name in pool.spec.models)
    return Card(
        "ServerPool",
        state=state,
        tone="good" if records and ready >= pool.spec.count else "wait",
        facts={"kind": pool.spec.kind, "models": models},
        tables={"Servers": Table(("server", "state", "host", "ready after", "note"), list(_rows(records)))},
    )


def _rows(records: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for r in records:
        ready = r.get("ready_s")
        after = f"{ready:.1f} s" if isinstance(ready, (int, float)) else ""
        name, state, host, why = (str(r.get(key, "")) for key in ("name", "state", "host", "why"))
        yield name, state or "attached", host, after, why
