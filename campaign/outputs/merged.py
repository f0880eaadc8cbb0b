"""A merged output: its files, its content, and the lazy mapping that a reduce stage gets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign.outputs.columns import COLUMNS, read_columns
from campaign.outputs.counts import COUNTS, read_counts
from campaign.outputs.histograms import (
    HISTOGRAMS,
    read_histograms,
)
from campaign.util.hashing import digest, file_digest
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
        for path in (self.path, self.path.with_suffix(".exact.json"), self.root, self.uhi):
            if path is not None:
                path.unlink(missing_ok=True)

    @property
    def uhi(self) -> Path | None:
        """The same histograms in the `uhi` serialization, once `export` has written them."""
        path = self.path.with_name(self.path.name.removesuffix(".hists.npz") + ".uhi.zip")
        return path if self.kind == HISTOGRAMS and path.exists() else None

    @property
    def single_files(self) -> list[Path]:
        """The files of an output that is no folder of columns."""
        exact = self.path.with_suffix(".exact.json") if self.kind == COUNTS else None
        return [path for path in (self.path, self.root, exact, self.uhi) if path is not None]

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


def fingerprint(merged: Merged) -> str:
    """Digest of an output's files: of their bytes; of columns, which may be large, of their sizes and dates.

    Where these do not fit, the output is merged again, and then the partials' bytes are looked at.
    """
    if merged.kind == COLUMNS:
        with os.scandir(merged.path) as entries:
            return digest(sorted([e.name, e.stat().st_size, e.stat().st_mtime_ns] for e in entries))
    return digest([file_digest(f) for f in merged.single_files])
