"""Requests and answers as bytes: what tritonclient would send and read, and what is wrong with an answer that is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.grpc._utils import _get_inference_request

from campaign.errors import InferenceError
from campaign.inference.codec import Codec, Part, batch_of, cut, whole
from campaign.inference.concurrency import COVER_S, LEAST, MOST, ConcurrencyLimit
from campaign.inference.kserve import ModelInfo, Tensor

MODEL = ModelInfo("m", (Tensor("X", "FP32", (-1, 2)),), (Tensor("Y", "FP32", (-1, 1)),), 4, 8, False)
DATATYPES = {
    "BOOL": bool, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
    "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BYTES": np.object_,
}  # fmt: skip


def model_of(datatype, shape=(-1,)):
    tensor = Tensor("T", datatype, shape)
    return ModelInfo("m", (tensor,), (tensor,), 0, 0, False)


def values(datatype):
    if datatype == "BYTES":
        return np.array([b"one", b"", b"a longer text \x00\xff"], dtype=np.object_)
    return np.array([0, 1, 3]).astype(DATATYPES[datatype])


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_a_request_is_the_bytes_of_tritonclients(datatype):
    """Every datatype goes out as the message that tritonclient would have made."""
    model, array = model_of(datatype), values(datatype)
    theirs = InferInput("T", [3], datatype)
    theirs.set_data_from_numpy(array)
    empty = dict.fromkeys(("model_version", "request_id", "sequence_id"), "")
    message = _get_inference_request(
        model_name="m", inputs=[theirs], outputs=[InferRequestedOutput("T")], sequence_start=False, sequence_end=False,
        priority=0, timeout=None, parameters=None, **empty,
    )  # fmt: skip
    sent = service_pb2.ModelInferRequest.FromString(Codec(model).encode(whole(model, {"T": array})))
    assert sent == message


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_what_was_sent_can_be_read(datatype):
    """An answer with the bytes of a request's tensor gives the tensor back, of every datatype, and of no elements."""
    model = model_of(datatype)
    for array in (values(datatype), values(datatype)[:0]):
        raw = service_pb2.ModelInferRequest.FromString(Codec(model).encode(whole(model, {"T": array})))
        back = Codec(model).decode(answer([("T", datatype, array.shape)], raw.raw_input_contents), Part((), (), 1))
        assert back["T"].dtype == DATATYPES[datatype]
        assert np.array_equal(back["T"], array)


@given(st.integers(0, 40), st.lists(st.integers(1, 8), max_size=3, unique=True))
def test_the_last_request_takes_the_smallest_size_that_holds_it(rows, tails):
    """Sizes allowed for the last request are taken where they do, whatever else there is; all others are full."""
    model = dataclasses.replace(MODEL, batch=9, tails=tuple(sorted(tails)))
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    parts = list(cut(model, {"X": x}))
    sizes = [p.shapes[0][0] for p in parts]
    assert sizes[:-1] == [9] * (len(parts) - 1)
    assert sum(p.rows for p in parts) == rows
    if parts:
        assert sizes[-1] == min(n for n in (9, *tails) if n >= parts[-1].rows)
        assert b"".join(bytes(piece) for p in parts for piece in p.pieces[0])[: x.nbytes] == x.tobytes()


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 5))
def test_requests_together_are_the_rows_padded_with_the_last_one(rows, batch, seed):
    """Whatever the number of rows: full requests of the batch, in order, the last row repeated to the end."""
    model = dataclasses.replace(MODEL, batch=batch)
    x = np.random.default_rng(seed).random((rows, 2)).astype(np.float32)
    sent = [service_pb2.ModelInferRequest.FromString(Codec(model).encode(p)) for p in cut(model, {"X": x})]
    padded = np.concatenate([x, np.repeat(x[-1:], -rows % batch, axis=0)])
    assert b"".join(r.raw_input_contents[0] for r in sent) == padded.tobytes()
    assert all(list(r.inputs[0].shape) == [batch, 2] for r in sent)


def test_a_batch_of_several_chunks_is_the_batch_of_their_rows():
    """Where one array ends and the next begins cannot be seen in the request."""
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    codec = Codec(MODEL)
    one = codec.encode(batch_of(MODEL, [{"X": x}]))
    assert codec.encode(batch_of(MODEL, [{"X": x[:1]}, {"X": x[1:2]}, {"X": x[2:]}])) == one


def answer(outputs, raw=(), **more):
    made = [service_pb2.ModelInferResponse.InferOutputTensor(name=n, datatype=d, shape=s) for n, d, s in outputs]
    return service_pb2.ModelInferResponse(
        model_name="m", id="7", outputs=made, raw_output_contents=list(raw), **more
    ).SerializeToString()


FOUR = Part((), (), 3, 1)
Y4 = np.arange(4, dtype=np.float32).tobytes()


