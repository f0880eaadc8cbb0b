"""Writes histograms to a ROOT file: category axes become directories of TH1, TH2 or TH3."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np
import uproot

from campaign.histogram.root_histogram import refusal, root_histogram

_LONGEST = 16_000  # bytes of a name: a key of a ROOT file counts its own length in 16 bits
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
    taken: set[str] = set()
    folders: set[str] = set()
    held: list[tuple[str, hist.Hist]] = []
    # Those that keep their names come first: under such a name must stand no other one, whose own ROOT cannot hold.
    for name, h in sorted(histograms.items(), key=lambda item: "/".join(_parts(item[0])) != item[0]):
        why = _refusal(h) or _in_the_way([key for key, _ in _places(name, h)], taken, folders)
        if why:
            left_out.append(f"histogram {name}: {why}, see the lossless file")
            continue
        held.append((name, h))
        lost = _uncategorised(h)
        if lost:
            left_out.append(f"histogram {name}: sum of weights {lost:g} outside the categories is not in the ROOT file")
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


def _in_the_way(keys: list[str], taken: set[str], folders: set[str]) -> str:
    """Why these keys cannot be written beside those taken; if they can, they are taken now."""
    for key in keys:  # a name is either a histogram or a directory
        if key in taken or key in folders or not taken.isdisjoint(_above(key)):
            return f"ROOT already has {key} or what it lies in"
        if len(key.encode()) > _LONGEST:
            return f"its name has {len(key.encode())} bytes, ROOT holds {_LONGEST}"
    taken.update(keys)
    folders.update(*map(_above, keys))
    return ""


def _refusal(h: hist.Hist) -> str:
    for axis in h.axes:
        if isinstance(axis, _CATEGORY) and not len(axis):
            return f"its axis {axis.name!r} has no categories to be directories"
    return refusal(_numbers(h))


def _numbers(h: hist.Hist) -> list[Any]:
    return [axis for axis in h.axes if not isinstance(axis, _CATEGORY)]


def _uncategorised(h: hist.Hist) -> float:
    """The magnitudes of all weights outside the categories, added up; 0 only if there is nothing at all."""
    inside = tuple(slice(None, len(a)) if isinstance(a, _CATEGORY) else slice(None) for a in h.axes)
    outside, squares = np.abs(h.values(flow=True)), h.variances(flow=True)
    assert squares is not None
    outside = np.where((outside == 0) & (squares != 0), np.sqrt(np.abs(squares)), outside)  # +1 and -1 were there
    outside[inside] = 0
    return float(outside.sum())


def _places(name: str, h: hist.Hist) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The path in the file of each combination of categories, and its place in the histogram's values."""
    folders = [_folders(axis) if isinstance(axis, _CATEGORY) else [None] for axis in h.axes]
    for chosen in itertools.product(*(list(enumerate(names)) for names in folders)):
        path = [*_parts(name), *(folder for _, folder in chosen if folder is not None)]
        # Categories have no underflow: their first one is the first in the values too.
        yield "/".join(path), tuple(slice(None) if folder is None else bin_ for bin_, folder in chosen)


def _parts(name: str) -> list[str]:
    return [_clean(part) for part in name.split("/") if part] or [_clean("")]  # readers pass over empty parts


def _slices(name: str, h: hist.Hist) -> Iterator[tuple[str, Any]]:
    """The objects to write, one after another. Each is made when it is needed."""
    numbers, values, variances = _numbers(h), h.values(flow=True), h.variances(flow=True)
    assert variances is not None
    for key, at in _places(name, h):
        yield key, root_histogram(numbers, values[at], variances[at])


def _clean(part: str) -> str:
    """A part of a path that no reader takes for several parts, for a cycle, or for nothing."""
    text = re.sub("[/;]", "_", part.encode(errors="replace").decode())
    return text if text.strip(" .") else f"{text}_"


def _folders(axis: Any) -> list[str]:
    values = [bool(v) if isinstance(axis, hist.axis.Boolean) else axis.value(v) for v in range(len(axis))]
    labels = [_clean(f"{axis.name}={value}" if axis.name else str(value)) for value in values]
    alike = {label for label, times in Counter(labels).items() if times > 1}
    for bin_, label in enumerate(labels):
        if label in alike:  # its number tells it from its like, unless that is what another one is called
            while (label := f"{label}_{bin_}") in labels:
                pass
            labels[bin_] = label
    return labels
