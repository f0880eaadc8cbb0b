"""Explains why a task would run: compares what its key is made from now with what it was made from last time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from campaign._version import __version__
from campaign.driver.state import State, artefacts_there
from campaign.planning.plan import InputGroup, Layer, PendingTasks, Plan, Reduce
from campaign.planning.plan_file import PlanFile
from campaign.planning.planner import FORMAT
from campaign.storage.receipts import UNFINISHED
from campaign.storage.rundir import RunDir
from campaign.util.hashing import canonical_json
from campaign.util.messages import counted

NAMED = 3  # files of a group that are named for people


@dataclass(frozen=True)
class Group:
    """Tasks that are alike, and would run for the same reasons.

    Attributes:
        dataset: Name of the dataset.
        writes: ``stage/variation`` of what they leave.
        start: What they read.
        why: The reasons.
        places: Their files in the dataset.
        urls: Names of these.
    """

    dataset: str
    writes: tuple[str, ...]
    start: str
    why: tuple[str, ...]
    places: tuple[int, ...]
    urls: tuple[str, ...]

    def text(self) -> str:
        """One line."""
        names = [url.rpartition("/")[2] for url in self.urls]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return (
            f"{', '.join(names[:NAMED])}{more} ({self.dataset}): {', '.join(self.writes)} from {self.start}"
            f": {'; '.join(self.why)}"
        )


class Explanations:
    """Says why.

    Args:
        plan: The plan.
        state: What is there and counts, as `State.remember` has found it.
        before: What the last run set out to do; None: there was none.
        rundir: The run directory.
    """

    def __init__(self, plan: Plan, state: State, before: PlanFile | None, rundir: RunDir) -> None:
        self.plan, self.state, self.before, self.rundir = plan, state, before, rundir
        self.index = state.index
        self.line = cache(self._line)
        self.files = cache(self._files)

    def groups(self, some: PendingTasks) -> Iterator[Group]:
        """Tasks of one shape by their reasons, in canonical order of their first files."""
        events, shape = some.shape.events, some.shape
        common = tuple(dict.fromkeys(why for line in shape.emits for why in self.line(line)))
        files = self.files(events)
        gone = {int(i) for line in shape.emits for i in some.places[self.index.gone(line, some.places)]}
        old = {int(i) for line in shape.emits for i in some.places[self.index.made_otherwise(line, some.places)]}
        found: dict[tuple[str, ...], list[int]] = {}
        for i in some.places.tolist():
            why = (*common, *files.get(i, ()))
            found.setdefault((TORN,) if i in gone else (OTHER,) if i in old else why or (NOTHING,), []).append(i)
        writes = tuple(sorted({f"{line.stage}/{line.variation}" for line in shape.emits}))
        start = "its artefact" if shape.artefact else f"tree {events.tree}"
        for reasons, places in found.items():
            urls = tuple(events.files.url(i) for i in places)
            yield Group(events.dataset, writes, start, reasons, tuple(places), urls)

    def reduce(self, reduce: Reduce) -> tuple[str, ...]:
        """Why a reduce stage would run; empty: it is done."""
        at = (reduce.stage, reduce.variation)
        if at in self.state.frozen:
            return ()
        old = self.index.frozen.get(at)
        if old is not None and old.key == reduce.key:
            if not self.rundir.frozen(*at).exists():
                return ("its frozen value is missing",)
            if not artefacts_there(self.rundir, old):
                return ("its plots and tables are not what they were",)
            return (INPUTS_OTHER if self.state.has_inputs(reduce) else INPUTS_OPEN,)
        was = self.before.part("reduces", f"{reduce.stage}/{reduce.variation}") if self.before else None
        if was is None:
            return (NOTHING,)
        if old is not None and old.key == UNFINISHED:
            return ("it was begun, and did not come to its end",)
        found = [*self._version(), *self._stage(reduce.stage)]
        inputs = {o.name: o.line.keys.digest for o in reduce.inputs.values() if o.line}
        changed = sorted({o.split("/")[0] for o in differing(was.get("inputs"), inputs)})
        found += [f"merged '{stage}' will be made again" for stage in changed]
        found += self._frozen(was, reduce.frozen)
        return tuple(found) or (NOTHING,)

    def _line(self, line: Layer) -> tuple[str, ...]:
        """The changes that concern all files of a layer."""
        if self.before is None:
            return ()
        chain: list[Layer] = [line]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        found = list(self._version())
        if self.before.told.get("read_rows") != self.plan.campaign.read_rows:
            found.append("read_rows changed")
        found += self._events(line.events)
        for one in reversed(chain):
            was = self.before.part("lines", one.name)
            if was is None:
                new = self.before.part("stages", one.stage) is None
                return (*found, f"stage '{one.stage}' is new" if new else f"{one.name} is new")
            found += self._stage(one.stage)
            if was.get("weight") != one.weight:
                found.append(f"weight of variation '{one.variation}' changed")
            found += self._frozen(was, one.frozen)
        return tuple(dict.fromkeys(found))

    def _version(self) -> list[str]:
        now: list[Any] = [__version__, FORMAT]
        was = self.before.told.get("version") if self.before else now
        return [] if was == now else ["campaign version"]

    def _stage(self, stage: str) -> list[str]:
        assert self.before is not None
        now, was = self.plan.ingredients[stage], self.before.part("stages", stage)
        if was is None:
            return [f"stage '{stage}' is new"]
        found = [f"code of stage '{stage}' changed"] if was.get("code") != now["code"] else []
        options = differing(was.get("options"), now["options"])
        if options:
            found.append(f"options of '{stage}' changed: {', '.join(options)}")
        models = _mapping(was.get("models"))
        for model, identity in now["models"].items():
            if model not in models:
                found.append(f"model {model} is new")
            elif models[model] != identity:
                found.append(f"model {model} changed: {', '.join(differing(models[model], identity))}")
        return found

    def _frozen(self, was: Mapping[str, Any], needed: tuple[tuple[str, str], ...]) -> list[str]:
        keys = {(r.stage, r.variation): r.key for r in self.plan.reduces}
        old = _mapping(was.get("frozen"))
        return [f"frozen '{at[0]}' will be made again" for at in needed if old.get("/".join(at)) != keys[at]]

    def _events(self, events: InputGroup) -> list[str]:
        assert self.before is not None
        was = self.before.part("events", f"{events.dataset}/{events.variation}")
        if was is None:
            return [f"dataset '{events.dataset}' is new"] if events.variation == "nominal" else []
        now = {
            "tree": events.tree, "branches": dict(events.branches), "is_mc": events.is_mc,
            "reader": self.plan.readers[events.dataset].digest,
        }  # fmt: skip
        return [f"{what} of dataset '{events.dataset}' changed" for what, v in now.items() if was.get(what) != v]

    def _files(self, events: InputGroup) -> dict[int, tuple[str, ...]]:
        """The changes of single files."""
        if self.before is None:
            return {}
        found: dict[int, tuple[str, ...]] = {}
        old = self.before.files(f"{events.dataset}/{events.variation}")
        for i, file in enumerate(events.files) if old else ():
            was, now = old.get(file.url), (file.size, file.stamp, file.metadata_json)
            if was is None:
                found[i] = ("a new file",)
            elif was != now:
                what = [name for name, a, b in zip(("size", "date"), was, now, strict=False) if a != b]
                said = (f"input changed ({', '.join(what)})",) if what else ()
                found[i] = (*said, *(["metadata changed"] if was[2] != now[2] else []))
        return found


def in_short(plan: Plan, state: State, rundir: RunDir, todo: list[PendingTasks]) -> list[str]:
    """Why stages run again, one line for each group of stages and reason; empty where no run was there before."""
    before = PlanFile.read(rundir)
    if before is None:
        return []
    reasons = Explanations(plan, state, before, rundir)
    found: dict[tuple[str, str], int] = {}
    for some in todo:
        for group in reasons.groups(some):
            stages = ", ".join(dict.fromkeys(name.split("/")[0] for name in group.writes))
            at = (stages, "; ".join(group.why))
            found[at] = found.get(at, 0) + len(group.places)
    lines = [f"{stages}: {why} ({counted(n, 'task')})" for (stages, why), n in found.items()]
    for reduce in plan.reduces:
        why = "; ".join(reasons.reduce(reduce))
        lines += [f"{reduce.stage}/{reduce.variation}: {why}"] if why else []
    return lines[:TOLD] + ([f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else [])


TOLD = 20  # lines of reasons that are shown
NOTHING = "no receipt"
TORN = "its partial is missing or torn"
OTHER = "it was made with another frozen value than there is now"


INPUTS_OTHER = "it was made from other inputs than there are now"
INPUTS_OPEN = "its inputs will be made again; it is kept if they are unchanged"


def differing(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted places at which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*map(str, old), *map(str, new)})
        return [x for n in names for x in differing(old.get(n), new.get(n), f"{at}.{n}" if at else n)]
    try:
        same = canonical_json(old) == canonical_json(new)
    except (TypeError, ValueError):  # a damaged file may hold a NaN
        same = False
    return [] if same else [at or "all"]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_json(plan: Plan, reasons: Explanations, todo: list[PendingTasks]) -> dict[str, Any]:
    """Every task, reduce stage and output, for a program; ``at_least``: a frozen value may call for more tasks."""
    tasks = [
        {
            "file": url, "dataset": group.dataset, "writes": list(group.writes), "from": group.start,
            "why": list(group.why), "keys": [line.keys[i] for line in some.shape.emits],
        }
        for some in todo for group in reasons.groups(some) for i, url in zip(group.places, group.urls, strict=True)
    ]  # fmt: skip
    reduces = [{"name": f"{r.stage}/{r.variation}", "why": list(reasons.reduce(r))} for r in plan.reduces]
    return {
        "plan": plan.digest, "tasks": tasks, "at_least": reasons.state.open,
        "reduces": [r for r in reduces if r["why"]],
        "outputs": {o.name: list(o.files) for o in plan.outputs},
    }  # fmt: skip
