"""What a stage may return: recognised, written, read back, and added exactly."""

from __future__ import annotations

import hashlib
import itertools
import math
import random

import awkward as ak
import hist
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import Columns, Counts, Histogram, Histograms
from campaign.errors import AxesMismatch, OutputError, PartialError
from campaign.histogram.root_file import write_root
from campaign.outputs.columns import ColumnsPartial, ColumnsReader, read_columns
from campaign.outputs.counts import CountsPartial, read_counts
from campaign.outputs.histograms import HistogramsPartial, read_histograms, unpack_histograms, write_histograms
from campaign.outputs.kinds import as_output, start_partial

# Kinds ----------------------------------------------------------------------------------------------------------------

X = np.arange(3.0)
H = hist.Hist(hist.axis.Regular(2, 0, 1, name="x"), storage=hist.storage.Weight())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"x": X, "y": [1, 2, 3]}, Columns), ({"x": ak.Array([[1], [], [2]])}, Columns), (ak.Array({"x": X}), Columns),
        ({"h": H}, Histograms), ({"h": Histogram(hist.axis.Regular(2, 0, 1))}, Histograms), (Histograms(), Histograms),
        ({"n": 3, "w": 2.5, "m": np.int64(3), "f": np.float32(1)}, Counts), (Counts(), Counts), (Columns(x=X), Columns),
    ],
)  # fmt: skip
def test_kinds_are_recognised(value, kind):
    """Arrays are columns, histograms are histograms, numbers are counts, whatever the dict is called."""
    assert type(as_output(value, "s")) is kind


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned nothing"), ({}, "an empty dict"), (3, "returned an int"), ([1, 2], "returned a list"),
        ({"x": X, "n": 3}, "different things .x: ndarray, n: int"), ({"x": "text"}, "different things"),
        ({"h": H, "x": X}, "different things"), (X, "returned an ndarray"), ({"x": np.array(3.0)}, "different things"),
    ],
)  # fmt: skip
def test_what_is_no_output_is_refused_by_what_it_is(value, said):
    """Anything else is refused, with what it is and what to return."""
    with pytest.raises(OutputError, match=said) as caught:
        as_output(value, "select")
    assert "select" in caught.value.where
    assert "equal-length arrays" in caught.value.remedy


def test_columns_of_unequal_length_are_refused():
    """One entry per row in every column: what differs is named, also when a column was added later."""
    with pytest.raises(OutputError, match="'x' has 3 entries, 'y' has 2"):
        Columns(x=X, y=X[:2])
    later = Columns(x=X)
    later["y"] = X[:2]
    with pytest.raises(OutputError, match="differ in length"):
        as_output(later, "s")
    with pytest.raises(OutputError, match="column 'n' is an int"):
        Columns(n=3)


# Columns --------------------------------------------------------------------------------------------------------------

COLUMNS = {
    "float64": np.array([1.5, -0.0, math.nan, math.inf]),
    "float32": np.array([0.1, 1e-40, 3e38, 0], np.float32),
    "int8": np.array([1, -2, 3, 127], np.int8),
    "uint64": np.array([0, 2**64 - 1, 5, 7], np.uint64),
    "bool": np.array([True, False, True, False]),
    "text": np.array(["a", "", "ccc", "ü"]),
    "strings": ak.Array(["a", "", "ccc", "ü"]),
    "jagged": ak.Array([[1.0, 2.0], [], [3.0], []]),
    "jagged text": ak.Array([["a"], [], ["b", "c"], []]),
    "doubly jagged": ak.Array([[[1], [2, 3]], [], [[4]], [[]]]),
    "matrix": np.arange(8.0).reshape(4, 2),
    "missing": ak.Array([1, None, 3, None]),
    "jagged missing": ak.Array([[1, None], [], [3], [None]]),
    "missing lists": ak.Array([[1.0], None, [2.0], []]),
    "records": ak.Array([{"a": 1, "b": [1.0]}, {"a": 2, "b": []}] * 2),
    "masked": np.ma.array([1, 2, 3, 4], mask=[0, 1, 0, 1]),
    "no bool missing": np.ma.array([1, 2, 3, 4], mask=[0, 0, 0, 0]),
    "empty lists": ak.Array([[], [], [], []]),
    "a view": ak.Array([[9.0], [1.0, 2.0], [], [3.0], [], [8.0]])[1:5],
    "masked rows": ak.Array([[9.0], [1.0, 2.0], [], [3.0], [], [8.0]])[[3, 1, 1, 0]],
}


