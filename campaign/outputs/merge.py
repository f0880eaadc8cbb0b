"""Merges partials into one output, at once or as a tree. A missing or corrupt partial is an error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from campaign.errors import OutputError, PartialError
from campaign.outputs.column_schemas import Schemas, unify
from campaign.outputs.columns import COLUMNS, ColumnsReader, read_columns
from campaign.outputs.counts import COUNTS, CountsPartial, read_counts, unpack_counts
from campaign.outputs.histograms import (
    HISTOGRAMS,
    HistogramsPartial,
    read_histograms,
    unpack_histograms,
    write_histograms,
)
from campaign.outputs.kinds import contents_digest
from campaign.storage.packs import AGAIN, PackReader
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.files import sync_all, write_aside, write_json
from campaign.util.hashing import canonical_json, digest, file_digest
from campaign.util.messages import unknown


@dataclass(frozen=True)
class Merged:
    """One merged output.

    Attributes:
        name: ``stage/dataset/variation``.
        kind: ``histograms``, ``columns`` or ``counts``.
        path: The lossless file; for columns a folder of Parquet files in canonical order.
        sha256: Over the content in canonical form, never over a file's timestamp.
        root: The same as a ROOT file (histograms), or None.
        notes: What ROOT cannot hold, weights that are no numbers.
        files: Digest of its files (`fingerprint`), once all of them are written.
        parts: Short digests of the histograms that hold something, by name.
        rewritten: Of columns, files that are no partials because they were given the types of the others: SHA-256 of
            each, and of the content of its partial.
    """

    name: str
    kind: str
    path: Path
    sha256: str
    root: Path | None = None
    notes: tuple[str, ...] = ()
    files: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    rewritten: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def remove(self) -> None:
        """Take its files away."""
        if self.kind == COLUMNS:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for path in (self.path, self.path.with_suffix(".exact.json"), self.root):
            if path is not None:
                path.unlink(missing_ok=True)

    def load(self) -> Any:
        """The content as a reduce stage gets it: ``{name: hist.Hist}``, an awkward array, or ``{name: number}``."""
        if self.kind == HISTOGRAMS:
            return {name: h.to_hist() for name, h in read_histograms(self.path).items()}
        if self.kind == COLUMNS:
            return read_columns(self.path)
        return read_counts(self.path.with_suffix(".exact.json")).rounded()


class MissingDataset(KeyError):
    """A reduce stage asks for a dataset of which nothing is merged for it."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError shows the repr


@dataclass
class LazyMerged(Mapping[str, Any]):
    """Merged outputs by dataset, each read when it is asked for."""

    by_dataset: Mapping[str, Merged]
    _read: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, dataset: str) -> Any:
        if dataset not in self.by_dataset:
            raise MissingDataset(unknown(dataset, list(self.by_dataset), "datasets that are merged here"))
        if dataset not in self._read:
            self._read[dataset] = self.by_dataset[dataset].load()
        return self._read[dataset]

    def __iter__(self) -> Any:
        return iter(self.by_dataset)

    def __len__(self) -> int:
        return len(self.by_dataset)


def merge_whole(rundir: RunDir, target: Target, first: int, got: Sequence[Receipt], gaps: Sequence[int] = ()) -> Merged:
    """Merge all files of an output but those of ``gaps``.

    Raises:
        PartialError: A partial is missing or is not what its receipt says.
        OutputError: Partials do not fit together; both files are named.
    """
    shutil.rmtree(target.aside(rundir), ignore_errors=True)
    places = between(first, len(got), gaps)
    return _finish(rundir, target, _fold(rundir, target, places, got), places)


def between(first: int, count: int, gaps: Sequence[int]) -> list[int]:
    """So many places of an output, from the first on, without those of files that are lost."""
    return sorted(set(range(first, first + count + len(gaps))).difference(gaps))


@dataclass(frozen=True)
class Target:
    """The output that partials are merged into.

    Attributes:
        stage, dataset, variation: Its name.
        older: Places of files whose partials an earlier run has left: columns are held against their receipts byte by
            byte. None: all. Those of this run were whole a moment ago.
    """

    stage: str
    dataset: str
    variation: str
    older: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """``stage/dataset/variation``."""
        return f"{self.stage}/{self.dataset}/{self.variation}"

    def path(self, rundir: RunDir, kind: str) -> Path:
        """The path of the output."""
        return rundir.output(self.stage, self.dataset, self.variation, kind)

    def aside(self, rundir: RunDir) -> Path:
        """The folder that gathers columns until all of them are complete."""
        path = self.path(rundir, COLUMNS)
        return path.with_name(f".{path.name}.making")


