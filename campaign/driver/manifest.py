"""Writes ``manifest.json``: what a complete run was made from and what it has made, with the SHA-256 of each."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.driver.partial_index import PartialIndex
from campaign.errors import CampaignError, SpecError
from campaign.outputs.columns import COLUMNS
from campaign.outputs.merged import Merged
from campaign.planning.datasets import is_url
from campaign.planning.plan import Plan
from campaign.planning.plan_file import file_lists
from campaign.planning.stage_code import StageCode
from campaign.spec import yaml_file
from campaign.spec.models import Campaign, ProviderSpec
from campaign.storage.rundir import RunDir
from campaign.util.files import sync_all, write_aside
from campaign.util.hashing import file_digest

# Of the inputs, content hashes are taken: of so many of each list as long as they have no more bytes, and of more.
PERCENT, MOST_PERCENT_BYTES = 1.0, 16 << 30
MOST_FILES, MOST_BYTES = 100, 256 << 20
FORMAT = 1
_SEAL = ',\n "sha256": "'
_END = '"\n}\n'


# Which inputs ---------------------------------------------------------------------------------------------------------


def in_order(plan_digest: str, files: Sequence[str]) -> list[int]:
    """Places of files in an order that is random, and the same for everybody who knows the plan."""
    said = [hashlib.sha256(f"{plan_digest} {url}".encode(errors="surrogateescape")).digest() for url in files]
    return sorted(range(len(said)), key=said.__getitem__)


def sample(plan_digest: str, files: Sequence[str], percent: float) -> list[int]:
    """The first ``percent`` % of that order, one file at least; none for 0."""
    return in_order(plan_digest, files)[: math.ceil(len(files) * percent / 100)] if percent > 0 else []


def to_hash(plan: Plan) -> list[tuple[str, int, str]]:
    """URL, size and stamp of the files whose content is hashed.

    Reading 3 TB a second time is nobody's wish: 1 % of each list of files, one at least and together below 16 GiB, and
    more as long as they are fewer than 100 and together below 256 MiB.
    """
    chosen: list[tuple[str, int, str]] = []
    total = 0
    spare: list[list[tuple[str, int, str]]] = []
    for files in file_lists(plan).values():
        count = math.ceil(len(files) * PERCENT / 100)
        first = in_order(plan.digest, list(files.urls()))[: count + MOST_FILES]
        local = [(f.url, f.size, f.stamp) for f in map(files.one, first) if not is_url(f.url)]
        for rank, file in enumerate(local[:count]):
            if rank == 0 or total + file[1] <= MOST_PERCENT_BYTES:
                chosen.append(file)
                total += file[1]
        spare.append(local[count : count + MOST_FILES])
    for rank in range(MOST_FILES):
        for files_left in spare:
            if rank < len(files_left) and len(chosen) < MOST_FILES and total + files_left[rank][1] <= MOST_BYTES:
                chosen.append(files_left[rank])
                total += files_left[rank][1]
    return chosen


class InputHashes(threading.Thread):
    """Takes hashes of inputs while the workers work: reading and hashing leave the driver's own thread alone.

    Args:
        plan: The plan.
        known: From an earlier manifest; what has kept size and date is not read again.
    """

    def __init__(self, plan: Plan, known: Mapping[str, Any]) -> None:
        super().__init__(name="campaign-inputs", daemon=True)
        self._plan, self._known = plan, known
        self._over = threading.Event()
        self.found: dict[str, list[Any]] = {}

    def run(self) -> None:
        """Hash them, one after the other."""
        for url, size, stamp in to_hash(self._plan):
            if self._over.is_set():
                return
            old = self._known.get(url)
            if isinstance(old, list) and old[:2] == [size, stamp]:
                self.found[url] = old
                continue
            try:
                self.found[url] = [size, stamp, file_digest(Path(url))]
            except OSError:
                continue  # the task that reads it names it

    def stop(self) -> None:
        """Stop hashing; the result is not needed."""
        self._over.set()


# Writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """The contents of a manifest.

    Attributes:
        campaign, plan: What was asked for.
        models: What each model's answers depend on.
        merged, frozen, index: What was made.
        versions: Of what the numbers depend on.
        hashed: Size, stamp and SHA-256 of inputs by URL.
    """

    campaign: Campaign
    plan: Plan
    models: Mapping[str, Any]
    merged: Mapping[str, Merged]
    frozen: Mapping[tuple[str, str], tuple[str, str]]
    index: PartialIndex
    versions: Mapping[str, str]
    hashed: Mapping[str, Sequence[Any]]


def write(rundir: RunDir, done: Done) -> None:
    """Write it. Before that all it names is seen on the disk: where there is a manifest, a run is complete."""
    sync_all(rundir.root)
    body = {
        "format": FORMAT,
        "campaign": done.campaign.campaign,
        "recipe": recipe(done.campaign),
        "plan": done.plan.digest,
        "versions": dict(done.versions),
        "read_rows": done.campaign.read_rows,
        "models": done.models,
        "stages": {name: _code(code) for name, code in sorted(done.plan.code.items())},
        "readers": {name: _code(code) for name, code in sorted(done.plan.readers.items())},
        "inputs": {"hashed": dict(done.hashed), "files": {n: len(f) for n, f in file_lists(done.plan).items()}},
        "outputs": {name: _output(rundir, merged) for name, merged in sorted(done.merged.items())},
        "frozen": {
            f"{stage}/{variation}": {"path": _inside(rundir, Path(path)), "sha256": sha256}
            for (stage, variation), (path, sha256) in sorted(done.frozen.items())
        },
        "artefacts": dict(_artefacts(rundir, done)),
        "receipts": {"bytes": rundir.receipts.stat().st_size, "sha256": file_digest(rundir.receipts)},
        "plan.json": file_digest(rundir.plan_file),
    }
    text = json.dumps(body, indent=1, allow_nan=False).removesuffix("\n}")
    with write_aside(rundir.manifest, durable=True) as stream:
        stream.write(f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}{_END}".encode())


def recipe(campaign: Campaign) -> dict[str, str]:
    """The campaign as YAML and its folder, or why it cannot be written down.

    The provider is left out: verifying needs none, and its options may hold what others should not read.
    """
    headers = campaign.servers.given.get("headers") if campaign.servers else None
    if isinstance(headers, Mapping) and not all(str(v).startswith("$") for v in headers.values()):
        return {"why_not": "its servers are sent headers that are written out; name them by environment variable"}
    try:
        text = yaml_file.dump(campaign.model_copy(update={"provider": ProviderSpec()}))
    except SpecError as error:
        return {"why_not": str(error).splitlines()[0]}
    return {"yaml": text, "base": str(campaign.base)}


def _code(code: StageCode) -> dict[str, Any]:
    return {"use": code.where, "code": code.digest, "sources": {str(p): file_digest(p) for p in code.sources()}}


def _output(rundir: RunDir, merged: Merged) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": merged.kind, "sha256": merged.sha256, "path": _inside(rundir, merged.path)}
    if merged.kind != COLUMNS:  # those are their partials, but for those that were rewritten
        told["files"] = {_inside(rundir, f): file_digest(f) for f in merged.single_files}
    elif merged.rewritten:
        told["rewritten"] = {name: list(digests) for name, digests in merged.rewritten.items()}
    return dict(told)


def _artefacts(rundir: RunDir, done: Done) -> Iterator[tuple[str, str]]:
    for stage, variation in sorted(done.frozen):
        receipt = done.index.frozen.get((stage, variation))
        for name, sha256 in receipt.about.get("artefacts", {}).items() if receipt else ():
            yield _inside(rundir, rundir.artefacts(stage, variation) / name), sha256


def _inside(rundir: RunDir, path: Path) -> str:
    return str(path.relative_to(rundir.root))


# Reading --------------------------------------------------------------------------------------------------------------


def read(rundir: RunDir) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        CampaignError: There is none, or it has changed since it was written.
    """
    path = rundir.manifest
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Unsigned(
            f"there is no manifest: {error.strerror}", where=str(path), remedy="run the campaign to its end"
        ) from None
    body, seal, rest = text.rpartition(_SEAL.encode())
    said = hashlib.sha256(body).hexdigest() + _END
    try:
        told = json.loads(body + b"\n}") if seal and rest == said.encode() else None
    except (ValueError, RecursionError):
        told = None
    if (
        not isinstance(told, dict)
        or told.get("format") != FORMAT
        or any(not isinstance(told.get(p), dict) for p in _PARTS)
    ):
        raise Altered("has changed since it was written", where=str(path), remedy=_REMEDY)
    return dict(told)


_PARTS = ("recipe", "versions", "models", "stages", "readers", "inputs", "outputs", "frozen", "artefacts", "receipts")
_REMEDY = "delete it and run the campaign again: finished work is kept, and a new manifest is written"


class Unsigned(CampaignError):
    """There is no manifest to hold a run against."""

    exit_code = 2


class Altered(CampaignError):
    """The manifest itself was altered."""
