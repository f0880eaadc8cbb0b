"""``campaign verify``: checks a finished run against its manifest and repeats a sample of its tasks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from campaign.audit.integrity import CHANGED, MISSING, Finding, IntegrityReport, integrity
from campaign.driver import manifest
from campaign.driver.check import Checked, check, override
from campaign.driver.explain import differing
from campaign.driver.run import Run
from campaign.driver.signals import signals
from campaign.errors import CampaignError, Interrupted, RunDirBusy, SpecError
from campaign.outputs.merge import Merged
from campaign.planning.datasets import is_url
from campaign.planning.plan import InputGroup, PendingTasks
from campaign.planning.plan_file import PlanFile, file_lists
from campaign.report import report
from campaign.report.progress import Progress
from campaign.spec import yaml_file
from campaign.spec.models import Campaign, ErrorSpec
from campaign.storage.receipts import FROZEN, MERGED, Receipt, Receipts
from campaign.storage.rundir import RunDir
from campaign.supervision import driver_watchdog
from campaign.supervision.forkserver import stop_fork_server
from campaign.supervision.identity import mark, own
from campaign.util.hashing import file_digest
from campaign.util.os_errors import in_words


@dataclass
class Verification:
    """What was verified, and what differs.

    Attributes:
        run_dir: The run directory.
        findings: All differences.
        notes: What a reader should know: what was not verified, versions that differ.
        checked: Counts: files by kind, ``bytes``, ``inputs`` by content, ``tasks`` and ``recomputed`` partials.
    """

    run_dir: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all as it was; 1: something differs."""
        return 1 if self.findings else 0

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)

    def text(self) -> str:
        """For a terminal."""
        lines = [f"verify {self.run_dir}: {'unchanged' if not self.findings else f'{len(self.findings)} differ'}"]
        lines.append("  looked at  " + ", ".join(f"{n:,} {what}" for what, n in self.checked.items()))
        width = max((len(f.what) for f in self.findings), default=0)
        lines += [f"  {f.what:<{width}}  {f.name}: {f.said}" for f in self.findings]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def verify(
    campaign: Campaign | None, run_dir: Path | str, *, sample: float = 1.0, workers: int | None = None,
    progress: Progress | None = None,
) -> Verification:  # fmt: skip
    """Hold a complete run against its manifest. Nothing in the run directory is changed.

    Args:
        campaign: The campaign, where the manifest could not hold it (stages that are Python objects); else None.
        run_dir: The run directory.
        sample: Percentage of each list of files whose tasks are recomputed (one file at least); 0: none.
        workers: Worker processes, and threads that hash; None: as the campaign says.
        progress: Where progress is shown.

    Raises:
        CampaignError: With exit code 2 if there is nothing to hold the run against: no manifest, or not complete.
        RunDirBusy: A campaign runs in the directory.
    """
    rundir = RunDir(Path(run_dir).resolve())
    made = Verification(str(rundir.root))
    owner = rundir.owner()
    if owner:
        raise RunDirBusy(f"is in use by {owner}", where=str(rundir.root), remedy="wait for it")
    try:
        _verify(campaign, rundir, sample, workers, progress or Progress(), made)
    except OSError as error:
        raise in_words(error, rundir.root) from error
    return made


def _verify(
    campaign: Campaign | None, rundir: RunDir, sample: float, workers: int | None, shown: Progress, made: Verification
) -> None:
    try:
        told = manifest.read(rundir)
    except manifest.Altered as error:
        made.findings.append(Finding("manifest", rundir.manifest.name, error.message))
        made.notes.append(f"nothing else can be verified; {error.remedy}")
        return
    checked = _made_again(campaign, told, made, workers)
    same = checked is not None and checked.plan.digest == told["plan"]
    keys = {key for line in checked.plan.lines for key in line.keys} if checked is not None and same else None
    looked = integrity(rundir, told, workers or len(os.sched_getaffinity(0)), keys)
    made.findings[:0] = looked.findings
    made.checked |= {**looked.files, "bytes": looked.bytes}
    if looked.earlier:
        made.notes.append(f"{looked.earlier} receipts are of earlier plans: what they name is not of this result")
    if checked is not None:
        _identity(rundir, checked, told, sample, made)
        _versions(checked, told, made)
        if sample > 0:
            _recompute(rundir, checked, told, looked, sample, shown, made)


# What it was made from ------------------------------------------------------------------------------------------------


