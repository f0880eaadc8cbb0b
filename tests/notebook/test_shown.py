"""What objects show of themselves in a notebook: HTML without scripts, and text."""

from __future__ import annotations

import html.parser
import re
import xml.etree.ElementTree as ET

import hist
import numpy as np
import pytest

from campaign import Campaign, Dataset, Histogram, Histograms, ServerPool, StageSpec, Variation
from campaign.driver.check import check
from campaign.histogram.plot import as_html, as_text
from campaign.histogram.svg import ticks
from campaign.report.live import LiveView
from campaign.report.progress import ServerProgress
from campaign.report.report import Report
from campaign.util.card import Bar, Card, Table
from tests.conftest import PROJECT, write_tree

VOID = {"br", "img", "meta"}


class Balanced(html.parser.HTMLParser):
    """Refuses tags that are not closed, and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        assert not any(name.startswith("on") or str(value).startswith("http:") for name, value in attrs
                       if name != "xmlns")  # fmt: skip
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def words(text: str) -> str:
    """The words of a piece of HTML that is whole."""
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return " ".join(parser.words)


def svgs(text: str) -> list[ET.Element]:
    """The plots in a piece of HTML, each of which is XML."""
    return [ET.fromstring(part) for part in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


def printed(thing) -> str:
    """What IPython writes in a console."""
    pretty = pytest.importorskip("IPython.lib.pretty")
    return pretty.pretty(thing)


def count(batch, ctx):
    return {"n": len(batch)}


@pytest.fixture
def described(tmp_path) -> Campaign:
    write_tree(tmp_path / "d" / "0.root", n=10)
    made = Campaign(
        campaign="mine",
        datasets={"d": Dataset(files="d/*.root", tree="events", is_mc=True)},
        stages={"count": StageSpec(use=count)},
        variations={"up": Variation(branches={"y": "y_up"})},
    )
    return made.at(tmp_path)


@pytest.mark.parametrize("show", [lambda c: c, lambda c: check(c).plan], ids=["campaign", "plan"])
def test_a_campaign_and_its_plan_show_stages_and_variations(described, show):
    """HTML and text name the stage and the variation; the text holds no tags."""
    thing = show(described)
    shown, text = words(thing._repr_html_()), printed(thing)
    for word in ("mine", "count", "up"):
        assert word in shown
        assert word in text
    assert "<" not in text.replace("<locals>", "")


def test_a_report_shows_status_and_outputs(tmp_path):
    """Status, outputs with their digests, and warnings, escaped."""
    made = Report("c", str(tmp_path), status="failed", warnings=["<script>"], errors=["e & f"])
    made.outputs["s/d/nominal"] = {"path": "p", "kind": "counts", "sha256": "abc" * 20}
    shown, text = words(made._repr_html_()), printed(made)
    for word in ("failed", "s/d/nominal", "abcabcabcabc", "<script>", "e & f"):
        assert word in shown
        assert word in text


def test_a_pool_shows_that_it_does_not_run():
    """Before it is entered there is no server to show."""
    pool = ServerPool(PROJECT / "tests" / "models", models=["batch_sensitive"], count=2)
    assert "not running" in words(pool._repr_html_())
    assert "batch_sensitive" in printed(pool)


AXES = [
    (hist.axis.Regular(20, -3, 3, name="x"),),
    (hist.axis.Variable([0, 1, 5, np.inf], name="x"),),
    (hist.axis.StrCategory(["a<b", "c"], name="k"),),
    (hist.axis.IntCategory([3, 5]),),
    (hist.axis.Boolean(name="yes"),),
    (hist.axis.Integer(0, 5, name="n"),),
    (hist.axis.Regular(5000, 0, 1, name="fine"),),
    (hist.axis.Regular(20, -3, 3, name="x"), hist.axis.Regular(300, 0, 1, name="y")),
    (hist.axis.Regular(4, 0, 1, name="x"), hist.axis.StrCategory(["a", "b"], name="k")),
    (hist.axis.Regular(4, 0, 1, name="x"), hist.axis.Boolean(name="b"), hist.axis.Integer(0, 3, name="n")),
]


@pytest.mark.parametrize("axes", AXES, ids=[" ".join(type(a).__name__ for a in axes) for axes in AXES])
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
def test_every_histogram_is_a_plot(axes, filled):
    """Axes of every kind, with and without entries: whole HTML, plots that are XML, no number that is none."""
    h = Histogram(*axes, name="mine")
    if filled:
        columns = [
            np.array(["c"] * 5) if isinstance(a, hist.axis.StrCategory) else np.array([0.1, 0.5, 0.5, 2, 9])
            for a in axes
        ]
        whole = (hist.axis.IntCategory, hist.axis.Integer)
        columns = [v.astype(int) if isinstance(a, whole) else v for a, v in zip(axes, columns, strict=True)]
        columns = [v > 1 if isinstance(a, hist.axis.Boolean) else v for a, v in zip(axes, columns, strict=True)]
        h.fill(*columns, weight=np.array([1.0, 2.0, -0.5, 1e3, np.nan]))
    shown = h._repr_html_()
    plots = svgs(shown)
    assert len(plots) == (1 if len(axes) < 3 else len(axes))
    assert "mine" in words(shown)
    assert not re.search(r"\b(nan|inf)\b", "".join(re.findall(r"<svg.*?</svg>", shown, flags=re.DOTALL)))
    assert "mine" in printed(h)


def test_a_plot_is_as_high_as_its_bins():
    """The path of a histogram reaches highest in the fullest bin, and its text is longest there."""
    h = Histogram(hist.axis.Regular(3, 0, 3, name="x")).fill([0.5, 1.5, 1.5, 1.5, 2.5, 7])
    (svg,) = svgs(h._repr_html_())
    path = next(e.attrib["d"] for e in svg.iter() if e.attrib.get("class") == "area")
    heights = [float(y) for _, y in re.findall(r"L([-\d.]+) ([-\d.]+)", path)]
    assert min(heights) == heights[2] == heights[3]  # upwards is less
    lines = as_text(h.to_hist()).splitlines()
    assert [line.count("#") for line in lines[1:]] == [13, 40, 13]
    assert "1 outside" in lines[0]


def test_histograms_show_each_by_its_name():
    """One plot for each, exact or hist's own; of many, the names of the rest."""
    one = Histogram(hist.axis.Regular(3, 0, 3, name="x"))
    both = Histograms(exact=one, plain=hist.Hist(hist.axis.Regular(3, 0, 3)))
    assert len(svgs(both._repr_html_())) == 2
    assert "exact" in words(both._repr_html_())
    assert "plain" in printed(both)
    many = Histograms({f"h{i}": one for i in range(30)})
    assert "h29" in words(many._repr_html_())
    assert len(svgs(many._repr_html_())) == 24


