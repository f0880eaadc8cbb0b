"""What the calibration must give, said of its scale factors; the expected values never come from the pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from scipy.stats import chi2

PROJECT = Path(__file__).resolve().parents[2]
sys.path.append(str(PROJECT / "examples" / "qg_calibration"))
import jets  # noqa: E402  the example's own generator

WORKING_POINTS = (0.5, 0.6, 0.7, 0.8)
Points = dict[str, list[dict[str, Any]]]


def nominal(scale_factors: dict[str, Any]) -> Points:
    """Points of the nominal option, by pT bin."""
    found: Points = scale_factors["options"][scale_factors["nominal"]]["points"]
    assert len(found) == 6, "a pT bin was refused"
    return found


def pulls(points: Points, flavour: str, wp: int, expected: Any = 1.0) -> np.ndarray[Any, Any]:
    """(scale factor - expected) / sigma over the six pT bins."""
    sf = np.array([p[wp][flavour]["scale_factor"] for p in points.values()])
    sigma = np.array([p[wp][flavour]["sigma"] for p in points.values()])
    return (sf - expected) / sigma


def assert_compatible(pull: np.ndarray[Any, Any], what: str) -> None:
    """Every |pull| < 4, and chi2 over the bins has p > 1e-3."""
    assert np.abs(pull).max() < 4, f"{what}: {pull}"
    assert chi2.sf((pull**2).sum(), len(pull)) > 1e-3, f"{what}: {pull}"


def assert_precise(scale_factors: dict[str, Any]) -> None:
    """Every scale factor is known to better than 3 %."""
    for bin_points in nominal(scale_factors).values():
        for point in bin_points:
            for flavour in ("quark", "gluon"):
                assert 0 < point[flavour]["sigma"] < 0.03


def assert_closure(scale_factors: dict[str, Any]) -> None:
    """Data drawn from the simulation's densities: every scale factor is 1 within its uncertainty."""
    assert_precise(scale_factors)
    for wp, target in enumerate(WORKING_POINTS):
        for flavour in ("quark", "gluon"):
            assert_compatible(pulls(nominal(scale_factors), flavour, wp), f"{flavour} at {target}")


def assert_truth(scale_factors: dict[str, Any]) -> None:
    """Extracted from simulation, the quark efficiency equals the true forward quarks' within 3 %, bin by bin."""
    for name, bin_points in nominal(scale_factors).items():
        for point in bin_points:
            quark = point["quark"]
            assert abs(quark["mc"] / quark["mc_truth"] - 1) < 0.03, f"{name} at {point['target']}: {quark}"


def assert_injection(scale_factors: dict[str, Any]) -> None:
    """A known change of the gluons alone: their factors move by it (more than 10 sigma at 0.8), quarks' stay at 1."""
    assert_precise(scale_factors)
    points = nominal(scale_factors)
    expected = expected_gluon(scale_factors)
    for wp, target in enumerate(WORKING_POINTS):
        assert_compatible(pulls(points, "gluon", wp, expected[:, wp]), f"gluon at {target}")
        assert_compatible(pulls(points, "quark", wp), f"quark at {target}")
    moved = pulls(points, "gluon", 3)
    assert abs(moved.sum()) / np.sqrt(len(moved)) > 10
    assert expected[:, 3].max() < 0.95


def expected_gluon(scale_factors: dict[str, Any], n: int = 1_000_000) -> np.ndarray[Any, Any]:
    """Gluon scale factors by (pT bin, working point) from n gluons that never saw the pipeline.

    Only the cuts are the calibration's; rejection above them is counted for gluons with and without the change.
    """
    model = PROJECT / "model_repository" / "qg_tagger" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def score(x: Any) -> Any:
        return np.concatenate(
            [session.run(None, {"X": part})[0][:, 0] for part in np.array_split(x, 1 + len(x) // 100_000)]
        )

    rng = np.random.default_rng(987_654)
    edges, cuts = scale_factors["pt_edges"], np.array(scale_factors["cut_edges"])
    found = []
    for (low, high), bin_points in zip(
        zip(edges, edges[1:], strict=False), nominal(scale_factors).values(), strict=True
    ):
        u, k = rng.random(n // 6), 1 - jets.PT_INDEX
        pt = ((low**k + u * (high**k - low**k)) ** (1 / k)).astype(np.float32)
        label = np.full(len(pt), jets.GLUON, np.int32)
        plain = score(jets.draw_features(rng, label, pt).inputs(pt))
        changed = score(jets.draw_changed_features(rng, label, pt, score).inputs(pt))
        at = cuts[[p["cut"] for p in bin_points]]  # bins are counted with the underflow
        found.append([(changed > c).mean() / (plain > c).mean() for c in at])
    return np.array(found)
