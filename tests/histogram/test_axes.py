"""Laws of the axes a histogram takes: hist's bins here, the same numbers in every file, or a refusal that says why."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import hist
import numpy as np
import pytest
import uproot
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from campaign.errors import OutputError
from campaign.histogram.histogram import Histogram
from campaign.histogram.root_file import write_root
from campaign.outputs.histograms import read_histograms, write_histograms

ax = hist.axis
TRANSFORM = hist.axis.transform
FLOWS = st.sampled_from([{}, {"underflow": False}, {"overflow": False}, {"flow": False}, {"circular": True}])
TEXT = st.sampled_from(["mc", "data", "", "é", "e\u0301", "日本", "a b", "x" * 300, "a/b", "1"]) | st.text(max_size=3)
INTEGER = st.integers(-3, 3) | st.integers(-(2**31), 2**31 - 1)
NUMBER = st.floats(-4, 4) | st.sampled_from([0.0, 1.0, 3.0, math.nan, math.inf, -math.inf])


@st.composite
def axes(draw: Any) -> Any:
    """An axis that hist accepts, of any type and with any flow."""
    kind = draw(st.sampled_from(["regular", "transform", "variable", "integer", "int", "str", "bool"]))
    flow = draw(FLOWS)
    label = draw(st.sampled_from(["", "p [GeV]"]))
    names = {"name": draw(st.sampled_from(["", "x/y", "c;1", "."])), "label": label}
    try:
        if kind == "regular":
            return ax.Regular(draw(st.integers(1, 9)), draw(st.floats(-3, 3)), draw(st.floats(-3, 3)), **flow, **names)
        if kind == "transform":
            how = draw(st.sampled_from([TRANSFORM.log, TRANSFORM.sqrt, TRANSFORM.Pow(2), TRANSFORM.Pow(1.7)]))
            start, width = draw(st.floats(0.1, 2)), draw(st.floats(0.5, 3))
            flow = {key: value for key, value in flow.items() if key != "circular"}
            return ax.Regular(draw(st.integers(1, 9)), start, start + width, transform=how, **flow, **names)
        if kind == "variable":
            edges = sorted(draw(st.lists(st.floats(-3, 3), min_size=2, max_size=70, unique=True)))
            return ax.Variable(edges, **flow, **names)
        if kind == "integer":
            start = draw(st.integers(-3, 3) | st.sampled_from([-(2**31), 2**31 - 4]))
            return ax.Integer(start, start + draw(st.integers(0, 3)), **flow, **names)
        overflow = draw(st.booleans())
        if kind == "int":
            return ax.IntCategory(draw(st.lists(INTEGER, max_size=5)), overflow=overflow, **names)
        if kind == "str":
            return ax.StrCategory(draw(st.lists(TEXT, max_size=5)), overflow=overflow, **names)
    except (ValueError, TypeError, RuntimeError, KeyError, OverflowError):
        assume(False)
    return ax.Boolean(**names)


def differently_named(drawn: list[Any]) -> bool:
    """Whether no two axes have one name, as hist demands."""
    names = [axis.name for axis in drawn if axis.name]
    return len(set(names)) == len(names)


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
    drawn = data.draw(st.lists(axes(), min_size=1, max_size=3).filter(differently_named))
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


# Files ----------------------------------------------------------------------------------------------------------------

CATEGORY = (ax.StrCategory, ax.IntCategory, ax.Boolean)
WEIGHT = st.floats(-3, 3) | st.sampled_from([1.0, 0.0, 1e-300, 1e200, math.nan, math.inf])


@st.composite
def histograms(draw: Any) -> Histogram:
    """A histogram of one to four axes of any kind, with and without weights."""
    drawn = draw(st.lists(axes(), min_size=1, max_size=4).filter(differently_named))
    entries = draw(st.lists(st.tuples(*map(values_for, drawn)), min_size=1, max_size=12))
    try:
        made = Histogram(*drawn)
    except OutputError:
        assume(False)
    columns = [np.array(c) for c in zip(*entries, strict=True)]
    weighted = draw(st.booleans())
    return made.fill(*columns, weight=[draw(WEIGHT) for _ in entries] if weighted else None)


def padded(axes: list[Any], array: Any) -> Any:
    """With a zero for each flow bin that an axis does not have."""
    return np.pad(array, [(1 - a.traits.underflow, 1 - a.traits.overflow) for a in axes])


def same_numbers(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def close(one: float, other: float) -> bool:
    """Equal but for the rounding of a sum, whose terms may cancel; NaN and infinity are what they are."""
    return bool(np.isclose(one, other, rtol=1e-9, atol=1e-9 * (1 + abs(one)), equal_nan=True))


@np.errstate(all="ignore")
def assert_root_has(back: Any, axes: list[Any], values: Any, variances: Any) -> None:
    """A histogram of a ROOT file holds these numbers, flow bins and ROOT's own statistics of them included."""
    assert same_numbers(back.values(flow=True), values)
    assert same_numbers(np.array(back.member("fSumw2")), variances.T.reshape(-1))
    assert same_numbers(back.variances(flow=True), np.where(variances > 0, variances, 0))  # uproot takes NaN for 0
    for i, axis in enumerate(axes):
        assert np.allclose(back.axis(i).edges(), axis.edges, rtol=1e-14, atol=1e-14 * abs(axis.edges).max())
        assert back.axis(i).member("fTitle") == (axis.label or axis.name)
    inside = (slice(1, -1),) * len(axes)
    assert close(back.member("fTsumw"), values[inside].sum())
    assert close(back.member("fTsumw2"), variances[inside].sum())
    if same_numbers(values, variances):
        assert back.member("fEntries") == values.sum() or np.isnan(values.sum())
    else:
        known = 1e-150 < variances.sum() < 1e150  # neither it nor the square of the sum leaves the range of floats
        assert close(back.member("fEntries"), values.sum() ** 2 / variances.sum()) or not known
    if np.isfinite(values).all() and abs(values).max() < 1e100 and abs(variances).max() < 1e100:
        for letter, axis, place in zip("xyz", axes, np.indices(values[inside].shape), strict=False):
            middle = (axis.edges[:-1] + axis.edges[1:]) / 2
            sums = [values[inside] * middle[place] ** power for power in (1, 2)]
            assert close(back.member(f"fTsumw{letter}"), sums[0].sum())
            assert close(back.member(f"fTsumw{letter}2"), sums[1].sum())


