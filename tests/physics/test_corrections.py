"""The scale factors as a correctionlib file: correctionlib itself evaluates it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import correctionlib
import pytest

from tests.physics import laws  # puts the example on the path

import corrections  # isort: skip

EDGES = [500, 600, 800, 1000]


def result(refused: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `qg.extract` returns, with numbers that tell bin, working point and flavour apart."""
    points = {}
    for b, name in enumerate(["500-600 GeV", "600-800 GeV", "800-1000 GeV"]):
        points[name] = [
            {"target": wp, "quark": {"scale_factor": 1 + b / 7 + wp / 9, "sigma": 0.01 / (b + 3)},
             "gluon": {"scale_factor": 0.9 - b / 11 - wp / 13, "sigma": 0.02 / (b + 3)}}
            for wp in laws.WORKING_POINTS
        ]  # fmt: skip
    kept = {name: value for name, value in points.items() if name not in refused}
    return {"nominal": "score_quark", "pt_edges": EDGES, "options": {"score_quark": {"points": kept}}}


def write(folder: Path, made: dict[str, Any]) -> Path:
    """The file as the example writes it."""
    (folder / "scale_factors.correctionlib.json").write_text(json.dumps(corrections.correction_set(made, "nominal")))
    return folder


def assert_evaluates(folder: Path, made: dict[str, Any]) -> None:
    """Every scale factor, and its statistical variations, are the table's numbers."""
    read = correctionlib.CorrectionSet.from_file(str(folder / "scale_factors.correctionlib.json"))["qg_scale_factor"]
    points = made["options"][made["nominal"]]["points"]
    for name, bin_points in points.items():
        low, high = map(float, name.removesuffix(" GeV").split("-"))
        for point in bin_points:
            for flavour in ("quark", "gluon"):
                value, sigma = point[flavour]["scale_factor"], point[flavour]["sigma"]
                wanted = {"nominal": value, "stat_up": value + sigma, "stat_down": value - sigma}
                for pt in (low, (low + high) / 2):
                    found = {s: read.evaluate(flavour, str(point["target"]), s, pt) for s in wanted}
                    assert found == pytest.approx(wanted, rel=1e-14, abs=0)  # its JSON reader rounds twice


def test_correctionlib_gives_the_numbers_of_the_table(tmp_path: Path) -> None:
    """Each flavour, working point and pT bin, with its statistical uncertainty up and down."""
    assert_evaluates(write(tmp_path, result()), result())


def test_outside_the_calibration_there_is_no_scale_factor(tmp_path: Path) -> None:
    """A pT outside the bins, and a pT bin that the method refused, are errors and never 1."""
    made = result(refused=("600-800 GeV",))
    assert_evaluates(write(tmp_path, made), made)
    read = correctionlib.CorrectionSet.from_file(str(tmp_path / "scale_factors.correctionlib.json"))["qg_scale_factor"]
    for pt in (499.0, 700.0, 1000.0):
        with pytest.raises((RuntimeError, IndexError)):
            read.evaluate("quark", "0.5", "nominal", pt)
