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
from campaign.pool.server_kind import make_kind
from campaign.servers.onnx_file import NotOnnx, read
from campaign.spec.models import ServerSpec

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
    assert [read(tmp_path / f"{n}.onnx").rows() for n in "abs"] == [-1, 4, -1]


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


def node(kind, inputs, outputs, **more):
    return helper.make_node(kind, inputs, outputs, **more)


def outside(location):
    return {
        "save_as_external_data": True, "all_tensors_to_one_file": True, "location": location, "size_threshold": 0,
    }  # fmt: skip


def test_only_open_axes_of_one_name_count_rows(tmp_path):
    """Two names are two lengths, unless the campaign says ``batch``; a name beside none may be the same."""

    def file(first, second):
        return read(
            save(
                tmp_path / "f.onnx",
                [node("Relu", ["X"], ["Y"])],
                [("X", T.FLOAT, [first, 3])],
                [("Y", T.FLOAT, [second, 3])],
            )
        )

    assert [file(*names).rows() for names in (("N", "N"), ("N", None), (None, None))] == [-1, -1, -1]
    assert (file("nodes", "edges").rows(), file("nodes", "edges").rows(said=True)) == (None, -1)
    assert (file("N", 1).rows(), file("N", 1).rows(said=True)) == (None, None)


def refusal(folder, **spec):
    with pytest.raises(SpecError) as caught:
        make_kind(ServerSpec.model_validate(spec), folder).check()
    return str(caught.value)


