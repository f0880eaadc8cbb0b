"""Writes histograms in the `uhi` serialization (ZIP form), which boost-histogram and hist read without campaign."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np

from campaign.histogram.axes import Axis, describe, limits
from campaign.util.files import write_aside

SUFFIX = ".uhi.zip"
_THEN = (1980, 1, 1, 0, 0, 0)  # the first date a ZIP file can hold: equal contents give equal bytes
_TRANSFORMS = {"log": "log", "sqrt": "sqrt"}


def write_uhi(histograms: Mapping[str, hist.Hist], path: Path) -> tuple[Path, list[str]]:
    """Write histograms beside the lossless file, one member ``NAME.json`` and its arrays for each.

    Args:
        histograms: By name, with Weight storage.
        path: The lossless file; ``.uhi.zip`` takes the place of its suffix.

    Returns:
        The file, and what was left out and why. ``uhi.io.zip.read`` reads a histogram of the file by name.
    """
    left_out = []
    target = path.with_name(path.name.removesuffix(".hists.npz") + SUFFIX)
    with write_aside(target) as stream, zipfile.ZipFile(stream, "w") as file:
        for name in sorted(histograms):
            empty = [axis.name for axis in histograms[name].axes if not axis.size]
            if empty:  # boost-histogram 1.8 reads its overflow bin as empty
                left_out.append(f"histogram {name}: its axis {empty[0]!r} has no categories, it is not in the uhi file")
                continue
            _write(file, name, histograms[name])
    return target, left_out


def _write(file: zipfile.ZipFile, name: str, h: hist.Hist) -> None:
    view: Any = h.view(flow=True)
    storage: dict[str, Any] = {"type": "weighted"}
    for key, field in (("values", "value"), ("variances", "variance")):
        storage[key] = _array(file, f"{name}_storage_{key}", view[field])
    axes = [_axis(number, axis) for number, axis in enumerate(h.axes)]
    for number, axis in enumerate(axes):
        if "edges" in axis:
            axis["edges"] = _array(file, f"{name}_axis_{number}_edges", axis["edges"])
    told = {"uhi_schema": 1, "axes": axes, "storage": storage, "metadata": {"name": h.name} if h.name else {}}
    file.writestr(_member(f"{name}.json"), json.dumps(told, allow_nan=False), zipfile.ZIP_DEFLATED)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _THEN)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _array(file: zipfile.ZipFile, name: str, array: Any) -> str:
    """Write an array; its path stands in the JSON in its place."""
    with file.open(_member(f"{name}.npy"), "w", force_zip64=True) as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return f"{name}.npy"


def _axis(number: int, axis: Axis) -> dict[str, Any]:
    """An axis as the schema says; ``writer_info`` is how boost-histogram tells its own kinds of axes apart."""
    header = describe(number, axis)
    named = {key: header[key] for key in ("name", "label") if header[key]}
    told: dict[str, Any] = {"metadata": named} if named else {}
    flow = {key: header[key] for key in ("underflow", "overflow", "circular")}
    if isinstance(axis, hist.axis.Boolean):
        return {"type": "boolean", **told}
    if "categories" in header:
        kind = "category_str" if isinstance(axis, hist.axis.StrCategory) else "category_int"
        return {"type": kind, "categories": header["categories"], "flow": header["overflow"], **told}
    if isinstance(axis, hist.axis.Integer):
        start, stop = header["start"], header["stop"]
        ours = {"boost-histogram": {"orig_type": "Integer"}}
        told |= {"lower": start, "upper": stop, "bins": stop - start, "writer_info": ours}
        return {"type": "regular", **flow, **told}
    if isinstance(axis, hist.axis.Variable):
        return {"type": "variable", "edges": np.asarray(axis.edges), **flow, **told}
    start, stop = limits(header)
    if header["transform"] == "None":
        return {"type": "regular", "lower": start, "upper": stop, "bins": header["bins"], **flow, **told}
    # The schema has no transforms. A reader that knows this one makes the same axis; all others see its edges.
    made: dict[str, Any] = {"type": "variable", "edges": np.asarray(axis.edges), **flow, **told}
    if flow == {"underflow": True, "overflow": True, "circular": False}:  # boost-histogram restores it with both flows
        limited = {"bins": header["bins"], "lower": start, "upper": stop}
        made["writer_info"] = {"boost-histogram": {**_transform(axis), **limited}}
    return made


def _transform(axis: Axis) -> dict[str, Any]:
    if isinstance(axis.transform, hist.axis.transform.Pow):
        return {"transform": "pow", "power": axis.transform.power}
    return {"transform": _TRANSFORMS[repr(axis.transform)]}
