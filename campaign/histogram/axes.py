"""Describes histogram axes as data, rebuilds them bit by bit, and names the difference between two axes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import hist

from campaign.errors import OutputError

Axis: TypeAlias = Any  # one of hist.axis.*; their common base is not public
Header: TypeAlias = dict[str, Any]

CATEGORIES = (hist.axis.StrCategory, hist.axis.IntCategory)
_TYPES = {
    kind.__name__: kind
    for kind in (hist.axis.Regular, hist.axis.Variable, hist.axis.Integer, hist.axis.Boolean, *CATEGORIES)
}
_TRANSFORMS = {"log": hist.axis.transform.log, "sqrt": hist.axis.transform.sqrt}


def describe(number: int, axis: Axis) -> Header:
    """An axis as fields for JSON, from which :func:`rebuilt` makes it again, bit for bit."""
    what = f"axis {number} ({getattr(axis, 'name', '')!r})"
    kind = type(axis).__name__
    if _TYPES.get(kind) is not type(axis):
        raise OutputError(f"{what} is {axis!r}; known are hist.axis.{', '.join(_TYPES)}")
    if axis.traits.growth:
        raise OutputError(
            f"{what} grows: its bins would depend on the order of the entries",
            remedy="list the categories, or give the range, and fill the rest into the overflow bin",
        )
    if axis.traits.circular and kind == "Variable":
        # boost-histogram 1.8 fills Variable([1, 2, 5, 9], circular=True) by these edges and reports 1, 2, 3, 9.
        raise OutputError(f"{what} is a circular Variable axis, whose edges hist does not report as it fills them")
    if isinstance(axis, CATEGORIES):
        _check_categories(what, list(axis))
    if axis.size < 0 or not 0 < axis.extent < 2**31:  # boost-histogram counts in 32 bits, and wraps around
        raise OutputError(f"{what} is an axis ({kind}) of no bins, or of more than hist can count (2**31)")
    fields: Header = {"type": kind, "name": axis.name, "label": axis.__dict__.get("label", "")}
    fields |= {trait: bool(getattr(axis.traits, trait)) for trait in ("underflow", "overflow", "circular")}
    for specific in _specific(axis):
        described = fields | specific
        if _same(described, axis):
            return described
    raise OutputError(f"{what} cannot be written down exactly: {axis!r}", remedy="use hist.axis.Variable")


def _check_categories(what: str, categories: Sequence[Any]) -> None:
    repeated = [category for category, times in Counter(categories).items() if times > 1]
    if repeated:
        raise OutputError(
            f"{what} has the category {repeated[0]!r} {categories.count(repeated[0])} times",
            remedy="list each category once",
        )
    for category in categories:
        if isinstance(category, str) and "\0" in category:
            # boost-histogram ends text at a NUL in lists and str arrays, and does not in object arrays.
            raise OutputError(f"{what} has the category {category!r}, which holds a NUL: hist cuts text there")


def _specific(axis: Axis) -> Iterator[Header]:
    """Candidates for what only this type of axis has; the first that rebuilds the axis is taken."""
    if isinstance(axis, CATEGORIES):
        yield {"categories": list(axis)}
    elif isinstance(axis, hist.axis.Variable):
        yield {"edges": [float(edge).hex() for edge in axis.edges]}
    elif isinstance(axis, hist.axis.Boolean):
        yield {}
    elif isinstance(axis, hist.axis.Integer):
        yield {"start": int(axis.edges[0]), "stop": int(axis.edges[-1])}
    else:
        # hist keeps start and width, not start and stop: adding them again may miss stop by a rounding.
        for start, stop in itertools.product(_around(axis.edges[0]), _around(axis.edges[-1])):
            yield {"bins": axis.size, "start": start.hex(), "stop": stop.hex(), "transform": repr(axis.transform)}


def _around(value: float) -> Iterator[float]:
    """A float and its neighbours, nearest first."""
    below = above = float(value)
    yield below
    for _ in range(4):
        below, above = math.nextafter(below, -math.inf), math.nextafter(above, math.inf)
        yield below
        yield above


def _same(fields: Header, axis: Axis) -> bool:
    try:
        made = rebuilt(fields)
    except ValueError:  # a neighbour outside the domain of the transform
        return False
    made.__dict__.clear()
    made.__dict__.update(axis.__dict__)
    return bool(made == axis)


def rebuilt(fields: Header) -> Axis:
    """The axis of these fields."""
    kind, names = _TYPES[fields["type"]], {"name": fields["name"], "label": fields["label"]}
    flow = {trait: fields[trait] for trait in ("underflow", "overflow", "circular")}
    if fields["circular"]:
        flow = {"circular": True}
    if kind in CATEGORIES:
        return kind(fields["categories"], overflow=fields["overflow"], **names)
    if kind is hist.axis.Boolean:
        return kind(**names)
    if kind is hist.axis.Variable:
        return kind([float.fromhex(edge) for edge in fields["edges"]], **flow, **names)
    if kind is hist.axis.Integer:
        return kind(fields["start"], fields["stop"], **flow, **names)
    start, stop = limits(fields)
    if fields["transform"] != "None":
        return kind(fields["bins"], start, stop, transform=_transform(fields["transform"]), **flow, **names)
    return kind(fields["bins"], start, stop, **flow, **names)


def limits(fields: Header) -> tuple[float, float]:
    """The lower and upper edge of a described axis."""
    return float.fromhex(fields["start"]), float.fromhex(fields["stop"])


def _transform(text: str) -> Any:
    if text in _TRANSFORMS:
        return _TRANSFORMS[text]
    if text.startswith("pow("):
        return hist.axis.transform.Pow(float(text[4:-1]))
    raise OutputError(f"transform {text} is a function, not data", remedy="use log, sqrt, Pow, or hist.axis.Variable")


def without_label(fields: Header) -> Header:
    """A description without labels, which play no part in comparisons."""
    return {key: value for key, value in fields.items() if key != "label"}


def difference(ours: Sequence[Axis], theirs: Sequence[Axis]) -> str:
    """The first difference between two lists of axes, in words."""
    if len(ours) != len(theirs):
        return f"{len(ours)} axes here, {len(theirs)} there"
    for number, (axis, other) in enumerate(zip(ours, theirs, strict=True)):
        here, there = describe(number, axis), describe(number, other)
        if without_label(here) != without_label(there):
            return f"axis {number} ({here['name']!r}): " + _field_difference(here, there, axis, other)
    raise AssertionError("layouts with different keys have different fields")


def _field_difference(here: Header, there: Header, axis: Axis, other: Axis) -> str:
    for field in ("type", "name", "underflow", "overflow", "circular", "transform"):
        if here.get(field) != there.get(field):
            return f"{field} is {here.get(field)!r} here, {there.get(field)!r} there"
    if len(axis) != len(other):
        return f"{len(axis)} bins here, {len(other)} there"
    word, ours, theirs = "edge", axis.edges.tolist(), other.edges.tolist()
    if isinstance(axis, CATEGORIES):
        word, ours, theirs = "category", list(axis), list(other)
    for number, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        if mine != yours:
            return f"{word} {number} is {mine!r} here, {yours!r} there"
    limits = (f"{fields['start']} to {fields['stop']}" for fields in (here, there))
    return "equal edges, but the axis runs from {} here, from {} there".format(*limits)
