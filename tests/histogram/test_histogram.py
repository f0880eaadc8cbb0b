"""Laws of the exact histogram: hist's bins, exact contents, one state."""

from __future__ import annotations

import ctypes
import json
import math
import pickle
import subprocess
import sys

import awkward as ak
import hist
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign.errors import AxesMismatch, OutputError
from campaign.histogram.exact_sum import BLOCK
from campaign.histogram.histogram import Histogram, fill_together

ax = hist.axis
transform = hist.axis.transform

FLOAT_AXES = [
    ax.Regular(10, 0, 1, name="x"),
    ax.Regular(65, -0.1, 0.7, name="x"),
    ax.Regular(3, 1e-300, 2e-300, name="x"),
    ax.Regular(7, -3, 2, name="x", underflow=False),
    ax.Regular(7, -3, 2, name="x", overflow=False),
    ax.Regular(7, -3, 2, name="x", flow=False),
    ax.Regular(5, -math.pi, math.pi, name="x", circular=True),
    ax.Regular(9, 0.3, 1e4, name="x", transform=transform.log),
    ax.Regular(9, 0.0, 77.7, name="x", transform=transform.sqrt),
    ax.Regular(9, 0.5, 9.1, name="x", transform=transform.Pow(1.7)),
    ax.Variable([0.0, 0.1, 0.3, 1.0], name="x"),
    ax.Variable([-math.inf, 0.0, 1.0, math.inf], name="x"),
    ax.Variable([0.0, 0.1, 0.3, 1.0], name="x", underflow=False),
    ax.Variable([0.0, 0.1, 0.3, 1.0], name="x", overflow=False),
    ax.Variable([0.0, 0.1, 0.3, 1.0], name="x", flow=False),
    ax.Variable(np.linspace(-1, 1, 64) ** 3, name="x"),
    ax.Variable(np.linspace(-1, 1, 65) ** 3, name="x"),
]
INTEGER_AXES = [
    ax.Integer(-2, 5, name="x"),
    ax.Integer(0, 4, name="x", flow=False),
    ax.Integer(0, 4, name="x", underflow=False),
    ax.Integer(0, 4, name="x", overflow=False),
    ax.Integer(1, 4, name="x", circular=True),
    ax.IntCategory([3, 1, 7], name="x"),
    ax.IntCategory([3, 1, 7], name="x", overflow=False),
    ax.Boolean(name="x"),
]
STRING_AXES = [
    ax.StrCategory(["mc", "data", ""], name="x"),
    ax.StrCategory(["mc", "data"], name="x", overflow=False),
]
ALL_AXES = FLOAT_AXES + INTEGER_AXES + STRING_AXES
DOUBLE = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(float)
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1.8e308 / 2, -1.7e308]


def plain(axis):
    return hist.Hist(axis, storage=hist.storage.Weight())


def values_near(axis):
    """Edges, their neighbours on both sides, and everything else a float can be."""
    edges = [float(edge) for edge in axis.edges]
    near = [math.nextafter(edge, side) for edge in edges for side in (-math.inf, math.inf)]
    return st.lists(st.sampled_from(edges + near + SPECIAL) | st.floats(edges[0], edges[-1]) | st.floats(), max_size=30)


def same(first, second):
    return first.axes == second.axes and first.view(flow=True).tobytes() == second.view(flow=True).tobytes()


def state_bytes(histogram):
    header, arrays = histogram.state()
    return json.dumps(header), [(k, a.dtype.str, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]


def example_histogram(seed=0, n=1000):
    rng = np.random.default_rng(seed)
    made = Histogram(ax.Regular(7, 0, 1, name="x", label="one"), ax.StrCategory(["a", "b"], name="s"), name="example")
    return made.fill(rng.random(n) * 1.2, rng.choice(["a", "b", "c"], n), weight=rng.lognormal(0, 4, n))


@pytest.mark.parametrize("axis", FLOAT_AXES, ids=str)
@settings(max_examples=60)
@given(data=st.data())
def test_float_bins_are_hists(axis, data):
    """Every float, edges and their neighbours, NaN and inf included, falls where hist puts it."""
    values = np.array(data.draw(values_near(axis)), np.float64)
    assert same(Histogram(axis).fill(values).to_hist(), plain(axis).fill(values))


@pytest.mark.parametrize("axis", FLOAT_AXES, ids=str)
def test_every_edge_is_hists(axis):
    """At each edge, just below it and just above it, one entry at a time falls where hist puts it."""
    edges = axis.edges
    for value in np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), SPECIAL]):
        assert same(Histogram(axis).fill([value]).to_hist(), plain(axis).fill([value])), value