def _made_again(
    campaign: Campaign | None, told: Mapping[str, Any], made: Verification, workers: int | None
) -> Checked | None:
    """The campaign as it can be made now, None if it cannot: its sources are looked at before they are imported."""
    for what, part in (("stage", "stages"), ("reader", "readers")):
        for path, names in _sources(told[part]).items():
            now = _file_digest(Path(path))
            if now not in names:
                users = ", ".join(sorted(n for some in names.values() for n in some))
                made.findings.append(Finding(what, users, f"{path} {CHANGED if now else MISSING}"))
    try:
        if campaign is None:
            written = told["recipe"]
            if "yaml" not in written:
                made.notes.append(
                    f"models, inputs and results are not verified: {written.get('why_not', '')}; "
                    "call campaign.verify(campaign, run_dir) from the script that made it"
                )
                return None
            campaign = yaml_file.loads(written["yaml"], Path(written["base"]), "manifest.json")
        return check(_strict(override(campaign, workers=workers, servers=1, provider="local")))
    except SpecError as error:
        made.findings.append(Finding("campaign", str(told["campaign"]), f"cannot be made again: {error}"))
        return None


def _strict(campaign: Campaign) -> Campaign:
    """The campaign as it is done again: no file may fail unsaid, and no twin may answer for a server."""
    servers = campaign.servers
    if servers is not None:
        models = {name: model.model_copy(update={"local_twin": None}) for name, model in servers.models.items()}
        servers = servers.model_copy(update={"models": models})
    return campaign.model_copy(update={"errors": ErrorSpec(), "servers": servers})