@settings(max_examples=120)
@given(made=histograms())
def test_files_hold_the_histogram_or_say_what_they_lack(made: Histogram, tmp_path_factory: Any) -> None:
    """Read back, the lossless file is the histogram, and ROOT's has every bin, or it is told what is left out."""
    path = tmp_path_factory.getbasetemp() / "axes.hists.npz"
    write_histograms({"h": made}, path)
    again = read_histograms(path)["h"]
    assert again.sha256() == made.sha256()
    whole = again.to_hist()
    assert whole.axes == made.to_hist().axes
    assert [(a.name, a.label) for a in whole.axes] == [(a.name, a.label) for a in made.to_hist().axes]
    root, left_out = write_root({"h": whole}, path)
    values, variances = whole.values(flow=True), whole.variances(flow=True)
    numbers = [a for a in whole.axes if not isinstance(a, CATEGORY)]
    lists = [range(len(a)) if isinstance(a, CATEGORY) else [slice(None)] for a in whole.axes]
    if root is None:
        circular = any(a.traits.circular or not len(a) or a.edges[0] > a.edges[-1] for a in numbers)
        assert circular or not 1 <= len(numbers) <= 3 or not all(map(len, whole.axes))
        assert left_out[0].startswith("histogram h: ")
        return
    rest = [values.copy(), variances.copy()]
    with uproot.open(root) as file:
        keys = file.keys(filter_classname="TH*", cycle=False)
        places = list(itertools.product(*lists))
        assert len(keys) == len(set(keys)) == len(places)
        for key, place in zip(keys, places, strict=True):  # they are written in the order of the categories
            assert_root_has(file[key], numbers, padded(numbers, values[place]), padded(numbers, variances[place]))
            for array in rest:
                array[place] = 0
    assert len(left_out) == any(np.any(array != 0) for array in rest)
    root.unlink()