@pytest.mark.parametrize("axis", INTEGER_AXES, ids=str)
@settings(max_examples=40)
@given(values=st.lists(st.integers(-10, 10) | st.integers(-(2**31), 2**31 - 1), max_size=30))
def test_integer_bins_are_hists(axis, values):
    """Every 32-bit integer falls where hist puts it; unknown categories overflow as there."""
    array = np.array(values, np.int64)
    assert same(Histogram(axis).fill(array).to_hist(), plain(axis).fill(array))


@pytest.mark.parametrize("axis", INTEGER_AXES, ids=str)
@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint64, np.int32])
def test_integer_types_are_hists(axis, dtype):
    """Booleans and integers of any width fall where hist puts them."""
    array = np.array([0, 1, 1, 3], dtype)
    assert same(Histogram(axis).fill(array).to_hist(), plain(axis).fill(array))


@pytest.mark.parametrize("axis", STRING_AXES, ids=str)
@pytest.mark.parametrize("kind", [list, np.array, lambda v: np.array(v, object), lambda v: np.array(v, "S")])
def test_string_bins_are_hists(axis, kind):
    """Strings in lists, str, object and bytes arrays fall where hist puts them; unknown ones overflow."""
    values = kind(["mc", "data", "other", "mc", ""])
    assert same(Histogram(axis).fill(values).to_hist(), plain(axis).fill(values))


@given(
    values=st.lists(st.tuples(st.floats(-1, 2), st.integers(-1, 3), st.sampled_from("abc")), min_size=1, max_size=20),
    scalar=st.sampled_from(["", "x", "i", "s", "xi", "xs", "is", "xis"]),
    flow=st.booleans(),
)
@example(values=[(-1.0, -1, "c")], scalar="xis", flow=False)
def test_axes_together_are_hists(values, scalar, flow):
    """Several axes, any of them scalar, by position or name, with or without flow, fill as hist fills them."""
    axes = [ax.Regular(3, 0, 1, name="x", flow=flow), ax.Integer(0, 2, name="i"), ax.StrCategory("ab", name="s")]
    lists = {name: [entry[number] for entry in values] for number, name in enumerate("xis")}
    if set(scalar) == set("xis"):
        lists = {name: column[:1] for name, column in lists.items()}
    columns = {name: column[0] if name in scalar else column for name, column in lists.items()}
    same_for_all = {name: column[:1] * len(column) if name in scalar else column for name, column in lists.items()}
    # hist gets its scalars written out: see test_scalars_lose_nothing.
    theirs = hist.Hist(*axes, storage=hist.storage.Weight()).fill(**same_for_all, weight=0.5)
    first = columns.pop("x")
    assert same(Histogram(*axes).fill(first, weight=0.5, **columns).to_hist(), theirs)


def test_scalars_lose_nothing():
    """A scalar beside entries without a bin is that value for all others: none is lost (boost-histogram loses them)."""
    axes = [ax.Regular(3, 0, 1, name="x", flow=False), ax.Integer(0, 2, name="i")]
    made = Histogram(*axes).fill([2.0, 0.0, 0.5], 0)
    assert made.to_hist().sum(flow=True).value == 2.0
    assert same(made.to_hist(), hist.Hist(*axes, storage=hist.storage.Weight()).fill([2.0, 0.0, 0.5], [0, 0, 0]))


@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_contents_are_fsums(n):
    """Values and variances are math.fsum of the weights and of their float64 squares, at any block boundary."""
    rng = np.random.default_rng(n)
    x, weight = rng.normal(0.5, 0.5, n), rng.lognormal(0, 4, n) * rng.choice([-1, 1], n)
    axis = ax.Regular(4, 0, 1, underflow=False)
    view = Histogram(axis).fill(x, weight=weight).to_hist().view(flow=True)
    index = axis.index(x)
    for bin_ in range(5):
        inside = weight[index == bin_]
        assert view["value"][bin_] == math.fsum(inside)
        assert view["variance"][bin_] == math.fsum(inside * inside)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats()), max_size=40), st.randoms(use_true_random=False))
