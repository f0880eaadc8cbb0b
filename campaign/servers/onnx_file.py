"""Reads the inputs and outputs of a model from its ONNX file, without loading a runtime.

Source: onnx.proto of ONNX (ModelProto, GraphProto, ValueInfoProto, TypeProto, TensorProto); its numbers are stable.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Value = int | memoryview

# TensorProto.DataType -> Triton's TYPE_
DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "STRING", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
_GRAPH = 7  # ModelProto.graph
_OTHER = {4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}


class NotOnnx(ValueError):
    """The file is no ONNX file, or a model of a kind that cannot be served; the text says why and what to do."""


@dataclass(frozen=True)
class OnnxTensor:
    """One input or output of the graph.

    Attributes:
        name: Its name.
        datatype: Triton's name of its type, without ``TYPE_``.
        dims: Its dimensions; -1 where the graph leaves one open.
        first: Name of the first dimension where it is open; empty: it has none.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    first: str = ""


@dataclass(frozen=True)
class OnnxFile:
    """The signature of an ONNX file.

    Attributes:
        inputs, outputs: Without the inputs that the file itself gives a value.
        external: Files beside it that hold weights, by relative name.
    """

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    external: tuple[str, ...]

    def rows(self, said: bool = False) -> int | None:
        """Rows that one call takes: -1 for any number, a number where it is fixed, None where no axis counts rows.

        Open first dimensions of different names (``nodes``, ``edges``) are of different lengths.

        Args:
            said: Whether the campaign says that the first axis counts rows, whatever it is called.
        """
        tensors = (*self.inputs, *self.outputs)
        lengths = {t.dims[0] if t.dims else None for t in tensors}
        names = {t.first for t in tensors if t.first}
        return lengths.pop() if len(lengths) == 1 and (said or len(names) < 2) else None


def read(path: Path) -> OnnxFile:
    """Read the signature of a file.

    Raises:
        NotOnnx: It is no ONNX file; or an input or output is no tensor, or of a type that Triton does not have.
        OSError: It cannot be read.
    """
    now = path.stat()
    return _read(path, now.st_mtime_ns, now.st_size)  # asked for again and again while a campaign is checked


@lru_cache(maxsize=64)
def _read(path: Path, _mtime_ns: int, _size: int) -> OnnxFile:
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            raise NotOnnx("is empty")
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # of files larger than the memory too
    try:
        return _model(memoryview(content))
    except (IndexError, UnicodeDecodeError, OverflowError) as error:
        raise NotOnnx("is no ONNX file") from error


def _model(content: memoryview) -> OnnxFile:
    graphs = [value for field, value in _fields(content) if field == _GRAPH]
    if len(graphs) != 1 or isinstance(graphs[0], int):
        raise NotOnnx("is no ONNX file")
    inputs, outputs, given = [], [], set()
    for field, value in _parts(graphs[0]):
        if field == 5:
            given.add(_text(value, 8))
        elif field == 15:  # sparse: its values have the name
            given.add(_text(_part(value, 1) or memoryview(b""), 8))
        elif field == 11:
            inputs.append(value)
        elif field == 12:
            outputs.append(value)
    taken = tuple(_tensor(v) for v in inputs if _text(v, 1) not in given)
    made = tuple(_tensor(v) for v in outputs)
    if not made:
        raise NotOnnx("is no ONNX file, or a graph without outputs")
    if not taken:
        raise NotOnnx("takes no inputs: its answer is always the same")
    nodes = [node for f, function in _parts(content) if f == 25 for g, node in _parts(function) if g == 7]
    outside = [*_outside(graphs[0]), *(name for node in nodes for name in _outside_node(node))]
    for name in outside:
        if name.startswith(("/", "~")) or ".." in Path(name).parts or not name:
            raise NotOnnx(f"keeps weights in '{name}', outside its folder; save it again with the weights beside it")
    return OnnxFile(taken, made, tuple(dict.fromkeys(outside)))


def _outside(graph: memoryview) -> Iterator[str]:
    """Files with weights of a graph, and of the graphs inside its nodes."""
    for field, value in _parts(graph):
        if field == 5:
            yield from _location(value)
        elif field == 15:
            for _, tensor in _parts(value):
                yield from _location(tensor)
        elif field == 1:
            yield from _outside_node(value)


def _outside_node(node: memoryview) -> Iterator[str]:
    for attribute in (value for field, value in _parts(node) if field == 5):
        for field, value in _parts(attribute):
            if field in (5, 10):  # tensors of Constant nodes
                yield from _location(value)
            elif field in (6, 11):  # branches of If, bodies of Loop and Scan
                yield from _outside(value)


def _location(tensor: memoryview) -> Iterator[str]:
    if any(field == 14 and value == 1 for field, value in _fields(tensor)):
        yield from (_text(v, 2) for field, v in _parts(tensor) if field == 13 and _text(v, 1) == "location")


