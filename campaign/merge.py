"""Partials, in plan order, become one output. A gap is an error, and so is a partial that its receipt does not name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from campaign import outputs
from campaign.errors import OutputError, PartialError
from campaign.histogram import Histogram
from campaign.outputs import COLUMNS, COUNTS, HISTOGRAMS, ColumnsReader, CountsPartial, HistogramsPartial
from campaign.plan import Output
from campaign.rootfile import write_root
from campaign.rundir import Receipt, RunDir, write_json


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
    """

    name: str
    kind: str
    path: Path
    sha256: str
    root: Path | None = None
    notes: tuple[str, ...] = ()

    def load(self) -> Any:
        """What a reduce stage gets: ``{name: hist.Hist}``, an awkward array, or ``{name: number}``."""
        if self.kind == HISTOGRAMS:
            return {name: h.to_hist() for name, h in outputs.read_histograms(self.path).items()}
        if self.kind == COLUMNS:
            return outputs.read_columns(self.path)
        return outputs.read_counts(self.path.with_suffix(".exact.json")).rounded()


@dataclass
class LazyMerged(Mapping[str, Any]):
    """Merged outputs by dataset, each read when it is asked for."""

    by_dataset: Mapping[str, Merged]
    _read: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, dataset: str) -> Any:
        if dataset not in self._read:
            self._read[dataset] = self.by_dataset[dataset].load()
        return self._read[dataset]

    def __iter__(self) -> Any:
        return iter(self.by_dataset)

    def __len__(self) -> int:
        return len(self.by_dataset)


def merge(rundir: RunDir, output: Output, receipts: Mapping[str, Receipt]) -> Merged:
    """Merge one output.

    Raises:
        PartialError: A partial is missing or is not what its receipt says.
        OutputError: Partials do not fit together; both files are named.
    """
    got: list[Receipt] = []
    for key, file in zip(output.keys, output.files, strict=True):
        if key not in receipts or not rundir.has(receipts[key]):
            raise PartialError(
                "no partial of it", where=f"{output.name}: {file}", remedy="run again: what is missing is done"
            )
        got.append(receipts[key])
    kinds = {r.kind for r in got}
    if len(kinds) != 1:
        raise OutputError(f"files give different kinds: {', '.join(sorted(kinds))}", where=output.name)
    kind = kinds.pop()
    path = rundir.output(output.stage, output.dataset, output.variation, kind)
    notes = tuple(dict.fromkeys(note for r in got for note in r.notes))
    if kind == COLUMNS:
        return Merged(output.name, kind, path, _link(rundir, got, path), None, notes)
    if kind == COUNTS:
        return Merged(output.name, kind, path, _counts(rundir, got, path), None, notes)
    return _histograms(rundir, output, got, path, notes)


def _histograms(rundir: RunDir, output: Output, got: Sequence[Receipt], path: Path, notes: tuple[str, ...]) -> Merged:
    total = HistogramsPartial()
    for receipt in got:
        part = outputs.read_histograms(rundir.partial(receipt.key, receipt.kind))
        _same(rundir, receipt, outputs.histograms_digest(part))
        try:
            total.add(part)
        except OutputError as error:
            error.where = f"{output.name}: {receipt.file} and the files before it, {error.where}"
            raise
    outputs.write_histograms(total.total, path)
    sha256 = outputs.contents_digest((name, h.sha256()) for name, h in sorted(total.total.items()))
    return Merged(output.name, HISTOGRAMS, path, sha256, None, notes)


def export(merged: Merged) -> Merged:
    """Write the ROOT file of merged histograms. Apart from the merge, because no later stage waits for it."""
    root, left_out = write_root(merged.load(), merged.path)
    return replace(merged, root=root, notes=(*merged.notes, *left_out))


def _counts(rundir: RunDir, got: Sequence[Receipt], path: Path) -> str:
    total = CountsPartial()
    for receipt in got:
        part = outputs.read_counts(rundir.partial(receipt.key, receipt.kind))
        _same(rundir, receipt, part.digest())
        total.floats |= part.floats
        for name, number in part.total.items():
            total.total[name] = total.total.get(name, 0) + number
    write_json(path, total.rounded())
    return total.write(path.with_suffix(".exact.json"))


def _same(rundir: RunDir, receipt: Receipt, found: str) -> None:
    if found != receipt.sha256:
        raise PartialError(
            f"is not what was written for {receipt.file}",
            where=str(rundir.partial(receipt.key, receipt.kind)),
            remedy="delete it and run again",
        )


def _link(rundir: RunDir, got: Sequence[Receipt], path: Path) -> str:
    """A folder with one Parquet file per input file, hard links where the file system has them."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for i, receipt in enumerate(got):
        partial, name = rundir.partial(receipt.key, receipt.kind), aside / f"{i:06d}.parquet"
        reader = ColumnsReader(partial)  # its footer is the last thing written: a torn file has none
        reader.close()
        try:
            name.hardlink_to(partial)
        except OSError:
            shutil.copyfile(partial, name)
    if path.exists():
        shutil.rmtree(path)
    aside.replace(path)
    return outputs.contents_digest((str(i), r.sha256) for i, r in enumerate(got))


def load_histograms(path: Path) -> dict[str, Histogram]:
    """Histograms of a merged output, exact."""
    return outputs.read_histograms(path)