def test_order_and_grouping_cannot_show(entries, random):
    """Any order, partition and merge order of the same entries gives the same state bytes and digest."""
    axis = ax.Regular(3, 0, 1, name="x")

    def filled(part):
        x, weight = np.array(part, np.float64).reshape(-1, 2).T
        return Histogram(axis).fill(x, weight=weight)

    whole = filled(entries)
    random.shuffle(entries)
    cuts = sorted(random.randint(0, len(entries)) for _ in range(4))
    parts = [filled(entries[low:high]) for low, high in zip([0, *cuts], [*cuts, len(entries)], strict=True)]
    random.shuffle(parts)
    merged = Histogram(axis)
    for part in parts:
        merged += part
    assert state_bytes(merged) == state_bytes(whole)
    assert merged.sha256() == whole.sha256()


def test_plain_hist_shows_the_order():
    """The same shuffle changes bits of a hist.Hist with Weight storage, and none of ours."""
    rng = np.random.default_rng(3)
    x, weight, order = rng.random(20_000), rng.lognormal(0, 4, 20_000), rng.permutation(20_000)
    axis = ax.Regular(50, 0, 1)
    plain_sums = [plain(axis).fill(x[way], weight=weight[way]).view() for way in (slice(None), order)]
    exact = [Histogram(axis).fill(x[way], weight=weight[way]) for way in (slice(None), order)]
    assert np.count_nonzero(plain_sums[0] != plain_sums[1]) > 25
    assert state_bytes(exact[0]) == state_bytes(exact[1])


def test_bins_are_reusable():
    """Bins computed once take any number of weights, as separate fills would, entries without a bin included."""
    rng = np.random.default_rng(4)
    x, weights = rng.normal(0.5, 0.5, BLOCK + 9), rng.lognormal(0, 4, (3, BLOCK + 9))
    for axis in (ax.Regular(5, 0, 1), ax.Regular(5, 0, 1, flow=False)):
        at, apart = Histogram(axis), Histogram(axis)
        bins = at.index(x)
        for weight in [*weights, 2.5, None]:
            at.fill_at(bins, weight)
            apart.fill(x, weight=weight)
        assert state_bytes(at) == state_bytes(apart)
    with pytest.raises(OutputError, match="other axes"):
        Histogram(ax.Boolean()).fill_at(bins)


def several_axes(flow=True):
    return [
        ax.Variable([0.0, 0.5, 1.0], name="v", flow=flow),
        ax.StrCategory(["none", "up", "down"], name="option", overflow=False),
        ax.Regular(5, 0, 1, name="x"),
    ]


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("by_name", [True, False])
def test_each_category_with_its_weight(flow, by_name):
    """One fill with a weight per category is one fill per category, wherever its axis stands, to the bit."""
    rng = np.random.default_rng(6)
    n = BLOCK + 9
    v, x = rng.normal(0.5, 0.5, (2, n))
    weights = {"down": rng.lognormal(0, 4, n), "none": rng.lognormal(0, 4, n), "up": 0.5}
    each, apart = Histogram(*several_axes(flow)), Histogram(*several_axes(flow))
    columns = ((), {"v": v, "x": x}) if by_name else ((v, x), {})
    each.fill_each("option", weights, *columns[0], **columns[1])
    for category, weight in weights.items():
        apart.fill(v, category, x, weight=weight)
    assert state_bytes(each) == state_bytes(apart)


def test_each_needs_its_categories():
    """An unknown category, and an axis that has none, are refused by name; nothing is filled."""
    made = Histogram(*several_axes())
    with pytest.raises(OutputError, match=r"\['other'\].*\['none', 'up', 'down'\]"):
        made.fill_each("option", {"none": 1.0, "other": 1.0}, 0.5, 0.5)
    with pytest.raises(OutputError, match="'x' is no category axis"):
        made.fill_each("x", {1: 1.0}, 0.5, "none")
    with pytest.raises(OutputError, match=r"\(2,\).*\(3,\)"):
        made.fill_each("option", {"none": [1.0, 2.0]}, [0.1, 0.2, 0.3], 0.5)
    assert state_bytes(made.fill_each("option", {}, 0.5, 0.5)) == state_bytes(Histogram(*several_axes()))


@pytest.mark.parametrize("weighted", [True, False])
def test_together_is_one_by_one(weighted):
    """Histograms filled together hold what they would hold alone, whatever axes and lost entries they share."""
    rng = np.random.default_rng(7)
    n = BLOCK + 9
    columns = {"v": rng.normal(0.5, 0.5, n), "option": "up", "x": rng.random(n).astype(np.float32) * 1.2, "y": 3}
    weight = rng.lognormal(0, 4, n) if weighted else None
    open_, closed = several_axes(), several_axes(flow=False)
    kinds = [open_, open_[:2], closed, [*closed[:2], ax.Regular(7, 0, 1, name="x")], [ax.Integer(0, 4, name="y")]]
    together = [Histogram(*axes) for axes in kinds]
    fill_together(together, {**columns, "unused": "anything"}, weight)
    for made, axes in zip(together, kinds, strict=True):
        alone = {axis.name: columns[axis.name] for axis in axes}
        if list(alone) == ["y"]:
            alone = {"y": np.full(n, 3)}
        assert state_bytes(made) == state_bytes(Histogram(*axes).fill(**alone, weight=weight))