def _sources(codes: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Source files, with the digests they had and who uses them."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, code in codes.items():
        for path, sha256 in code["sources"].items():
            found.setdefault(path, {}).setdefault(sha256, []).append(name)
    return found


def _identity(rundir: RunDir, checked: Checked, told: Mapping[str, Any], sample: float, made: Verification) -> None:
    for name, was in told["models"].items():
        now = checked.models.get(name)
        if now is None or differing(was, now):
            what = ", ".join(differing(was, now)) if now is not None else ""
            made.findings.append(Finding("model", name, f"{what} {CHANGED}" if now is not None else MISSING))
    for what, codes, part in (("stage", checked.plan.code, "stages"), ("reader", checked.plan.readers, "readers")):
        named = {n for f in made.findings if f.what == what for n in f.name.split(", ")}
        for name, was in told[part].items():
            if name not in named and (name not in codes or codes[name].digest != was["code"]):
                made.findings.append(Finding(what, name, "its code has changed"))
    if checked.plan.digest != told["plan"]:  # it holds all of these: where it is the same, they are
        _differs(rundir, checked, told, made)
    _contents(checked, told, sample, made)


def _differs(rundir: RunDir, checked: Checked, told: Mapping[str, Any], made: Verification) -> None:
    """Why the plan has changed: size, date and metadata of every file, or what nothing here has a name for."""
    plan_file = PlanFile.read(rundir)
    if plan_file is None:
        made.findings.append(Finding("plan", "plan.json", "cannot be read: the changed inputs cannot be listed"))
        return
    for events in checked.plan.events:
        _inputs(plan_file, events, told, made)
    grown = report.versions()[_OURS] != told["versions"].get(_OURS)  # keys hold it; a note tells it
    if not grown and not any(f.what in ("model", "stage", "reader", "input", "campaign") for f in made.findings):
        made.findings.append(Finding("campaign", str(told["campaign"]), "the plan has changed"))


_OURS = "inference-campaign"


def _inputs(plan_file: PlanFile, events: InputGroup, told: Mapping[str, Any], made: Verification) -> None:
    """Size, date and metadata of every file."""
    old = plan_file.files(f"{events.dataset}/{events.variation}")
    named = {f.name for f in made.findings}
    for file in events.files:
        was = old.pop(file.url, None)
        if was is None:
            said = "was not there"
        elif was == (now := (file.size, file.stamp, file.metadata_json)):
            continue
        else:
            what = [n for n, a, b in zip(("size", "date", "metadata"), was, now, strict=True) if a != b]
            said = f"{' and '.join(what)} changed"
            hashed = told["inputs"]["hashed"].get(file.url)
            if hashed and not is_url(file.url) and was[:2] != now[:2]:
                said += "; its content did not" if _file_digest(Path(file.url)) == hashed[2] else "; so did its content"
        if file.url not in named:
            made.findings.append(Finding("input", file.url, said))
    made.findings += [Finding("input", url, MISSING) for url in old if url not in named]


def _contents(checked: Checked, told: Mapping[str, Any], sample: float, made: Verification) -> None:
    """The content of the sample's files, as far as it was hashed."""
    named, without = {f.name for f in made.findings}, 0
    made.checked["inputs by content"] = 0
    for files in file_lists(checked.plan).values():
        urls = list(files.urls())
        for i in manifest.sample(told["plan"], urls, sample):
            hashed = told["inputs"]["hashed"].get(urls[i])
            if hashed is None:
                without += 1
                continue
            made.checked["inputs by content"] += 1
            if _file_digest(Path(urls[i])) != hashed[2] and urls[i] not in named:
                made.findings.append(Finding("input", urls[i], "its content changed, though its size and date did not"))
    if without:
        made.notes.append(f"of {without} inputs of the sample the run has taken no content hash; they are recomputed")


def _versions(checked: Checked, told: Mapping[str, Any], made: Verification) -> None:
    now = report.versions()
    if hasattr(checked.kind, "versions"):
        now["server"] = checked.kind.versions()
    if told["versions"].get("reproducible") == "False":
        made.notes.append("the run itself says that its outputs are not reproducible; its report says why")
    for name, was in told["versions"].items():
        if name == "reproducible":
            continue
        here = now.get(name, "not there")
        if here and here != was and name != "executable":  # empty: a server environment that is yet to be made
            made.notes.append(f"{name} is {here}, and was {was}: a likely cause, should anything differ")
    if checked.kind is not None and not checked.kind.managed:
        made.notes.append("the models of servers that already run cannot be looked at; only their answers are")


# What it gives --------------------------------------------------------------------------------------------------------


class _Again(Run):
    """Some files' tasks once more, in a directory of their own; nothing is merged or reduced."""

    frozen: Mapping[tuple[str, str], tuple[str, str]]
    passes: list[PendingTasks]

    def _remember(self) -> None:
        self.state.frozen = dict(self.frozen)
        self.state.merged = {o.name: Merged(o.name, "", self.rundir.root, "") for o in self.plan.outputs}
        self.todo = self.passes

    def _hash_inputs(self) -> None:
        """Nobody asks."""

    def _sign(self) -> None:
        """Nothing to sign."""


def _recompute(
    rundir: RunDir, checked: Checked, told: Mapping[str, Any], looked: IntegrityReport, sample: float, shown: Progress,
    made: Verification,
) -> None:  # fmt: skip
    """Do the sample's tasks again and hold every partial against its receipt."""
    changed = any(f.what in ("model", "stage", "reader") for f in made.findings)
    if changed and checked.plan.digest != told["plan"]:
        made.notes.append("nothing is recomputed: the inputs have changed")
        return
    frozen = {
        (stage, variation): (str(rundir.root / what["path"]), str(what["sha256"]))
        for name, what in told["frozen"].items() for stage, _, variation in [name.partition("/")]
    }  # fmt: skip
    passes = _passes(checked, told, looked, sample)
    if not passes:
        return
    with tempfile.TemporaryDirectory(prefix="campaign-verify-") as folder, driver_watchdog.hold(Path(folder)):
        own(Path(folder), str(mark()))  # whoever finds it knows whose it is, should this process be killed
        again = RunDir(Path(folder) / "again")
        _run(checked, again, frozen, passes, shown, made)
        before = {_at(r): r for r in looked.partials.values()}
        count, wanted = 0, sum(len(p.shape.emits) * len(p.places) for p in passes)
        for receipt in Receipts(again.receipts):
            was = looked.partials.get(receipt.key) or before.get(_at(receipt))
            if receipt.kind in (FROZEN, MERGED) or was is None:
                continue
            count += 1
            if was.sha256 != receipt.sha256:
                name = f"{receipt.stage}/{receipt.dataset}/{receipt.variation} of {receipt.file}"
                made.findings.append(Finding("recomputed", name, f"{receipt.sha256[:12]}, and was {was.sha256[:12]}"))
    if count < wanted and not any(f.what == "recomputed" for f in made.findings):
        made.findings.append(
            Finding("recomputed", "the sample", f"{wanted - count} partials have no receipt to be held to")
        )
    made.checked |= {"tasks done again": sum(len(p.places) for p in passes), "partials held against them": count}


def _at(receipt: Receipt) -> tuple[str, str, str, str]:
    return receipt.stage, receipt.dataset, receipt.variation, receipt.file


def _passes(checked: Checked, told: Mapping[str, Any], looked: IntegrityReport, sample: float) -> list[PendingTasks]:
    """The sample's tasks; those that need a frozen value which is not what it was are left out."""
    places = {
        id(files): np.sort(np.array(manifest.sample(told["plan"], list(files.urls()), sample), np.int64))
        for files in file_lists(checked.plan).values()
    }
    return [
        PendingTasks(p.shape, places[id(p.shape.events.files)])
        for p in checked.plan.todo()
        if all("/".join(at) in looked.frozen_ok for at in p.shape.frozen)
    ]


def _run(
    checked: Checked, again: RunDir, frozen: Mapping[tuple[str, str], tuple[str, str]], passes: list[PendingTasks],
    shown: Progress, made: Verification,
) -> None:  # fmt: skip
    try:
        with again.owned(), signals() as stop:
            run = _Again(checked, again, shown, stop)
            run.frozen, run.passes = frozen, passes
            done = run.run()
    except (CampaignError, OSError) as error:
        said = in_words(error, again.root) if isinstance(error, OSError) else error
        made.findings.append(Finding("recomputed", "the sample", f"cannot be: {said}"))
        return
    finally:
        stop_fork_server()
    if done.status == report.INTERRUPTED:
        raise Interrupted("stopped as asked; nothing was changed", where=made.run_dir)
    made.findings += [Finding("recomputed", "the sample", f"cannot be: {error}") for error in done.errors]


def _file_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""
