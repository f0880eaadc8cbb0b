"""Histograms as a ROOT file: category axes become directories of TH1, TH2 or TH3."""

from __future__ import annotations

import itertools
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
    entries: list[tuple[str, hist.Hist]] = []
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
        entries += list(_slices(name, h))
    if not entries:
        return None, left_out
    target = path.with_name(path.name.removesuffix(".hists.npz") + ".root")
    aside = target.with_name(f".{target.name}")
    with uproot.recreate(aside) as file:
        for name, h in entries:
            file[name] = h
    aside.replace(target)
    return target, left_out


def _uncategorised(h: hist.Hist) -> float:
    view: Any = h.view(flow=True)
    inside = tuple(slice(None, len(a)) if isinstance(a, _CATEGORY) else slice(None) for a in h.axes)
    return float(np.abs(view["value"]).sum() - np.abs(view[inside]["value"]).sum())


def _slices(name: str, h: hist.Hist) -> Iterator[tuple[str, hist.Hist]]:
    categories = [(i, a) for i, a in enumerate(h.axes) if isinstance(a, _CATEGORY)]
    for chosen in itertools.product(*(range(len(a)) for _, a in categories)):
        folders, index = [name], {}
        for (i, axis), bin_ in zip(categories, chosen, strict=True):
            label = str(axis.value(bin_) if not isinstance(axis, hist.axis.Boolean) else bool(bin_)).replace("/", "_")
            folders.append(f"{axis.name}={label}" if axis.name else label)
            index[i] = bin_
        yield "/".join(folders), h[index] if index else h