def test_together_all_or_none():
    """A missing column, and columns of different lengths, are refused before any histogram is filled."""
    first, second = Histogram(ax.Regular(3, 0, 1, name="x")), Histogram(ax.Regular(3, 0, 1, name="y"))
    with pytest.raises(OutputError, match=r"the axes are \['y'\]"):
        fill_together([first, second], {"x": [0.5]})
    with pytest.raises(OutputError, match=r"differ in length: \[1, 2\]"):
        fill_together([first, second], {"x": [0.5], "y": [0.1, 0.2]})
    fill_together([], {}, [1.0])
    assert state_bytes(first) == state_bytes(first.empty()) == state_bytes(Histogram(ax.Regular(3, 0, 1, name="x")))


@pytest.mark.parametrize("bins", [3, 5000])
@pytest.mark.parametrize("weight", [None, 1.0, 0.1, -3e-9, 0.0, math.nan])
def test_equal_weights(bins, weight):
    """No weight counts entries; one weight for all is that weight for each, in dense and in sparse fills."""
    axis, x = ax.Regular(bins, 0, 1), np.random.default_rng(5).random(50)
    each = Histogram(axis).fill(x, weight=np.full(50, 1.0 if weight is None else weight))
    assert state_bytes(Histogram(axis).fill(x, weight=weight)) == state_bytes(each)


def test_nonfinite_weights_are_counted():
    """NaN and infinite weights follow IEEE in their bins and are counted."""
    made = Histogram(ax.Integer(0, 3, flow=False)).fill([0, 1, 2, 2], weight=[math.nan, math.inf, 1.0, 2.0])
    view = made.to_hist().view()
    assert [str(value) for value in view["value"]] == ["nan", "inf", "3.0"]
    assert [str(value) for value in view["variance"]] == ["nan", "inf", "5.0"]
    assert made.nonfinite == {"nan": 1, "posinf": 1, "neginf": 0}


@pytest.mark.parametrize("axis", ALL_AXES, ids=str)
def test_state_round_trip(axis):
    """State, through JSON, and pickle bring back the same histogram on the same axis, to the bit."""
    made = Histogram(axis, name="h")
    made.fill({str: "mc", int: 1, float: 0.25}[str if axis in STRING_AXES else int if axis in INTEGER_AXES else float])
    header, arrays = made.state()
    for twin in (Histogram.from_state(json.loads(json.dumps(header)), arrays), pickle.loads(pickle.dumps(made))):
        assert state_bytes(twin) == state_bytes(made)
        assert same(twin.to_hist(), made.to_hist())
        twin += made
        assert twin.sha256() != made.sha256()


@settings(max_examples=300)
@given(
    st.integers(1, 50),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.sampled_from([None, transform.sqrt, transform.log, transform.Pow(0.3)]),
)
def test_any_regular_axis_is_written_exactly(bins, start, width, how):
    """A Regular axis comes back from its state as the same axis, whatever its limits and transform."""
    start = start if how is None else abs(start) + 1e-3
    axis = ax.Regular(bins, start, start + width, transform=how)
    (back,) = pickle.loads(pickle.dumps(Histogram(axis))).axes
    assert back == axis
    assert back.edges.tobytes() == axis.edges.tobytes()


@pytest.mark.parametrize("storage", [hist.storage.Weight(), hist.storage.Double(), hist.storage.Int64()])
def test_from_hist_keeps_every_bit(storage):
    """A histogram filled elsewhere comes back with the same values and variances, flow bins included."""
    theirs = hist.Hist(ax.Regular(4, 0, 1, name="x"), ax.Boolean(name="b"), storage=storage, name="t")
    theirs.fill([-1, 0.1, 0.1, 0.9, 7], [True, False, False, True, True])
    if isinstance(storage, hist.storage.Weight):
        theirs.fill(0.1, True, weight=0.1)
    made = Histogram.from_hist(theirs)
    back = made.to_hist()
    assert back.name == "t"
    assert back.axes == theirs.axes
    assert back.values(flow=True).tolist() == theirs.values(flow=True).tolist()
    assert back.variances(flow=True).tolist() == theirs.variances(flow=True).tolist()
    assert Histogram.from_hist(back).sha256() == made.sha256()


