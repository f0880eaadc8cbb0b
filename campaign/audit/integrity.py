"""Checks a run directory, byte by byte, against its manifest and its receipts. Nothing is run or changed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign.errors import PartialError
from campaign.outputs.columns import COLUMNS
from campaign.outputs.kinds import contents_digest
from campaign.storage.packs import PackReader
from campaign.storage.receipts import FROZEN, MERGED, Receipt, Receipts, parse
from campaign.storage.rundir import RunDir
from campaign.util.hashing import file_digest


@dataclass(frozen=True)
class Finding:
    """One thing that is not what it was.

    Attributes:
        what: ``manifest``, ``receipt``, ``partial``, ``output``, ``frozen``, ``artefact``, ``plan``, ``model``,
            ``stage``, ``reader``, ``input``, ``campaign`` or ``recomputed``.
        name: Which.
        said: How it differs.
    """

    what: str
    name: str
    said: str


@dataclass
class IntegrityReport:
    """The number of objects checked, and the differences found.

    Attributes:
        findings: What differs.
        files: Number of files of each kind that were hashed.
        bytes: Their size in all.
        partials: Last word of the log on every partial.
        earlier: Number of partials of earlier plans, which were not looked at.
        frozen_ok: ``stage/variation`` of frozen values that are as they were.
    """

    findings: list[Finding] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    partials: dict[str, Receipt] = field(default_factory=dict)
    earlier: int = 0
    frozen_ok: set[str] = field(default_factory=set)


def integrity(
    rundir: RunDir, manifest: Mapping[str, Any], threads: int, keys: Container[str] | None = None
) -> IntegrityReport:  # fmt: skip
    """Look at everything.

    Args:
        rundir: The run directory.
        manifest: From `campaign.driver.manifest.read`.
        threads: How many files are hashed at once.
        keys: Of the plan's partials: those of earlier plans are left aside. None: not known, all are looked at.
    """
    looked = IntegrityReport()
    with ThreadPoolExecutor(threads) as pool:
        looked.findings += _log(rundir, manifest, looked)
        if keys is not None:
            ours = {key: receipt for key, receipt in looked.partials.items() if key in keys}
            looked.earlier, looked.partials = len(looked.partials) - len(ours), ours
        if manifest["plan.json"] != _digest(rundir.plan_file):
            looked.findings.append(Finding("plan", "plan.json", CHANGED))
        spoilt = _partials(rundir, looked, pool)
        for name, output in manifest["outputs"].items():
            if output["kind"] == COLUMNS:
                looked.findings += _columns(rundir, name, output, looked, spoilt, pool)
        single = [
            *(
                ("output", f"{name}: {path}", path, sha256)
                for name, o in manifest["outputs"].items() for path, sha256 in o.get("files", {}).items()
            ),
            *(("frozen", f"{n}: {o['path']}", o["path"], o["sha256"]) for n, o in manifest["frozen"].items()),
            *(("artefact", p, p, s) for p, s in manifest["artefacts"].items()),
        ]  # fmt: skip
        digests = pool.map(lambda item: _digest(rundir.root / item[2]), single)
        for (what, name, path, sha256), found in zip(single, digests, strict=True):
            looked.findings += [] if found == sha256 else [Finding(what, name, CHANGED if found else MISSING)]
            _count(looked, what, rundir.root / path)
    bad = {f.name.partition(":")[0] for f in looked.findings if f.what == "frozen"}
    looked.frozen_ok = set(manifest["frozen"]) - bad
    return looked


def _log(rundir: RunDir, manifest: Mapping[str, Any], looked: IntegrityReport) -> Iterator[Finding]:
    """Read the log; where it is not what it was, its lines that are no receipts any more are named."""
    for receipt in Receipts(rundir.receipts):
        if receipt.kind not in (FROZEN, MERGED):
            looked.partials[receipt.key] = receipt
    _count(looked, "log", rundir.receipts)
    if _digest(rundir.receipts) == manifest["receipts"]["sha256"]:
        return
    if not rundir.receipts.exists():
        yield Finding("receipt", rundir.receipts.name, MISSING)
        return
    named = False
    with rundir.receipts.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip() and parse(line) is None:
                named = True
                yield Finding("receipt", f"{rundir.receipts.name} line {number}", "is no receipt (altered, or torn)")
    if not named:
        yield Finding("receipt", rundir.receipts.name, "lines were added, taken out or put in another order")


def _partials(rundir: RunDir, looked: IntegrityReport, pool: ThreadPoolExecutor) -> set[str]:
    """Hold every partial against its receipt; returns keys of those that differ."""
    packs: dict[str, list[Receipt]] = {}
    own: list[Receipt] = []
    for receipt in looked.partials.values():
        (packs.setdefault(receipt.pack, []) if receipt.pack else own).append(receipt)
    found: list[tuple[Receipt, str]] = []
    for told in pool.map(lambda some: _pack(rundir, some), packs.values()):
        found += told
    digests = pool.map(lambda r: _digest(rundir.columns(r.key)), own)
    found += [(r, CHANGED if d else MISSING) for r, d in zip(own, digests, strict=True) if d != r.bytes_sha256]
    for receipt, said in found:
        path = rundir.pack(receipt.pack) if receipt.pack else rundir.columns(receipt.key)
        name = (
            f"{path.relative_to(rundir.root)}: {receipt.stage}/{receipt.dataset}/{receipt.variation} of {receipt.file}"
        )
        looked.findings.append(Finding("partial", name, said))
    looked.files["partials"] = len(looked.partials)
    looked.bytes += sum(r.size for r in looked.partials.values())
    return {receipt.key for receipt, _ in found}


def _pack(rundir: RunDir, receipts: Iterable[Receipt]) -> list[tuple[Receipt, str]]:
    found = []
    with PackReader(rundir) as packs:
        for receipt in receipts:
            try:
                packs.read(receipt)
            except PartialError:
                found.append((receipt, CHANGED if rundir.pack(receipt.pack).exists() else MISSING))
    return found


def _columns(
    rundir: RunDir,
    name: str,
    output: Mapping[str, Any],
    looked: IntegrityReport,
    spoilt: set[str],
    pool: ThreadPoolExecutor,
) -> Iterator[Finding]:
    """A folder of columns is its partials, in order: their contents give the digest of the whole."""
    receipts = [r for r in looked.partials.values() if f"{r.stage}/{r.dataset}/{r.variation}" == name]
    by_bytes = {r.bytes_sha256: r.sha256 for r in receipts}
    rewritten = output.get("rewritten", {})  # given the types of the other files: no partial has these bytes
    by_inode = {_inode(rundir.columns(r.key)): r for r in receipts}
    folder = rundir.root / output["path"]
    files = sorted(folder.glob("*.parquet"))
    known = [by_inode.get(_inode(file)) for file in files]  # one file under two names is read once
    rest = pool.map(_digest, [file for file, r in zip(files, known, strict=True) if r is None])
    contents, bad = [], False
    torn = any(f.what == "receipt" for f in looked.findings)
    for file, receipt in zip(files, known, strict=True):
        content = _content(next(rest), rewritten.get(file.name), by_bytes) if receipt is None else receipt.sha256
        if content is None or (receipt is not None and receipt.key in spoilt):
            bad = True
            yield Finding("output", f"{name}: {file.relative_to(rundir.root)}", UNKNOWN if torn else CHANGED)
        contents.append(content or "")
    looked.files["output"] = looked.files.get("output", 0) + len(files)
    if not bad and contents_digest((str(i), c) for i, c in enumerate(contents)) != output["sha256"]:
        yield Finding("output", f"{name}: {output['path']}", "files are missing, or in another order")


def _content(found: str, rewritten: Sequence[str] | None, by_bytes: Mapping[str, str]) -> str | None:
    """Digest of the content of a file whose bytes have this digest."""
    if rewritten is None:
        return by_bytes.get(found)
    return rewritten[1] if found == rewritten[0] else None


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return ""


def _count(looked: IntegrityReport, what: str, path: Path) -> None:
    looked.files[what] = looked.files.get(what, 0) + 1
    looked.bytes += path.stat().st_size if path.exists() else 0


CHANGED, MISSING = "has changed since it was written", "is missing"
UNKNOWN = "cannot be checked: its receipt is missing"
