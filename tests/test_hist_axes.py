"""Laws of the axes a histogram takes: any that hist accepts has hist's bins here, or is refused."""

from __future__ import annotations

import math
from typing import Any

import hist
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from campaign.errors import OutputError
from campaign.histogram import Histogram

ax = hist.axis
TRANSFORM = hist.axis.transform
FLOWS = st.sampled_from([{}, {"underflow": False}, {"overflow": False}, {"flow": False}, {"circular": True}])
TEXT = st.sampled_from(["mc", "data", "", "é", "e\u0301", "日本", "a b", "x" * 300, "a/b", "1"]) | st.text(max_size=3)
INTEGER = st.integers(-3, 3) | st.integers(-(2**31), 2**31 - 1)
NUMBER = st.floats(-4, 4) | st.sampled_from([0.0, 1.0, 3.0, math.nan, math.inf, -math.inf])


@st.composite
def axes(draw: Any) -> Any:
    """An axis that hist accepts, of any type and with any flow."""
    kind, flow = (
        draw(st.sampled_from(["regular", "transform", "variable", "integer", "int", "str", "bool"])),
        draw(FLOWS),
    )
    try:
        if kind == "regular":
            return ax.Regular(draw(st.integers(1, 9)), draw(st.floats(-3, 3)), draw(st.floats(-3, 3)), **flow)
        if kind == "transform":
            how = draw(
                st.sampled_from([ax.transform.log, ax.transform.sqrt, ax.transform.Pow(2), ax.transform.Pow(1.7)])
            )
            start, width = draw(st.floats(0.1, 2)), draw(st.floats(0.5, 3))
            flow = {key: value for key, value in flow.items() if key != "circular"}
            return ax.Regular(draw(st.integers(1, 9)), start, start + width, transform=how, **flow)
        if kind == "variable":
            edges = sorted(draw(st.lists(st.floats(-3, 3), min_size=2, max_size=70, unique=True)))
            return ax.Variable(edges, **flow)
        if kind == "integer":
            start = draw(st.integers(-3, 3) | st.sampled_from([-(2**31), 2**31 - 4]))
            return ax.Integer(start, start + draw(st.integers(0, 3)), **flow)
        overflow = draw(st.booleans())
        if kind == "int":
            return ax.IntCategory(draw(st.lists(INTEGER, max_size=5)), overflow=overflow)
        if kind == "str":
            return ax.StrCategory(draw(st.lists(TEXT, max_size=5)), overflow=overflow)
    except (ValueError, TypeError, RuntimeError, KeyError, OverflowError):
        assume(False)
    return ax.Boolean()


def values_for(axis: Any) -> Any:
    """Values that may be filled on an axis: its own edges or categories, and others."""
    own = list(axis) if isinstance(axis, (ax.StrCategory, ax.IntCategory)) else axis.edges.tolist()
    if isinstance(axis, ax.StrCategory):
        other = TEXT.filter(lambda text: "\0" not in text)
    elif isinstance(axis, (ax.Regular, ax.Variable)):
        other = NUMBER
    else:
        own, other = [int(value) for value in own if -(2**31) <= value < 2**31], INTEGER
    return st.sampled_from(own) | other if own else other


@settings(max_examples=250)
@given(data=st.data())
def test_bins_are_hists_or_the_axis_is_refused(data: Any) -> None:
    """One to three axes of any kind: every bin has hist's contents, or the axes are refused by name and reason."""
    drawn = data.draw(st.lists(axes(), min_size=1, max_size=3))
    entries = data.draw(st.lists(st.tuples(*map(values_for, drawn)), min_size=1, max_size=12))
    columns = [np.array(c) for c in zip(*entries, strict=True)]
    repeated = [a for a in drawn if isinstance(a, (ax.StrCategory, ax.IntCategory)) and len(set(a)) < len(a)]
    nul = [a for a in drawn if isinstance(a, ax.StrCategory) and any("\0" in category for category in a)]
    curved = [a for a in drawn if isinstance(a, ax.Variable) and a.traits.circular]
    if repeated or nul or curved or any(a.extent == 0 for a in drawn):
        with pytest.raises(OutputError, match=r"times|NUL|circular|no bins|exactly"):
            Histogram(*drawn)
        return
    try:
        made = Histogram(*drawn)
    except OutputError as error:  # a Regular axis whose edges do not give back what it was made from
        if "cannot be written down exactly" in error.message and any(isinstance(a, ax.Regular) for a in drawn):
            return
        raise
    weight = np.arange(1.0, len(entries) + 1)
    theirs = hist.Hist(*drawn, storage=hist.storage.Weight()).fill(*columns, weight=weight)
    assert made.fill(*columns, weight=weight).to_hist().view(flow=True).tobytes() == theirs.view(flow=True).tobytes()


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (ax.StrCategory(["a", "b", "a"], name="c"), r"axis 0 \('c'\) has the category 'a' 2 times"),
        (ax.StrCategory(["b", "a", np.str_("a"), "a"]), "category 'a' 3 times"),
        (ax.IntCategory([1, 1], name="c"), "category 1 2 times"),
        (ax.IntCategory([2, *np.array([7, -1, 7], np.int8)], overflow=False), "category 7 2 times"),
        (ax.StrCategory(["a\0b", "a"]), r"'a\\x00b', which holds a NUL"),
        (ax.StrCategory([], overflow=False), "of no bins"),
        (ax.Integer(2, 2, flow=False), "of no bins"),
        (ax.Integer(0, 2**31 - 1), "more than hist can count"),
        (ax.Integer(-(2**31), 2**31 - 1), "more than hist can count"),
        (ax.StrCategory([], growth=True), "grows"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_axes_without_bins_of_their_own_are_refused(axis: Any, said: str, first: bool) -> None:
    """A repeated category, text that hist cuts, and axes of no bins or too many are refused, wherever they stand."""
    other = ax.Regular(2, 0, 1, name="other")
    with pytest.raises(OutputError, match=said if first else said.replace("axis 0", "axis 1")):
        Histogram(*((axis, other) if first else (other, axis)))