@dataclass(frozen=True)
class Leaf:
    """The merged partials of some consecutive files of an output.

    Attributes:
        first, count: Which files: so many, from the first on, besides those of ``gaps``.
        kind: Of the partials.
        name: Its file among the run's leaves.
        sha256: Of that file.
        notes: Of the partials.
        gaps: Places of files that are lost.
    """

    first: int
    count: int
    kind: str
    name: str
    sha256: str
    notes: tuple[str, ...]
    gaps: tuple[int, ...] = ()


def merge_leaf(rundir: RunDir, target: Target, first: int, got: Sequence[Receipt], gaps: Sequence[int] = ()) -> Leaf:
    """Merge some consecutive files of an output but those of ``gaps``; raises as `merge`."""
    total = _fold(rundir, target, between(first, len(got), gaps), got)
    notes, content = _once(total.notes), total.content()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{hashlib.sha256(target.name.encode()).hexdigest()[:16]}-{first}"
    with write_aside(rundir.leaf(name)) as stream:
        stream.write(content)
    return Leaf(first, len(got), total.kind, name, sha256, notes, tuple(gaps))


def merge_leaves(rundir: RunDir, target: Target, leaves: Sequence[Leaf]) -> Merged:
    """Merge what `merge_leaf` has left; sums are exact, so the grouping does not show. Raises as `merge`."""
    kinds = {leaf.kind for leaf in leaves}
    if len(kinds) != 1:
        raise _kinds(target, kinds)
    kind = kinds.pop()
    total = _TOTALS[kind]()
    for leaf in leaves:
        path = rundir.leaf(leaf.name)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != leaf.sha256:
            raise PartialError(
                "has changed since it was written", where=str(path), remedy="run again: it is made again"
            )
        try:
            total.take(content, str(path))
        except OutputError as error:
            last = leaf.first + leaf.count + len(leaf.gaps) - 1
            error.where = f"{target.name}: files {leaf.first} to {last}, {error.where}"
            raise
        total.notes += leaf.notes
    made = _finish(rundir, target, total, [i for x in leaves for i in between(x.first, x.count, x.gaps)])
    for leaf in leaves:
        rundir.leaf(leaf.name).unlink(missing_ok=True)
    return made


def spoilt(rundir: RunDir, got: Sequence[Receipt]) -> list[int]:
    """The places of partials that differ from their receipts."""
    found = []
    with PackReader(rundir) as packs:
        for i, receipt in enumerate(got):
            try:
                _columns(rundir, receipt) if receipt.kind == COLUMNS else packs.read(receipt)
            except PartialError:
                found.append(i)
    return found


class _Histograms(HistogramsPartial):
    parts: Mapping[str, str]

    def take(self, content: bytes, where: str) -> None:
        self.add(unpack_histograms(content, where))

    def save(self, path: Path, _places: Sequence[int]) -> str:
        write_histograms(self.total, path)
        found = {name: h.summary() for name, h in sorted(self.total.items())}
        self.notes += [
            f"histogram {name}: {s.overflown} bins hold sums beyond the range of floats, which stand as infinity"
            for name, s in found.items()
            if s.overflown
        ]
        self.parts = {name: s.sha256[:16] for name, s in found.items() if s.holds}
        return contents_digest((name, s.sha256) for name, s in found.items())


class _Counts(CountsPartial):
    def take(self, content: bytes, where: str) -> None:
        self.merge(unpack_counts(content, where))

    def save(self, path: Path, _places: Sequence[int]) -> str:
        write_json(path, self.rounded())
        return self.write(path.with_suffix(".exact.json"))


class _Columns:
    """Names of files that are linked already, and digests of their contents."""

    kind = COLUMNS

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.notes: list[str] = []
        self.schemas = Schemas()
        self.rewritten: dict[str, tuple[str, str]] = {}

    def take(self, content: bytes, _where: str) -> None:
        told = json.loads(content)
        self.digests += told["digests"]
        self.schemas.join(told["schemas"])

    def content(self) -> bytes:
        return canonical_json({"digests": self.digests, "schemas": self.schemas.told()}).encode()

    def one(self, place: int, sha256: str, schema: Any, rows: int) -> None:
        """Add one partial."""
        self.digests.append(sha256)
        self.schemas.add(place, schema, rows)

    def save(self, path: Path, places: Sequence[int]) -> str:
        aside = path.with_name(f".{path.name}.making")
        expected = set(map(_numbered, places))
        for entry in aside.iterdir():
            if entry.name not in expected:  # a driver that was killed had more files
                entry.unlink()
        note, changed = unify(aside, {i: _numbered(i) for i in places}, self.schemas)
        contents = dict(zip(map(_numbered, places), self.digests, strict=True))
        self.rewritten = {name: (sha256, contents[name]) for name, sha256 in changed.items()}
        self.notes += [note] if note else []
        if path.exists():
            shutil.rmtree(path)
        aside.replace(path)
        return contents_digest((str(i), sha256) for i, sha256 in enumerate(self.digests))


