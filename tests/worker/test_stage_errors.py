"""What is said of an exception in a stage: the name that was meant, the line of an assert, no more text than helps."""

from __future__ import annotations

import sys

import awkward as ak
import pytest

from campaign.errors import CampaignError
from campaign.util.user_code import load_file
from campaign.worker.stage_errors import LINE, TEXT, MissingBranch, explain

BATCH = ak.Array({"MET_pt": [1.0], "Muon_pt": [[1.0]], "Muon_eta": [[1.0]], "run": [1]})


def told(call) -> CampaignError:
    """The error of a stage that does this."""
    try:
        call()
    except (Exception, SystemExit) as error:  # noqa: BLE001  as the boundary does
        return explain(error, "select", "stages.py:3", "/data/a.root")
    raise AssertionError("it does not raise")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BATCH.MET_ptt, "asks for 'MET_ptt', which is not there; did you mean 'MET_pt'?"),
        (lambda: BATCH["MET_ptt"], "asks for 'MET_ptt', which is not there; did you mean 'MET_pt'?"),
        (lambda: BATCH[["run", "MET_ptt"]], "asks for 'MET_ptt', which is not there; did you mean 'MET_pt'?"),
        (
            lambda: BATCH.Muon.pt,
            "asks for 'Muon', which is not there; did you mean 'Muon_pt'? 2 columns begin with 'Muon_'",
        ),
        (lambda: BATCH.zzz, "asks for 'zzz', which is not there"),
    ],
)
def test_a_missing_column_is_told_with_the_near_one(call, message):
    """As attribute, item or list; NanoAOD's collections are columns with a prefix."""
    error = told(call)
    assert isinstance(error, MissingBranch)
    assert error.message == message


def test_an_assert_names_its_line(tmp_path):
    """Python gives it no text."""
    path = tmp_path / "stages.py"
    path.write_text("def fails(batch):\n    assert len(batch) > 1\n")
    fails = load_file(path).fails
    assert told(lambda: fails(BATCH)).message == "raised AssertionError: at 'assert len(batch) > 1'"


def test_the_text_of_an_exception_is_bounded_and_whole():
    """The first line in the message, all lines in the log; of very many characters the first."""

    def several():
        raise ValueError("first\nsecond\nthird")

    error = told(several)
    assert error.message == "raised ValueError: first"
    assert error.log.endswith("ValueError: first\nsecond\nthird")

    def long():
        raise ValueError("x" * 100_000)

    error = told(long)
    assert error.message == f"raised ValueError: {'x' * LINE} [cut: 99,500 characters more]"
    assert error.log.endswith(f"{'x' * TEXT} [cut: 96,000 characters more]")


def test_sys_exit_is_an_error_of_the_stage():
    """It ends no worker, and no check."""
    error = told(lambda: sys.exit(3))
    assert error.message == "called sys.exit(3)"
    assert error.remedy == "a stage returns its value or raises an exception; it does not end the process"
    assert error.permanent
