"""Fills the report of a run from its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from campaign.driver.state import State
from campaign.driver.unmoved_outputs import notes_of, unmoved
from campaign.driver.work import Work
from campaign.inference.local_model import NOTE
from campaign.outputs.column_schemas import differences
from campaign.planning.plan import Plan
from campaign.pool.pool import ServerPool
from campaign.protocols import ServerKind
from campaign.report import report
from campaign.report.profile import Profile, by_stage
from campaign.report.report import Report
from campaign.spec.models import NOMINAL
from campaign.storage.rundir import RunDir
from campaign.util.messages import counted, listed


def judge(made: Report, work: Work) -> None:
    """Set the status of the report, and name missing outputs and frozen values."""
    plan, state = work.plan, work.state
    missing = [o.name for o in plan.outputs if o.name not in state.merged]
    missing += [f"{r.stage}/{r.variation}" for r in plan.reduces if (r.stage, r.variation) not in state.frozen]
    without = [o for o in plan.outputs if o.name in state.merged and state.incomplete(o)]
    made.status = report.FAILED if missing else report.INCOMPLETE if without else report.COMPLETE
    made.errors += failures(state)
    if missing:
        if len(state.gaps) > state.gaps.limit > 0:
            made.errors.append(
                f"{counted(len(state.gaps), 'file')} failed; errors.max_failed_files puts up with {state.gaps.limit}"
            )
        made.errors.append("missing: " + listed(missing))


def failures(state: State) -> Iterator[str]:
    """The errors of a run. Errors that are alike are counted together."""
    for texts in state.errors.values():
        yield texts[0] + (f"\n  and {len(texts) - 1} more alike" if len(texts) > 1 else "")


def fill(made: Report, work: Work, rundir: RunDir, kind: ServerKind | None, pool: ServerPool | None) -> None:
    """Fill in everything but status, errors and time."""
    plan, state = work.plan, work.state
    if pool is not None:
        made.servers = pool.report()
        made.models = {name: {"version": version} for name, version in sorted(pool.versions.items())}
        for server in made.servers:
            made.warnings += [w for w in server.get("warnings", ()) if w not in made.warnings]
    why = kind.why_not_reproducible() if kind is not None else ""
    if why:
        made.reproducible = False
        made.warnings.append(why)
    notes = [
        *(m.notes for m in state.merged.values()),
        *(state.index.frozen[at].notes for at in state.frozen if at in state.index.frozen),
    ]
    if state.rungs["local_twin"] or any(NOTE in told for told in notes):
        made.reproducible = False
        made.warnings.append(f"{NOTE}: outputs that hold them say so in their notes")
    made.tasks = {
        "total": plan.total,
        "done": state.counts["done"],
        "reused": max(0, plan.total - work.tasks - state.counts["again"]),
        "failed": state.counts["failed"],
    }
    made.rows.update(state.rungs)
    made.warnings += sorted(state.refused)
    for name, files in plan.files.items():
        made.datasets[name] = {"files": len(files), "events": int(state.index.events[name].sum())}
    _outputs(made, plan, state)
    made.lost = state.gaps.to_json(max(MOST, state.gaps.limit))
    made.warnings += [
        *_uneven(plan, state),
        *differences(state.merged),
        *state.gaps.unweighed(),
        *unmoved(plan, state.merged),
    ]
    made.artefacts = _artefacts(plan, rundir)
    made.versions = report.versions()
    installed = kind.versions() if kind is not None else None
    if installed is not None:
        made.versions["server"] = installed


MOST = 1000  # files that a report names


def _outputs(made: Report, plan: Plan, state: State) -> None:
    told: dict[str, Any]
    for output in sorted(plan.outputs, key=lambda o: o.name):
        merged = state.merged.get(output.name)
        if merged is None:
            continue
        made.outputs[output.name] = told = {"path": str(merged.path), "kind": merged.kind, "sha256": merged.sha256}
        if merged.root:
            told["root"] = str(merged.root)
        if merged.uhi:
            told["uhi"] = str(merged.uhi)
        if notes := notes_of(merged):
            told["notes"] = notes
        if state.incomplete(output):
            told |= {"incomplete": True, "missing": state.lost(output), "because": state.because(output)}
    made_from = {(r.stage, r.variation): r for r in plan.reduces}
    for at, (path, sha256) in sorted(state.frozen.items()):
        made.outputs[f"{at[0]}/all/{at[1]}"] = told = {"path": path, "kind": "frozen", "sha256": sha256}
        if at in state.index.frozen and state.index.frozen[at].notes:
            told["notes"] = list(state.index.frozen[at].notes)
        if at in state.shaky:
            because = [o.name for o in made_from[at].inputs.values() if state.incomplete(o)]
            because += [f"{s}/all/{v}" for s, v in made_from[at].frozen if (s, v) in state.shaky]
            told |= {"incomplete": True, "because": because}


def _uneven(plan: Plan, state: State) -> Iterator[str]:
    """One sentence for each output that lacks other files than the nominal output."""
    there = {o.name: o for o in plan.outputs if o.name in state.merged}
    for output in there.values():
        nominal = there.get(f"{output.stage}/{output.dataset}/{NOMINAL}")
        if nominal is None or nominal.line is None or output.line is None:
            continue
        same = output.line.events.files is nominal.line.events.files
        if same and state.lost(output)["files"] != state.lost(nominal)["files"]:
            yield f"{output.name} and {nominal.name} lack different files: not only the variation sets them apart"


def profiled(profile: Profile, plan: Plan, state: State, pool: ServerPool | None) -> Profile:
    """Add the times that workers and servers have reported."""
    profile.stages = by_stage(state.spent, list(plan.campaign.stages))
    profile.tasks_s, profile.worker_peak_mb = state.tasks_s, state.peak_mb
    if state.answered:
        profile.timeline["answer"] = max(0.0, state.answered - profile.began)  # its clock may be set
    end = profile.began + profile.timeline.get("tasks", 0.0)
    for record in pool.records() if pool is not None else ():
        if record.ready_s is None:
            continue
        ready = record.started + record.ready_s
        profile.timeline["ready"] = min(profile.timeline.get("ready", ready), max(0.0, ready - profile.began))
        computing = sum(t.computing_s for t in record.times.values())
        profile.computing[record.name] = computing / max(end - ready, 1e-3)
    profile.timeline = dict(sorted(profile.timeline.items(), key=lambda item: item[1]))
    return profile


def _artefacts(plan: Plan, rundir: RunDir) -> dict[str, str]:
    root = rundir.root / "artefacts"
    mine = {(r.stage, r.variation) for r in plan.reduces}
    return {
        str(p.relative_to(root)): str(p)
        for stage, variation in sorted(mine)
        for p in sorted((root / stage / variation).rglob("*"))
        if p.is_file()
    }