def test_from_hist_refuses_what_it_would_lose():
    """Storages that cannot be summed exactly, and lost variances, are refused by name."""
    with pytest.raises(OutputError, match="WeightedMean"):
        Histogram.from_hist(hist.Hist(ax.Boolean(), storage=hist.storage.WeightedMean()))
    weighted = hist.Hist(ax.Regular(2, 0, 1), storage=hist.storage.Double()).fill([0.1], weight=[2.0])
    with pytest.raises(OutputError, match="squares are lost"):
        Histogram.from_hist(weighted)


def test_large_integers_enter_exactly():
    """Counts past 2**53 lose nothing on the way in."""
    theirs = hist.Hist(ax.Integer(0, 1, flow=False), storage=hist.storage.Int64())
    theirs.view()[:] = 2**53 + 1
    made = Histogram.from_hist(theirs)
    for _ in range(2):
        made += Histogram.from_hist(theirs)
    expected = float(3 * (2**53 + 1))
    assert expected != 3 * float(2**53 + 1)
    assert made.to_hist().view().tolist() == [(expected, expected)]


MISMATCHES = [
    (ax.Regular(3, 0, 0.3, name="x"), ax.Variable([0, 0.1, 0.2, 0.3], name="x"), "type is 'Regular' here, 'Variable'"),
    (
        ax.Variable([0, 0.1 + 0.2, 1], name="x"),
        ax.Variable([0, 0.3, 1], name="x"),
        "edge 1 is 0.30000000000000004 here, 0.3",
    ),
    (ax.Regular(3, 0, 1, name="x"), ax.Regular(3, 0, math.nextafter(1, 2), name="x"), "edge 1 is 0.3"),
    (ax.Regular(3, 0, 1, name="x"), ax.Regular(4, 0, 1, name="x"), "3 bins here, 4 there"),
    (ax.Regular(3, 0, 1, name="x"), ax.Regular(3, 0, 1, name="y"), "name is 'x' here, 'y' there"),
    (ax.Regular(3, 0, 1, name="x"), ax.Regular(3, 0, 1, name="x", overflow=False), "overflow is True here, False"),
    (ax.StrCategory(["a", "b"], name="x"), ax.StrCategory(["a", "c"], name="x"), "category 1 is 'b' here, 'c' there"),
    (ax.IntCategory([1, 2], name="x"), ax.IntCategory([2, 1], name="x"), "category 0 is 1 here, 2 there"),
    (
        ax.Regular(3, 1, 2, name="x", transform=transform.log),
        ax.Regular(3, 1, 2, name="x", transform=transform.sqrt),
        "transform is 'log' here, 'sqrt' there",
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "words"), MISMATCHES)
def test_mismatch_is_named(ours, theirs, words):
    """Histograms whose axes differ in one bit are not merged; the error names the axis and what differs."""
    made, other = Histogram(ax.Boolean(), ours, name="h"), Histogram(ax.Boolean(), theirs)
    before = state_bytes(made)
    with pytest.raises(AxesMismatch) as caught:
        made += other
    assert words in str(caught.value)
    assert "axis 1 ('x')" in str(caught.value)
    assert state_bytes(made) == before


def test_number_of_axes_is_named():
    """Histograms with different numbers of axes are not merged."""
    made = Histogram(ax.Boolean())
    with pytest.raises(AxesMismatch, match="1 axes here, 2 there"):
        made += Histogram(ax.Boolean(), ax.Boolean())


def test_labels_are_presentation():
    """Labels may differ: histograms merge, the first label stays, digests are equal."""
    made, other = Histogram(ax.Boolean(name="b", label="here")), Histogram(ax.Boolean(name="b", label="there"))
    assert made.sha256() == other.sha256()
    made += other
    assert made.to_hist().axes[0].label == "here"


def test_digest_sees_the_content():
    """Another value, another axis name: another digest; another name of the histogram: the same."""
    digest = example_histogram().sha256()
    assert example_histogram(1).sha256() != digest
    assert Histogram(ax.Boolean(name="a")).sha256() != Histogram(ax.Boolean(name="b")).sha256()
    renamed = example_histogram()
    renamed.name = "other"
    assert renamed.sha256() == digest == Histogram.from_hist(renamed.to_hist()).sha256()


