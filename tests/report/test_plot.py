"""Laws of the figures: what is drawn are the numbers of the histograms."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import hist
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.histogram.histogram import Histogram
from campaign.histogram.svg import Scale, label, steps, ticks
from campaign.report.gantt import Timeline, Track, busy
from campaign.report.gantt import draw as draw_timeline
from campaign.report.plot import coarser, draw, sums
from campaign.report.spectra import Figure, put_together, spectra
from tests.histogram.test_axes import histograms


def spectrum(values, variances=None, low=0.0, high=1.0):
    h = hist.Hist(hist.axis.Regular(len(values), low, high, name="x"), storage=hist.storage.Weight())
    h.view()["value"], h.view()["variance"] = values, np.abs(values) if variances is None else variances
    return next(spectra(h))[1]


@given(made=histograms())
def test_any_histogram_is_drawn_with_numbers(made: Histogram) -> None:
    """Every kind of axis, weights that are no numbers: coordinates are finite, and no sum of weights is lost."""
    found = list(spectra(made.to_hist()))
    drawn = put_together({"s/d/nominal": {"h": found}}, set())
    for figure in drawn:
        text = draw(figure)
        for attribute in re.findall(r' (?:d|x|y)="([^"]*)"', text):
            assert "nan" not in attribute, attribute
            assert "inf" not in attribute, attribute
    values = made.to_hist().values(flow=True)
    if not any(type(axis).__name__ == "StrCategory" for axis in made.axes) and np.isfinite(values).all():
        ((_, one),) = found
        together, scale = float(one.values.sum()) + one.outside, float(np.abs(values).sum())
        assert together == pytest.approx(float(values.sum()), rel=1e-9, abs=1e-9 * scale)


def test_categories_of_text_are_not_added():
    """Options of one selection hold the same entries: each is a figure of its own."""
    option = hist.axis.StrCategory(["none", "up"], name="option")
    h = hist.Hist(option, hist.axis.Regular(4, 0, 1, name="x"), storage=hist.storage.Weight())
    h.fill("none", [0.1, 0.9], weight=1.0)
    h.fill("up", [0.1, 0.9], weight=2.0)
    found = dict(spectra(h))
    assert found["option = none"].values.tolist() == [1, 0, 0, 1]
    assert found["option = up"].values.tolist() == [2, 0, 0, 2]


def test_the_band_is_statistics_and_variations_in_quadrature():
    """Up and down are added separately; a dataset without a variation stands with its nominal spectrum."""
    a, b = spectrum([10.0, 20.0]), spectrum([1.0, 1.0])
    varied = {"up": {"a": spectrum([13.0, 20.0])}, "down": {"a": spectrum([10.0, 16.0])}}
    made = sums(Figure("f", {"a": a, "b": b}, {}, varied))
    assert made.total.values.tolist() == [11.0, 21.0]
    assert made.lines["up"].values.tolist() == [14.0, 21.0]
    assert (made.high - made.total.values).tolist() == pytest.approx([math.hypot(math.sqrt(11), 3), math.sqrt(21)])
    assert (made.total.values - made.low).tolist() == pytest.approx([math.sqrt(11), math.hypot(math.sqrt(21), 4)])


def test_simulation_that_is_not_normalised_is_scaled_and_the_figure_says_so():
    """Within a factor of two it stays as it is."""
    data = {"data": spectrum([100.0, 300.0])}
    far = Figure("f", {"mc": spectrum([1.0, 3.0])}, data)
    assert sums(far).total.values.tolist() == pytest.approx([100.0, 300.0])
    assert "multiplied by 100" in draw(far)
    near = Figure("f", {"mc": spectrum([90.0, 270.0])}, data)
    assert sums(near).total.values.tolist() == [90.0, 270.0]
    assert "multiplied" not in draw(near)


def test_data_stand_over_simulation_and_variations_of_data_are_drawn():
    """Outputs of one stage and name are one figure; datasets with other axes have their own."""
    one, other = spectrum([1.0, 2.0]), spectrum([1.0, 2.0], high=2.0)
    names = ["fill/mc/nominal", "fill/mc/up", "fill/data/nominal", "fill/data/up"]
    found = {name: {"h": [("", one)]} for name in names} | {"fill/odd/nominal": {"h": [("", other)]}}
    first, second = put_together(found, {"data"})
    assert (list(first.simulated), list(first.observed), first.outputs) == (["mc"], ["data"], names)
    assert second.outputs == ["fill/odd/nominal"]
    text = draw(first)
    assert 'class="varied"' in text
    assert "data / sim." in text


def test_an_output_of_a_variation_alone_is_drawn():
    """Where a dataset has no nominal output, its variation stands for itself."""
    (figure,) = put_together({"fill/mc/up": {"h": [("", spectrum([1.0, 2.0]))]}}, set())
    assert list(figure.simulated) == ["mc up"]
    assert 'class="s0"' in draw(figure)


@given(n=st.integers(1, 500), most=st.integers(1, 120))
def test_coarser_bins_keep_the_sums(n, most):
    """Neighbours are added: the number of bins is bounded, the sums and the range are those of the histogram."""
    fine = spectrum(np.arange(n, dtype=float))
    rough = coarser(fine, most)
    assert len(rough.values) <= most
    assert rough.values.sum() == fine.values.sum()
    assert (rough.edges[0], rough.edges[-1]) == (fine.edges[0], fine.edges[-1])


def test_steps_go_through_edges_and_heights():
    """A path of steps is one move, then heights and right edges in turn; equal heights are one line."""
    assert steps([0, 1, 2, 3], [5, 5, 7], 9) == "M0,9V5H2V7H3V9Z"


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-6, 1e9), most=st.integers(2, 12))
def test_ticks_are_few_and_inside(low, span, most):
    """At most as many as fit, none outside the axis, in equal steps, and with labels that differ."""
    found = ticks(low, low + span, most)
    assert len(found) <= most + 1
    slack = 1e-6 * span + 4 * math.ulp(abs(low) + span)
    assert all(low - slack <= t <= low + span + slack for t in found)
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= slack
    if span > 1e-3 * abs(low):
        assert len({label(t) for t in found}) == len(found)


def test_a_scale_keeps_to_its_range():
    """Numbers outside, zero on a logarithmic scale and NaN stand at an end."""
    linear, log = Scale(0, 10, 100, 0), Scale(1, 100, 100, 0, log=True)
    assert [linear(x) for x in (-5, 0, 5, 10, 99, math.inf, math.nan)] == [100, 100, 50, 0, 0, 0, 100]
    assert [log(x) for x in (-1, 0, 1, 10, 100, 1e9)] == [100, 100, 100, 50, 0, 0]


def test_the_curve_of_busy_workers_holds_all_their_time():
    """The area under the curve is the time that workers were in tasks."""
    workers = [Track("a", [(0.0, 3.0, "working"), (4.0, 9.5, "working")]), Track("b", [(2.25, 10.0, "working")])]
    counts = busy(workers, 10.0, points=37)
    assert sum(counts) * 10.0 / 37 == pytest.approx(3.0 + 5.5 + 7.75)
    assert max(counts) <= 2 + 1e-9


def test_a_timeline_of_many_workers_says_what_it_leaves_out():
    """Rows are bounded; the curve has them all, and a sentence gives their number."""
    tracks = [Track(f"worker {i}", [(0.0, 1.0, "working")]) for i in range(500)]
    text = draw_timeline(Timeline(10.0, (), tracks, (), {"tasks": 9.0}))
    assert "468 more workers" in text
    assert len(text) < 40_000
