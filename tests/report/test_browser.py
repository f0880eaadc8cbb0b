"""The page in a real browser, headless Chromium: light, dark, on paper, and with 10,000 files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.pages import made_up, page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]


def chromium(folder: Path, *args: str) -> str:
    """Run Chromium on ``report.html`` of a folder, with a profile of its own and without network; its output."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--proxy-server=127.0.0.1:9", "--window-size=1280,4000", *args]
    done = subprocess.run(
        [*command, (folder / "report.html").as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    return done.stdout


@pytest.mark.parametrize("files", [10, 10_000])
def test_the_browser_lays_out_every_figure(tmp_path: Path, files: int) -> None:
    """No text of a figure leaves its drawing, nothing is wider than the window, and no error is logged."""
    report, rundir = made_up(tmp_path, files=files, stages=2 if files == 10 else 5, histograms=5)
    text, _ = page_of(report, rundir)
    probe = (
        "<script>addEventListener('load',()=>{const out=[];"
        "if(document.documentElement.scrollWidth>innerWidth)out.push('wider than the window');"
        "for(const s of document.querySelectorAll('svg')){const b=s.getBoundingClientRect();"
        "if(b.width<100||b.height<50)out.push('a drawing without size');"
        "for(const t of s.querySelectorAll('text')){const r=t.getBoundingClientRect();"
        "if(r.left<b.left-1||r.right>b.right+1||r.top<b.top-1||r.bottom>b.bottom+1)out.push(t.textContent)}}"
        "document.body.setAttribute('data-probe',JSON.stringify(out)+'; figures: '"
        "+document.querySelectorAll('figure svg').length)})</script></body>"
    )
    (tmp_path / "report.html").write_text(text.replace("</body>", probe))
    found = re.search(r'data-probe="([^"]*)"', chromium(tmp_path, "--dump-dom"))
    assert found is not None
    assert found.group(1) == f"[]; figures: {10 if files == 10 else 25}"


def test_light_and_dark_have_backgrounds_of_their_own_and_paper_has_pages(tmp_path: Path) -> None:
    """The first pixel of a screenshot is white in light and nearly black in dark; the PDF is white and has text."""
    from matplotlib.image import imread

    page_of(*made_up(tmp_path))
    for scheme, wanted in (("1", 1.0), ("0", 0.085)):  # Blink's numbers of light and dark
        chromium(tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'a.png'}")
        assert imread(tmp_path / "a.png")[2, 2, :3].mean() == pytest.approx(wanted, abs=0.02)
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'a.pdf'}")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "a.pdf").read_bytes())) >= 2
