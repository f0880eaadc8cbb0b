"""Made-up runs of any size, for tests of the page: real histogram files in a real run directory, no server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import hist
import numpy as np

from campaign.driver.report_page import write
from campaign.histogram.histogram import Histogram
from campaign.outputs.histograms import write_histograms
from campaign.report.report import COMPLETE, Report
from campaign.storage.rundir import RunDir

VARIATIONS = ("nominal", "up", "down")


def histogram(rng: np.random.Generator, bins: int, scale: float = 1.0) -> Histogram:
    """A falling spectrum."""
    h = Histogram(hist.axis.Regular(bins, 0, 100, name="pt", label="pT [GeV]"))
    h.fill(rng.exponential(20, 2000), weight=scale * rng.uniform(0.5, 1.5, 2000))
    return h


def made_up(
    root: Path, *, files: int = 10, stages: int = 1, histograms: int = 2, bins: int = 50, lost: int = 0
) -> tuple[Report, RunDir]:  # fmt: skip
    """A complete run of two datasets and three variations, with servers, workers and slow files."""
    rng, rundir = np.random.default_rng(1), RunDir(root)
    outputs: dict[str, Any] = {}
    for stage in (f"fill{i}" for i in range(stages)):
        for dataset, variation in [("mc", v) for v in VARIATIONS] + [("data", "nominal")]:
            path = rundir.output(stage, dataset, variation, "histograms")
            found = {f"h{i}": histogram(rng, bins, 1 + 0.1 * len(variation)) for i in range(histograms)}
            sha256 = write_histograms(found, path)
            outputs[f"{stage}/{dataset}/{variation}"] = {"path": str(path), "kind": "histograms", "sha256": sha256}
    counts = rundir.output("count", "mc", "nominal", "counts")
    counts.parent.mkdir(parents=True)
    counts.write_text(json.dumps({"passed": 7}))
    outputs["count/mc/nominal"] = {"path": str(counts), "kind": "counts", "sha256": "0" * 64}
    workers = {f"node{i} {i}": [[j * 0.1, j * 0.1 + 0.08] for j in range(files // 8 + 1)] for i in range(8)}
    slow = {"dataset": "mc", "stages": ["fill"], "worker": "node1 1"}
    notes = {
        "workers": workers, "data": ["data"], "recipe": "campaign: made-up\n",
        "slowest": [{**slow, "file": f"/data/{i}.root", "seconds": 9.0 - i / 9} for i in range(20)],
        "servers": [{"name": "server-0", "started": 1.0, "ready": 3.0, "ended": 100.0, "busy": 40.0}],
        "reduces": [["factors/nominal", 50.0, 60.0]],
    }  # fmt: skip
    rundir.page_notes.parent.mkdir(parents=True)
    rundir.page_notes.write_text(json.dumps(notes))
    profile = {
        "began": 1.7e9, "timeline": {"checked": 1.0, "ready": 3.0, "tasks": 101.0, "stopped": 102.0}, "workers": 8,
        "stages": {"read": {"run": 300.0}, "fill": {"run": 100.0, "wait": 40.0}}, "tasks_s": 500.0,
    }  # fmt: skip
    error = "cannot be read: " + "x" * 80
    return Report(
        "made-up", str(root), status=COMPLETE, outputs=outputs, profile=profile, wall_s=103.0,
        datasets={"mc": {"files": files, "events": files * 1000}, "data": {"files": files, "events": files * 10}},
        tasks={"total": files, "done": files, "reused": 0, "failed": 0}, rows={"first": files * 1000, "parked": 0},
        servers=[{"name": "server-0", "host": "node0", "state": "ended", "reason": "asked to stop",
                  "stop_requested": True, "ready_s": 2.0, "statistics": {"tagger": [files * 1000, files]}}],
        lost=[{"file": f"/data/lost{i}.root", "dataset": "mc", "error": error, "entries": None, "sum_of_weights": None}
              for i in range(lost)],
        versions={"python": "3.11"},
    ), rundir  # fmt: skip


def page_of(report: Report, rundir: RunDir) -> tuple[str, ET.Element]:
    """The text of the page, and its elements: it is well formed, or this fails."""
    text = write(report, rundir).read_text()
    return text, ET.fromstring(text.partition("\n")[2])


def shown(root: ET.Element) -> set[str]:
    """The outputs that the page shows."""
    return {name for element in root.iter() for name in element.get("data-outputs", "").split()}


def outside(text: str, root: ET.Element) -> list[str]:
    """Everything that a browser would fetch or follow out of the run directory."""
    found = [e.get(name, "") for e in root.iter() for name in ("src", "href", "srcset", "action", "data", "poster")]
    found += re.findall(r"url\(([^)]*)\)", text) + re.findall(r"@import[^;]*", text)
    return [x for x in found if x and not x.startswith(("data:image/", "#", "artefacts/"))]
