"""Laws of the page of a run: it shows everything, fetches nothing, is well formed and stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from campaign.driver.report_page import write
from campaign.report.report import FAILED, INCOMPLETE, INTERRUPTED
from tests.report.pages import made_up, outside, page_of, shown

HOSTILE = "<script>alert('1')</script>&\"\x1b[31m\x00\udcff\u2028]]>"
LIMIT = 5 << 20  # bytes of a page


def test_every_output_of_the_report_is_shown(tmp_path: Path) -> None:
    """Histograms are drawn, other outputs are listed; each output of report.json is named by what shows it."""
    report, rundir = made_up(tmp_path, stages=2, histograms=3)
    text, root = page_of(report, rundir)
    assert shown(root) == set(report.outputs)
    figures = [f for f in root.iter("figure") if f.get("data-outputs")]
    assert len(figures) == 2 * 3
    for figure in figures:
        styles = {path.get("class") for path in figure.iter("path")}
        assert {"s0", "band", "total", "dots", "bars", "one", "v0", "v1"} <= styles, "a part of the figure is not drawn"
    assert "passed: 7" in text


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    """No script, and no address outside the page and the run directory."""
    report, rundir = made_up(tmp_path)
    picture = rundir.artefacts("fit", "nominal") / "a b.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"\x89PNG....")
    table = picture.with_name("table.json")
    table.write_text("{}")
    report.artefacts = {"fit/nominal/a b.png": str(picture), "fit/nominal/table.json": str(table)}
    text, root = page_of(report, rundir)
    assert not outside(text, root)
    assert not list(root.iter("script"))
    assert [e.get("src", "")[:22] for e in root.iter("img")] == ["data:image/png;base64,"]
    assert "artefacts/fit/nominal/table.json" in [e.get("href") for e in root.iter("a")]


def test_every_section_that_has_content_is_there(tmp_path: Path) -> None:
    """The links at the top lead to the sections, and no section is empty."""
    report, rundir = made_up(tmp_path, lost=2)
    _, root = page_of(replace(report, warnings=["a note"], errors=["an error\n  log:\n | why"]), rundir)
    sections = {s.get("id"): s for s in root.iter("section")}
    assert [a.get("href", "")[1:] for a in root.findall(".//nav/a")] == list(sections)
    assert set(sections) >= {
        "notes", "failures", "histograms", "timeline", "where-the-time-went", "rows-by-the-rung-that-answered",
        "slowest-files", "datasets", "servers", "other-outputs", "outputs-and-digests", "versions", "campaign-file",
    }  # fmt: skip
    for name, section in sections.items():
        assert len("".join(section.itertext())) > len(name or "") + 3, name


@pytest.mark.parametrize("place", ["dataset", "file", "error", "warning", "version", "campaign", "recipe"])
def test_hostile_text_stays_text(tmp_path: Path, place: str) -> None:
    """Whatever a name, path, message or log holds, the page has no element of it and stays well formed."""
    report, rundir = made_up(tmp_path, lost=1)
    if place == "dataset":
        report.datasets[HOSTILE] = {"files": 1, "events": 2}
    elif place == "file":
        report.lost[0]["file"] = HOSTILE
    elif place == "error":
        report.errors = [HOSTILE]
    elif place == "warning":
        report.warnings = [HOSTILE]
    elif place == "version":
        report.versions[HOSTILE] = HOSTILE
    elif place == "campaign":
        report.campaign = HOSTILE
    else:
        rundir.page_notes.write_text('{"recipe": "<script>alert(\'1\')</script>"}')
    text, root = page_of(report, rundir)
    assert "alert('1')" in "".join(root.itertext())
    assert not list(root.iter("script"))
    assert "\x1b" not in text


@pytest.mark.slow
def test_the_page_of_ten_thousand_files_stays_small(tmp_path: Path) -> None:
    """10,000 files, 300 histograms with variations and data, 1000 lost files, long logs: less than 5 MB."""
    report, rundir = made_up(tmp_path, files=10_000, stages=10, histograms=30, bins=200, lost=1000)
    report.errors = ["y" * 50_000] * 200
    report.warnings = ["z" * 50_000] * 500
    path = write(report, rundir)
    assert path.stat().st_size < LIMIT
    _, root = page_of(report, rundir)
    assert shown(root) == set(report.outputs)
    assert len([f for f in root.iter("figure") if f.get("data-outputs")]) == 300


def test_an_output_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A torn histogram file costs its own drawing and no other."""
    report, rundir = made_up(tmp_path)
    Path(report.outputs["fill0/mc/up"]["path"]).write_bytes(b"torn")
    text, root = page_of(report, rundir)
    assert "fill0/mc/up is not drawn" in text
    assert set(report.outputs) - shown(root) == {"fill0/mc/up"}


def test_a_run_directory_that_was_moved_is_shown(tmp_path: Path) -> None:
    """The report's paths are those of the run; the page reads the files where they are now."""
    report, rundir = made_up(tmp_path / "old")
    rundir.root.rename(tmp_path / "new")
    _, root = page_of(report, replace(rundir, root=tmp_path / "new"))
    assert shown(root) == set(report.outputs)


@pytest.mark.parametrize("status", [FAILED, INCOMPLETE, INTERRUPTED])
def test_a_run_that_made_nothing_has_a_page(tmp_path: Path, status: str) -> None:
    """Without outputs, servers, profile and notes, the page still says in three sentences what happened."""
    report, rundir = made_up(tmp_path, lost=1)
    bare = replace(report, status=status, outputs={}, servers=[], profile={}, datasets={}, rows={}, versions={})
    rundir.page_notes.unlink()
    _, root = page_of(bare, rundir)
    sentences = ["".join(p.itertext()) for p in root.findall(".//header/p[@class='lead']")]
    assert len(sentences) == 3
    assert status in "".join(root.itertext())


def test_dark_and_paper_have_their_own_colours(tmp_path: Path) -> None:
    """Every colour variable that the page uses is set for light, for dark and again for paper."""
    text, _ = page_of(*made_up(tmp_path))
    light, dark, paper = (set(re.findall(r"(--\w+):#", part)) for part in re.findall(r":root\{([^}]*)\}", text))
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= light
    assert light == dark == paper
