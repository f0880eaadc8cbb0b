"""Partials become one output: in plan order, exactly, and only if they are what their receipts say."""

from __future__ import annotations

import hashlib
import json
import math
import random

import awkward as ak
import hist
import numpy as np
import pytest
import uproot

from campaign import Columns, Counts, Histogram, Histograms
from campaign.errors import AxesMismatch, OutputError, PartialError
from campaign.outputs.histograms import read_histograms
from campaign.outputs.kinds import as_output, start_partial
from campaign.outputs.merge import (
    LazyMerged,
    Target,
    export,
    fingerprint,
    merge_leaf,
    merge_leaves,
    merge_whole,
    spoilt,
)
from campaign.storage.packs import PackWriter
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.hashing import file_digest

FILES = 7


def leave(run, key, *values):
    """Leave the partial of a key as a task does; its receipt."""
    outputs = [as_output(v, "s") for v in values]
    kind = {Columns: "columns", Histograms: "histograms", Counts: "counts"}[type(outputs[0])]
    partial = start_partial(outputs[0], lambda: run.columns(key))
    for value in outputs:
        partial.add(value)
    pack, offset = "", 0
    if kind == "columns":
        sha256, size = partial.write(run.columns(key)), run.columns(key).stat().st_size
    else:
        content = partial.content()
        with PackWriter(run) as packs:
            packs.add(b"another's")
            (offset, sha256), size, pack = packs.add(content), len(content), packs.name
    own = file_digest(run.columns(key)) if kind == "columns" else ""
    notes = tuple(partial.notes)
    return Receipt(key, "s", "d", "nominal", f"/{key}.root", kind, sha256, size, 1, 1, pack, offset, notes, "", own)


def place(run, receipt):
    """The file its partial lies in."""
    return run.pack(receipt.pack) if receipt.pack else run.columns(receipt.key)


def merge(run, keys, receipts):
    """The output that the partials of these keys make."""
    return merge_whole(run, Target("s", "d", "nominal"), 0, [receipts[key] for key in keys])


def histograms(i):
    rng = np.random.default_rng(i)
    h = Histogram(hist.axis.StrCategory(["a", "b"], name="c"), hist.axis.Regular(4, -1, 1, name="x"))
    return Histograms(h=h.fill(rng.choice(["a", "b"], 100), rng.normal(size=100), weight=rng.lognormal(0, 8, 100)))


def columns(i):
    rng = np.random.default_rng(i)
    n = 3 * i  # the first file has no rows
    return {"x": rng.normal(size=n), "v": ak.unflatten(rng.normal(size=2 * n), np.full(n, 2)), "i": np.full(n, i)}


def counts(i):
    return Counts(n=i, w=float(np.random.default_rng(i).lognormal(0, 8)))


def run_of(folder, make, order=range(FILES)):
    run = RunDir(folder)
    receipts = {}
    for i in order:
        made = leave(run, f"k{i}", make(i))
        receipts[made.key] = made
    return run, receipts


KEYS = [f"k{i}" for i in range(FILES)]


@pytest.mark.parametrize("make", [histograms, columns, counts])
def test_the_order_in_which_partials_arrive_does_not_show(tmp_path, make):
    """However tasks finish, and whoever merges again, the output has the same content and digest."""
    found = set()
    for seed in range(3):
        run, receipts = run_of(tmp_path / str(seed), make, random.Random(seed).sample(range(FILES), FILES))
        first, again = merge(run, KEYS, receipts), merge(run, KEYS, receipts)
        assert first == again
        files = sorted(first.path.iterdir()) if first.path.is_dir() else [first.path]
        found.add((first.sha256, *(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)))
        assert not [p for p in first.path.parent.iterdir() if p.name.startswith(".")]
    assert len(found) == 1


@pytest.mark.parametrize("make", [histograms, counts])
def test_the_grouping_into_files_does_not_show_in_sums(tmp_path, make):
    """One partial of all ranges and one per range add up to the same digest."""
    run, receipts = run_of(tmp_path / "many", make)
    many = merge(run, KEYS, receipts)
    run = RunDir(tmp_path / "one")
    one = merge(run, ["all"], {"all": leave(run, "all", *(make(i) for i in range(FILES)))})
    assert one.sha256 == many.sha256


