"""Laws of row ranges: every entry once, none too many, cut where baskets are."""

from __future__ import annotations

import threading
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from campaign import Campaign, Dataset, StageSpec
from campaign.driver.check import check, job_of
from campaign.report.timing import AHEAD
from campaign.storage.packs import PackWriter
from campaign.storage.rundir import RunDir
from campaign.worker.pipeline import Pipeline, row_ranges
from campaign.worker.process import Worker
from tests.conftest import write_tree


@given(st.integers(0, 500), st.integers(1, 60), st.lists(st.integers(0, 500), max_size=40))
def test_ranges_hold_every_entry_once_and_never_too_many(entries, rows, clusters):
    """Whatever a file says of its clusters, the ranges are the file, in order, each within ``rows``."""
    spans = list(row_ranges(entries, rows, sorted(clusters)))
    assert spans[0][0] == 0
    assert spans[-1][1] == entries
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(stop - start <= rows for start, stop in spans)
    assert all(stop > start for start, stop in spans) or entries == 0


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 60))
def test_ranges_begin_where_baskets_do(basket, count, rows):
    """Where baskets are no longer than half a range, no range begins inside one."""
    entries = basket * count
    clusters = list(range(0, entries + 1, basket))
    spans = list(row_ranges(entries, rows, clusters))
    if basket <= rows // 2:
        assert all(start % basket == 0 for start, _ in spans)


def test_a_file_of_one_large_cluster_is_cut_all_the_same():
    """Memory is bounded by ``rows``, not by how a file was written."""
    assert list(row_ranges(250, 100, [0, 240])) == [(0, 100), (100, 200), (200, 250)]


def test_an_empty_file_has_one_range_of_nothing():
    """So that its stages are called and its outputs exist."""
    assert list(row_ranges(0, 100)) == [(0, 0)]


STAGE = """
def count(batch, ctx):
    return {"n": len(batch)}
"""


def test_the_next_range_is_read_while_the_one_before_is_worked_on(tmp_path):
    """In the background from the second range on: the first says which branches are used."""
    (tmp_path / "s.py").write_text(STAGE)
    write_tree(tmp_path / "a.root", n=1000)
    spec = Campaign(
        campaign="c", datasets={"d": Dataset(files="a.root", tree="events")}, stages={"n": StageSpec(use="s.py:count")},
        read_rows=300,
    ).at(tmp_path)  # fmt: skip
    checked = check(spec)
    (only,) = checked.plan.todo()
    rundir = RunDir(tmp_path / "r")
    with PackWriter(rundir) as pack:
        chain = Pipeline(Worker(job_of(checked.plan)), rundir, only.shape.tasks([0]).task(0), pack=pack)
        read, names = chain._read_range, []

        def noted(source, span, *more):
            names.append((span, threading.current_thread() is threading.main_thread()))
            return read(source, span, *more)

        chain._read_range = noted
        chain.run()
    spans = [span for span, _ in sorted(names)]
    assert len(spans) == 4
    assert [main for _, main in sorted(names)] == [True, True, False, False]
    assert chain.spent["read", AHEAD] > 0
