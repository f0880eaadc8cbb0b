"""README and docs: short enough to read, and true where they name a file or a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def defined() -> dict[str, set[str]]:
    """The test functions of each test file, by the file's name without ``.py``."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.setdefault(path.stem, set()).update(re.findall(r"(?m)^\s*def (test_\w+)", path.read_text()))
    return found


def test_the_readme_fits_on_a_few_screens():
    """README holds what a first reader needs; all else is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    """Every relative link of a page leads to a file of the project."""
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    missing = [x for x in links if x and "://" not in x and not (page.parent / x).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_tests_exist(page):
    """Every test that a page names is there: a page that promises a test cannot outlive it."""
    tests = defined()
    for file, name in re.findall(r"\b(test_\w+)::(test_\w+)", page.read_text()):
        assert name in tests.get(file, ()), f"{page.name} names {file}::{name}"