def partial(folder, *ranges, name="p.parquet"):
    made = ColumnsPartial(folder / name)
    for value in ranges:
        made.add(Columns(value))
    return made, made.write(folder / name)


def same(one, other):
    """Equal entries, bit by bit for floats (NaN and -0.0 too)."""
    return repr(ak.to_list(one)) == repr(ak.to_list(other))


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_come_back_as_they_were(tmp_path, name):
    """Every type of column, jagged and missing entries too, is read back range by range with its entries."""
    column = COLUMNS[name]
    made, _ = partial(tmp_path, {"c": column[:3]}, {"c": column[3:]})
    reader = ColumnsReader(tmp_path / "p.parquet")
    first, second = reader
    assert (made.rows, reader.rows) == (4, 4)
    reader.close()
    assert same(first["c"], Columns(c=column[:3]).to_awkward()["c"])
    assert same(second["c"], Columns(c=column[3:]).to_awkward()["c"])
    assert same(read_columns(tmp_path / "p.parquet")["c"], Columns(c=column).to_awkward()["c"])


@pytest.mark.parametrize("name", COLUMNS)
def test_the_digest_is_of_the_entries_not_of_the_file(tmp_path, name):
    """Columns read back from their artefact and written again have the digest they had: resuming changes nothing."""
    column = COLUMNS[name]
    _, sha256 = partial(tmp_path, {"c": column[:3]}, {"c": column[3:]})
    _, again = partial(
        tmp_path, *({"c": part["c"]} for part in ColumnsReader(tmp_path / "p.parquet")), name="q.parquet"
    )
    assert again == sha256


def test_the_digest_does_not_depend_on_the_encoding(tmp_path):
    """The same table in another compression and without dictionaries is the same columns."""
    _, sha256 = partial(tmp_path, {"x": X, "s": ["a", "b", "a"]})
    table = pq.read_table(tmp_path / "p.parquet")
    pq.write_table(table, tmp_path / "other.parquet", compression="gzip", use_dictionary=False)
    assert (tmp_path / "other.parquet").read_bytes() != (tmp_path / "p.parquet").read_bytes()
    read = read_columns(tmp_path / "other.parquet")
    assert partial(tmp_path, {"x": read["x"], "s": read["s"]}, name="r.parquet")[1] == sha256


def test_the_digest_changes_with_any_bit(tmp_path):
    """One value, the sign of zero, a name, a type or the cut into ranges give another digest."""
    ranges = [
        [{"x": X}], [{"x": X + np.array([0, 0, 1e-15])}], [{"x": X * np.array([-1, 1, 1])}], [{"y": X}],
        [{"x": X.astype(np.float32)}], [{"x": X[:2]}, {"x": X[2:]}], [{"x": X[:1]}, {"x": X[1:]}],
        [{"x": X}, {"x": X[:0]}],
    ]  # fmt: skip
    assert len({partial(tmp_path, *r)[1] for r in ranges}) == len(ranges)


@pytest.mark.parametrize("name", COLUMNS)
def test_an_empty_range_keeps_its_columns(tmp_path, name):
    """A file without rows leaves one range of no rows with its columns, and merges with others."""
    _, sha256 = partial(tmp_path, {"c": COLUMNS[name][:0]}, name="0.parquet")
    (only,) = ColumnsReader(tmp_path / "0.parquet")
    assert (len(only), ak.fields(only)) == (0, ["c"])
    assert partial(tmp_path, {"c": only["c"]}, name="again.parquet")[1] == sha256
    (tmp_path / "merged").mkdir()
    (tmp_path / "0.parquet").rename(tmp_path / "merged/0.parquet")
    partial(tmp_path / "merged", {"c": COLUMNS[name]}, name="1.parquet")
    assert same(read_columns(tmp_path / "merged")["c"], Columns(c=COLUMNS[name]).to_awkward()["c"])