def test_a_large_histogram_is_described():
    """Millions of bins are no plot."""
    h = hist.Hist(*(hist.axis.Regular(2100, 0, 1, name=n) for n in "xy"))
    assert not svgs(as_html(h))
    assert "not drawn" in words(as_html(h))


@pytest.mark.parametrize(("low", "high", "found"), [
    (0.0, 10.0, [0, 2, 4, 6, 8, 10]), (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]), (0.0, 0.0, [0]), (3.0, 2.0, [3]),
])  # fmt: skip
def test_ticks_are_round_numbers(low, high, found):
    """Ticks lie inside the axis; an axis without length has one."""
    assert ticks(low, high, 5) == pytest.approx(found)


def test_a_card_is_the_same_in_html_and_text():
    """Title, facts, bars and notes are in both."""
    card = Card(
        "T & U", "running", "wait", {"fact": "value"}, {"H": Table(("a", "b"), [("x", Bar(0.5, "1/2"))])}, ["n"]
    )
    for word in ("T & U", "running", "fact", "value", "1/2", "n"):
        assert word in words(card.html())
        assert word in card.text()
    assert "width:50.0%" in card.html()
    assert "[##########..........] 1/2" in card.text()


def test_the_time_left_names_what_has_not_begun():
    """With few tasks done it is unknown; stages that have not begun are named beside it."""
    view = LiveView("c")
    view.expect("one", 100)
    view.expect("two", 100)
    view.add("one", 1)
    assert view.card().facts["time left"].startswith("unknown")
    view.add("one", 49)
    view.stages["one"].began -= 100.0  # 50 of 200 tasks in 100 s
    assert view.card().facts["time left"] == "about 5 min 0 s; not begun yet: two"
    view.add("two", 50)
    assert view.card().facts["time left"] == "about 1 min 40 s"
    view.add("two", 40, failed=10)
    assert view.card().facts["failed"] == "10 tasks"


def test_a_server_and_a_failure_are_shown():
    """Busy share, queue, restarts and the reason of an end; the message of a file that has failed."""
    view = LiveView("c")
    busy = ServerProgress("server-0", "ready", "nid001", 0.83, 1.25, 2)
    view.show_servers([busy, ServerProgress("server-1", "ended", reason="killed")])
    view.fail("x.root: <torn>")
    shown = words(view.card().html())
    for word in ("83%", "1.2 queued", "replaced 2 times", "nid001", "killed", "failed: x.root: <torn>"):
        assert word in shown
