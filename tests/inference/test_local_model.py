"""The local twin: the same model in the task's process, held to the known answer before anything is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from campaign import ServerPool, ServerSpec
from campaign.errors import InferenceError, SpecError
from campaign.inference.codec import Codec, batch_of
from campaign.inference.kserve import check_inputs
from campaign.inference.local_model import NOTE, LocalModels
from campaign.inference.request import Request
from campaign.pool.local_models import agree, twin_of
from campaign.pool.server_kind import make_kind
from tests.conftest import campaign_dict, command, hashes, report_of, start, wait_until
from tests.integration.test_left_behind import reach_the_middle, records

ROOT = Path(__file__).resolve().parents[2]
OWN = """
import pathlib
import time

class Same:
    def __init__(self, file):
        self.file = file

    def __call__(self, inputs):
        return {"Y": inputs["X"]}

class Doubled(Same):
    def __call__(self, inputs):
        return {"Y": 2 * inputs["X"]}

class Endless(Same):
    def __init__(self, file):
        pathlib.Path("asked").touch()
        time.sleep(3600)

class Odd(Same):
    def __call__(self, inputs):
        return {"Y": inputs["X"] if len(inputs["X"]) == 4 else inputs["X"][:-1]}
"""


def twin(tmp_path: Path, repository: str, model: str, **given: Any) -> Any:
    """The twin of a model, as a campaign file in ``tmp_path`` would name it."""
    (tmp_path / "own.py").write_text(OWN)
    spec = ServerSpec(model_repository=str(ROOT / repository), models={model: given})
    return twin_of(make_kind(spec, tmp_path), tmp_path, model, spec.models[model])


def test_the_onnx_twin_of_the_tagger_gives_its_known_answer(tmp_path):
    """`local_twin: true` needs nothing more where the model is a model.onnx; off is the default."""
    assert agree([twin(tmp_path, "model_repository", "qg_tagger", local_twin=True)]) is None
    assert twin(tmp_path, "model_repository", "qg_tagger") is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"use": "own.py:Doubled"}, "wrong answer"),
        ({"use": "own.py:None_"}, "cannot be asked"),
        ({"use": "onnx"}, "there is no"),
        ({"use": "onnx", "file": "own.py"}, "cannot be asked"),
    ],
)
def test_a_twin_that_does_not_agree_is_refused(tmp_path, given, says):
    """Another answer, nothing there, no such file, no model in it: the key and what to do, before a server starts."""
    try:
        told = agree([twin(tmp_path, "tests/models", "slow", local_twin=given)])
    except SpecError as error:
        told = error
    assert isinstance(told, SpecError)
    assert says in str(told)
    assert told.key == ("servers", "models", "slow", "local_twin")


def test_a_tolerance_of_its_own_counts(tmp_path):
    """A twin twice as large agrees where the campaign says that a factor of two is near enough."""
    assert agree([twin(tmp_path, "tests/models", "slow", local_twin={"use": "own.py:Doubled", "rtol": 1.1})]) is None


def test_its_answer_is_held_to_the_models_shapes(tmp_path):
    """Rows without the padding, in order; an answer of another shape is an error and no answer."""
    x = np.arange(3, dtype=np.float32).reshape(3, 1)
    for use, good in (("own.py:Same", True), ("own.py:Odd", False)):
        made = twin(tmp_path, "tests/models", "slow", batch=8, local_twin={"use": use})
        info = made.info()
        request = Request(Codec(info), batch_of(info, [check_inputs(info, {"X": x})]))
        if good:
            assert np.array_equal(LocalModels([made]).answer(request)["Y"], x)
        else:
            with pytest.raises(InferenceError, match=r"gave Y as float32 \(7, 1\)"):
                LocalModels([made]).answer(request)


@pytest.mark.slow
def test_what_it_knows_of_the_model_is_what_the_server_says(tmp_path):
    """Names, datatypes, shapes and batch, so that a process that never met a server cuts the same requests."""
    for repository, model in (("model_repository", "qg_tagger"), ("tests/models", "odd"), ("tests/models", "ragged")):
        known = twin(tmp_path, repository, model, local_twin="own.py:Same").info()
        with ServerPool(str(ROOT / repository), models=[model]) as pool:
            assert pool.servers().model(model) == known


SCRIPT = """
import sys
from pathlib import Path
import psutil
from campaign import ServerPool

class Stop(Exception):
    pass

def look():
    if Path("asked").exists():
        raise Stop

try:
    use = {"slow": {"local_twin": f"own.py:{sys.argv[2]}"}}
    with ServerPool(sys.argv[1], models=use, base=Path.cwd(), look=look):
        print("entered", end=" ")
except Exception as error:
    print(type(error).__name__, end=" ")
