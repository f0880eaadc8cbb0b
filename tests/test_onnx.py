"""An ONNX file of one's own: its signature is read, and the embedded server serves it without a configuration."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from campaign import ServerPool
from campaign.errors import ServerError, SpecError
from campaign.pool import make_kind
from campaign.servers.onnx_file import NotOnnx, read
from campaign.spec import ServerSpec

ONES = np.array([[1.0], [10.0]], np.float32)


def save(path, nodes, inputs, outputs, weights=(), **more):
    def info(tensors):
        return [helper.make_tensor_value_info(*t) for t in tensors]

    graph = helper.make_graph(
        nodes, "g", info(inputs), info(outputs), [numpy_helper.from_array(a, n) for n, a in weights]
    )
    opset = more.pop("opset", 17)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path), **more)
    return path


def linear(path, rows="N", **more):
    """X (rows, 2) to Y (rows, 1); the weight is listed among the inputs too, as old exporters do."""
    inputs = [("X", T.FLOAT, [rows, 2]), ("W", T.FLOAT, [2, 1])]
    return save(
        path,
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        inputs,
        [("Y", T.FLOAT, [rows, 1])],
        [("W", ONES)],
        **more,
    )


def shapes(tensors):
    return [(t.name, t.datatype, t.dims) for t in tensors]


def test_the_signature_is_what_onnxruntime_says(tmp_path):
    """Names, types, open and fixed dimensions; an input that the file gives a value is none."""
    several = save(
        tmp_path / "s.onnx",
        [
            helper.make_node("Identity", ["I"], ["J"]),
            helper.make_node("Identity", ["S"], ["R"]),
            helper.make_node("Not", ["B"], ["C"]),
        ],
        [("I", T.INT64, ["N"]), ("S", T.STRING, ["N", 3]), ("B", T.BOOL, ["N", None])],
        [("J", T.INT64, ["N"]), ("R", T.STRING, ["N", 3]), ("C", T.BOOL, ["N", None])],
    )
    assert shapes(read(several).inputs) == [("I", "INT64", (-1,)), ("S", "STRING", (-1, 3)), ("B", "BOOL", (-1, -1))]
    for path in (linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", 4), several):
        session, found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), read(path)
        for ours, theirs in ((found.inputs, session.get_inputs()), (found.outputs, session.get_outputs())):
            assert [t.name for t in ours] == [t.name for t in theirs]
            assert [list(t.dims) for t in ours] == [[d if isinstance(d, int) else -1 for d in t.shape] for t in theirs]
    assert [read(tmp_path / f"{n}.onnx").rows for n in "abs"] == [-1, 4, -1]


def test_what_is_no_servable_onnx_file_is_refused(tmp_path):
    """Empty, foreign, cut short, or with outputs that are no tensors: the sentence says which, and what to do."""
    whole = linear(tmp_path / "a.onnx").read_bytes()
    for content in (b"", b"not an ONNX file at all", whole[: len(whole) // 2], bytes(100)):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(NotOnnx, match=r"is empty|is no ONNX file"):
            read(tmp_path / "bad.onnx")
    inner = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, None))
    output = helper.make_value_info("probabilities", helper.make_sequence_type_proto(inner))
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("X", T.FLOAT, ["N", 2])], [output])
    (tmp_path / "map.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    spec = ServerSpec.model_validate({"models": {"m": {"onnx": "map.onnx"}}})
    with pytest.raises(SpecError, match=r"map.onnx: 'probabilities' is a sequence, .*'zipmap': False"):
        make_kind(spec, tmp_path).check()
    with pytest.raises(SpecError, match=r"none\.onnx: No such file"):
        make_kind(ServerSpec.model_validate({"models": {"m": {"onnx": "none.onnx"}}}), tmp_path).check()
    with pytest.raises(SpecError, match=r"where is the model 'm'(?s:.*)models: {m: {onnx: FILE}}"):
        make_kind(ServerSpec.model_validate({"models": {"m": {}}}), tmp_path).check()


STOCK = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def test_onnx_files_are_served_as_they_are(tmp_path):
    """By ``onnx:``, from a folder with a stock container's configuration, from a bare one; with a twin of its own."""
    linear(tmp_path / "plain.onnx")
    linear(tmp_path / "four.onnx", 4)
    linear(tmp_path / "models" / "bare" / "1" / "model.onnx")
    linear(tmp_path / "models" / "stock" / "2" / "model.onnx")
    (tmp_path / "models" / "stock" / "config.pbtxt").write_text(STOCK)
    outside = {
        "save_as_external_data": True,
        "all_tensors_to_one_file": True,
        "location": "big.data",
        "size_threshold": 0,
    }
    linear(tmp_path / "big.onnx", **outside)
    assert read(tmp_path / "big.onnx").external == ("big.data",)
    save(
        tmp_path / "text.onnx",
        [helper.make_node("Identity", ["S"], ["R"])],
        [("S", T.STRING, ["N"])],
        [("R", T.STRING, ["N"])],
    )
    reduced = helper.make_node("ReduceSum", ["E", "axes"], ["S"], keepdims=1)
    save(
        tmp_path / "event.onnx",
        [reduced],
        [("E", T.FLOAT, ["n", 3])],
        [("S", T.FLOAT, [1, 3])],
        [("axes", np.array([0]))],
    )
    models = {
        "plain": {"onnx": "plain.onnx", "batch": 5}, "four": {"onnx": "four.onnx"}, "bare": {}, "stock": {},
        "big": {"onnx": "big.onnx"}, "text": {"onnx": "text.onnx"}, "event": {"onnx": "event.onnx"},
    }  # fmt: skip
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.savez(tmp_path / "plain.canary.npz", **{"input.X": x[:1], "output.Y": x[:1] @ ONES})
    spec = ServerSpec.model_validate({"model_repository": "models", "models": models})
    with ServerPool(spec, base=tmp_path) as pool:
        pool.wait_ready()
        servers = pool.servers()
        for name in ("plain", "four", "bare", "stock", "big"):
            assert servers.infer(name, {"X": x})["Y"].tolist() == (x @ ONES).tolist(), name
        assert servers.infer("text", {"S": np.array([["é"], ["b"]])})["R"].tolist() == [["é".encode()], [b"b"]]
        assert servers.infer("event", {"E": np.ones((5, 3), np.float32)})["S"].tolist() == [[5, 5, 5]]
        assert (servers.model("plain").batch, servers.model("four").batch, servers.model("event").batch) == (5, 4, 0)
        said = " ".join(pool.records()[0]["warnings"])
        assert "model bare has no canary.npz" in said
        assert "model plain has no" not in said
    before = pool.kind.identity("plain")
    (tmp_path / "plain.onnx").write_bytes(linear(tmp_path / "other.onnx", "M").read_bytes())
    assert make_kind(spec, tmp_path).identity("plain") != before


def test_a_file_that_the_runtime_does_not_take_ends_the_start_at_once(tmp_path):
    """An opset that is too new: the server's own sentence, long before the deadline."""
    linear(tmp_path / "new.onnx", opset=999)
    spec = ServerSpec.model_validate({"models": {"new": {"onnx": "new.onnx"}}, "start_deadline_s": 250})
    with (
        pytest.raises(ServerError, match=r"(?s)failed to load 'new' version 1: .*Opset 999 is under"),
        ServerPool(spec, base=tmp_path) as pool,
    ):
        pool.wait_ready()