_Total = _Histograms | _Counts | _Columns
_TOTALS: dict[str, type[_Histograms] | type[_Counts] | type[_Columns]] = {
    HISTOGRAMS: _Histograms, COUNTS: _Counts, COLUMNS: _Columns,
}  # fmt: skip


def _fold(rundir: RunDir, target: Target, places: Sequence[int], got: Sequence[Receipt]) -> _Total:
    kinds = {r.kind for r in got}
    if len(kinds) != 1:
        raise _kinds(target, kinds)
    total = _TOTALS[kinds.pop()]()
    if isinstance(total, _Columns):
        target.aside(rundir).mkdir(parents=True, exist_ok=True)
    older: Container[int] = frozenset(target.older or ())
    with PackReader(rundir) as packs:
        for i, receipt in zip(places, got, strict=True):
            where = f"{target.name}: {receipt.file}"
            try:
                if isinstance(total, _Columns):
                    whole = target.older is None or i in older
                    total.one(i, receipt.sha256, *_columns(rundir, receipt, whole=whole))
                else:
                    total.take(packs.read(receipt), where)
            except PartialError as error:
                error.where = f"{where}: {error.where}"
                raise
            except OutputError as error:
                error.where = f"{where} and the files before it, {error.where}"
                raise
            if isinstance(total, _Columns):
                _link(rundir.columns(receipt.key), target.aside(rundir) / _numbered(i))
            total.notes += receipt.notes
    return total


def _columns(rundir: RunDir, receipt: Receipt, *, whole: bool = True) -> tuple[Any, int]:
    """Schema and rows of a partial that is what its receipt says."""
    path = rundir.columns(receipt.key)
    if not rundir.has_columns(receipt.key, receipt.size):
        raise PartialError("no partial of it", where=str(path), remedy=AGAIN)
    reader = ColumnsReader(path)  # its footer is the last thing written: a torn file has none
    schema, rows = reader.schema, reader.rows
    reader.close()
    if whole and file_digest(path) != receipt.bytes_sha256:
        raise PartialError("has changed since it was written", where=str(path), remedy=AGAIN)
    return schema, rows


def _link(partial: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(partial)
    except OSError:
        shutil.copyfile(partial, name)


def _finish(rundir: RunDir, target: Target, total: _Total, places: Sequence[int]) -> Merged:
    path = target.path(rundir, total.kind)
    if total.kind == COLUMNS:
        sync_all(rundir.root)  # when they are restored only their sizes and dates are looked at
    sha256 = total.save(path, places)
    parts = total.parts if isinstance(total, _Histograms) else {}
    rewritten = total.rewritten if isinstance(total, _Columns) else {}
    made = Merged(target.name, total.kind, path, sha256, None, _once(total.notes), parts=parts, rewritten=rewritten)
    return made if made.kind == HISTOGRAMS else replace(made, files=fingerprint(made))  # those have a file to come


def _numbered(i: int) -> str:
    return f"{i:06d}.parquet"


def _once(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def _kinds(target: Target, kinds: set[str]) -> OutputError:
    return OutputError(f"files give different kinds: {', '.join(sorted(kinds))}", where=target.name)


def export(merged: Merged) -> Merged:
    """Write the ROOT file of merged histograms. Apart from the merge, because no later stage waits for it."""
    from campaign.histogram.root_file import write_root  # uproot: for workers alone

    root, left_out = write_root(merged.load(), merged.path)
    made = replace(merged, root=root, notes=(*merged.notes, *left_out))
    return replace(made, files=fingerprint(made))


def fingerprint(merged: Merged) -> str:
    """Digest of an output's files: of their bytes; of columns, which may be large, of their sizes and dates.

    Where these do not fit, the output is merged again, and then the partials' bytes are looked at.
    """
    if merged.kind == COLUMNS:
        with os.scandir(merged.path) as entries:
            return digest(sorted([e.name, e.stat().st_size, e.stat().st_mtime_ns] for e in entries))
    files = [merged.path, merged.root, merged.path.with_suffix(".exact.json") if merged.kind == COUNTS else None]
    return digest([file_digest(f) for f in files if f is not None])