def test_a_change_of_columns_between_ranges_is_named(tmp_path):
    """Ranges of one file have one schema: a column that comes, goes or changes its type is named."""
    for second, said in (
        ({"x": X}, "y not in all"), ({"x": X, "y": X.astype(int)}, "y .double and int64."), ({"y": X, "x": X}, "order"),
    ):  # fmt: skip
        made = ColumnsPartial(tmp_path / "p.parquet")
        made.add(Columns(x=X, y=X))
        with pytest.raises(OutputError, match=said):
            made.add(Columns(second))
        made.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("column", [np.array([1, "a", None], dtype=object), ak.Array([1, "a", [2]]), np.zeros((3, 0))])
def test_columns_that_parquet_cannot_hold_are_refused(tmp_path, column):
    """Mixed types are an error that says so, and nothing stays behind."""
    made = ColumnsPartial(tmp_path / "p.parquet")
    with pytest.raises(OutputError, match="c"):
        made.add(Columns(c=column))
    made.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_partial_leaves_nothing(tmp_path):
    """Until it is written whole, a partial has no name; discarded, it is gone."""
    made = start_partial(Columns(x=X), lambda: tmp_path / "p.parquet")
    made.add(Columns(x=X))
    assert not (tmp_path / "p.parquet").exists()
    made.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_of_columns_is_named(tmp_path):
    """A truncated or foreign file is a PartialError that names it."""
    partial(tmp_path, {"x": X})
    path = tmp_path / "p.parquet"
    whole = path.read_bytes()
    for text in (b"", whole[: len(whole) // 2], whole[:-1], b"something else"):
        path.write_bytes(text)
        with pytest.raises(PartialError, match=r"p\.parquet"):
            ColumnsReader(path)
    with pytest.raises(PartialError, match=r"nope\.parquet"):
        ColumnsReader(tmp_path / "nope.parquet")


# Counts ---------------------------------------------------------------------------------------------------------------

lognormal = st.floats(-12, 12).map(lambda e: 10.0**e) | st.floats(-1e300, 1e300)


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(lognormal, min_size=1, max_size=40), seed=st.integers(0, 99))
def test_counts_are_exact_in_any_order(tmp_path_factory, numbers, seed):
    """Floats add up to ``math.fsum``, integers without limit, in any order and grouping, and the file is the same."""
    folder = tmp_path_factory.getbasetemp()
    shuffled = random.Random(seed).sample(numbers, len(numbers))
    cut = seed % len(numbers)
    digests, bytes_ = set(), set()
    for parts in ([numbers], [shuffled[:cut], shuffled[cut:]]):
        counts = CountsPartial()
        for number in itertools.chain(*parts):
            counts.add({"w": number, "n": 2**70})
        digests.add(counts.write(folder / "counts.json"))
        bytes_.add((folder / "counts.json").read_bytes())
        back = read_counts(folder / "counts.json")
        assert back.rounded() == counts.rounded() == {"n": len(numbers) * 2**70, "w": math.fsum(numbers)}
    assert len(digests) == len(bytes_) == 1


def test_plain_sums_of_these_counts_differ():
    """The control: added with ``+=``, the same numbers give different sums in different orders."""
    numbers = np.random.default_rng(1).lognormal(0, 8, 1000).tolist()
    counts = CountsPartial()
    for number in numbers:
        counts.add({"w": number})
    assert sum(numbers) != sum(sorted(numbers))
    assert counts.rounded() == {"w": math.fsum(numbers)}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, "x", None, 1j, [1]])
def test_a_count_that_is_no_number_is_refused(odd):
    """NaN, infinity and anything but a number is refused by the count's name."""
    with pytest.raises(OutputError, match="the count 'n' is"):
        CountsPartial().add({"n": odd})


