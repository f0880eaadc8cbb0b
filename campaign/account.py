"""What a run has done, put into its report."""

from __future__ import annotations

from typing import Any

from campaign import report
from campaign.plan import Plan
from campaign.pool import ServerPool
from campaign.profile import Profile, by_stage
from campaign.report import Report
from campaign.rundir import RunDir
from campaign.scheduler import State
from campaign.twin import NOTE


def judge(made: Report, plan: Plan, state: State) -> None:
    """Say whether everything is there, and what is not."""
    missing = [o.name for o in plan.outputs if o.name not in state.merged]
    missing += [f"{r.stage}/{r.variation}" for r in plan.reduces if (r.stage, r.variation) not in state.frozen]
    made.status = report.FAILED if missing else report.COMPLETE
    for texts in state.errors.values():
        more = f"\n  and {len(texts) - 1} more alike" if len(texts) > 1 else ""
        made.errors.append(texts[0] + more)
    if missing:
        made.errors.append("missing: " + ", ".join(missing))


def fill(made: Report, plan: Plan, state: State, rundir: RunDir, kind: Any, pool: ServerPool | None, todo: int) -> None:
    """Fill in everything but status, errors and time."""
    if pool is not None:
        made.servers = pool.report()
        for server in made.servers:
            made.warnings += [w for w in server.get("warnings", ()) if w not in made.warnings]
    dynamic = _dynamic(plan, kind)
    if dynamic:
        made.reproducible = False
        made.warnings.append(
            f"the server batches requests of {', '.join(dynamic)} dynamically: predictions depend on their neighbours"
        )
    if state.rungs["local_twin"] or any(NOTE in merged.notes for merged in state.merged.values()):
        made.reproducible = False
        made.warnings.append(f"{NOTE}: outputs that hold them say so in their notes")
    made.tasks = {
        "total": plan.total,
        "done": state.counts["done"],
        "reused": max(0, plan.total - todo - state.counts["again"]),
        "failed": state.counts["failed"],
    }
    made.rows.update(state.rungs)
    for name, files in plan.files.items():
        made.datasets[name] = {"files": len(files), "events": int(state.ledger.events[name].sum())}
    for name, merged in sorted(state.merged.items()):
        made.outputs[name] = {"path": str(merged.path), "kind": merged.kind, "sha256": merged.sha256}
        if merged.root:
            made.outputs[name]["root"] = str(merged.root)
        if merged.notes:
            made.outputs[name]["notes"] = list(merged.notes)
    for (stage, variation), (path, sha256) in sorted(state.frozen.items()):
        made.outputs[f"{stage}/all/{variation}"] = {"path": path, "kind": "frozen", "sha256": sha256}
    made.artefacts = _artefacts(plan, rundir)
    made.versions = report.versions()
    if hasattr(kind, "versions"):
        made.versions["server"] = kind.versions()


def profiled(profile: Profile, plan: Plan, state: State, pool: ServerPool | None) -> Profile:
    """Add what the workers and the servers say of their time."""
    profile.stages = by_stage(state.spent, list(plan.campaign.stages))
    profile.tasks_s, profile.worker_peak_mb = state.tasks_s, state.peak_mb
    if state.answered:
        profile.timeline["answer"] = state.answered - profile.began
    end = profile.began + profile.timeline.get("tasks", 0.0)
    for record in pool.records() if pool is not None else ():
        if record.get("ready_s") is None or "started" not in record:
            continue
        ready = float(record["started"]) + float(record["ready_s"])
        profile.timeline["ready"] = min(profile.timeline.get("ready", ready), ready - profile.began)
        computing = sum(t["computing_s"] for t in record.get("times", {}).values())
        profile.computing[str(record["name"])] = computing / max(end - ready, 1e-3)
    profile.timeline = dict(sorted(profile.timeline.items(), key=lambda item: item[1]))
    return profile


def _dynamic(plan: Plan, kind: Any) -> list[str]:
    servers = plan.campaign.servers
    if servers is None or not hasattr(kind, "config"):
        return []
    return [name for name in servers.models if kind.config(name).HasField("dynamic_batching")]


def _artefacts(plan: Plan, rundir: RunDir) -> dict[str, str]:
    root = rundir.root / "artefacts"
    mine = {(r.stage, r.variation) for r in plan.reduces}
    return {
        str(p.relative_to(root)): str(p)
        for stage, variation in sorted(mine)
        for p in sorted((root / stage / variation).rglob("*"))
        if p.is_file()
    }
