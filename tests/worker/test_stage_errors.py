"""What is said of an exception in a stage: the name that was meant, the line of an assert, no more text than helps."""

from __future__ import annotations

import pickle
import sys

import awkward as ak
import pytest

from campaign.errors import CampaignError, PartialError, ServerError, StageError
from campaign.util.user_code import load_file
from campaign.worker.stage_errors import LINE, TEXT, MissingBranch, explain, own_errors, unexpected

BATCH = ak.Array({"MET_pt": [1.0], "Muon_pt": [[1.0]], "Muon_eta": [[1.0]], "run": [1]})
TO_PARTIAL = own_errors(unexpected(PartialError, "fill/d/nominal"))


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


def _unbound():
    if not len(BATCH):
        found = 1
    return found


@pytest.mark.parametrize(
    ("call", "always"),
    [
        (lambda: nowhere, True),  # type: ignore[name-defined]  # noqa: F821
        (lambda: __import__("no_such_module_of_anyone"), True),
        (lambda: (lambda x: x)(), True),  # type: ignore[misc]
        (_unbound, False),
        (lambda: 1 + "x", False),  # type: ignore[operator]
        (lambda: sys.exit(3), False),
    ],
)
def test_code_that_fails_on_every_input_is_known(call, always):
    """An unknown name, a missing module and a wrong call do not depend on the input. A pickled error says so too."""
    error = pickle.loads(pickle.dumps(told(call)))
    assert isinstance(error, StageError)
    assert error.independent_of_input is always


@pytest.mark.parametrize("raised", [ValueError("odd"), SystemExit(3), StopIteration("odd"), OSError(28, "full")])
def test_every_exception_becomes_an_error_of_ours(raised):
    """The error has the exception as its cause, its text in the message and its traceback in the log."""
    with pytest.raises(PartialError, match=f"fill/d/nominal: {type(raised).__name__}: ") as caught, TO_PARTIAL:
        raise raised
    assert caught.value.__cause__ is raised
    assert "raise raised" in caught.value.log


@pytest.mark.parametrize("raised", [ServerError("gone", where="server-0"), KeyboardInterrupt()])
def test_errors_of_ours_and_ctrl_c_pass_unchanged(raised):
    """An error of ours already names its place. Ctrl-C is not an error of the block."""
    with pytest.raises(type(raised)) as caught, TO_PARTIAL:
        raise raised
    assert caught.value is raised
