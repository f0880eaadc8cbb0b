"""Laws of row ranges: every entry once, none too many, cut where baskets are."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from campaign.chain import row_ranges


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