def test_counts_of_every_number_type_count():
    """Python and numpy numbers, booleans and integers of any size count by their exact value."""
    counts = CountsPartial()
    counts.add({"a": True, "b": np.int8(-3), "c": np.float32(0.1), "d": 10**400, "e": np.array(4), "f": np.bool_(True)})
    assert counts.rounded() == {"a": 1, "b": -3, "c": float(np.float32(0.1)), "d": 10**400, "e": 4, "f": 1}


def test_a_torn_file_of_counts_is_named(tmp_path):
    """A truncated or foreign file of counts is a PartialError that names it."""
    path = tmp_path / "c.json"
    counts = CountsPartial()
    counts.add({"n": 1.5})
    counts.write(path)
    whole = path.read_bytes()
    for text in (b"", whole[:-2], b"[]", b'{"format":"other"}', whole.replace(b'"2"', b'"0"'), b'{"counts": 3}'):
        path.write_bytes(text)
        with pytest.raises(PartialError, match=r"c\.json"):
            read_counts(path)
    with pytest.raises(PartialError, match=r"nope\.json"):
        read_counts(tmp_path / "nope.json")


# Histograms -----------------------------------------------------------------------------------------------------------


def filled(seed, n=200):
    rng = np.random.default_rng(seed)
    one = Histogram(hist.axis.Regular(5, -1, 1, name="x"))
    two = Histogram(hist.axis.StrCategory(["a", "b"], name="c"), hist.axis.Variable([0, 1, 3], name="y"))
    one.fill(rng.normal(size=n), weight=rng.lognormal(0, 8, n))
    two.fill(rng.choice(["a", "b", "z"], n), rng.uniform(-1, 4, n), weight=rng.lognormal(0, 8, n))
    return Histograms(one=one, two=two)


def test_histograms_are_the_same_file_in_any_order_and_grouping(tmp_path):
    """Partials added in any order, flat or as a tree, give the same bytes and the same digest."""
    parts = [filled(seed) for seed in range(6)]
    found = set()
    for seed in range(8):
        order = random.Random(seed).sample(parts, len(parts))
        left, right = HistogramsPartial(), HistogramsPartial()
        for i, part in enumerate(order):
            (left if i < seed else right).add(part)
        left.add(right.total)
        found.add(
            (left.write(tmp_path / "h.hists.npz"), hashlib.sha256((tmp_path / "h.hists.npz").read_bytes()).hexdigest())
        )
    assert len(found) == 1


def test_histograms_come_back_whole(tmp_path):
    """The lossless form holds every bit: read back, values, variances and digest are what they were."""
    made = HistogramsPartial()
    made.add(filled(1))
    sha256 = made.write(tmp_path / "h.hists.npz")
    back = read_histograms(tmp_path / "h.hists.npz")
    assert write_histograms(back, tmp_path / "again.hists.npz") == sha256
    packed = unpack_histograms(made.content(), "here")
    assert write_histograms(packed, tmp_path / "packed.hists.npz") == sha256
    for name, h in filled(1).items():
        assert back[name].to_hist() == h.to_hist()
        assert back[name].sha256() == h.sha256()


