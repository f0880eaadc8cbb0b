"""The stages that come with campaign: reading, filling, reweighting."""

from __future__ import annotations

import awkward as ak
import hist
import numpy as np
import pytest
import uproot
from campaign.stages.fill import Fill
from campaign.stages.read import RootSource, evaluate
from campaign.stages.reweight import Reweight

from campaign.cli import main
from campaign.errors import InputError, OutputError
from campaign.protocols import Context

N = 1000


def content(n=N):
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, n)
    return {
        "x": rng.normal(size=n),
        "f": rng.normal(size=n).astype(np.float32),
        "u": rng.integers(0, 256, n).astype(np.uint8),
        "n": rng.integers(-5, 5, n).astype(np.int32),
        "ok": rng.random(n) < 0.5,
        "pt": ak.unflatten(rng.exponential(size=counts.sum()), counts),
        "pdf": ak.unflatten(rng.normal(1, 0.1, 8 * n), np.full(n, 8)),
        "w_up": rng.lognormal(size=n),
        "w_nominal": rng.lognormal(size=n),
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file with the same events as a TTree and as an RNTuple, written in three clusters, and empty ones."""
    made = tmp_path_factory.mktemp("data") / "with:colon.root"
    events = content()
    types = {k: v.type.content if isinstance(v, ak.Array) else v.dtype for k, v in events.items()}
    with uproot.recreate(made) as file:
        for kind, make in (("tree", file.mktree), ("ntuple", file.mkrntuple)):
            given = types if kind == "tree" else ak.Array(events)[:0]
            written = make(kind, given)
            for start in range(0, N, 400):
                written.extend({k: v[start : start + 400] for k, v in events.items()} if kind == "tree"
                               else ak.Array(events)[start : start + 400])  # fmt: skip
            make(f"empty_{kind}", given)
        file["folder/h"] = np.histogram([1, 2, 3])
        file.mktree("folder/inner", {"x": np.float64})
    return made


BOTH = pytest.mark.parametrize("tree", ["tree", "ntuple"])


@pytest.fixture
def source(path, request):
    opened = []

    def open_(tree, branches=None, url=None):
        opened.append(RootSource(str(url or path), tree, branches or {}))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


# Reading --------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [1, 7, 400, 333, N, 5 * N])
def test_ranges_put_together_are_the_whole(source, tree, size):
    """Read in ranges of any size, across clusters, every branch has all of its entries in order."""
    opened = source(tree)
    assert opened.entries == N
    stop = min(N, 20 * size)
    parts = [opened.read(i, min(i + size, stop)) for i in range(0, stop, size)]
    for name, column in content().items():
        got = ak.concatenate([ak.materialize(p[name]) for p in parts])
        assert ak.array_equal(got, column[:stop], check_parameters=False), name


@BOTH
def test_only_touched_branches_are_read(source, tree):
    """Nothing is read before a stage touches it; what was touched once is read with each later range."""
    opened = source(tree)
    batch = opened.read(0, 10)
    assert opened.touched == set()
    _ = batch.x + 1
    assert opened.touched == {"x"}
    _ = ak.sum(batch.pt, axis=1)
    later = opened.read(10, 20)
    assert opened.touched == {"x", "pt"}
    assert {n for n in content() if later[n].layout.is_all_materialized} == {"x", "pt"}
    assert ak.array_equal(ak.materialize(later.n), content()["n"][10:20])


@BOTH
def test_a_range_still_worked_on_is_noticed(source, tree):
    """A branch of an earlier range that is touched after the next range was read is remembered too."""
    opened = source(tree)
    first = opened.read(0, 10)
    opened.read(10, 20)
    _ = first.f + 1
    assert opened.touched == {"f"}


@BOTH
def test_an_alias_reads_another_branch(source, tree):
    """A stage that says ``x`` gets the branch the map names; two may be exchanged, and the others stay."""
    opened = source(tree, {"x": "w_up", "w_up": "x", "new": "n"})
    for start in (0, 10):
        batch = opened.read(start, start + 10)
        assert ak.array_equal(ak.materialize(batch.x), content()["w_up"][start : start + 10])
        assert ak.array_equal(ak.materialize(batch.w_up), content()["x"][start : start + 10])
        assert ak.array_equal(ak.materialize(batch.new), content()["n"][start : start + 10])
        assert ak.array_equal(ak.materialize(batch.f), content()["f"][start : start + 10])


@BOTH
def test_no_events_are_an_empty_batch_with_all_branches(source, tree):
    """An empty tree, or an empty range, is a batch of no rows that a stage can work on."""
    for batch in (source(f"empty_{tree}").read(0, 0), source(tree).read(5, 5)):
        assert len(batch) == 0
        assert set(batch.fields) >= set(content())
        assert len(ak.materialize(batch[batch.x > 0].pt)) == 0


def test_a_selection_of_rows_stays_lazy(source):
    """A stage may select rows before it touches columns."""
    opened = source("tree")
    batch = opened.read(100, 200)
    chosen = batch[batch.ok]
    assert opened.touched == {"ok"}
    assert ak.array_equal(ak.materialize(chosen.x), content()["x"][100:200][content()["ok"][100:200]])


@pytest.mark.parametrize(
    ("tree", "branches", "said"),
    [
        ("tre", {}, "'tre' is not one of the trees; did you mean 'tree'.*known: .*folder/inner.*ntuple"),
        ("folder/innr", {}, "did you mean 'folder/inner'"), ("folder/h", {}, "'folder/h' is a .*not a tree"),
        ("tree", {"x": "w_pu"}, "'w_pu' is not one of the branches of tree; did you mean 'w_up'"),
        ("ntuple", {"x": "w_pu"}, "'w_pu' is not one of the branches of ntuple; did you mean 'w_up'"),
    ],
)  # fmt: skip
def test_a_missing_tree_or_branch_is_named_with_those_there_are(source, path, tree, branches, said):
    """The error names the file, what was asked for, the nearest and all there are."""
    with pytest.raises(InputError, match=said) as caught:
        source(tree, branches)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda whole: b"", "cannot be read"), (lambda whole: b"not a ROOT file" * 50, "not a ROOT file"),
        (lambda whole: whole[:50], "cannot be read"), (lambda whole: whole[: len(whole) // 2], "cannot be read"),
        (lambda whole: whole[:1000] + bytes(len(whole) - 1000), "holds no tree"),
        (None, "cannot be read: FileNotFound"),
    ],
    ids=["empty", "foreign", "header cut", "half", "zeros", "missing"],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(source, path, tmp_path, make, said):
    """A truncated, empty, foreign or missing file is one error with its path and what to do."""
    bad = tmp_path / "bad.root"
    if make is not None:
        bad.write_bytes(make(path.read_bytes()))

    def read():
        opened = source("tree", url=bad)
        opened.touched |= set(content())
        opened.read(0, opened.entries)

    with pytest.raises(InputError, match=said) as caught:
        read()
    assert caught.value.where == str(bad)
    assert "\n" not in caught.value.message
    assert "file" in caught.value.remedy


def test_real_di_muon_events_are_read(shared_data):
    """A file written by ROOT itself is read in ranges as uproot reads it whole."""
    url = shared_data / "root/uproot-Zmumu.root"
    opened = RootSource(str(url), "events", {})
    try:
        got = np.concatenate([ak.to_numpy(opened.read(i, min(i + 500, opened.entries)).M) for i in range(0, 2304, 500)])
    finally:
        opened.close()
    with uproot.open(url) as file:
        assert np.array_equal(got, file["events"]["M"].array(library="np"))


# Weights --------------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "w_up": lambda c: c["w_up"],
    "w_up / w_nominal": lambda c: c["w_up"] / c["w_nominal"],
    "-(x + 2) * w_up ** 2 - 1.5": lambda c: -(c["x"] + 2) * c["w_up"] ** 2 - 1.5,
    "pdf[7]": lambda c: ak.to_numpy(c["pdf"])[:, 7],
    "pdf[0] * w_up / pdf[1]": lambda c: ak.to_numpy(c["pdf"])[:, 0] * c["w_up"] / ak.to_numpy(c["pdf"])[:, 1],
    "u * u": lambda c: c["u"].astype(float) ** 2,
    "n ** -1 * n": lambda c: c["n"].astype(float) ** -1 * c["n"].astype(float),
    "f": lambda c: c["f"].astype(np.float64),
    "2": lambda c: np.full(N, 2.0),
    "  1 / 3  ": lambda c: np.full(N, 1 / 3),
}


@BOTH
@pytest.mark.parametrize("expression", WEIGHTS)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_weight_is_what_numpy_gives_in_float64(source, tree, expression):
    """Expressions of branches have the values numpy computes from them as float64, bit by bit."""
    opened = source(tree)
    got = opened.weight(expression, opened.read(0, N))
    expected = WEIGHTS[expression](content())
    assert got.dtype == np.float64
    assert np.array_equal(got, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("w_upp", "'w_upp' is not one of the branches; did you mean 'w_up'"), ("x.max", "'x.max' is not understood"),
        ("x.__class__", "not understood"), ("abs(x)", r"'abs\(x\)' is not understood"),
        ("__import__('os').system('touch never')", "not understood"), ("[i for i in x]", "not understood"),
        ("(lambda: x)()", "not understood"), ("x if x else n", "not understood"), ("x and n", "not understood"),
        ("pdf[1:3]", "not understood"), ("pdf[n]", "not understood"), ("pdf[True]", "not understood"),
        ("pdf['a']", "not understood"), ("x @ n", "not understood"), ("x % 2", "not understood"),
        ("'x'", "not understood"),
        ("True", "not understood"), ("1j * x", "not understood"), ("x :=", "is no expression"),
        ("", "is no expression"),
        ("x; n", "is no expression"), ("(" * 10_000 + "x", "is no expression"), ("x\x00", "is no expression"),
        ("pdf", "shape .1000, 8., one number per event|var .* one number"), ("pt", "one number per event"),
        ("pdf[8]", "index"), ("pt[2]", "index"), ("x[0]", "weight"), ("1" + "0" * 400 + " * x", "too large"),
    ],
)  # fmt: skip
def test_a_weight_is_arithmetic_of_branches_and_nothing_else(source, expression, said):
    """Calls, attributes and whatever else Python has are refused, and so is what is not one number per event."""
    opened = source("tree")
    with pytest.raises(InputError, match=said) as caught:
        opened.weight(expression, opened.read(0, N))
    assert caught.value.where.startswith(f"weight '{expression}' in ")


# Filling --------------------------------------------------------------------------------------------------------------


def context(**changes):
    given = {"dataset": "d", "metadata": {}, "variation": "nominal", "weight": "variation_weight"}
    return Context(**{**given, **changes})


def batch_of(n=500):
    rng = np.random.default_rng(5)
    return ak.Array({
        "x": rng.normal(size=n), "y": rng.normal(size=n), "c": rng.choice(["a", "b", "z"], n),
        "k": rng.integers(0, 4, n),
        "w": rng.lognormal(size=n), "variation_weight": rng.lognormal(size=n), "weight": rng.lognormal(size=n),
        "v": ak.unflatten(np.zeros(2 * n), [2, 1, 3, 2] * (n // 4)),
        "maybe": ak.Array([None, 1.0] * (n // 2)),
    })  # fmt: skip


@pytest.mark.parametrize("weight", [None, "w"])
def test_fill_is_what_hist_gives(weight):
    """Regular, variable and category axes are filled as hist does, with the variation's weight multiplied in."""
    batch = batch_of()
    described = {
        "flat": {"x": {"bins": 10, "range": [-2, 2]}},
        "two": {"y": {"edges": [-3, 0, 0.5, 3]}, "x": {"bins": 4, "range": [-1, 1]}},
        "cat": {"c": {"categories": ["a", "b"]}, "k": {"categories": [0, 2]}},
    }
    got = Fill(described, weight)(batch, context())
    axes = {
        "flat": [hist.axis.Regular(10, -2, 2, name="x")],
        "two": [hist.axis.Variable([-3, 0, 0.5, 3], name="y"), hist.axis.Regular(4, -1, 1, name="x")],
        "cat": [hist.axis.StrCategory(["a", "b"], name="c"), hist.axis.IntCategory([0, 2], name="k")],
    }
    total = batch.variation_weight * (batch.w if weight else 1)
    for name, h in got.items():
        expected = hist.Hist(*axes[name], storage=hist.storage.Weight())
        expected.fill(*(ak.to_numpy(batch[a.name]) for a in axes[name]), weight=ak.to_numpy(total))
        assert h.to_hist().axes == expected.axes
        assert np.allclose(h.to_hist().values(flow=True), expected.values(flow=True), rtol=1e-12)
        assert np.allclose(h.to_hist().variances(flow=True), expected.variances(flow=True), rtol=1e-12)


def test_fill_without_a_variation_weight_counts_one():
    """A batch that carries no variation's weight is filled with weight one."""
    batch = batch_of()[["x"]]
    got = Fill({"h": {"x": {"bins": 10, "range": [-9, 9]}}})(batch, context())
    assert got["h"].to_hist().sum().value == 500


def test_fill_takes_columns_with_names_hist_keeps_for_itself():
    """A column called ``weight`` may be drawn too."""
    got = Fill({"h": {"weight": {"bins": 10, "range": [0, 5]}}})(batch_of(), context())
    assert got["h"].to_hist().axes[0].label == "weight"


def test_fill_of_no_rows_has_its_axes():
    """An empty range gives an empty histogram that merges with others."""
    fill = Fill({"h": {"c": {"categories": ["a"]}, "x": {"bins": 2, "range": [0, 1]}}})
    empty = fill(batch_of()[:0], context())["h"]
    empty += fill(batch_of(), context())["h"]
    assert empty.sha256() == fill(batch_of(), context())["h"].sha256()


@pytest.mark.parametrize("column", ["v", "maybe"])
def test_fill_refuses_what_is_not_one_value_per_row(column):
    """A column of lists, or with missing entries, is refused by its name and type, as value and as weight."""
    for stage in (Fill({"h": {column: {"bins": 2, "range": [0, 1]}}}), Fill({"h": {"x": {"edges": [0, 1]}}}, column)):
        with pytest.raises(OutputError, match=f"the column '{column}' is of type"):
            stage(batch_of(), context())


@pytest.mark.parametrize("weight", ["c", "pair"])
def test_fill_takes_numbers_for_weights(weight):
    """A weight of text, or of several numbers per row, is refused by its name and type."""
    batch = ak.with_field(batch_of(), np.zeros((500, 2)), "pair")
    batch = ak.with_field(batch, ["1.5"] * 500, "c")
    with pytest.raises(OutputError, match=f"the weight '{weight}' is of type 500"):
        Fill({"h": {"x": {"edges": [0, 1]}}}, weight)(batch, context())


@pytest.mark.parametrize(
    "axis",
    [{}, {"bins": 2}, {"bins": 2, "range": [0]}, {"bins": 0, "range": [0, 1]}, {"bins": 2, "range": [1, 1]},
     {"edges": [0]}, {"edges": [1, 0]}, {"categories": []}, {"categories": ["a", 1]},
     {"bins": 2, "range": [0, 1], "log": True}, 3, {"bins": 2.5, "range": [0, 1]}, {"bins": True, "range": [0, 1]},
     {"edges": "123"}, {"categories": "ab"}, {"categories": {"a": 1}}],
)  # fmt: skip
def test_fill_refuses_an_axis_that_is_none(axis):
    """An axis with too few, too many or senseless keys is refused before anything runs, with histogram and column."""
    with pytest.raises(ValueError, match="histogram h, axis x"):
        Fill({"h": {"x": axis}})
    with pytest.raises(ValueError, match="histogram h has no axis"):
        Fill({"h": {}})


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (["a", "b", "a"], "the category 'a' stands there twice"), ([4, 5, 4], "the category 4 stands there twice"),
        ([1, True], "the category True is neither"), ([1, 1.0], "the category 1.0 is neither"),
        (["a", None], "the category None is neither"), ([np.float32(1)], "the category 1.0 is neither"),
        (["1", 1], "'1' and 1 are text and a number"), ([1, "1"], "1 and '1' are text and a number"),
        ([2**31], "the category 2147483648 is beyond 32 bits"), ([np.str_("a"), "a"], "'a' stands there twice"),
        (np.array([3, 3], np.int8), "the category 3 stands there twice"), (["a\0b"], "holds a NUL"),
    ],
)  # fmt: skip
def test_fill_refuses_categories_that_are_none(categories, said):
    """Categories are integers or text, each once: any other is named, with histogram and column."""
    with pytest.raises(ValueError, match=f"histogram h, axis c: .*{said}") as caught:
        Fill({"h": {"c": {"categories": categories}}})
    assert caught.value.key == ("histograms", "h", "c")


