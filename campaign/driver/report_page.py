"""Writes ``report.html``: gathers what the page shows from the report and the run directory."""

from __future__ import annotations

import base64
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from campaign.driver import manifest
from campaign.driver.state import State
from campaign.errors import CampaignError
from campaign.outputs.columns import COLUMNS
from campaign.outputs.counts import COUNTS
from campaign.outputs.histograms import HISTOGRAMS
from campaign.planning.plan import Plan
from campaign.report.report import INTERRUPTED, Report
from campaign.storage.rundir import RunDir
from campaign.util.files import read_json, write_aside, write_json
from campaign.worker.stage_log import log_of

if TYPE_CHECKING:
    from campaign.report.html import Artefact, Content, Failure
    from campaign.report.spectra import Spectrum

DRAW_S, HASTE_S = 30.0, 3.0  # at the end of a run, for reading histograms; of one that was interrupted
PICTURES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}
MOST_PICTURE, MOST_PICTURES = 400_000, 1_000_000  # bytes that the page holds, of one and of all
TEXTS, MOST_TEXT, MOST_TEXTS = {".txt", ".csv", ".md"}, 20_000, 200_000
MOST_OTHERS, MOST_OTHER = 200, 2000  # outputs that are no histograms, and characters of each
TAILS, TAIL = 20, 4000  # logs whose end is shown, and bytes of each
MOST_RECIPE = 60_000  # characters of the campaign file


# At the end of a run -------------------------------------------------------------------------------------------------


def finish(report: Report, plan: Plan, state: State, rundir: RunDir) -> None:
    """Note what only the run knows, and write the page. What goes wrong is a note in the report, and no failure."""
    try:
        write_json(rundir.page_notes, _notes(report, plan, state, rundir))
        write(report, rundir, within_s=HASTE_S if report.status == INTERRUPTED else DRAW_S)
    except Exception as error:  # noqa: BLE001  a page that cannot be drawn is no reason to fail a run
        report.warnings.append(f"report.html could not be written: {type(error).__name__}: {error}")


def _notes(report: Report, plan: Plan, state: State, rundir: RunDir) -> dict[str, Any]:
    began = float(report.profile.get("began", 0.0))
    told = manifest.recipe(plan.campaign)
    return {
        **state.times.to_json(began),
        "servers": list(_served(report, rundir, began)),
        "data": sorted({events.dataset for events in plan.events if not events.is_mc}),
        "recipe": told.get("yaml") or f"# {told.get('why_not', 'not known')}",
    }


def _served(report: Report, rundir: RunDir, began: float) -> Iterator[dict[str, Any]]:
    """When each server started, was ready and ended, in seconds from the start of the run."""
    end = float(report.profile.get("timeline", {}).get("stopped", report.wall_s))
    for name in [str(server["name"]) for server in report.servers]:
        path = rundir.servers / f"{name}.json"
        record = read_json(path)
        if record is None or "started" not in record:
            continue
        over = path.stat().st_mtime - began if record.get("state") == "ended" else end
        started, ready = float(record["started"]) - began, record.get("ready_s")
        busy = sum(float(t.get("computing_s", 0.0)) for t in record.get("times", {}).values())
        ready_at = None if ready is None else round(started + float(ready), 3)
        yield {"name": name, "started": round(started, 3), "ready": ready_at, "ended": round(over, 3), "busy": busy}


# From the run directory ----------------------------------------------------------------------------------------------


def write(report: Report, rundir: RunDir, *, within_s: float = float("inf")) -> Path:
    """Write ``report.html``.

    Args:
        report: The run's report.
        rundir: Its directory.
        within_s: When this time has passed, no further histograms are read; the page names them.
    """
    from campaign.report.html import page

    text = page(report, gather(report, rundir, within_s))
    with write_aside(rundir.page) as stream:
        stream.write(text.encode())
    return rundir.page


def gather(report: Report, rundir: RunDir, within_s: float = float("inf")) -> Content:
    """The contents of the page that are not in the report."""
    from campaign.report.gantt import Timeline, Track
    from campaign.report.html import Content
    from campaign.report.spectra import put_together

    notes = read_json(rundir.page_notes) or {}
    report = here(report, rundir)
    found, undrawn = _spectra(report, time.monotonic() + within_s)
    try:
        signed: Mapping[str, Any] = manifest.read(rundir)
    except CampaignError:
        signed = {}
    wall = max(report.wall_s, float(report.profile.get("timeline", {}).get("stopped", 0.0)))
    servers = [s for s in notes.get("servers", ()) if isinstance(s, dict)]
    workers = [
        Track(f"worker {name}", [(start, stop, "working") for start, stop in spans])
        for name, spans in notes.get("workers", {}).items()
    ]
    reduces = [Track(str(name), [(start, stop, "reducing")]) for name, start, stop in notes.get("reduces", ())]
    began = float(report.profile.get("began", 0.0))
    recipe = str(notes.get("recipe") or signed.get("recipe", {}).get("yaml", ""))
    return Content(
        figures=put_together(found, set(notes.get("data", ()))),
        others=list(_others(report)),
        undrawn=undrawn,
        artefacts=list(_artefacts(report, rundir)),
        timeline=Timeline(wall, [_track(s) for s in servers], workers, reduces, report.profile.get("timeline", {})),
        servers=[_hours(s) for s in servers],
        slowest=[x for x in notes.get("slowest", ()) if isinstance(x, dict)],
        failures=list(_failures(report, rundir)),
        recipe=recipe[:MOST_RECIPE],
        manifest=signed,
        date=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(began)) if began else "",
    )