def test_torn_histograms_of_a_pack_are_named():
    """Bytes that are cut anywhere, longer, or something else are a PartialError that names their place."""
    made = HistogramsPartial()
    made.add(filled(1))
    whole = made.content()
    for content in (
        b"",
        b"PK",
        whole + b"x",
        whole[:20] + b"}" + whole[21:],
        *(whole[: len(whole) * i // 7] for i in range(7)),
    ):
        with pytest.raises(PartialError, match="pack 7"):
            unpack_histograms(content, "pack 7")


def test_a_partial_is_no_alias_of_what_a_stage_returned():
    """A histogram that a stage keeps, or returns under two names, is not changed by what is added."""
    h = Histogram(hist.axis.Regular(2, 0, 1, name="x")).fill(np.array([0.1]))
    before = h.sha256()
    made = HistogramsPartial()
    made.add(Histograms(a=h, b=h))
    made.add(Histograms(a=h))
    assert h.sha256() == before
    assert made.total["a"].to_hist().sum().value == 2
    assert made.total["b"].to_hist().sum().value == 1


def test_hist_histograms_are_taken_over(tmp_path):
    """``hist.Hist`` with Weight, Double or Int64 storage enters exactly; a storage that is not summed is refused."""
    for storage in (hist.storage.Weight(), hist.storage.Double(), hist.storage.Int64()):
        h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage=storage).fill([0.1, 0.5, 0.6, 7])
        made = HistogramsPartial()
        made.add({"h": h})
        made.add({"h": h})
        assert np.array_equal(made.total["h"].to_hist().values(flow=True), 2 * h.values(flow=True))
    with pytest.raises(OutputError, match="histogram h"):
        HistogramsPartial().add({"h": hist.Hist(hist.axis.Regular(3, 0, 1), storage=hist.storage.Mean())})
    with pytest.raises(OutputError, match="histogram h"):
        HistogramsPartial().add(Histograms(h=3))


def test_different_axes_are_named():
    """Histograms of one name with other axes are refused by histogram and axis."""
    made = HistogramsPartial()
    made.add({"h": hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage=hist.storage.Weight())})
    with pytest.raises(AxesMismatch, match=r"histogram h: .*3 bins here, 4 there"):
        made.add({"h": hist.Hist(hist.axis.Regular(4, 0, 1, name="x"), storage=hist.storage.Weight())})


def test_weights_that_are_no_numbers_are_told(tmp_path):
    """NaN and infinite weights are kept as they are, and counted in the notes."""
    made = HistogramsPartial()
    made.add({"h": Histogram(hist.axis.Regular(2, 0, 1)).fill(np.array([0.1, 0.2, 0.9]), weight=[np.nan, np.inf, 1])})
    made.write(tmp_path / "h.hists.npz")
    assert any("1 nan" in note and "1 posinf" in note for note in made.notes)


def test_sums_beyond_the_range_of_floats_are_seen():
    """Finite weights whose sum, or whose squares, leave the range of floats: such bins are counted, counts refused."""
    axis = hist.axis.Integer(0, 4, name="x")
    made = Histogram(axis).fill([0, 0, 1, 2, 3], weight=[1.7e308, 1.7e308, 1e200, np.inf, 1.0])
    assert made.summary().overflown == 2  # not the bin that was given an infinite weight
    assert Histogram(axis).fill([0, 1, 2]).summary()[1:] == (True, 0)
    assert Histogram(axis).summary()[1:] == (False, 0)
    counts = CountsPartial()
    for _ in range(2):
        counts.add({"w": 1.7e308})
    with pytest.raises(OutputError, match="count 'w' is beyond the range of floats"):
        counts.rounded()


