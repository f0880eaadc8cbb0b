"""``campaign canary``: a model's known answer from rows of the user's own data, and what it is held to before."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import uproot
import yaml
from onnx import TensorProto as T

from campaign import cli
from tests.servers.test_onnx import node, save
from tests.servers.test_versions import model

X = np.arange(40, dtype=np.float32)
STAGES = {
    "one": {"use": "infer", "model": "first", "inputs": {"X": ["x"]}, "outputs": {"a": "Y"}},
    "two": {"use": "infer", "from": "one", "model": "second", "inputs": {"X": "a"}, "outputs": {"b": "Y"}},
    "fil": {"use": "fill", "from": "two", "histograms": {"h": {"b": {"edges": [0, 50, 100]}}}},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two models in a row: one of two versions, in a repository; an ONNX file that takes one number per row."""
    model(tmp_path / "models", "first", folders=["1", "2"])
    save(tmp_path / "second.onnx", [node("Add", ["X", "X"], ["Y"])], [("X", T.FLOAT, ["N"])], [("Y", T.FLOAT, ["N"])])
    with uproot.recreate(tmp_path / "in.root") as file:
        file.mktree("t", {"x": "float32"}).extend({"x": X})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place, **second):
    models = {"first": {}, "second": {"onnx": "second.onnx", **second}}
    made = {
        "campaign": "case", "datasets": {"d": {"files": "in.root", "tree": "t"}}, "stages": STAGES,
        "servers": {"model_repository": "models", "models": models},
    }  # fmt: skip
    (place / "c.yaml").write_text(yaml.safe_dump(made))


@pytest.mark.slow
def test_canaries_of_models_in_a_row_and_of_versions(place, capfd):
    """Real answers feed the next model; a version has its own file, and that of another version stays."""
    write(place, canary="mine.npz", local_twin=True)
    assert cli.main(["check", "c.yaml"]) == 2
    assert "make it: campaign canary FILE second" in capfd.readouterr().err
    assert cli.main(["canary", "c.yaml", "second"]) == 0
    with np.load(place / "mine.npz") as made:
        assert made["input.X"].ravel().tolist() == (X + 2)[:32].tolist()
        assert made["output.Y"].ravel().tolist() == (2 * X + 4)[:32].tolist()
    old = place / "models" / "first" / "canary.npz"
    np.savez(old, **{"input.X": X[:1, None], "output.Y": X[:1, None] + 1})  # of version 1
    assert cli.main(["canary", "c.yaml", "first"]) == 0
    with np.load(place / "models" / "first" / "2" / "canary.npz") as made:  # no request of this model has more rows
        assert made["output.Y"].tolist() == (X + 2)[:8, None].tolist()
    assert cli.main(["canary", "c.yaml", "first"]) == 2
    assert "is there already" in capfd.readouterr().err
    with np.load(old) as made:
        assert made["output.Y"].item() == 1


@pytest.mark.slow
def test_a_twin_of_a_file_that_takes_one_number_per_row(place):
    """Servers and twin are held to what was made, though the graph has no axis for the one column."""
    write(place, local_twin=True)
    assert cli.main(["canary", "c.yaml", "second"]) == 0
    assert (place / "second.canary.npz").is_file()
    assert cli.main(["run", "c.yaml", "--quiet"]) == 0
    report = json.loads((place / "runs" / "case" / "report.json").read_text())
    assert [w for w in report["warnings"] if "no canary" in w] == [
        "model first has no canary.npz (version 2): only the shapes of its answer were checked"
    ]
    path = place / "second.canary.npz"
    with np.load(path) as made:
        np.savez(path, **{"input.X": made["input.X"], "output.Y": made["output.Y"] + 1})
    assert cli.main(["run", "c.yaml", "--quiet", "--run-dir", "other"]) == 2


@pytest.mark.slow
def test_what_is_no_known_answer_is_not_written(place, capfd):
    """A model that answers in two ways has none; an old one stays where the making of a new one fails."""
    write(place)
    path = place / "models" / "first" / "2" / "model.py"
    path.write_text(path.read_text().replace("np.float32(2.0)", "np.float32(np.random.rand())"))
    canary = path.with_name("canary.npz")
    canary.write_bytes(b"old")
    assert cli.main(["canary", "c.yaml", "first", "--force"]) == 1
    assert "answers the same rows in two ways" in capfd.readouterr().err
    assert canary.read_bytes() == b"old"
    assert sorted(p.name for p in canary.parent.iterdir()) == ["canary.npz", "model.py"]
    shutil.rmtree(place / "models" / "first" / "1")
    path.write_text(path.read_text().replace("x + np", "x - x.mean() + np").replace("np.random.rand()", "1"))
    assert cli.main(["canary", "c.yaml", "first", "--force"]) == 0
    assert "note: the answer to a row depends on the other rows" in capfd.readouterr().out
