"""Encodes and decodes the bytes of a KServe v2 call: builds requests around a cached head, reads answers in place.

protobuf would copy each tensor twice on its way out and twice on its way in, which is a third of a client's CPU.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from campaign.errors import InferenceError
from campaign.inference.kserve import ModelInfo, Tensor, way_to

Array = np.ndarray[Any, Any]
Piece = bytes | memoryview
Shape = tuple[int, ...]

SERVICE = "/inference.GRPCInferenceService/"
_RAW_INPUT, _RAW_OUTPUT = 0x3A, 0x32  # field 7 of ModelInferRequest, field 6 of ModelInferResponse: length-delimited
_KNOWN = 4096  # shapes and heads of answers remembered per model; ragged events bring a new one each
_TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One request's worth of rows.

    Attributes:
        shapes: Of each input, in the model's order, padding included.
        pieces: Each input's bytes, in pieces that are joined when the request is sent.
        rows: Rows that were asked for; the others are padding.
        pad: How many those are.
        names: Of the inputs it gives, in the model's order; empty: all of them.
    """

    shapes: tuple[Shape, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    rows: int
    pad: int = 0
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(len(piece) for tensor in self.pieces for piece in tensor)


def as_bytes(tensor: Tensor, array: Array) -> Piece:
    """A contiguous array's bytes as KServe wants them; not copied where they are so already."""
    if tensor.datatype == "BYTES":
        given = serialize_byte_tensor(array)
        return bytes(given.item()) if given.size else b""
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def cut(info: ModelInfo, arrays: Mapping[str, Array]) -> Iterator[Part]:
    """Requests of ``info.batch`` rows each; the last one is filled up (see `batch_of`)."""
    if not info.batch:
        yield whole(info, arrays)
        return
    total = len(next(iter(arrays.values())))
    for start in range(0, total, info.batch):
        yield batch_of(info, [{n: a[start : start + info.batch] for n, a in arrays.items()}])


def whole(info: ModelInfo, arrays: Mapping[str, Array]) -> Part:
    """One request with the arrays as they are."""
    given = [t for t in info.inputs if t.name in arrays]
    return Part(
        tuple(arrays[t.name].shape for t in given),
        tuple((as_bytes(t, arrays[t.name]),) for t in given),
        1,
        names=tuple(t.name for t in given),
    )


def batch_of(info: ModelInfo, chunks: Sequence[Mapping[str, Array]]) -> Part:
    """One request from consecutive chunks of at most ``info.batch`` rows together.

    It is filled up, by repeating its last row, to the smallest of ``info.tails`` that holds it, or to ``info.batch``.
    """
    given = [t for t in info.inputs if t.name in chunks[0]]
    rows = sum(len(chunk[given[0].name]) for chunk in chunks)
    size = next((tail for tail in info.tails if tail >= rows), info.batch)
    pad = size - rows
    shapes, pieces = [], []
    for tensor in given:
        found = [as_bytes(tensor, chunk[tensor.name]) for chunk in chunks]
        if pad:
            found.append(bytes(as_bytes(tensor, chunks[-1][tensor.name][-1:])) * pad)
        shapes.append((size, *chunks[0][tensor.name].shape[1:]))
        pieces.append(tuple(found))
    return Part(tuple(shapes), tuple(pieces), rows, pad, tuple(t.name for t in given))


class Codec:
    """Requests and answers of one model as bytes."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._heads: dict[tuple[tuple[str, ...], tuple[Shape, ...]], bytes] = {}
        self._answers: dict[bytes, list[tuple[str, str, Shape]]] = {}

    def encode(self, part: Part) -> bytes:
        """The request, every tensor copied once."""
        joined: list[Piece] = [self._head(part)]
        for tensor in part.pieces:
            joined.append(_tag(_RAW_INPUT, sum(len(piece) for piece in tensor)))
            joined += tensor
        return b"".join(joined)

    def given(self, part: Part) -> list[Tensor]:
        """The inputs that a request gives."""
        return [t for t in self.info.inputs if not part.names or t.name in part.names]

    def _head(self, part: Part) -> bytes:
        key = (part.names, part.shapes)
        if key not in self._heads:
            request = service_pb2.ModelInferRequest(model_name=self.info.name, model_version=self.info.version)
            for tensor, shape in zip(self.given(part), part.shapes, strict=True):
                request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            for tensor in self.info.outputs:
                request.outputs.add(name=tensor.name)
            _make_room(self._heads)
            self._heads[key] = request.SerializeToString()
        return self._heads[key]

    def decode(self, answer: bytes, part: Part) -> dict[str, Array]:
        """The outputs without the padding, as views of the answer (perhaps not aligned) where it allows that.

        Raises:
            InferenceError: An output is missing, or is not what the model's metadata and the request's rows say.
        """
        try:
            head, raw = _split(answer)
            outputs, typed = self._outputs(head)
        except (DecodeError, IndexError) as error:
            raise self._wrong("", f"answered {len(answer)} bytes that are no ModelInferResponse") from error
        if raw and len(raw) != len(outputs):
            raise self._wrong("", f"answered {len(outputs)} outputs and the bytes of {len(raw)}")
        found = {}
        for i, (name, datatype, shape) in enumerate(outputs):
            tensor = next((t for t in self.info.outputs if t.name == name), None)
            if tensor is None:
                continue
            self._check(tensor, datatype, shape, part)
            array = self._read(tensor, shape, raw[i]) if raw else self._typed(tensor, shape, typed[i].contents)
            found[name] = array[: part.rows] if part.pad else array
        for tensor in self.info.outputs:
            if tensor.name not in found:
                raise self._wrong("", f"gave no output {tensor.name}")
        return found

    def _outputs(self, head: bytes) -> tuple[list[tuple[str, str, Shape]], Any]:
        """Name, datatype and shape of each output; and their messages where one of them is new."""
        if head in self._answers:
            return self._answers[head], None
        message = service_pb2.ModelInferResponse.FromString(head)
        if message.model_version and self.info.version not in ("", message.model_version):
            asked, given = self.info.version, message.model_version
            raise self._wrong("", f"version {given} answered, and version {asked} was asked")
        found = [(o.name, o.datatype, tuple(int(n) for n in o.shape)) for o in message.outputs]
        if not any(o.HasField("contents") for o in message.outputs):
            _make_room(self._answers)
            self._answers[head] = found
        return found, message.outputs

    def _check(self, tensor: Tensor, datatype: str, shape: Shape, part: Part) -> None:
        if datatype != tensor.datatype:
            raise self._wrong(tensor.name, f"is {datatype}, its metadata says {tensor.datatype}")
        want = (part.rows + part.pad, *tensor.shape[1:]) if self.info.batch else tensor.shape
        if len(shape) != len(want) or any(w not in (-1, n) for w, n in zip(want, shape, strict=True)):
            expected = tuple("any" if n == -1 else n for n in want)
            raise self._wrong(tensor.name, f"expected shape {expected}, got {shape}".replace("'", ""))

    def _read(self, tensor: Tensor, shape: Shape, raw: memoryview) -> Array:
        try:
            if tensor.datatype == "BYTES":
                array = deserialize_bytes_tensor(bytes(raw))
            else:
                array = np.frombuffer(raw, tensor.dtype).astype(tensor.answer_dtype, copy=False)
            return array.reshape(shape)  # type: ignore[no-any-return]
        except (ValueError, struct.error) as error:
            raise self._wrong(tensor.name, f"has {len(raw)} bytes, which are no {tensor.datatype} {shape}") from error

    def _typed(self, tensor: Tensor, shape: Shape, contents: Any) -> Array:
        if tensor.datatype not in _TYPED:
            raise self._wrong(tensor.name, f"has no bytes, and {tensor.datatype} has no other form")
        values = getattr(contents, _TYPED[tensor.datatype])
        if len(values) != math.prod(shape):
            raise self._wrong(tensor.name, f"has {len(values)} values for the shape {shape}")
        return np.array(values, tensor.dtype).reshape(shape)

    def _wrong(self, output: str, text: str) -> InferenceError:
        where = f"model {self.info.name}" + (f", output {output}" if output else "")
        return InferenceError(text, where=where, permanent=True, remedy="the server or the model is at fault")


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= _KNOWN:
        cache.clear()


def _tag(tag: int, length: int) -> bytes:
    """A length-delimited field's tag and its length as a varint."""
    found = bytearray((tag,))
    while length > 0x7F:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    found.append(length)
    return bytes(found)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _split(answer: bytes) -> tuple[bytes, list[memoryview]]:
    """An answer's fields but the raw outputs, and those.

    Raises:
        DecodeError: Its fields are not where their lengths say.
    """
    view, head, raw, at = memoryview(answer), [], [], 0
    while at < len(answer):
        start = at
        tag, at = _varint(answer, at)
        if tag & 7 != 2:
            raise DecodeError(f"field {tag >> 3} is not length-delimited")
        length, at = _varint(answer, at)
        if at + length > len(answer):
            raise DecodeError(f"field {tag >> 3} ends behind the message")
        if tag == _RAW_OUTPUT:
            raw.append(view[at : at + length])
        else:
            head.append(view[start : at + length])
        at += length
    return b"".join(head), raw


def open_channel(record: Mapping[str, Any]) -> Any:
    """A gRPC channel to a server's record."""
    way = way_to(record)
    if way.credentials is None:
        channel = grpc.insecure_channel(way.target, way.options)
    else:
        channel = grpc.secure_channel(way.target, way.credentials, way.options)
    way.keep_open(channel)
    return channel


def outcome(call: Any) -> tuple[bytes, InferenceServerException | None]:
    """The outcome of a finished call: its answer, or tritonclient's error."""
    try:
        return call.result(), None
    except grpc.FutureCancelledError:
        return b"", InferenceServerException("cancelled: the channel was closed", "StatusCode.CANCELLED")
    except grpc.RpcError as error:
        return b"", InferenceServerException(error.details() or "", str(error.code()))
