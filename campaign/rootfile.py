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
    entries: dict[str, hist.Hist] = {}
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
        taken = sorted(k for k, _ in _slices(name, h) if _in_the_way(k, entries))
        if taken:
            left_out.append(f"histogram {name}: ROOT already has {taken[0]} or what it lies in, see the lossless file")
            continue
        entries.update(_slices(name, h))
    if not entries:
        return None, left_out
    target = path.with_name(path.name.removesuffix(".hists.npz") + ".root")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with uproot.recreate(aside) as file:
            for name, h in entries.items():
                file[name] = h
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target, left_out


def _in_the_way(key: str, entries: Mapping[str, Any]) -> bool:
    # A name is either a histogram or a directory.
    return any(key == other or key.startswith(other + "/") or other.startswith(key + "/") for other in entries)


def _uncategorised(h: hist.Hist) -> float:
    outside = np.abs(h.values(flow=True))
    outside[tuple(slice(None, len(a)) if isinstance(a, _CATEGORY) else slice(None) for a in h.axes)] = 0
    return float(outside.sum())


def _slices(name: str, h: hist.Hist) -> Iterator[tuple[str, hist.Hist]]:
    categories = [(i, a) for i, a in enumerate(h.axes) if isinstance(a, _CATEGORY)]
    for chosen in itertools.product(*(range(len(a)) for _, a in categories)):
        folders, index = [name.replace(";", "_")], {}
        for (i, axis), bin_ in zip(categories, chosen, strict=True):
            folders.append(_folder(axis, bin_))
            index[i] = bin_
        yield "/".join(folders), h[index] if index else h


def _folder(axis: Any, bin_: int) -> str:
    values = [bool(v) if isinstance(axis, hist.axis.Boolean) else axis.value(v) for v in range(len(axis))]
    labels = [re.sub("[/;]", "_", str(v)) for v in values]
    label = labels[bin_] if labels.count(labels[bin_]) == 1 else f"{labels[bin_]}_{bin_}"
    return f"{axis.name}={label}" if axis.name else label
