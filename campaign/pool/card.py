"""The card of a pool of servers in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from campaign.discovery.records import ServerRecord, ServerState
from campaign.util.card import Card, Table

if TYPE_CHECKING:
    from campaign.pool.pool import ServerPool


def card(pool: ServerPool) -> Card:
    """Its servers, as their records say."""
    records = pool.current()
    ready = sum(r.state is ServerState.READY for r in records) if pool.kind.managed else len(records)
    state = f"{ready} of {pool.spec.count} ready" if records else "not running"
    models = ", ".join(f"{name} {pool.versions.get(name, '')}".strip() for name in pool.spec.models)
    return Card(
        "ServerPool",
        state=state,
        tone="good" if records and ready >= pool.spec.count else "wait",
        facts={"kind": pool.spec.kind, "models": models},
        tables={"Servers": Table(("server", "state", "host", "ready after", "note"), list(_rows(records)))},
    )


def _rows(records: Iterable[ServerRecord]) -> Iterable[tuple[str, ...]]:
    for r in records:
        after = "" if r.ready_s is None else f"{r.ready_s:.1f} s"
        state = r.state.value if r.slot is not None else "attached"
        yield r.name, state, r.host, after, r.reason
