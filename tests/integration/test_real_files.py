"""Every tree of many real files, branch by branch: what uproot reads is read alike, all else is refused by name."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from campaign.stages.read import RootSource

from campaign.errors import InputError
from tests.conftest import PROJECT

LARGEST, ROWS = 3_000_000, 20
KINDS = [  # what the message says, and the row of the table in docs/formats.md
    (r"stands \d+ times in the tree", "the name stands twice in the tree"),
    (r"has \d+ entries, and the tree has \d+", "the branch has another number of entries than the tree"),
    (r"UnknownInterpretation", "uproot knows no interpretation of the type"),
    (r"CannotBeAwkward", "the type holds pointers, which have no array form"),
    (r"where .* was expected", "uproot knows the class by another form, from a file read before"),
    (r"", "uproot's reader of the type fails on this file"),
]


def trees(path):
    """Names of all trees of a file, those that cannot even be found left out."""
    with uproot.open({str(path): None}) as file:
        kinds = file.classnames(cycle=False)
    return [name for name, kind in kinds.items() if kind in ("TTree", "TNtuple", "TNtupleD") or "RNTuple" in kind]


def expected(branch, start, stop):
    try:
        return branch.array(entry_start=start, entry_stop=stop, library="ak")
    except Exception:  # noqa: BLE001  whatever uproot raises
        return None


def same(one, other):
    return str(one.type) == str(other.type) and repr(ak.to_list(one)) == repr(ak.to_list(other))


def touched(batch, name):
    try:
        return ak.materialize(batch[name]), None
    except InputError as error:
        return None, error


def compare(path, tree, counts, refused):
    """Read one tree in two ranges: the first branch by branch, the second all at once."""
    source = RootSource(str(path), tree, {})
    try:
        stop = min(source.entries, ROWS)
        half = (stop + 1) // 2
        first = source.read(0, half)
        good = []
        for name in source.names:
            branch = source._branches._branches[name] if hasattr(source._branches, "_branches") else source._tree[name]
            want = [expected(branch, 0, half), expected(branch, half, stop)]
            got, error = touched(first, name)
            if error is not None:
                assert name in error.message or str(path) in str(error), (path, tree, name, error)
                why = next(text for pattern, text in KINDS if re.search(pattern, error.message))
                readable = want[0] is not None and len(want[0]) == half
                assert not (readable and why not in (KINDS[0][1], KINDS[1][1], KINDS[4][1])), (
                    path,
                    tree,
                    name,
                    str(error),
                )
                refused[why].append(f"{path.name}:{tree}:{name}")
                source.touched.discard(name)
                continue
            assert want[0] is not None or not half, (path, tree, name)
            assert not half or same(got, want[0]), (path, tree, name, got.type, want[0].type)
            if half < stop and want[1] is None:
                source.touched.discard(name)
                continue
            if half < stop:  # uproot's arrays of no entries have members that its other arrays have not
                good.append((name, want[1]))
            counts["branches"] += 1
        second = source.read(half, stop)
        for name, want in good:
            assert same(second[name], want), (path, tree, name)
        counts["trees"] += 1
    finally:
        source.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_every_branch_of_real_files_is_read_as_uproot_reads_it_or_refused_by_name():
    """Two ranges of each branch, bit for bit; the table of docs/formats.md says how many are refused, and why."""
    testdata = pytest.importorskip("skhep_testdata", reason="pip install '.[testdata]'")
    counts, refused = Counter(), defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted((Path(testdata.__file__).parent / "data").glob("**/*.root")):
            if path.stat().st_size > LARGEST:
                continue
            try:
                found = trees(path)
            except Exception:  # noqa: BLE001  whatever uproot raises
                counts["files that uproot cannot list"] += 1
                continue
            counts["files"] += 1
            for tree in found:
                try:
                    compare(path, tree, counts, refused)
                except InputError as error:
                    refused["the whole tree"].append(f"{path.name}:{tree}: {error.message[:80]}")
    rows = [f"| {why} | {len(names)} |" for why, names in sorted(refused.items())]
    table = "\n".join([f"{counts['files']} files, {counts['trees']} trees, {counts['branches']} branches read", *rows])
    print(table, *refused["the whole tree"], sep="\n")
    page = (PROJECT / "docs" / "formats.md").read_text()
    for row in rows:
        assert row in page, table
    assert f"{counts['files']} files with {counts['trees']} trees: {counts['branches']:,} branches are read" in page, (
        table
    )


def test_a_branch_that_cannot_be_interpreted_leaves_the_others(tmp_path):
    """A leaf class that uproot does not know: the branch is named, with its reason, when it is touched."""
    path = tmp_path / "in.root"
    with uproot.recreate(path, compression=None) as file:
        file.mktree("t", {"odd": "int16", "x": "float32"}).extend(
            {"odd": np.arange(200, dtype=np.int16), "x": np.arange(200, dtype=np.float32)}
        )
    path.write_bytes(path.read_bytes().replace(b"TLeafS", b"TLeafZ"))
    source = RootSource(str(path), "t", {})
    try:
        for start in (0, 100):
            batch = source.read(start, start + 100)
            assert ak.to_list(batch.x) == list(range(start, start + 100))
            assert set(batch.fields) == {"odd", "x"}
            with pytest.raises(InputError, match=r"the branch 'odd' of type \w+ cannot be read: UnknownInterpretation"):
                ak.to_numpy(batch.odd)
            with pytest.raises(InputError, match="the branch 'odd'"):
                _ = batch[batch.x > 5].odd + 1
            with pytest.raises(InputError, match="the branch 'odd'"):
                source.weight("odd * 2", batch)
    finally:
        source.close()


def test_a_name_that_stands_twice_is_refused_when_it_is_used(tmp_path):
    """Which of the two is meant nobody can say; the others are read."""
    path = tmp_path / "in.root"
    x = np.arange(50, dtype=np.float32)
    with uproot.recreate(path, compression=None) as file:
        made = file.mktree("t", {"dupA": "float32", "dupB": "float32", "x": "float32"})
        made.extend({"dupA": x, "dupB": x + 500, "x": x})
    path.write_bytes(path.read_bytes().replace(b"dupB", b"dupA"))
    source = RootSource(str(path), "t", {})
    try:
        batch = source.read(0, 50)
        assert batch.fields == ["dupA", "x"]
        assert ak.to_list(batch.x) == x.tolist()
        with pytest.raises(InputError, match="the branch 'dupA' of type float cannot be read: the name stands 2 times"):
            ak.to_numpy(batch.dupA)
    finally:
        source.close()


NAMES = [
    "a*b",
    "a?",
    "[x]",
    "a+b",
    "x y",
    "1x",
    "class",
    "entry",
    "sin",
    "a.b",
    "f(x)",
    "x",
    "y",
    "/a/",
    "a|b",
    "lambda",
]


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_names_are_exact_whatever_they_look_like(tmp_path, kind):
    """Pattern characters, operators, keywords and functions in a name mean themselves; by ``branches`` too."""
    names = [n for n in NAMES if kind == "tree" or "." not in n]
    data = {name: np.full(20, i, np.float64) + np.arange(20) / 100 for i, name in enumerate(names)}
    path = tmp_path / "in.root"
    with uproot.recreate(path) as file:
        if kind == "tree":
            file.mktree("t", {n: v.dtype for n, v in data.items()}).extend(data)
        else:
            file.mkrntuple("t", ak.Array(data)[:0]).extend(ak.Array(data))
    source = RootSource(str(path), "t", {f"use_{i}": name for i, name in enumerate(names)})
    plain = RootSource(str(path), "t", {})
    try:
        for start in (0, 10):
            batch, other = source.read(start, start + 10), plain.read(start, start + 10)
            for i, name in enumerate(names):
                want = data[name][start : start + 10].tolist()
                assert ak.to_list(batch[f"use_{i}"]) == want, name
                assert ak.to_list(other[name]) == want, name
                assert source.weight(f"use_{i} * 2", batch).tolist() == [2 * v for v in want]
        assert source.touched == {f"use_{i}" for i in range(len(names))}
        assert plain.touched == set(names)
    finally:
        source.close()
        plain.close()