def here(report: Report, rundir: RunDir) -> Report:
    """The report with its paths in this directory: a run directory may have been moved or copied."""
    old = Path(report.run_dir)

    def moved(path: str) -> str:
        return str(rundir.root / Path(path).relative_to(old)) if Path(path).is_relative_to(old) else path

    outputs = {n: {**o, "path": moved(o["path"])} for n, o in report.outputs.items()}
    artefacts = {name: moved(path) for name, path in report.artefacts.items()}
    return replace(report, outputs=outputs, artefacts=artefacts)


def _track(server: Mapping[str, Any]) -> Any:
    from campaign.report.gantt import Track

    ready, ended = server["ready"], float(server["ended"])
    spans = [(float(server["started"]), ended if ready is None else float(ready), "starting")]
    if ready is not None:
        spans.append((float(ready), ended, "serving"))
    return Track(str(server["name"]), spans, f"{server['name']}: computed {server['busy']:.1f} s")


def _hours(server: Mapping[str, Any]) -> tuple[str, float, float]:
    ready = 0.0 if server["ready"] is None else max(0.0, float(server["ended"]) - float(server["ready"]))
    return str(server["name"]), ready, float(server["busy"])


def _spectra(report: Report, until: float) -> tuple[dict[str, dict[str, list[tuple[str, Spectrum]]]], dict[str, str]]:
    """Of all outputs of histograms: what is drawn, and why the others are not. One output is in memory at a time."""
    from campaign.report.spectra import spectra

    found: dict[str, dict[str, list[tuple[str, Spectrum]]]] = {}
    undrawn: dict[str, str] = {}
    for name, output in report.outputs.items():
        if output["kind"] != HISTOGRAMS:
            continue
        if time.monotonic() > until:
            undrawn[name] = "the time at the end of a run was over; 'campaign report --html' draws it"
            continue
        try:
            found[name] = {title: list(spectra(h)) for title, h in histograms_of(output)}
        except (OSError, ValueError, KeyError, TypeError, CampaignError, zipfile.BadZipFile) as error:
            undrawn[name] = f"{type(error).__name__}: {error}"
    return found, undrawn


def histograms_of(output: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The histograms of an output of a report, by name, as ``hist.Hist``."""
    from campaign.outputs.histograms import read_histograms

    for name, exact in read_histograms(Path(output["path"])).items():
        yield name, exact.to_hist()


def _others(report: Report) -> Iterator[tuple[str, str]]:
    """Outputs that are no histograms, in words."""
    names = [name for name, output in report.outputs.items() if output["kind"] != HISTOGRAMS]
    for name in names[:MOST_OTHERS]:
        output = report.outputs[name]
        try:
            yield name, said(output["kind"], Path(output["path"]))[:MOST_OTHER]
        except (OSError, ValueError) as error:
            yield name, f"cannot be read: {error}"
    if names[MOST_OTHERS:]:
        yield f"{len(names) - MOST_OTHERS} more outputs", "They are in the table of outputs."


def said(kind: str, path: Path) -> str:
    """The content of an output that is no histograms: counts, the types of columns, a frozen value."""
    if kind == COUNTS:
        counts = json.loads(path.read_text())
        return "\n".join(f"{name}: {value}" for name, value in counts.items())
    if kind == COLUMNS:
        import pyarrow.parquet as pq

        files = sorted(path.glob("*.parquet"))
        columns = str(pq.read_schema(files[0]).remove_metadata()) if files else ""
        return f"{len(files):,} Parquet files in {path}\n\n{columns}"
    with path.open(errors="replace") as stream:
        return stream.read(MOST_OTHER)


def _artefacts(report: Report, rundir: RunDir) -> Iterator[Artefact]:
    from campaign.report.html import Artefact

    pictures, texts = MOST_PICTURES, MOST_TEXTS
    shown: set[str] = set()
    for name, where in report.artefacts.items():
        path, suffix = Path(where), Path(name).suffix.lower()
        link = quote(str(path.relative_to(rundir.root))) if path.is_relative_to(rundir.root) else quote(str(path))
        made = Artefact(name, link)
        with suppress(OSError):
            size = path.stat().st_size
            if suffix in PICTURES and size <= min(MOST_PICTURE, pictures) and str(path.with_suffix("")) not in shown:
                shown.add(str(path.with_suffix("")))
                pictures -= size
                content = base64.b64encode(path.read_bytes()).decode()
                made = Artefact(name, link, picture=f"data:{PICTURES[suffix]};base64,{content}")
            elif suffix in TEXTS and size <= min(MOST_TEXT, texts):
                texts -= size
                made = Artefact(name, link, text=path.read_text(errors="replace"))
        yield made


def _failures(report: Report, rundir: RunDir) -> Iterator[Failure]:
    """Lost files with what their stages have printed, and servers that have failed, with the end of their logs."""
    from campaign.report.html import Failure

    for lost in report.lost[:TAILS]:
        tail = _tail(log_of(rundir.stage_logs, lost["file"], lost["dataset"]))
        if tail:
            yield Failure(lost["file"], "the end of what its stages printed", tail)
    failed = [s for s in report.servers if s.get("reason") and not s.get("stop_requested")]
    for server in failed[:TAILS]:
        yield Failure(str(server["name"]), str(server["reason"]), _tail(Path(str(server.get("log", "")))))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            return stream.read(TAIL).decode(errors="replace")
    except OSError:
        return ""