def _tensor(info: memoryview) -> OnnxTensor:
    name, kind = _text(info, 1), _part(info, 2)
    tensor = _part(kind, 1)
    if kind is None or tensor is None:
        other = next((_OTHER[f] for f, _ in _fields(kind or memoryview(b"")) if f in _OTHER), "value without a type")
        raise NotOnnx(
            f"'{name}' is a {other}, and a server gives tensors only; "
            "export the model without it (skl2onnx: options={'zipmap': False})"
        )
    number = next((v for f, v in _fields(tensor) if f == 1 and isinstance(v, int)), 0)
    if number not in DATATYPES:
        raise NotOnnx(f"'{name}' has the element type {number}, which Triton does not have")
    shape = _part(tensor, 2)
    if shape is None:
        raise NotOnnx(f"'{name}' has no shape; export the model with the shapes of its inputs and outputs")
    dims = [value for field, value in _fields(shape) if field == 1 and not isinstance(value, int)]
    sizes = tuple(_dim(d) for d in dims)
    return OnnxTensor(name, DATATYPES[number], sizes, _text(dims[0], 2) if sizes[:1] == (-1,) else "")


def _dim(dim: memoryview) -> int:
    return next((v for f, v in _fields(dim) if f == 1 and isinstance(v, int) and 0 < v < 1 << 62), -1)


def _text(content: memoryview, wanted: int) -> str:
    found = _part(content, wanted)
    return "" if found is None else bytes(found).decode()


def _part(content: memoryview | None, wanted: int) -> memoryview | None:
    parts = (v for f, v in _fields(content if content is not None else memoryview(b"")) if f == wanted)
    return next((v for v in parts if not isinstance(v, int)), None)


def _parts(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((field, value) for field, value in _fields(content) if not isinstance(value, int))


def _fields(content: memoryview) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a protobuf message; numbers of fixed size are passed over."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield field, value
        elif kind == 2:
            size, at = _varint(content, at)
            if at + size > len(content):
                raise NotOnnx("is no ONNX file, or only the beginning of one")
            yield field, content[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise NotOnnx("is no ONNX file")
        if not field:
            raise NotOnnx("is no ONNX file")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise NotOnnx("is no ONNX file")


ROWS = 8192  # of one request, where the campaign does not say


def complete(config: Any, onnx: OnnxFile, file: str, batch: int | None) -> None:
    """Fill in what a model configuration does not say of an ONNX file, for the Python backend.

    Args:
        config: The ModelConfig; its backend, inputs, outputs and parameters are set.
        onnx: The file's signature.
        file: Its name in the version folder.
        batch: Rows of one request, as the campaign wants them.

    Raises:
        NotOnnx: It cannot be served so.
    """
    config.platform, config.backend, config.default_model_filename = "", "python", ""
    config.parameters["onnx_file"].string_value = file
    if config.input or config.output:
        _agree(config, onnx)
        return
    for tensor in (*onnx.inputs, *onnx.outputs):
        if tensor.datatype == "BF16":
            raise NotOnnx(f"'{tensor.name}' is BF16, which the embedded server's Python backend cannot hold")
    rows = onnx.rows(said=batch is not None)
    if rows is not None:
        config.max_batch_size = rows if rows > 0 else max(batch or 0, ROWS)
    for tensors, put in ((onnx.inputs, config.input), (onnx.outputs, config.output)):
        for tensor in tensors:
            dims = tensor.dims[1:] if rows is not None else tensor.dims
            made = put.add(name=tensor.name, data_type=f"TYPE_{tensor.datatype}")
            made.dims.extend(dims or [1])
            if not dims:  # one number per row: Triton wants an axis, the graph has none
                made.reshape.SetInParent()


def _agree(config: Any, onnx: OnnxFile) -> None:
    """A configuration that names other tensors than the file has, or other types, is refused as Triton refuses it."""
    names = type(config.input.add()).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    del config.input[-1]
    for what, given, tensors in (("input", config.input, onnx.inputs), ("output", config.output, onnx.outputs)):
        there = {tensor.name: tensor.datatype for tensor in tensors}
        for tensor in given:
            kind = names[tensor.data_type].name.removeprefix("TYPE_")
            if tensor.name not in there:
                raise NotOnnx(f"has no {what} '{tensor.name}', which the configuration names; it has {_list(there)}")
            if there[tensor.name] != kind:
                raise NotOnnx(f"has {there[tensor.name]} for '{tensor.name}', and the configuration says {kind}")
        missing = set(there) - {tensor.name for tensor in given} if what == "input" else ()
        if missing:
            raise NotOnnx(f"needs the inputs {_list(sorted(missing))}, which the configuration does not name")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
