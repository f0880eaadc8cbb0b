"""Tensors between columns and the real server: numbers, BF16, text, optional inputs, widths that differ."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import awkward as ak
import ml_dtypes
import numpy as np
import pytest
import uproot
import yaml
from campaign.stages.infer import Infer

from campaign import ServerPool
from campaign.errors import CampaignError, InferenceError, OutputError
from campaign.inference.ragged import Ragged
from tests.conftest import PROJECT, command

MODEL = """
import numpy as np
import triton_python_backend_utils as pb

def take(request, name):
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()

class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor(n, a) for n, a in self.answer(r).items()]) for r in requests]

    def answer(self, r):
{body}
"""
SIDES = (("input", "X"), ("output", "Y"))
NUMBERS = ("INT8", "UINT8", "INT64", "FP16", "FP32", "BOOL")
MODELS = {  # name: (max_batch_size, inputs, outputs, what it answers)
    **{f"same_{t}": (8, [("X", t, "[ 1 ]", "")], [("Y", t, "[ 1 ]")], "{'Y': take(r, 'X')}") for t in NUMBERS},
    "label": (8, [("X", "FP32", "[ 1 ]", "")], [("L", "STRING", "[ 1 ]")],
              "{'L': np.array([[b'q' if v > 99 else b'g'] for v in take(r, 'X')[:, 0]], object)}"),
    "text": (8, [("X", "STRING", "[ 2 ]", "")], [("Y", "STRING", "[ 2 ]"), ("N", "INT32", "[ 2 ]")],
             "{'Y': take(r, 'X'), 'N': np.array([[len(v) for v in row] for row in take(r, 'X')], np.int32)}"),
    "raw_text": (0, [("X", "STRING", "[ -1 ]", "")], [("Y", "STRING", "[ -1 ]")], "{'Y': take(r, 'X')[::-1].copy()}"),
    "not_text": (8, [("X", "FP32", "[ 1 ]", "")], [("L", "STRING", "[ 1 ]")],
                 "{'L': np.array([[b'\\xff' if v == 3 else b'a'] for v in take(r, 'X')[:, 0]], object)}"),
    "wide": (8, [("X", "FP32", "[ 1 ]", "")], [("W", "FP32", "[ -1 ]")],
             "{'W': np.repeat(take(r, 'X'), int(take(r, 'X').max()) // 8 + 1, axis=1)}"),
    "two_wide": (8, [("X", "FP32", "[ 1 ]", "")], [("W", "FP32", "[ -1, -1 ]")],
                 "{'W': np.zeros((len(take(r, 'X')),) + (int(take(r, 'X').max()) // 8 + 1,) * 2, np.float32)}"),
    "opt": (8, [("A", "FP32", "[ 1 ]", ""), ("B", "FP32", "[ 1 ]", "optional: true")], [("Y", "FP32", "[ 1 ]")],
            "{'Y': take(r, 'A') + (np.float32(100) if take(r, 'B') is None else take(r, 'B'))}"),
}  # fmt: skip


def write_models(root, names=MODELS):
    for name in names:
        batch, inputs, outputs, answer = MODELS[name]
        put = [f'input {{ name: "{n}" data_type: TYPE_{t} dims: {d} {o} }}' for n, t, d, o in inputs]
        put += [f'output {{ name: "{n}" data_type: TYPE_{t} dims: {d} }}' for n, t, d in outputs]
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text("\n".join(['backend: "python"', f"max_batch_size: {batch}", *put]))
        (root / name / "1" / "model.py").write_text(MODEL.format(body=f"        return {answer}"))
    words = {"U": np.array([["é", "bc"]]), "S": np.array([[b"\xc3\xa9", b"bc"]])}
    if "text" in names:
        inputs, outputs = {"input.X": words["U"]}, {"output.Y": words["S"], "output.N": np.array([[2, 2]], np.int32)}
        np.savez(root / "text" / "canary.npz", **inputs, **outputs)
    return root


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """One server with all of them; BF16 by a backend in C that copies bytes, for numpy has no such type."""
    root = write_models(tmp_path_factory.mktemp("tensors"))
    backends = root.parent / "tensor_backends"
    shutil.copytree(PROJECT / "tests" / "backends", backends)
    built, source = backends / "identity_c" / "libtriton_identity_c.so", backends / "identity_c" / "identity.c"
    subprocess.run(["gcc", "-O2", "-fPIC", "-shared", "-o", str(built), str(source)], check=True)
    tensors = (
        "input { name: 'X' data_type: TYPE_BF16 dims: [ 1 ] } output { name: 'Y' data_type: TYPE_BF16 dims: [ 1 ] }"
    )
    (root / "bf16" / "1").mkdir(parents=True)
    (root / "bf16" / "config.pbtxt").write_text(f'backend: "identity_c" max_batch_size: 8 {tensors}')
    with ServerPool(root, models=[*MODELS, "bf16"], backend_directories=str(backends)) as made:
        made.wait_ready()
        yield made


@pytest.fixture
def infer(pool):
    """The stage, on columns, with these options; what it returns as awkward."""

    def ask(model, columns, inputs, outputs, **options):
        batch = ak.Array(columns) if isinstance(columns, dict) else columns
        return Infer(model, inputs, outputs, **options)(batch, SimpleNamespace(servers=pool.servers())).to_awkward()

    return ask


@pytest.fixture
def refused(infer):
    def ask(*args, **options):
        with pytest.raises(CampaignError) as caught:
            infer(*args, **options)
        return str(caught.value)

    return ask


@pytest.mark.usefixtures("long_lived_pool")
class TestServed:
    """Against the real server."""

    @pytest.fixture(name="long_lived_pool", scope="class")
    @staticmethod
    def _long_lived_pool(pool):
        return pool

    @pytest.mark.parametrize(("values", "kind", "said"), [
        ([1, 300], "INT8", "row 1 of the batch: 300 does not fit int8 (-128 to 127)"),
        ([5.0, 6.0, -1.5], "UINT8", "row 2 of the batch: -1.5 does not fit uint8 (0 to 255)"),
        ([np.nan], "INT8", "row 0 of the batch: nan does not fit int8"),
        ([1.0, 70000.0], "FP16", "row 1 of the batch: 70000.0 is too large for float16"),
        ([1e300], "FP32", "row 0 of the batch: 1e+300 is too large for float32"),
        ([0, 7], "BOOL", "row 1 of the batch: 7 is neither 0 nor 1"),
        (["1.5"], "FP32", "row 0 of the batch: values of type text are no numbers"),
    ])  # fmt: skip
    def test_a_value_that_does_not_fit_is_refused_before_it_is_sent(self, pool, refused, values, kind, said):
        """Column, input, model, row and value; the server is not asked."""
        sent = pool.servers().requests[f"same_{kind}"]
        text = refused(f"same_{kind}", {"c": values}, {"X": "c"}, {"y": "Y"})
        assert f"the column 'c' cannot be sent to the input X ({kind}) of the model same_{kind}: " in text
        assert said in text
        assert "cast: unsafe" in text
        assert refused(f"same_{kind}", {"c": values}, {"X": ["c"]}, {"y": "Y"}) == text
        assert pool.servers().requests[f"same_{kind}"] == sent

    @pytest.mark.parametrize(("values", "kind"), [
        (np.array([3, -2], np.int32), "INT64"), ([3.0, -3.0], "INT8"), ([1, 0], "BOOL"), ([True, False], "UINT8"),
        ([0.5, np.inf, -0.25], "FP16"),
    ])  # fmt: skip
    def test_a_value_that_fits_arrives(self, infer, values, kind):
        """The identity gives it back."""
        found = infer(f"same_{kind}", {"c": np.asarray(values)}, {"X": "c"}, {"y": "Y"})
        assert found.y.to_list() == list(np.asarray(values).tolist())

    def test_unsafe_casts_are_asked_for(self, infer):
        """``cast: unsafe`` is numpy's ``astype``; anything else is refused when the stage is made."""
        found = infer("same_INT8", {"c": [300, -1]}, {"X": ["c"]}, {"y": "Y"}, cast="unsafe")
        assert found.y.to_list() == [44, -1]
        with pytest.raises(ValueError, match="give safe or unsafe"):
            Infer("m", {}, {}, cast="yes")

    def test_bf16_is_rounded_to_the_nearest(self, pool, infer, refused):
        """To nearest, ties to even, as ml_dtypes and so tritonclient do; answers come as float32; inf is refused."""
        values = np.array([1.0, 1.00390625, 1.01171875, 3.14159265, -1e-3, 3.3e38], np.float64)
        want = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
        assert want[1] == 1.0
        assert want[2] == 1.015625
        found = infer("bf16", {"c": values}, {"X": "c"}, {"y": "Y"})
        assert found.y.to_numpy().tobytes() == want.tobytes()
        given = values.astype(np.float32)[:, None]
        assert pool.servers().infer("bf16", {"X": given})["Y"].tobytes() == want.tobytes()
        assert "row 1 of the batch: 1e+39 is too large for BF16" in refused(
            "bf16", {"c": [1, 1e39]}, {"X": "c"}, {"y": "Y"}
        )
        with pytest.raises(InferenceError, match="row 0: 1e"):
            pool.servers().infer("bf16", {"X": np.array([[1e39]])})

    def test_text_comes_back_as_it_was(self, pool, infer):
        """Empty, with spaces, NUL characters at the end, not ASCII; padding changes nothing."""
        words = ["a", "", "b c", "nul\0", "é", "x" * 1000, "\0"] * 3
        batch = {"one": words, "two": list(reversed(words))}
        found = infer("text", batch, {"X": ["one", "two"]}, {"back": "Y", "n": "N"})
        assert found.back.to_list() == [list(pair) for pair in zip(words, reversed(words), strict=True)]
        assert found.n[:, 0].to_list() == [len(w.encode()) for w in words]
        for array in (np.array([["é", "b"]]), np.array([["é".encode(), b"b"]]), np.array([["é", b"b"]], object)):
            assert pool.servers().infer("text", {"X": array})["Y"].tolist() == [["é".encode(), b"b"]]
        raw = infer("raw_text", {"c": ["q", "g", ""]}, {"X": "c"}, {"back": "Y"})
        assert raw.back.to_list() == ["", "g", "q"]
        assert str(raw.back.type) == "3 * string"
        none = infer("label", {"c": np.zeros(0)}, {"X": "c"}, {"lab": "L"})
        assert str(none.lab.type) == "0 * string"

    def test_what_is_no_text_is_refused(self, pool, refused):
        """Numbers for an input of text, missing values, an answer that is no UTF-8: column or output, and row."""
        said = refused("text", {"c": [1.0], "d": ["a"]}, {"X": ["c", "d"]}, {"y": "Y"})
        assert "the column 'c' cannot be sent to the input X (BYTES) of the model text" in said
        assert "and the input takes text" in said
        missing = ak.Array({"c": ["a", None], "d": ["a", "b"]})
        assert "row 1 of the batch: None is neither text nor bytes" in refused(
            "text", missing, {"X": ["c", "d"]}, {"y": "Y"}
        )
        said = refused("not_text", {"c": np.arange(9.0)}, {"X": "c"}, {"y": "L"})
        assert "the output L of the model not_text cannot be a column: row 3: b'\\xff' is no UTF-8 text" in said
        with pytest.raises(InferenceError, match="model text, input X: row 0: 1 is neither text nor bytes"):
            pool.servers().infer("text", {"X": np.array([[1, "a"]], object)})
        assert "expected (events, var), got 1 * string" in refused(
            "raw_text", ak.Array({"c": [[["a"]], []]})[:1], {"X": "c"}, {"y": "Y"}
        ).replace("1 * var * var * string", "1 * string")

    def test_widths_that_differ_make_a_jagged_column(self, pool, infer, refused):
        """One row as long as its request's answer; the type is the same where all happen to be of one width."""
        found = infer("wide", {"c": np.arange(20.0)}, {"X": "c"}, {"w": "W"})
        assert found.w.to_list() == [[float(i)] * (min(i // 8 * 8 + 7, 19) // 8 + 1) for i in range(20)]
        same = infer("wide", {"c": np.zeros(3)}, {"X": "c"}, {"w": "W"})
        assert same.w.to_list() == [[0.0], [0.0], [0.0]]
        assert str(found.w.type) == "20 * var * float32"
        assert str(same.w.type) == "3 * var * float32"
        assert isinstance(pool.servers().infer("wide", {"X": np.arange(20, dtype=np.float32)[:, None]})["W"], Ragged)
        said = refused("two_wide", {"c": np.arange(20.0)}, {"X": "c"}, {"w": "W"})
        assert "model two_wide, output W" in said
        assert "rows of shape (1, 1) and of shape (3, 3) in one file; its dims are (-1, -1)" in said

    def test_optional_inputs_may_be_left_out(self, pool, infer, refused):
        """And are given where they are named; a needed one is asked for, with what is optional marked."""
        columns = {"a": np.arange(10.0), "b": np.ones(10)}
        assert infer("opt", columns, {"A": "a"}, {"y": "Y"}).y.to_list() == [100.0 + i for i in range(10)]
        assert infer("opt", columns, {"A": "a", "B": "b"}, {"y": "Y"}).y.to_list() == [1.0 + i for i in range(10)]
        assert "takes the inputs A, B (optional); given: B" in refused("opt", columns, {"B": "b"}, {"y": "Y"})
        stream = pool.servers().stream("opt")
        x = np.zeros((3, 1), np.float32)
        asked = [stream.add({"A": x}), stream.add({"A": x, "B": x}), stream.add({"A": x})]
        stream.end()
        assert [a.result()["Y"][:, 0].tolist() for a in asked] == [[100.0] * 3, [0.0] * 3, [100.0] * 3]

    @pytest.mark.parametrize("place", [
        "campaign.stages.infer.as_dtype", "campaign.stages.infer.ak.to_numpy", "campaign.inference.codec.as_bytes",
        "campaign.inference.client.ragged.rows_of", "campaign.inference.kserve._as_sent",
        "campaign.stages.infer.Columns",
    ])  # fmt: skip
    def test_no_failure_of_a_library_reaches_the_user_raw(self, refused, monkeypatch, place):
        """Wherever numpy, awkward or our own code raises: model, columns and a remedy are named, no traceback."""

        def fail(*_args, **_more):
            raise ValueError("all the input array dimensions except for the concatenation axis must match exactly")

        monkeypatch.setattr(place, fail)
        said = refused("same_FP32", ak.Array({"c": [1, 2]}), {"X": "c"}, {"y": "Y"})
        if "to_numpy" in place:
            assert said.startswith("the column 'c' cannot be sent: all the input")
            return
        what = ("the columns c cannot be sent", "the outputs Y cannot be made columns")
        assert said.startswith(tuple(f"model same_FP32: {text}: ValueError: all the input" for text in what))
        assert "compare the columns with the model's inputs and outputs" in said


def campaign_of(root, stages, models):
    write_models(root / "models", models)
    with uproot.recreate(root / "in.root") as file:
        file.mktree("t", {"x": "float32", "i": "int32"}).extend(
            {"x": np.arange(200, dtype=np.float32), "i": np.arange(200, dtype=np.int32)}
        )
    campaign = {"campaign": "case", "datasets": {"d": {"files": "in.root", "tree": "t"}},
                "servers": {"model_repository": "models", "models": list(models)}, "stages": stages}  # fmt: skip
    (root / "c.yaml").write_text(yaml.safe_dump(campaign))
    return command("run", "c.yaml", cwd=root)


def test_a_campaign_with_text_and_jagged_outputs(tmp_path):
    """Text is filled into categories and kept as text in Parquet; widths that differ are kept as lists."""
    import pyarrow.parquet as pq

    done = campaign_of(tmp_path, {
        "inf": {"use": "infer", "model": "label", "inputs": {"X": "x"}, "outputs": {"lab": "L"}, "keep": True},
        "wid": {"use": "infer", "from": "inf", "model": "wide", "inputs": {"X": "x"}, "outputs": {"w": "W"},
                "keep": True},
        "fil": {"use": "fill", "from": "inf", "histograms": {"h": {"lab": {"categories": ["q", "g"]}}}},
    }, ["label", "wide"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "case" / "report.json").read_text())
    from campaign.outputs import read_histograms

    (path,) = [o["path"] for o in report["outputs"].values() if o["kind"] == "histograms"]
    assert read_histograms(path)["h"].to_hist().values().tolist() == [100, 100]
    table = pq.read_table(next(iter((tmp_path / "runs/case/outputs/wid/d/nominal").glob("*.parquet"))))
    assert table["lab"].to_pylist() == ["g"] * 100 + ["q"] * 100
    assert [len(w) for w in table["w"].to_pylist()] == [(i // 8 * 8 + 7) // 8 + 1 for i in range(200)]


def test_a_campaign_whose_integers_do_not_fit_is_refused(tmp_path):
    """The first entry beyond INT8, by stage, column, input and value; no output is made of wrapped numbers."""
    done = campaign_of(tmp_path, {
        "inf": {"use": "infer", "model": "same_INT8", "inputs": {"X": "i"}, "outputs": {"y": "Y"}},
        "fil": {"use": "fill", "from": "inf", "histograms": {"h": {"y": {"bins": 1, "range": [-200, 200]}}}},
    }, ["same_INT8"])  # fmt: skip
    assert done.returncode == 1
    said = done.stderr + done.stdout
    assert "stage inf" in said
    assert (
        "the column 'i' cannot be sent to the input X (INT8) of the model same_INT8: row 128 of the batch: 128 does"
        in said
    )


def test_an_output_error_is_raised_for_columns_that_are_no_text():
    """An object column is text or refused, with its row."""
    from campaign.outputs import Columns

    kept = Columns(lab=np.array([b"q", "g"], object)).to_awkward()
    assert kept.lab.to_list() == ["q", "g"]
    with pytest.raises(OutputError, match=r"the column 'lab' cannot be kept: row 1: 3 is neither text nor bytes"):
        Columns(lab=np.array(["a", 3], object)).to_awkward()