REFUSED = [
    (lambda h: h.fill([0.1, 0.2], ["a", "b"], weight=[1.0]), r"\(1,\).*\(2,\)"),
    (lambda h: h.fill([0.1, 0.2], ["a", "b"], weight=[]), r"\(0,\).*\(2,\)"),
    (lambda h: h.fill([0.1, 0.2], ["a"]), "different shapes"),
    (lambda h: h.fill(0.1, "a", weight=[1.0, 2.0]), r"\(2,\).*\(1,\)"),
    (lambda h: h.fill([[0.1]], "a"), r"axis 0 \('x'\) has shape \(1, 1\)"),
    (lambda h: h.fill(ak.Array([[0.1], [0.2, 0.3]]), "a"), r"axis 0 \('x'\).*flatten"),
    (lambda h: h.fill(ak.Array([0.1, None]), "a"), r"axis 0 \('x'\).*missing"),
    (lambda h: h.fill(np.ma.array([0.1], mask=[True]), "a"), "masked"),
    (lambda h: h.fill(["0.1"], "a"), "takes numbers"),
    (lambda h: h.fill([0.1j], "a"), "takes numbers"),
    (lambda h: h.fill([0.1], [1]), r"axis 1 \('s'\) takes strings"),
    (lambda h: h.fill([0.1]), r"the axes are \['x', 's'\]"),
    (lambda h: h.fill([0.1], t="a"), r"\['t'\] by name"),
    (lambda h: h.fill([0.1], "a", "b"), "3 values by position"),
    (lambda h: h.fill([0.1], "a", x=0.1), "by name"),
    (lambda h: h.fill([0.1], "a", weight=["1"]), "not numbers"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_wrong_fills_are_refused(call, words):
    """What cannot be filled is refused in words, and nothing is filled."""
    made = example_histogram()
    before = state_bytes(made)
    with pytest.raises(OutputError, match=words):
        call(made)
    assert state_bytes(made) == before


@pytest.mark.parametrize("value", [[0.5], [2**31], [-(2**31) - 1], ["1"]])
@pytest.mark.parametrize("axis", INTEGER_AXES[:1] + INTEGER_AXES[5:6], ids=str)
def test_integer_axes_take_integers(axis, value):
    """Integer axes refuse, as hist does, what is not an integer of 32 bits."""
    with pytest.raises(OutputError, match="integers"):
        Histogram(axis).fill(value)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([ax.StrCategory([], growth=True, name="s")], "grows.*depend on the order"),
        ([ax.Regular(3, 0, 1, growth=True)], "grows"),
        ([ax.Variable([1, 2, 5, 9], circular=True)], "circular Variable"),
        ([ax.Regular(3, 1, 9, transform=transform.Function(DOUBLE, DOUBLE, name="own"))], "function, not data"),
        ([], "one axis or more"),
        ([ax.Boolean(name="a"), ax.Boolean(name="a")], "own name"),
        (["pt"], "known are"),
    ],
)
def test_wrong_axes_are_refused(axes, words):
    """Axes whose bins depend on the data, duplicate names and non-axes are refused."""
    with pytest.raises(OutputError, match=words):
        Histogram(*axes)


def test_awkward_arrays_fill():
    """Flat awkward arrays, strings too, fill as the numpy arrays they are."""
    made = Histogram(ax.Regular(3, 0, 1), ax.StrCategory(["a"]))
    made.fill(ak.Array([0.1, 0.5]), ak.Array(["a", "zz"]), weight=ak.Array([1.0, 2.5]))
    assert made.to_hist().view(flow=True)["value"][[1, 2], [0, 1]].tolist() == [1.0, 2.5]


def test_torn_states_are_refused():
    """A state of another format or with arrays of other axes is not read."""
    header, arrays = example_histogram().state()
    with pytest.raises(OutputError, match="format"):
        Histogram.from_state({**header, "format": 99}, arrays)
    with pytest.raises(OutputError, match=r"sumw2\.limbs"):
        Histogram.from_state(header, {key: array for key, array in arrays.items() if key != "sumw2.limbs"})
    with pytest.raises(OutputError, match="bins"):
        Histogram.from_state(Histogram(ax.Boolean()).state()[0], arrays)


def test_import_is_light():
    """Importing the histogram brings in numpy and hist, and none of the heavy packages beside them."""
    code = "import sys, campaign.histogram.histogram; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not {"awkward", "uproot", "parsl", "pyarrow", "pydantic", "tritonclient", "scipy"} & set(loaded)