def test_weights_are_found_where_the_file_says_or_refused(tmp_path):
    """In a folder below, inside a node, or of a branch; never outside the file's folder, and never missing."""
    (tmp_path / "w").mkdir()
    linear(tmp_path / "sub.onnx", **outside("w/big.data"))
    assert read(tmp_path / "sub.onnx").external == ("w/big.data",)
    (tmp_path / "w" / "big.data").unlink()
    assert f"its weights are in {tmp_path}/w/big.data" in refusal(tmp_path, models={"m": {"onnx": "sub.onnx"}})

    def inner(location):
        tensor = numpy_helper.from_array(ONES, "c")
        tensor.ClearField("raw_data")
        tensor.data_location = T.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        body = helper.make_graph(
            [node("Constant", [], ["Z"], value=tensor)], "b", [], [helper.make_tensor_value_info("Z", T.FLOAT, [2, 1])]
        )
        graph = helper.make_graph(
            [node("If", ["C"], ["Y"], then_branch=body, else_branch=body)], "g",
            [helper.make_tensor_value_info("C", T.BOOL, [1])], [helper.make_tensor_value_info("Y", T.FLOAT, [2, 1])],
        )  # fmt: skip
        (tmp_path / "inner.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    inner("deep/c.bin")
    assert read(tmp_path / "inner.onnx").external == ("deep/c.bin",)
    for location in ("../c.bin", "/etc/c.bin", "a/../../c.bin"):
        inner(location)
        said = refusal(tmp_path, models={"m": {"onnx": "inner.onnx"}})
        assert f"keeps weights in '{location}', outside its folder" in said


STOCK = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name: "X"', 'name: "Z"', "has no input 'Z', which the configuration names; it has X"),
        ("TYPE_FP32 dims: [ 1 ]", "TYPE_FP64 dims: [ 1 ]", "has FP32 for 'Y', and the configuration says FP64"),
        ('input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]', "", "needs the inputs X, which the configuration"),
    ],
)
def test_a_configuration_that_disagrees_with_its_file_is_refused(tmp_path, old, new, said):
    """Names and types of the configuration are the file's, as Triton's own onnxruntime backend wants it."""
    linear(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_text(STOCK.replace(old, new))
    assert said in refusal(tmp_path, model_repository=".", models={"m": {}})


def test_onnx_files_are_served_as_they_are(tmp_path):
    """By ``onnx:``, from a folder with a stock container's configuration, from a bare one; with a twin of its own."""
    linear(tmp_path / "plain.onnx")
    linear(tmp_path / "four.onnx", 4)
    linear(tmp_path / "models" / "bare" / "1" / "model.onnx")
    linear(tmp_path / "models" / "stock" / "2" / "model.onnx")
    (tmp_path / "models" / "stock" / "config.pbtxt").write_text(STOCK)
    (tmp_path / "w").mkdir()
    linear(tmp_path / "big.onnx", **outside("w/big.data"))
    two = [node("Cast", ["I"], ["H"], to=T.FLOAT16), node("Add", ["H", "F"], ["S"]), node("Not", ["B"], ["C"])]
    given = [("I", T.INT64, ["N", 2]), ("F", T.FLOAT16, ["N", 2]), ("B", T.BOOL, ["N"])]
    save(tmp_path / "two.onnx", two, given, [("S", T.FLOAT16, ["N", 2]), ("C", T.BOOL, ["N"])])
    save(
        tmp_path / "named.onnx",
        [node("MatMul", ["X", "W"], ["Y"])],
        [("X", T.FLOAT, ["batch", 2])],
        [("Y", T.FLOAT, ["MatMulY_dim_0", 1])],
        [("W", ONES)],
    )
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
        "two": {"onnx": "two.onnx"}, "named": {"onnx": "named.onnx"}, "said": {"onnx": "named.onnx", "batch": 3},
    }  # fmt: skip
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.savez(tmp_path / "plain.canary.npz", **{"input.X": x[:1], "output.Y": x[:1] @ ONES})
    spec = ServerSpec.model_validate({"model_repository": "models", "models": models})
    with ServerPool(spec, base=tmp_path) as pool:
        pool.wait_ready()
        servers = pool.servers()
        for name in ("plain", "four", "bare", "stock", "big", "named", "said"):
            assert servers.infer(name, {"X": x})["Y"].tolist() == (x @ ONES).tolist(), name
        assert servers.infer("text", {"S": np.array([["é"], ["b"]])})["R"].tolist() == [["é".encode()], [b"b"]]
        assert servers.infer("event", {"E": np.ones((5, 3), np.float32)})["S"].tolist() == [[5, 5, 5]]
        batches = {name: servers.model(name).batch for name in ("plain", "four", "event", "named", "said")}
        assert batches == {"plain": 5, "four": 4, "event": 0, "named": 0, "said": 3}
        i, f, b = np.arange(6).reshape(3, 2), np.full((3, 2), 0.5, np.float16), np.array([[True], [False], [True]])
        both = servers.infer("two", {"I": i, "F": f, "B": b})
        assert (both["S"].dtype, both["S"].tolist()) == (np.float16, (i + 0.5).tolist())
        assert both["C"].tolist() == (~b).tolist()
        said = " ".join(pool.records()[0].warnings)
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


def test_an_axis_that_does_not_count_rows_is_found_out(tmp_path):
    """A graph whose rows see each other would give wrong numbers in requests of rows: the start ends with a remedy."""
    mean = node("ReduceMean", ["X"], ["M"], axes=[0], keepdims=1)
    inputs, outputs = [("X", T.FLOAT, ["hits", 2])], [("Y", T.FLOAT, ["hits", 2])]
    save(tmp_path / "centre.onnx", [mean, node("Sub", ["X", "M"], ["Y"])], inputs, outputs)
    one = np.ones((1, 2), np.float32)
    np.savez(tmp_path / "centre.canary.npz", **{"input.X": one, "output.Y": one * 0})  # right, and tells nothing
    spec = ServerSpec.model_validate({"models": {"centre": {"onnx": "centre.onnx"}}})
    with (
        pytest.raises(ServerError, match=r"answer to a row depends on the other rows(?s:.*)max_batch_size: 0"),
        ServerPool(spec, base=tmp_path) as pool,
    ):
        pool.wait_ready()