def test_a_category_that_stands_twice_is_refused_at_its_line(tmp_path, capsys):
    """``campaign check`` names the line, the key and the category."""
    (tmp_path / "d.root").touch()
    (tmp_path / "c.yaml").write_text(
        "campaign: c\ndatasets: {d: {files: d.root, tree: t}}\nstages:\n  fill:\n    use: fill\n    histograms:\n"
        "      h:\n        c: {categories: [1, 2, 1]}\n"
    )
    assert main(["check", str(tmp_path / "c.yaml")]) == 2
    told = capsys.readouterr().err
    assert "c.yaml:8: stages.fill.histograms.h.c: fill refuses its options: histogram h, axis c: the category 1" in told


# Reweighting ----------------------------------------------------------------------------------------------------------

EDGES = [np.array([-1.0, 0, 1]), np.array([-1.0, 0.5, 2, 3])]
VALUES = np.array([[0.5, 1.5, 2], [3, 4, 5]])


def by_hand(batch):
    factor = np.ones(len(batch))
    for i in range(2):
        for j in range(3):
            x, y = ak.to_numpy(batch.x), ak.to_numpy(batch.y)
            inside = (x >= EDGES[0][i]) & (x < EDGES[0][i + 1]) & (y >= EDGES[1][j]) & (y < EDGES[1][j + 1])
            factor[inside] = VALUES[i, j]
    return factor


