"""Shows the result of a run: ``campaign report`` as text, JSON or a page, ``campaign show`` for one output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.errors import CampaignError, SpecError
from campaign.util.messages import counted, unknown

if TYPE_CHECKING:
    from campaign.report.report import Report
    from campaign.report.spectra import Spectrum


def load(run_dir: Path) -> Report:
    """The report of a run directory.

    Raises:
        CampaignError: There is none.
    """
    from campaign.report.report import Report

    report = Report.load(run_dir)
    if report is None:
        raise CampaignError("has no report yet", where=str(run_dir), remedy="see 'campaign status'")
    return report


def report(run_dir: Path, form: str, *, profile: bool = False) -> str:
    """The report of a run.

    Args:
        run_dir: The run directory.
        form: ``text``, ``json`` or ``html``; the page is written to ``report.html``, and its path is returned.
        profile: Whether the text says where each second went.
    """
    made = load(run_dir)
    if form == "json":
        return (run_dir / "report.json").read_text().rstrip("\n")
    if form == "html":
        from campaign.driver.report_page import write
        from campaign.storage.rundir import RunDir

        return str(write(made, RunDir(run_dir)))
    return made.text(profile=profile)


def show(run_dir: Path, output: str | None) -> Iterator[str]:
    """The outputs of a run, or the content of one.

    Args:
        run_dir: The run directory.
        output: ``STAGE/DATASET/VARIATION``, with ``/HISTOGRAM`` for one histogram of it; None: the list of outputs.

    Raises:
        SpecError: There is no such output, or no such histogram in it.
    """
    from campaign.driver.report_page import here, histograms_of, said
    from campaign.storage.rundir import RunDir

    made = here(load(run_dir), RunDir(run_dir))
    if output is None:
        width = max((len(name) for name in made.outputs), default=0)
        for name, about in made.outputs.items():
            yield f"{name:<{width}}  {about['kind']:<10}  {about['sha256'][:12]}"
        return
    parts = output.split("/", 3)
    name, wanted = "/".join(parts[:3]), parts[3] if len(parts) > 3 else ""
    if name not in made.outputs:
        text = unknown(name, list(made.outputs), "outputs of this run")
        raise SpecError(text, where=str(run_dir), remedy="'campaign show RUN_DIR' lists them")
    about = made.outputs[name]
    if about["kind"] != "histograms":
        yield f"{name} ({about['kind']})"
        yield said(about["kind"], Path(about["path"]))
        return
    found = dict(histograms_of(about))
    if wanted and wanted not in found:
        raise SpecError(unknown(wanted, list(found), f"histograms of {name}"), where=str(run_dir))
    yield f"{name}: {counted(len(found), 'histogram')} in {about['path']}"
    for title in [wanted] if wanted else sorted(found):
        yield from _histogram(title, found[title])


def _histogram(title: str, h: Any) -> Iterator[str]:
    """A histogram along its last axis of numbers: drawn, then as a table."""
    from campaign.report.spectra import spectra

    for category, spectrum in spectra(h):
        more = f" ({category})" if category else ""
        summed = f", summed over {', '.join(spectrum.summed)}" if spectrum.summed else ""
        yield f"\n{title}{more}: {spectrum.label}{summed}"
        if not spectrum.values.any():
            yield "  no entries in its range"
            continue
        yield _drawn(spectrum)
        yield from _table(spectrum)


def _drawn(spectrum: Spectrum) -> str:
    import io

    import histoprint

    from campaign.histogram.svg import plain

    stream = io.StringIO()
    columns = max(40, min(100, shutil.get_terminal_size().columns))
    histoprint.print_hist((spectrum.values, spectrum.edges), file=stream, columns=columns)
    drawn = plain(stream.getvalue()).rstrip("\n")  # its colours are those of a dark terminal alone
    encoding = sys.stdout.encoding or "ascii"
    return drawn.encode(encoding, "replace").decode(encoding)


def _table(spectrum: Spectrum) -> Iterator[str]:
    yield f"  {'bin':<28}{'sum of weights':>24}{'uncertainty':>24}"
    for i, (value, variance) in enumerate(zip(spectrum.values.tolist(), spectrum.variances.tolist(), strict=True)):
        edges = f"[{spectrum.edges[i]:.8g}, {spectrum.edges[i + 1]:.8g})"
        name = spectrum.categories[i] if spectrum.categories else edges
        yield f"  {name:<28}{value:>24.12g}{abs(variance) ** 0.5:>24.12g}"
    if spectrum.outside:
        yield f"  {'outside':<28}{spectrum.outside:>24.12g}"
