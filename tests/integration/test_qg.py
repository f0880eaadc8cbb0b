"""The quark/gluon calibration, whole: closure, truth and injection on the files the example itself generates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaign import load
from campaign.driver.check import check
from campaign.spec import yaml_file
from tests.conftest import PROJECT, command, hashes, report_of
from tests.physics import laws
from tests.physics.test_corrections import assert_evaluates

pytestmark = pytest.mark.slow  # the whole example, at its default size: a minute

EXAMPLE = PROJECT / "examples" / "qg_calibration"


def make_data(folder: Path, *args: str) -> Path:
    """Generate the example's files."""
    subprocess.run([sys.executable, str(EXAMPLE / "make_data.py"), "--out", str(folder), *args], check=True)
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's data, and a complete run of its campaign under ``r``."""
    folder = tmp_path_factory.mktemp("qg")
    make_data(folder / "data")
    done = command("run", str(EXAMPLE / "campaign.yaml"), "--run-dir", "r", *files(folder / "data"), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def files(data: Path) -> list[str]:
    """Overrides that point the example at other files."""
    return [
        "--set", f"datasets.mc.files={data}/mc/*/*.root",
        "--set", f"datasets.mc.metadata={data}/samples.yaml",
        "--set", f"datasets.data.files={data}/data/*/*.root",
    ]  # fmt: skip


def scale_factors(run_dir: Path) -> dict[str, Any]:
    """The nominal table."""
    report = report_of(run_dir)
    return dict(json.loads(Path(report["artefacts"]["scale_factors/nominal/scale_factors.json"]).read_text()))


def test_a_known_change_of_the_gluons_is_found(calibrated: Path) -> None:
    """Injection: gluon factors move by what a million independent gluons say, quark factors stay at 1."""
    laws.assert_injection(scale_factors(calibrated / "r"))


def test_what_is_extracted_from_simulation_is_true(calibrated: Path) -> None:
    """Truth: the extracted quark efficiency is the true forward quarks' within 3 % in every pT bin."""
    laws.assert_truth(scale_factors(calibrated / "r"))


def test_the_report_holds_every_output_and_figure(calibrated: Path) -> None:
    """One output per variation where it varies, about eight figures, a table, the empty file counted like any other."""
    report = report_of(calibrated / "r")
    assert report["status"] == "complete"
    assert report["datasets"]["mc"]["files"] >= 40
    for variation in ("nominal", "jes_up", "trk_eff", "pdf_7"):
        for name in ("predict/mc", "first/mc", "second/mc", "second/data", "factors/all", "scale_factors/all"):
            assert f"{name}/{variation}" in report["outputs"]
    assert "predict/data/jes_up" not in report["outputs"]
    pngs = [n for n in report["artefacts"] if n.endswith(".png")]
    assert 6 <= len(pngs) <= 10
    for name in pngs:
        assert Path(report["artefacts"][name]).read_bytes().startswith(b"\x89PNG")
        assert report["artefacts"].get(name.replace(".png", ".pdf"))
    assert "scale_factors/nominal/scale_factors.txt" in report["artefacts"]
    assert "500-600 GeV" in Path(report["artefacts"]["scale_factors/nominal/scale_factors.txt"]).read_text()


def test_correctionlib_evaluates_the_scale_factors(calibrated: Path) -> None:
    """The correctionlib file of the run gives the numbers of its table."""
    assert_evaluates(calibrated / "r" / "artefacts" / "scale_factors" / "nominal", scale_factors(calibrated / "r"))


def test_a_weight_only_variation_sends_no_request(calibrated: Path) -> None:
    """Rows inferred are those of nominal, jes_up and trk_eff in MC and nominal in data, none for pdf_7."""
    import pyarrow.parquet as pq

    report = report_of(calibrated / "r")

    def rows(name: str) -> int:
        return sum(pq.ParquetFile(p).metadata.num_rows for p in Path(report["outputs"][name]["path"]).glob("*.parquet"))

    assert rows("predict/mc/pdf_7") == rows("predict/mc/nominal") > 0
    inferred = sum(rows(f"predict/{n}") for n in ("mc/nominal", "mc/jes_up", "mc/trk_eff", "data/nominal"))
    assert report["rows"]["first"] == inferred == sum(report["rows"].values())
    told = [s["statistics"]["qg_tagger"] for s in report["servers"]]
    assert sum(n for n, _ in told) == 8192 * sum(e for _, e in told)


def test_without_a_change_every_scale_factor_is_one(calibrated: Path) -> None:
    """Closure, on data without the change; only what depends on the data is done again."""
    plain = make_data(calibrated / "plain", "--no-change")
    overrides = [*files(calibrated / "data")[:4], "--set", f"datasets.data.files={plain}/data/*/*.root"]
    overrides += ["--set", "variations={}"]
    before = hashes(calibrated / "r")
    done = command("run", str(EXAMPLE / "campaign.yaml"), "--run-dir", "r", *overrides, cwd=calibrated)
    assert done.returncode == 0, done.stdout + done.stderr
    laws.assert_closure(scale_factors(calibrated / "r"))
    report = report_of(calibrated / "r")
    assert report["outputs"]["first/mc/nominal"]["sha256"] == hashes(calibrated / "r")["first/mc/nominal"]
    assert hashes(calibrated / "r")["first/mc/nominal"] == before["first/mc/nominal"]
    assert report_of(calibrated / "r")["tasks"]["reused"] > 40, "simulation is not inferred again"


def test_the_script_is_the_same_campaign(tmp_path: Path) -> None:
    """`campaign_script.py` and `campaign.yaml` have the same plan, step by step."""
    make_data(EXAMPLE / "data", "--size", "0.01") if not (EXAMPLE / "data").exists() else None
    code = (
        "import runpy, sys\n"
        f"made = runpy.run_path({str(EXAMPLE / 'campaign_script.py')!r})['campaign']\n"
        "from campaign.driver.check import check\n"
        "print(check(made).plan.digest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == check(load(EXAMPLE / "campaign.yaml")).plan.digest


def test_the_file_goes_through_yaml_unchanged() -> None:
    """Dumped and loaded again, the example is the same campaign."""
    campaign = load(EXAMPLE / "campaign.yaml")
    import yaml

    assert yaml.safe_load(yaml_file.dump(campaign))["stages"].keys() == campaign.stages.keys()
    assert type(campaign).model_validate(yaml.safe_load(yaml_file.dump(campaign))) == campaign