def test_one_flow_bin_is_enough(tmp_path: Path) -> None:
    """An axis with only one flow bin, or none, beside others with both: ROOT has every entry, and zeros elsewhere."""
    one = Histogram(ax.Integer(0, 4, underflow=False)).fill([0, 1, 2, 7, 9, 9])
    two = Histogram(ax.Regular(2, 0, 1, name="x"), ax.Integer(0, 4, overflow=False, name="y"))
    two.fill([-1, 0.2, 7, 7], [1, -3, 2, 2], weight=[1.0, 2.0, 4.0, 0.5])
    root, left_out = write_root({"one": one.to_hist(), "two": two.to_hist()}, tmp_path / "o.hists.npz")
    assert left_out == []
    with uproot.open(root) as file:
        assert file["one"].values(flow=True).tolist() == [0, 1, 1, 1, 0, 3]
        assert file["one"].member("fEntries") == 6
        assert file["two"].values(flow=True).tolist() == [
            [0, 0, 1, 0, 0, 0],
            [2, 0, 0, 0, 0, 0],
            [0] * 6,
            [0, 0, 0, 4.5, 0, 0],
        ]
        assert file["two"].variances(flow=True).sum() == 21.25


def test_no_category_hides_another(tmp_path: Path) -> None:
    """Categories that are alike once they are names of directories, empty or only dots are all there, each once."""
    for categories in (["a/b", "a_b", "a_b_0"], ["", "_", ".", "..", "._", " "], ["a;1", "a_1", "a", "a_1_1"]):
        h = Histogram(ax.StrCategory(categories), ax.Integer(0, 1)).fill(
            categories, 0, weight=np.arange(len(categories))
        )
        root, left_out = write_root({"h": h.to_hist()}, tmp_path / "o.hists.npz")
        assert left_out == []
        with uproot.open(root) as file:
            keys = file.keys(filter_classname="TH1D", cycle=False)
            assert [file[key].values()[0] for key in keys] == list(range(len(categories)))


@settings(max_examples=60)
@given(
    names=st.lists(st.text(max_size=4) | st.sampled_from(["a/b", "a//b", "/a", "a", "b/", "x" * 40_000]), unique=True)
)
def test_any_name_is_there_or_told(names: list[str], tmp_path_factory: Any) -> None:
    """Histograms of any names are in the ROOT file, each with its own number, or told to be left out; none is lost."""
    made = {n: Histogram(ax.Integer(0, 1)).fill([0], weight=i + 1.0).to_hist() for i, n in enumerate(names)}
    root, left_out = write_root(made, tmp_path_factory.getbasetemp() / "names.hists.npz")
    found = []
    if root is not None:
        with uproot.open(root) as file:
            found = [file[key].values()[0] for key in file.keys(filter_classname="TH1D", cycle=False)]
        root.unlink()
    told = [i + 1.0 for i, name in enumerate(names) if any(t.startswith(f"histogram {name}: ") for t in left_out)]
    assert sorted([*found, *told]) == [i + 1.0 for i in range(len(names))]


def test_weights_outside_the_categories_that_cancel_are_told(tmp_path: Path) -> None:
    """+1 and -1 outside the categories add up to nothing, and yet something is left out."""
    h = Histogram(ax.StrCategory(["a"], name="c"), ax.Integer(0, 1)).fill(["z", "z"], 0, weight=[1.0, -1.0])
    (told,) = write_root({"h": h.to_hist()}, tmp_path / "o.hists.npz")[1]
    assert "outside the categories is not in the ROOT file" in told