@pytest.mark.parametrize("path", [[], ["deep", "er"]])
def test_reweighting_multiplies_by_the_factor_of_the_bin(path):
    """Each row's weight is multiplied by the factor of its bin; outside the edges, and for NaN, it stays."""
    table = {"values": VALUES, "edges": [EDGES[0], EDGES[1].tolist()]}
    for key in reversed(path):
        table = {key: table}
    batch = batch_of()
    batch["x"] = np.where(np.arange(500) % 50 == 0, np.nan, batch.x)
    batch["y"] = np.where(np.arange(500) % 40 == 0, 3.0, batch.y)  # the upper edge is outside, as in hist
    got = Reweight("factors", ["x", "y"], path=path)(batch, context(frozen={"factors": table}))
    assert np.array_equal(got["weight"], ak.to_numpy(batch.weight) * by_hand(batch))
    assert set(got) == set(batch.fields)
    assert ak.array_equal(got["v"], batch.v)


def test_reweighting_may_be_of_some_rows():
    """With ``where`` only the rows it marks are reweighted."""
    batch = batch_of()
    batch["mark"] = ak.Array(np.arange(500) % 2 == 0)
    table = {"values": VALUES, "edges": EDGES}
    got = Reweight("f", ["x", "y"], weight="w", where="mark")(batch, context(frozen={"f": table}))
    expected = ak.to_numpy(batch.w) * np.where(np.arange(500) % 2 == 0, by_hand(batch), 1)
    assert np.array_equal(got["w"], expected)


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        ({}, "'f' is not among its frozen values"), ({"f": {"values": VALUES}}, "f has no values and edges"),
        ({"f": 3}, "f has no values and edges"),
        ({"f": {"values": VALUES, "edges": EDGES[:1]}}, r"shape \(2, 3\), bins \(2,\)"),
        ({"f": {"values": VALUES.T, "edges": EDGES}}, r"values of shape \(3, 2\), bins \(2, 3\)"),
    ],
)  # fmt: skip
def test_a_frozen_value_that_does_not_fit_is_refused(frozen, said):
    """Factors that are not there, or of another shape than the bins, are refused by name."""
    with pytest.raises(OutputError, match=said):
        Reweight("f", ["x", "y"])(batch_of(), context(frozen=frozen))