@pytest.mark.parametrize("make", [histograms, columns, counts])
@pytest.mark.parametrize("size", [1, 3, FILES])
def test_a_tree_gives_what_a_merge_at_once_gives(tmp_path, make, size):
    """Ranges merged apart, in any order and twice, and then together: the same content, digest and files."""
    run, receipts = run_of(tmp_path, make)
    got = [receipts[k] for k in KEYS]
    at_once = merge(run, KEYS, receipts)
    files = fingerprint(at_once)
    target = Target("s", "d", "nominal")
    starts = list(range(0, FILES, size))
    leaves = {i: merge_leaf(run, target, i, got[i : i + size]) for i in [*reversed(starts), starts[0]]}
    assert merge_leaves(run, target, [leaves[i] for i in starts]) == at_once
    assert fingerprint(at_once) == files
    assert not list(run.leaf("").iterdir())
    assert not [p for p in at_once.path.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("make", [histograms, columns, counts])
@pytest.mark.parametrize("gaps", [{2}, {0, 1, 2}, {0, 3, FILES - 1}])
def test_what_lacks_files_has_the_digest_of_an_output_without_them(tmp_path, make, gaps):
    """At once or as a tree, with a gap at the begin, in the middle, at the end, or a whole range of the tree."""
    run, receipts = run_of(tmp_path / "gaps", make)
    target, got = Target("s", "d", "nominal"), [receipts[k] for i, k in enumerate(KEYS) if i not in gaps]
    at_once = merge_whole(run, target, 0, got, sorted(gaps))
    leaves = []
    for first in range(0, FILES, 3):
        here = range(first, min(first + 3, FILES))
        there = [receipts[KEYS[i]] for i in here if i not in gaps]
        if there:
            leaves.append(merge_leaf(run, target, first, there, sorted(gaps.intersection(here))))
    assert merge_leaves(run, target, leaves) == at_once
    without, kept = run_of(tmp_path / "without", make)
    keys = [k for i, k in enumerate(KEYS) if i not in gaps]
    assert merge(without, keys, kept).sha256 == at_once.sha256


def test_a_tree_refuses_what_does_not_fit_together(tmp_path):
    """Leaves of different kinds, of other axes, or altered are refused as partials are."""
    run = RunDir(tmp_path)
    other = Histograms(h=Histogram(hist.axis.Regular(4, -1, 1, name="x")))
    target = Target("s", "d", "nominal")
    made = [merge_leaf(run, target, i, [leave(run, f"k{i}", value)]) for i, value in
            enumerate((histograms(1), other, counts(1)))]  # fmt: skip
    with pytest.raises(AxesMismatch, match=r"s/d/nominal: files 1 to 1, histogram h.*2 axes here, 1 there"):
        merge_leaves(run, target, made[:2])
    with pytest.raises(OutputError, match="s/d/nominal: files give different kinds: counts, histograms"):
        merge_leaves(run, target, made[1:])
    run.leaf(made[0].name).write_bytes(b"")
    with pytest.raises(PartialError, match="has changed since it was written"):
        merge_leaves(run, target, made[:1])


def test_merged_histograms_are_exact_sums(tmp_path):
    """Each bin of the merged histogram is the exact sum, rounded once, and ROOT holds the same numbers."""
    run, receipts = run_of(tmp_path, histograms)
    merged = merge(run, KEYS, receipts)
    everything = [histograms(i)["h"].to_hist() for i in range(FILES)]
    total = merged.load()["h"]
    assert total.storage_type is hist.storage.Weight
    got = total.values(flow=True)
    near = np.sum([h.values(flow=True) for h in everything], axis=0)
    assert np.allclose(got, near, rtol=1e-12)
    whole = Histogram(*everything[0].axes)
    for i in range(FILES):
        whole += histograms(i)["h"]
    assert np.array_equal(got, whole.to_hist().values(flow=True))
    assert read_histograms(merged.path)["h"].sha256() == whole.sha256()
    assert merged.root is None, "the ROOT file is made apart: no later stage waits for it"
    with uproot.open(export(merged).root) as file:
        for i, c in enumerate("ab"):
            assert np.array_equal(file[f"h/c={c}"].values(flow=True), got[i])
            assert np.array_equal(file[f"h/c={c}"].variances(flow=True), total.variances(flow=True)[i])


def test_merged_columns_are_the_files_rows_in_plan_order(tmp_path):
    """Columns follow the order of the plan, files without rows included; nothing is copied where links are possible."""
    run, receipts = run_of(tmp_path, columns)
    merged = merge(run, KEYS, receipts)
    got = merged.load()
    assert got["i"].to_list() == [i for i in range(FILES) for _ in range(3 * i)]
    assert np.array_equal(ak.to_numpy(got["x"]), np.concatenate([columns(i)["x"] for i in range(FILES)]))
    assert ak.all(ak.num(got["v"]) == 2)
    assert len(list(merged.path.glob("*.parquet"))) == FILES
    first = run.columns("k1")
    assert first.stat().st_nlink == 2
    backwards = merge(RunDir(tmp_path), KEYS[::-1], receipts)
    assert backwards.sha256 != merged.sha256


def test_merged_counts_are_fsum_and_json(tmp_path):
    """Floats are ``math.fsum`` of all, integers stay integers, and the output is JSON that anybody reads."""
    run, receipts = run_of(tmp_path, counts)
    merged = merge(run, KEYS, receipts)
    expected = {"n": sum(range(FILES)), "w": math.fsum(counts(i)["w"] for i in range(FILES))}
    assert merged.load() == expected
    assert json.loads(merged.path.read_text()) == expected


def test_a_missing_partial_is_an_error_that_names_its_file(tmp_path):
    """A partial that is gone, or shorter than its receipt says, is an error: no output is written without it."""
    run, receipts = run_of(tmp_path, counts)
    path = place(run, receipts["k4"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PartialError, match=r"s/d/nominal: /k4\.root"):
        merge(run, KEYS, receipts)
    path.unlink()
    with pytest.raises(PartialError, match=r"s/d/nominal: /k4\.root"):
        merge(run, KEYS, receipts)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("make", "kind"), [(histograms, "histograms"), (counts, "counts")])
def test_a_partial_that_is_not_its_receipts_is_refused(tmp_path, make, kind):
    """A whole partial of the right size with another content is noticed and named."""
    run, receipts = run_of(tmp_path, make)
    mine, foreign = place(run, receipts["k2"]), place(run, receipts["k3"])
    mine.write_bytes(foreign.read_bytes())
    receipts["k2"] = Receipt(**{**receipts["k2"].__dict__, "size": receipts["k3"].size})
    assert receipts["k2"].kind == kind
    with pytest.raises(PartialError, match=rf"/k2\.root: {mine} at 9: has changed since it was written for /k2\.root"):
        merge(run, KEYS, receipts)
    assert spoilt(run, [receipts[k] for k in KEYS]) == [2]


@pytest.mark.parametrize(("make", "kind"), [(histograms, "histograms"), (counts, "counts"), (columns, "columns")])
def test_a_torn_partial_is_named(tmp_path, make, kind):
    """A partial that was overwritten by as many zeros is a PartialError with its path."""
    run, receipts = run_of(tmp_path, make)
    path = place(run, receipts["k5"])
    path.write_bytes(bytes(path.stat().st_size))
    assert receipts["k5"].kind == kind
    assert spoilt(run, [receipts[k] for k in KEYS]) == [5]
    with pytest.raises(PartialError, match="k5"):
        merge(run, KEYS, receipts)


def test_different_kinds_are_refused(tmp_path):
    """Files for which a stage returned different kinds cannot be merged."""
    run = RunDir(tmp_path)
    receipts = {r.key: r for r in (leave(run, "k0", counts(1)), leave(run, "k1", histograms(1)))}
    with pytest.raises(OutputError, match="s/d/nominal: files give different kinds: counts, histograms"):
        merge(run, ["k0", "k1"], receipts)


def test_different_axes_name_the_file(tmp_path):
    """A file whose histogram has other axes is named, with the axis."""
    run = RunDir(tmp_path)
    other = Histograms(h=Histogram(hist.axis.Regular(4, -1, 1, name="x")))
    receipts = {r.key: r for r in (leave(run, "k0", histograms(1)), leave(run, "k1", other))}
    with pytest.raises(AxesMismatch, match=r"/k1\.root.*histogram h.*2 axes here, 1 there"):
        merge(run, ["k0", "k1"], receipts)


def test_notes_of_partials_reach_the_output(tmp_path):
    """What a task remarked is told once, with what ROOT cannot hold."""
    run = RunDir(tmp_path)
    h = Histogram(hist.axis.StrCategory(["a"], name="c")).fill(["a"], weight=[np.nan])
    receipts = {k: leave(run, k, Histograms(h=h)) for k in ("k0", "k1")}
    merged = export(merge(run, ["k0", "k1"], receipts))
    assert merged.root is None
    assert sum("1 nan" in n for n in merged.notes) == 1
    assert sum("ROOT holds 1 to 3" in n for n in merged.notes) == 1


def test_a_reduce_stage_reads_only_what_it_asks_for(tmp_path):
    """Merged outputs are read when they are asked for, once."""
    run, receipts = run_of(tmp_path, counts)
    merged = merge(run, KEYS, receipts)
    lazy = LazyMerged({"mc": merged, "data": merged})
    assert (sorted(lazy), len(lazy)) == (["data", "mc"], 2)
    got = lazy["mc"]
    merged.path.with_suffix(".exact.json").unlink()
    assert lazy["mc"] is got
    with pytest.raises(PartialError):
        lazy["data"]
    with pytest.raises(KeyError):
        lazy["none"]


def test_a_range_with_a_file_made_anew_is_merged_again():
    """What was merged of it is dropped; what is under way is thrown away when it comes; other ranges stay."""
    from campaign.driver.merge_trees import LEAF, MergeTree

    keys = [f"{i:064x}" for i in range(3 * LEAF)]
    tree = MergeTree(keys, leaves={0: None, LEAF: None}, asked={2 * LEAF})
    tree.drop(LEAF + 7)
    tree.drop(2 * LEAF)
    assert tree.leaves == {0: None}
    assert tree.spoilt == {2 * LEAF}


def test_a_dataset_that_is_not_merged_is_named_with_those_that_are():
    """As a mapping does, with the near name; ``get`` and ``in`` as ever."""
    merged = LazyMerged({"data_2018": None, "mc": None})
    with pytest.raises(KeyError) as caught:
        merged["data_2017"]
    assert str(caught.value) == (
        "'data_2017' is not one of the datasets that are merged here; did you mean 'data_2018'? (known: data_2018, mc)"
    )
    assert merged.get("nope") is None
    assert "nope" not in merged