def test_an_answer_is_read_without_its_padding_and_in_any_order():
    """Outputs are found by name; others than the model's are left alone; rows of padding are cut off."""
    data = answer([("other", "BYTES", [1]), ("Y", "FP32", [4, 1])], [b"\x01\x00\x00\x00a", Y4])
    codec = Codec(MODEL)
    for _ in range(2):  # the second time from the head that was kept
        assert codec.decode(data, FOUR)["Y"].tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (answer([]), "gave no output Y"),
        (answer([("Y", "FP64", [4, 1])], [Y4]), "output Y: is FP64, its metadata says FP32"),
        (answer([("Y", "FP32", [3, 1])], [Y4[:12]]), "output Y: expected shape (4, 1), got (3, 1)"),
        (answer([("Y", "FP32", [4])], [Y4]), "output Y: expected shape (4, 1), got (4,)"),
        (answer([("Y", "FP32", [4, 1])], [Y4[:12]]), "output Y: has 12 bytes, which are no FP32 (4, 1)"),
        (answer([("Y", "FP32", [4, 1])], [Y4[:13]]), "output Y: has 13 bytes, which are no FP32 (4, 1)"),
        (answer([("Y", "FP32", [4, 1])], [Y4, Y4]), "answered 1 outputs and the bytes of 2"),
        (answer([("Y", "FP32", [4, 1])]), "output Y: has 0 values for the shape (4, 1)"),
        (b"\x0aZ", "answered 2 bytes that are no ModelInferResponse"),
        (b"\x08\x01", "answered 2 bytes that are no ModelInferResponse"),
        (b"\xff", "answered 1 bytes that are no ModelInferResponse"),
    ],
)
def test_a_wrong_answer_is_told_not_used(data, said):
    """The error names model and output and says what came and what was expected; asking again is no use."""
    with pytest.raises(InferenceError) as caught:
        Codec(MODEL).decode(data, FOUR)
    assert f"model m{', ' if said.startswith('output') else ': '}{said}" in str(caught.value)
    assert caught.value.permanent


def test_a_torn_text_is_told():
    """BYTES elements that do not add up to the tensor's length are no answer."""
    for raw in (b"\x05\x00\x00\x00abc", b"\x05", b""):
        with pytest.raises(InferenceError, match="which are no BYTES"):
            Codec(model_of("BYTES")).decode(answer([("T", "BYTES", [1])], [raw]), FOUR)


def test_values_that_are_not_raw_are_read_too():
    """A server may answer with typed contents; half floats have no such form, and that is said."""
    contents = {
        "FP32": ("fp32_contents", [0.5, 2]), "INT8": ("int_contents", [-1, 3]), "UINT64": ("uint64_contents", [1, 9]),
        "BOOL": ("bool_contents", [True, False]), "BYTES": ("bytes_contents", [b"a", b""]),
    }  # fmt: skip
    for datatype, (field, given_) in contents.items():
        message = service_pb2.ModelInferResponse(model_name="m")
        output = message.outputs.add(name="T", datatype=datatype, shape=[2])
        getattr(output.contents, field).extend(given_)
        read = Codec(model_of(datatype)).decode(message.SerializeToString(), Part((), (), 1))
        assert read["T"].tolist() == given_
    with pytest.raises(InferenceError, match="FP16 has no other form"):
        Codec(model_of("FP16")).decode(answer([("T", "FP16", [2])]), Part((), (), 1))


def test_a_datatype_without_a_numpy_type_is_refused():
    """It would otherwise be taken for float64."""
    for datatype in ("FP8", "FP4"):
        with pytest.raises(InferenceError, match=f"the datatype {datatype} of T has no numpy type"):
            _ = Tensor("T", datatype, (1,)).dtype


# The window -----------------------------------------------------------------------------------------------------------


def settled(service_s, parallel=1, share=1.0, asked=True):
    """The window after many answers of a server that works on ``parallel`` requests at once, a share of them ours."""
    window, now = ConcurrencyLimit(), 0.0
    for _ in range(50):
        if asked:
            window.served(service_s)
        for _ in range(2 * window.size + 1):
            now += max(service_s / parallel / share, service_s / window.size)
            window.answered(now, more=True)
    return window.size


@pytest.mark.parametrize(
    ("law", "size"),
    [
        ({"service_s": 0.05}, LEAST),
        ({"service_s": 0.05, "parallel": 4}, 8),
        ({"service_s": 0.05, "parallel": 16}, 32),
        ({"service_s": 0.001}, COVER_S / 0.001),
        ({"service_s": 0.001, "share": 0.25}, COVER_S / 0.004),
        ({"service_s": 0.0001}, MOST),
        ({"service_s": 0.001, "asked": False}, COVER_S / 0.001),
    ],
)
def test_the_window_follows_littles_law(law, size):
    """Twice what the server works on at once, no less than covers a client's pauses, within fixed bounds."""
    assert settled(**law) == size


def test_a_fixed_window_stays_and_pauses_are_not_the_servers():
    """An integer of the campaign is kept; the time without anything to send is nobody's service time."""
    fixed, free = ConcurrencyLimit(3), ConcurrencyLimit()
    for i in range(100):
        fixed.answered(i * 1e-4, more=True)
        free.answered(float(i), more=False)
    assert fixed.size == 3
    assert (free.size, free.rate) == (LEAST, 0.0)