def test_names_of_reweighting_are_lists():
    """One string in place of a list of columns is refused before anything runs."""
    with pytest.raises(ValueError, match="'by' is a list"):
        Reweight("f", by="pt")


def test_a_weight_of_a_branch_that_no_expression_can_name_says_the_way_through(tmp_path):
    """``Event.Weight`` is an attribute to Python: the remedy is a name under ``branches:``."""
    path = tmp_path / "in.root"
    with uproot.recreate(path) as file:
        file.mktree("t", {"Event.Weight": "float64"}).extend({"Event.Weight": np.ones(3)})
    plain, named = RootSource(str(path), "t", {}), RootSource(str(path), "t", {"w": "Event.Weight"})
    try:
        with pytest.raises(InputError, match=r"branches: {w: \"Event\.Weight\"}, and write weight: w"):
            plain.weight("Event.Weight", plain.read(0, 3))
        assert named.weight("w", named.read(0, 3)).tolist() == [1, 1, 1]
    finally:
        plain.close()
        named.close()


# Names that are no words ----------------------------------------------------------------------------------------------


def odd_names(**columns):
    return ak.Array({"a": np.arange(3.0), "b": np.ones(3), **columns})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Event.Weight", "'Event.Weight' is not understood"), ("f(x)", r"'f\(x\)' is not understood"),
        ("lambda", "is no expression"), ("1x", "is no expression"), ("w*", "is no expression"), ("x y", "is no expr"),
        ("a+b", r"'a\+b' may mean the branch of that name, or an expression of others"), ("a-b", "may mean"),
        ("a[1]", "may mean"), ("w[0.5]", "may mean"), ("-a", "may mean"), ("2", "may mean"), ("None", "may mean"),
    ],
)  # fmt: skip
def test_a_weight_that_is_the_name_of_a_branch_shows_the_way_through_branches(name, said):
    """A name is never taken for an expression: it is refused, with the mapping to be written."""
    with pytest.raises(InputError, match=said) as caught:
        evaluate(name, odd_names(**{name: np.full(3, 7.0)}))
    assert f'branches: {{w: "{name}"}}, and write weight: w' in caught.value.remedy


def test_a_weight_names_branches_by_the_letters_that_are_written():
    """Python takes some letters for others (micro sign and mu): of two such branches the right one is read."""
    micro, mu = "\u00b5", "\u03bc"
    batch = odd_names(**{micro: np.full(3, 2.0), mu: np.full(3, 5.0)})
    assert evaluate(f"{micro} * 10", batch).tolist() == [20.0] * 3
    assert evaluate(f"{mu} * 10", batch).tolist() == [50.0] * 3
    with pytest.raises(InputError, match="is not one of the branches"):
        evaluate(micro, odd_names(**{mu: np.ones(3)}))
    assert evaluate("a + b", odd_names(**{"a+b": np.full(3, 7.0)})).tolist() == [1, 2, 3]
