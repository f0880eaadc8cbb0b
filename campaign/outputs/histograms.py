"""Exact histograms: their partials, and the lossless .hists.npz file."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hist
import numpy as np

from campaign.errors import OutputError, PartialError
from campaign.histogram.histogram import Histogram
from campaign.outputs import array_frame
from campaign.outputs.counts import what
from campaign.util.files import write_aside
from campaign.util.hashing import canonical_json
from campaign.util.lazy import LazyModule

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from campaign.histogram import plot
else:
    plot = LazyModule("campaign.histogram.plot")
    pq = LazyModule("pyarrow.parquet")

HISTOGRAMS = "histograms"


class Histograms(dict[str, Any]):
    """Histograms by name, `campaign.Histogram` or ``hist.Hist`` (Double, Int64 or Weight storage)."""

    def _repr_html_(self) -> str:
        more = f"<div>and {len(self) - DRAWN} more: {escape(', '.join(list(self)[DRAWN:]))}</div>"
        return plot.several(list(self._hists())[:DRAWN]) + (more if len(self) > DRAWN else "")

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text("\n".join(plot.as_text(h, name) for name, h in self._hists()) or "no histograms")

    def _hists(self) -> Iterator[tuple[str, Any]]:
        for name, h in self.items():
            yield name, h.to_hist() if isinstance(h, Histogram) else h


DRAWN = 24  # histograms that a notebook shows at once


class HistogramsPartial:
    """Histograms added exactly."""

    kind = HISTOGRAMS

    def __init__(self) -> None:
        self.total: dict[str, Histogram] = {}
        self.rows = 0
        self.notes: list[str] = []

    def add(self, value: Mapping[str, Any]) -> None:
        """Add histograms by name; a name that is not in both is one with nothing in it there."""
        for name, h in value.items():
            try:
                exact = h if isinstance(h, Histogram) else _exact(h)
                if name in self.total:
                    self.total[name] += exact
                else:  # a copy: what is added up here must not be the stage's own
                    self.total[name] = exact.empty()
                    self.total[name] += exact
            except OutputError as error:
                error.where = f"histogram {name}" + (f", {error.where}" if error.where else "")
                raise

    def write(self, path: Path) -> str:
        """Write the exact state as a file for people; returns the SHA-256 (hex) of its content."""
        self._remark()
        return write_histograms(self.total, path)

    def content(self) -> bytes:
        """The exact state, for a pack."""
        self._remark()
        return array_frame.pack(*_state(self.total))

    def _remark(self) -> None:
        for name, h in self.total.items():
            odd = ", ".join(f"{n} {kind}" for kind, n in h.nonfinite.items() if n)
            if odd:
                self.notes.append(f"histogram {name}: weights that are no numbers: {odd}")

    def discard(self) -> None:
        """Nothing lies anywhere yet."""


def _exact(h: Any) -> Histogram:
    if not isinstance(h, hist.BaseHist):
        raise OutputError(f"is {what(h)}", remedy="use campaign.Histogram or hist.Hist")
    return Histogram.from_hist(h)


def write_histograms(histograms: Mapping[str, Histogram], path: Path) -> str:
    """Write the lossless form: an ``.npz`` of a JSON header and integer arrays; returns the content's SHA-256."""
    text, arrays = _state(histograms)
    with write_aside(path) as stream:
        np.savez(stream, allow_pickle=False, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
    return _digest(text, arrays)


def _state(histograms: Mapping[str, Histogram]) -> tuple[str, dict[str, Any]]:
    headers, arrays = {}, {}
    for i, name in enumerate(sorted(histograms)):
        headers[name], state = histograms[name].state()
        arrays.update({f"{i}.{key}": array for key, array in state.items()})
    return canonical_json({"format": "campaign-histograms-1", "histograms": headers}), arrays


def _digest(text: str, arrays: Mapping[str, Any]) -> str:
    content = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        content.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        content.update(np.ascontiguousarray(arrays[key]).tobytes())
    return content.hexdigest()


def read_histograms(path: Path) -> Histograms:
    """Read the lossless form back, every bit of it.

    Raises:
        PartialError: The file is torn or is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Histograms(_histograms(bytes(file["header"]), {k: file[k] for k in file.files if k != "header"}))
    except _TORN as error:
        raise PartialError(f"is not a complete file of histograms: {error}", where=str(path)) from error


def unpack_histograms(content: bytes, where: str) -> dict[str, Histogram]:
    """Histograms of a pack.

    Raises:
        PartialError: The bytes are something else.
    """
    try:
        return _histograms(*array_frame.unpack(content))
    except _TORN as error:
        raise PartialError(f"are no histograms: {error}", where=where) from error


def _histograms(text: str | bytes, arrays: Mapping[str, Any]) -> dict[str, Histogram]:
    header = json.loads(text)
    if header["format"] != "campaign-histograms-1":
        raise ValueError(f"unknown format {header['format']}")
    found: dict[str, dict[str, Any]] = {}
    names = sorted(header["histograms"])
    for key, array in arrays.items():
        i, _, part = key.partition(".")
        found.setdefault(names[int(i)], {})[part] = array
    return {n: Histogram.from_state(header["histograms"][n], found.get(n, {})) for n in names}


_TORN = (
    OSError, ValueError, TypeError, KeyError, EOFError, IndexError, AttributeError, NotImplementedError, struct.error,
    zipfile.BadZipFile, zlib.error, OutputError, OverflowError, MemoryError, RecursionError, SyntaxError,
)  # fmt: skip
