"""Writes and reads ``plan.json``, from which a later run learns what has changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from campaign._version import __version__
from campaign.planning.datasets import Files
from campaign.planning.plan import PendingTasks, Plan
from campaign.planning.planner import FORMAT
from campaign.spec.models import NOMINAL
from campaign.storage.receipts import FROZEN, MERGED, parse
from campaign.storage.rundir import RunDir
from campaign.util.files import read_json, write_aside, write_json

Row = tuple[int, str, str]
"""Size, stamp and metadata of a file."""


def head(plan: Plan) -> dict[str, Any]:
    """All but the files: what keys are made from, by stage, line, reduce stage and events."""
    total: Counter[str] = Counter()
    for line in plan.lines:
        total[line.stage] += len(line.keys) if line.emit else 0
    lists = {id(files): name for name, files in file_lists(plan).items()}
    return {
        "plan": plan.digest,
        "partials": dict(+total),
        "version": [__version__, FORMAT],
        "read_rows": plan.campaign.read_rows,
        "stages": plan.ingredients,
        "lines": {x.name: {"weight": x.weight, "frozen": _frozen(plan, x.frozen)} for x in plan.lines},
        "reduces": {
            f"{r.stage}/{r.variation}": {
                "key": r.key, "inputs": {o.name: o.line.keys.digest for o in r.inputs.values() if o.line},
                "frozen": _frozen(plan, r.frozen),
            } for r in plan.reduces
        },
        "events": {
            f"{e.dataset}/{e.variation}": {
                "tree": e.tree, "branches": dict(e.branches), "is_mc": e.is_mc,
                "reader": plan.readers[e.dataset].digest, "files": lists[id(e.files)],
            } for e in plan.events
        },
    }  # fmt: skip


def _frozen(plan: Plan, needed: tuple[tuple[str, str], ...]) -> dict[str, str]:
    keys = {(r.stage, r.variation): r.key for r in plan.reduces}
    return {f"{stage}/{variation}": keys[stage, variation] for stage, variation in needed}


def file_lists(plan: Plan) -> dict[str, Files]:
    """Lists of files, each once: by dataset, and with the variation where that reads others."""
    found = dict(plan.files)
    known = {id(files) for files in found.values()}
    for e in plan.events:
        if id(e.files) not in known:
            known.add(id(e.files))
            found[e.dataset if e.variation == NOMINAL else f"{e.dataset}/{e.variation}"] = e.files
    return found


def note_start(rundir: RunDir, plan: Plan, todo: Iterable[PendingTasks]) -> None:
    """Note what of the plan is there already, and where the receipts of this run begin."""
    left: Counter[str] = Counter()
    for some in todo:
        for line in some.shape.lines:
            left[line.stage] += len(some.places) if line.emit else 0
    total: dict[str, int] = head(plan)["partials"]
    rundir.started.parent.mkdir(parents=True, exist_ok=True)
    size = rundir.receipts.stat().st_size if rundir.receipts.exists() else 0
    there = {stage: max(0, n - left[stage]) for stage, n in total.items()}
    write_json(rundir.started, {"total": total, "there": there, "receipts": size})


def progress_of(rundir: RunDir) -> tuple[dict[str, int], dict[str, int]]:
    """Partials that the run in a directory makes, by stage, and how many of them are there."""
    told = read_json(rundir.started) or {}
    total, there, start = (told.get(key) for key in ("total", "there", "receipts"))
    if not isinstance(total, dict) or not isinstance(there, dict) or not isinstance(start, int):
        return {}, {}
    keys: dict[str, set[str]] = {stage: set() for stage in total}
    with suppress(OSError), rundir.receipts.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            receipt = parse(line)
            if receipt is not None and receipt.stage in keys and receipt.kind not in (FROZEN, MERGED):
                keys[receipt.stage].add(receipt.key)
    return total, {stage: min(n, int(there.get(stage, 0)) + len(keys[stage])) for stage, n in total.items()}


def write(rundir: RunDir, plan: Plan) -> None:
    """Write ``plan.json``, file by file: there may be 100,000. Left alone where it says just that."""
    with suppress(OSError), rundir.plan_file.open("rb") as old:
        # All of it: one that was torn or altered would be sealed by the manifest of a run that has nothing to do.
        if all(old.read(len(part)) == part for part in _text(plan)) and not old.read(1):
            return
    with write_aside(rundir.plan_file) as stream:
        stream.writelines(_text(plan))


def _text(plan: Plan) -> Iterator[bytes]:
    yield json.dumps(head(plan), indent=1, allow_nan=False).removesuffix("\n}").encode() + b',\n "files": {'
    for i, (name, files) in enumerate(file_lists(plan).items()):
        yield f"{',' if i else ''}\n  {json.dumps(name)}: [".encode()
        for j, file in enumerate(files):
            row = json.dumps([file.url, file.size, file.stamp, file.metadata_json])
            yield f"{',' if j else ''}\n   {row}".encode()
        yield b"\n  ]"
    yield b"\n }\n}\n"


@dataclass(frozen=True)
class PlanFile:
    """The plan of the last run in a directory.

    Attributes:
        told: As in the file.
    """

    told: Mapping[str, Any]

    @classmethod
    def read(cls, rundir: RunDir) -> PlanFile | None:
        """The plan file of a run directory; None if it is missing or cannot be read."""
        told = read_json(rundir.plan_file)
        parts = ("stages", "lines", "reduces", "events", "files")
        return cls(told) if told is not None and all(isinstance(told.get(p), dict) for p in parts) else None

    def part(self, name: str, at: str) -> Mapping[str, Any] | None:
        """The entry of a stage, layer, reduce stage or input group; None: the plan had none."""
        found = self.told[name].get(at)
        return found if isinstance(found, dict) else None

    def files(self, events: str) -> dict[str, Row]:
        """Its files by URL."""
        rows = self.told["files"].get((self.part("events", events) or {}).get("files"), ())
        return {
            str(row[0]): (row[1], row[2], row[3])
            for row in (rows if isinstance(rows, list) else ())
            if isinstance(row, list) and len(row) == 4
        }
