"""Histograms as a ROOT file: category axes become directories of TH1, TH2 or TH3."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np
import uproot

_CATEGORY = (hist.axis.StrCategory, hist.axis.IntCategory, hist.axis.Boolean)


def write_root(histograms: Mapping[str, hist.Hist], path: Path) -> tuple[Path | None, list[str]]:
    """Write what ROOT can hold beside the lossless file.

    Args:
        histograms: By name; Weight storage becomes bin contents and Sumw2.
        path: The lossless file; ``.root`` takes the place of its suffix.

    Returns:
        The ROOT file (None where nothing can be held), and what was left out and why.
    """
    left_out: list[str] = []
    keys: set[str] = set()
    folders: set[str] = set()
    held: list[tuple[str, hist.Hist]] = []
    for name, h in histograms.items():
        numbers = [a for a in h.axes if not isinstance(a, _CATEGORY)]
        if not 1 <= len(numbers) <= 3:
            left_out.append(f"histogram {name}: {len(numbers)} numeric axes; ROOT holds 1 to 3, see the lossless file")
            continue
        if any(a.traits.circular for a in numbers):
            left_out.append(f"histogram {name}: ROOT has no circular axes, see the lossless file")
            continue
        lost = _uncategorised(h)
        if lost:
            left_out.append(f"histogram {name}: sum of weights {lost:g} outside the categories is not in the ROOT file")
        mine = [key for key, _ in _places(name, h)]
        # A name is either a histogram or a directory.
        taken = sorted(k for k in mine if k in keys or k in folders or not keys.isdisjoint(_above(k)))
        if taken:
            left_out.append(f"histogram {name}: ROOT already has {taken[0]} or what it lies in, see the lossless file")
            continue
        keys.update(mine)
        folders.update(*map(_above, mine))
        held.append((name, h))
    if not held:
        return None, left_out
    target = path.with_name(path.name.removesuffix(".hists.npz") + ".root")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with uproot.recreate(aside) as file:
            for name, h in held:
                for key, part in _slices(name, h):
                    file[key] = part
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target, left_out


def _above(key: str) -> list[str]:
    """The directories that a key lies in."""
    parts = key.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _uncategorised(h: hist.Hist) -> float:
    outside = np.abs(h.values(flow=True))
    outside[tuple(slice(None, len(a)) if isinstance(a, _CATEGORY) else slice(None) for a in h.axes)] = 0
    return float(outside.sum())


def _places(name: str, h: hist.Hist) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Where each combination of categories is written, and where it lies in the histogram's values."""
    folders = [_folders(axis) if isinstance(axis, _CATEGORY) else [None] for axis in h.axes]
    for chosen in itertools.product(*(list(enumerate(names)) for names in folders)):
        path = [name.replace(";", "_"), *(folder for _, folder in chosen if folder is not None)]
        # Categories have no underflow: their first one is the first in the values too.
        yield "/".join(path), tuple(slice(None) if folder is None else bin_ for bin_, folder in chosen)


def _slices(name: str, h: hist.Hist) -> Iterator[tuple[str, hist.Hist]]:
    """One after the other the same histogram with other contents: it is written before the next one is asked for."""
    numbers = [axis for axis in h.axes if not isinstance(axis, _CATEGORY)]
    part = hist.Hist(*numbers, storage=hist.storage.Weight())
    values, contents = h.view(flow=True), part.view(flow=True)
    for key, at in _places(name, h):
        contents[...] = values[at]
        yield key, part


def _folders(axis: Any) -> list[str]:
    values = [bool(v) if isinstance(axis, hist.axis.Boolean) else axis.value(v) for v in range(len(axis))]
    labels = [re.sub("[/;]", "_", str(v)) for v in values]
    labels = [label if labels.count(label) == 1 else f"{label}_{bin_}" for bin_, label in enumerate(labels)]
    return [f"{axis.name}={label}" if axis.name else label for label in labels]