print([p.cmdline() for p in psutil.Process().children()])
"""


@pytest.mark.parametrize(("use", "says"), [("Doubled", "SpecError"), ("Same", "entered"), ("Endless", "Stop")])
def test_a_script_of_ones_own_keeps_no_process_of_the_check(tmp_path, use, says):
    """Whether twins agree or not, and where `look` ends the check, no fork server nor any folder of it is left."""
    (tmp_path / "own.py").write_text(OWN)
    with tempfile.TemporaryDirectory() as temporary:  # not below tmp_path: a socket's path may not be long
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(ROOT / "tests" / "models"), use],
            cwd=tmp_path, env={**os.environ, "TMPDIR": temporary},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{says} []\n", "")
        assert not list(Path(temporary).iterdir())


@pytest.fixture
def slow(small: Path) -> Path:
    """The small campaign with a model that takes its time and has a twin."""
    made = campaign_dict("slow")
    made["servers"]["window"] = 2
    (small / "in-flight").mkdir()
    (small / "own.py").write_text(OWN)
    made["servers"]["models"]["slow"] |= {
        "parameters": {"delay_s": 0.1, "mark": str(small / "in-flight")}, "local_twin": "own.py:Same",
    }  # fmt: skip
    (small / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return small


@pytest.mark.faults
def test_the_twin_answers_when_no_server_is_left(slow):
    """The campaign completes with the same outputs, counts the rows, and says that it cannot be reproduced."""
    driver = start("run", "c.yaml", "--run-dir", "r", "--set", "servers.restarts=0", cwd=slow)
    reach_the_middle(driver, slow / "r")
    os.kill(records(slow / "r")[0].server_pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    report = report_of(slow / "r")
    assert report["status"] == "complete"
    assert report["rows"]["local_twin"] > 0
    assert report["rows"]["first"] > 0
    assert report["reproducible"] is False
    assert command("run", "c.yaml", "--run-dir", "whole", cwd=slow).returncode == 0
    whole = report_of(slow / "whole")
    assert (whole["rows"]["local_twin"], whole["reproducible"]) == (0, True)
    assert hashes(slow / "r") == hashes(slow / "whole")  # an identity is one to the last bit, wherever it runs
    again = command("run", "c.yaml", "--run-dir", "r", cwd=slow)
    assert again.returncode == 0
    assert report_of(slow / "r")["reproducible"] is False, "what a twin has left is still there"


def test_a_signal_ends_the_check_of_twins(slow):
    """One Ctrl-C while a twin loads: exit 130, long before the check's deadline, and no server was started."""
    driver = start(
        "run", "c.yaml", "--run-dir", "r", "--set", "servers.models.slow.local_twin=own.py:Endless", cwd=slow
    )
    assert wait_until((slow / "asked").exists, 60)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert not records(slow / "r")


ASKS = """
import os, signal, time, json, pathlib
import numpy as np

def mean(merged, ctx):
    total = sum(float(m["p"].sum(flow=True).value) for m in merged.values())
    here = pathlib.Path(__file__).parent
    if not (here / "spared").exists():
        for path in (here / "r" / "servers").glob("server-*.json"):
            os.kill(json.loads(path.read_text())["server_pid"], signal.SIGKILL)
    x = np.array([[total]], np.float32)
    return {"sum": {"all": float(ctx.servers.infer("slow", {"X": x})["Y"][0, 0])}}
"""


@pytest.mark.faults
def test_a_frozen_value_that_holds_a_twins_answers_says_so(slow):
    """A reduce stage that asks the servers, and finds none: irreproducible, in this run and for whoever resumes it."""
    (slow / "asks.py").write_text(ASKS)
    made = yaml.safe_load((slow / "c.yaml").read_text())
    made["stages"]["mean"]["use"] = "asks.py:mean"
    made["servers"]["models"]["slow"]["parameters"]["delay_s"] = 0.0
    made["servers"]["restarts"] = 0
    del made["stages"]["second"]
    made["variations"] = {}
    (slow / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    for _ in range(2):
        done = command("run", "c.yaml", "--run-dir", "r", cwd=slow)
        assert done.returncode == 0, done.stdout + done.stderr
        report = report_of(slow / "r")
        assert report["reproducible"] is False
        assert report["outputs"]["mean/all/nominal"]["notes"] == [NOTE]
    assert report["tasks"]["done"] == 0


def test_a_twin_that_does_not_agree_stops_the_campaign_before_it_starts(slow):
    """Exit 2, the key by name, and no server was started."""
    done = command(
        "run", "c.yaml", "--run-dir", "r", "--set", "servers.models.slow.local_twin=own.py:Doubled", cwd=slow
    )
    assert done.returncode == 2, done.stderr
    assert "servers.models.slow.local_twin" in done.stderr
    assert "wrong answer" in done.stderr
    assert not records(slow / "r")