def test_a_torn_file_of_histograms_is_named(tmp_path):
    """A file truncated anywhere, with a flipped byte in its arrays, or foreign, is a PartialError that names it."""
    path = tmp_path / "h.hists.npz"
    made = HistogramsPartial()
    made.add(filled(1))
    made.write(path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for text in (
        b"",
        b"PK",
        b"something else",
        *(whole[: len(whole) * i // 7] for i in range(1, 7)),
        whole[:-1],
        flipped,
    ):
        path.write_bytes(text)
        with pytest.raises(PartialError, match=r"h\.hists\.npz"):
            read_histograms(path)
    np.savez(path, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    with pytest.raises(PartialError, match="unknown format"):
        read_histograms(path)
    with pytest.raises(PartialError, match=r"nope\.npz"):
        read_histograms(tmp_path / "nope.npz")


# ROOT -----------------------------------------------------------------------------------------------------------------


def weighted(*axes, seed=0, flow=True):
    h = hist.Hist(*axes, storage=hist.storage.Weight())
    rng = np.random.default_rng(seed)
    view = h.view(flow=flow)
    view["value"], view["variance"] = rng.normal(size=view.shape), rng.random(view.shape)
    return h


R = hist.axis.Regular(4, 0, 1, name="x")
V = hist.axis.Variable([0, 1, 5], name="y")
Z = hist.axis.Integer(0, 3, name="z")


@pytest.mark.parametrize(
    ("axes", "cls"),
    [
        ((R,), "TH1D"), ((V,), "TH1D"), ((Z,), "TH1D"), ((R, V), "TH2D"), ((R, V, Z), "TH3D"),
        ((hist.axis.Regular(4, 1, 100, transform=hist.axis.transform.log, name="x"),), "TH1D"),
        ((hist.axis.Regular(4, 0, 1, name="x", flow=False),), "TH1D"),
    ],
)  # fmt: skip
def test_root_holds_the_values_and_variances(tmp_path, axes, cls):
    """Read back by uproot, a histogram has the edges, values and variances it had, flow bins too."""
    h = weighted(*axes)
    path, left_out = write_root({"h": h}, tmp_path / "o.hists.npz")
    assert (path, left_out) == (tmp_path / "o.root", [])
    with uproot.open(path) as file:
        back = file["h"]
        assert back.classname == cls
        flow = all(a.traits.underflow for a in h.axes)
        assert np.array_equal(back.values(flow=flow), h.values(flow=flow))
        assert np.array_equal(back.variances(flow=flow), h.variances(flow=flow))
        for i, axis in enumerate(h.axes):
            assert np.array_equal(back.axis(i).edges(), axis.edges)
    assert [p.name for p in tmp_path.iterdir()] == ["o.root"]


def test_category_axes_become_directories(tmp_path):
    """Each combination of categories is a histogram in a folder named after axes and categories; none hides another."""
    h = weighted(
        hist.axis.StrCategory(["a/b", "a_b", "c"], name="jet"), R, hist.axis.Boolean(name="b"),
        hist.axis.IntCategory([5, -2], name="id"), flow=False,
    )  # fmt: skip
    path, left_out = write_root({"h": h}, tmp_path / "o.hists.npz")
    assert left_out == []
    with uproot.open(path) as file:
        keys = set(file.keys(filter_classname="TH1D", cycle=False))
        assert keys == {
            f"h/jet={j}/b={b}/id={i}" for j in ("a_b_0", "a_b_1", "c") for b in (True, False) for i in (5, -2)
        }
        assert len(file.keys(filter_classname="TH1D")) == 12
        for k, j in enumerate(("a_b_0", "a_b_1", "c")):
            back = file[f"h/jet={j}/b=True/id=-2"]
            assert np.array_equal(back.values(), h.values()[k, :, 1, 1])
            assert np.array_equal(back.variances(), h.variances()[k, :, 1, 1])


def test_what_root_cannot_hold_is_told(tmp_path):
    """Too many or no numeric axes, circular ones, weights outside the categories, names in the way: each is told."""
    four = weighted(R, V, Z, hist.axis.Regular(2, 0, 1, name="q"))
    none = weighted(hist.axis.StrCategory(["a"], name="c"))
    circular = weighted(hist.axis.Regular(3, 0, 1, circular=True, name="phi"))
    outside = weighted(hist.axis.StrCategory(["a"], name="c"), R)
    path, left_out = write_root(
        {"a": weighted(R), "a/b": weighted(R), "four": four, "none": none, "phi": circular, "out": outside},
        tmp_path / "o.hists.npz",
    )
    told = {text.split(":")[0] for text in left_out}
    assert told == {f"histogram {n}" for n in ("a/b", "four", "none", "phi", "out")}
    with uproot.open(path) as file:
        assert set(file.keys(filter_classname="TH*", cycle=False)) == {"a", "out/c=a"}


def test_full_categories_lose_nothing_to_rounding(tmp_path):
    """Weights over many decades, all inside the categories, are not told to be lost."""
    h = weighted(hist.axis.StrCategory(["a", "b"], name="c"), R, flow=False)
    h.view()["value"] = np.random.default_rng(3).lognormal(0, 9, h.view().shape)
    assert write_root({"h": h}, tmp_path / "o.hists.npz")[1] == []


def test_nothing_for_root_is_no_root_file(tmp_path):
    """Without a histogram that ROOT can hold there is no file."""
    path, left_out = write_root({"n": weighted(hist.axis.StrCategory(["a"], name="c"))}, tmp_path / "o.hists.npz")
    assert path is None
    assert len(left_out) == 1
    assert list(tmp_path.iterdir()) == []
