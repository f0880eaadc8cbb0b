"""Runs a model in the task's own process, as the last rung of the retry ladder, if the campaign allows it.

A server and its twin need not agree to the last bit (another build of the runtime, a GPU on the other side), so a twin
must first give the known answer that servers must give, and a report says where one was used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import InferenceError
from campaign.util import telemetry  # noqa: F401  before onnxruntime is imported
from campaign.util.text import as_bytes_objects
from campaign.util.user_code import named

if TYPE_CHECKING:
    from campaign.inference.kserve import ModelInfo, Tensor
    from campaign.inference.request import Request

NOTE = "rows were answered by the model's local twin"

Tensors = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, KServe datatype and shape (with the batch's axis) of each input or output."""


@dataclass(frozen=True)
class LocalModel:
    """How a process makes the twin of a model; travels.

    Attributes:
        model: Its name.
        use: ``onnx`` or a class; see `campaign.spec.models.TwinSpec`.
        file: What it is loaded from.
        canary: The known answer.
        rtol, atol: Tolerance; None: the canary's own.
        inputs, outputs, batch, max_batch: Of the model, so that it can be asked where no server ever could.
        tails: See `campaign.spec.models.ModelSpec`.
        reshaped: Inputs that the graph takes in another shape than clients send, ``(name, shape of a row)``; None: its
            outputs too are of the shapes that clients get.
        version: Of the model, as servers are asked for it.
        optional: Inputs that may be left out.
    """

    model: str
    use: str
    file: str
    canary: str
    rtol: float | None
    atol: float | None
    inputs: Tensors
    outputs: Tensors
    batch: int
    max_batch: int
    tails: tuple[int, ...]
    reshaped: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    version: str = ""
    optional: tuple[str, ...] = ()

    def info(self) -> ModelInfo:
        """The metadata of the model."""
        from campaign.inference.kserve import ModelInfo, Tensor

        inputs, outputs = (tuple(Tensor(*t) for t in tensors) for tensors in (self.inputs, self.outputs))
        return ModelInfo(
            self.model, inputs, outputs, self.batch, self.max_batch, False, self.tails, self.version,
            frozenset(self.optional),
        )  # fmt: skip

    def load(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """The model itself, to be called with arrays by input name."""
        if self.use != "onnx":
            return named(self.use)(self.file)  # type: ignore[no-any-return]
        made = Onnx(self.file, self.max_batch > 0)
        return made if self.reshaped is None else Reshaped(made, self)


class Reshaped:
    """A model that takes and gives other shapes than clients send and get, as ``reshape`` of its configuration says."""

    def __init__(self, made: Callable[[Mapping[str, Any]], Mapping[str, Any]], twin: LocalModel) -> None:
        self._made, self._rows = made, twin.max_batch > 0
        self._inputs = dict(twin.reshaped or ())
        self._outputs = {name: shape[self._rows :] for name, _, shape in twin.outputs}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        found = self._made({name: self._as(array, self._inputs.get(name)) for name, array in inputs.items()})
        return {name: self._as(np.asarray(array), self._outputs.get(name)) for name, array in found.items()}

    def _as(self, array: Any, shape: tuple[int, ...] | None) -> Any:
        if shape is None or shape.count(-1) > 1:
            return array
        return array.reshape((len(array), *shape) if self._rows else shape)


class Onnx:
    """A graph in onnxruntime, on one thread of the CPU.

    Args:
        file: The graph.
        rows: Whether the first axis counts rows: a graph for a fixed number gets that many, as the server fills it up.
    """

    def __init__(self, file: str, rows: bool = False) -> None:
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._outputs = [o.name for o in self._session.get_outputs()]
        first = {i.shape[0] if i.shape else None for i in self._session.get_inputs()} if rows else set()
        fixed = first.pop() if len(first) == 1 else None
        self._rows = fixed if isinstance(fixed, int) else 0

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        rows = min((len(array) for array in inputs.values()), default=0) if self._rows else 0
        missing = self._rows - rows if self._rows else 0
        if missing > 0:
            inputs = {name: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) for name, a in inputs.items()}
        found = dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
        return {name: array[:rows] for name, array in found.items()} if missing > 0 else found


def _array(tensor: Tensor, content: bytes, shape: tuple[int, ...]) -> Any:
    if tensor.datatype != "BYTES":
        return np.frombuffer(content, tensor.dtype).reshape(shape)
    from tritonclient.utils import deserialize_bytes_tensor

    array = deserialize_bytes_tensor(content)
    return np.array([value.decode() for value in array.tolist()], object).reshape(shape)  # as onnxruntime takes text


# In the task's process.
class LocalModels:
    """The twins of a process, each loaded when it is first asked.

    Args:
        twins: Those the campaign allows.
    """

    def __init__(self, twins: Iterable[LocalModel]) -> None:
        self._twins = {twin.model: twin for twin in twins}
        self._loaded: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {}
        self._lock = threading.Lock()  # one answer at a time: a process is given one core

    def info(self, model: str) -> ModelInfo | None:
        """The metadata of a model, without a server."""
        return self._twins[model].info() if model in self._twins else None

    def answer(self, request: Request) -> dict[str, Any] | None:
        """The outputs of a request without its padding; None if its model has no twin.

        Raises:
            InferenceError: The twin failed, or gave what the model does not.
        """
        info, part = request.codec.info, request.part
        if info.name not in self._twins:
            return None
        inputs = {}
        for tensor, shape, pieces in zip(request.codec.given(part), part.shapes, part.pieces, strict=True):
            inputs[tensor.name] = _array(tensor, b"".join(pieces), shape)
        with self._lock:
            if info.name not in self._loaded:
                self._loaded[info.name] = self._guarded(info.name, self._twins[info.name].load)
            given = self._guarded(info.name, lambda: self._loaded[info.name](inputs))
        found = {}
        for tensor in info.outputs:
            array = np.asarray(given.get(tensor.name))
            array = as_bytes_objects(array) if tensor.datatype == "BYTES" and array.dtype.kind in "OSU" else array
            array = array.astype(np.float32) if array.dtype == tensor.dtype != tensor.answer_dtype else array
            want = (part.rows + part.pad, *tensor.shape[1:]) if info.batch else tensor.shape
            fits = array.ndim == len(want) and all(w in (-1, n) for w, n in zip(want, array.shape, strict=True))
            if array.dtype != tensor.answer_dtype or not fits:
                raise self._failed(info.name, f"gave {tensor.name} as {array.dtype} {array.shape}")
            found[tensor.name] = array[: part.rows] if part.pad else array
        return found

    def _guarded(self, model: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise self._failed(model, f"{type(error).__name__}: {error}") from error

    def _failed(self, model: str, text: str) -> InferenceError:
        return InferenceError(text, permanent=True, where=f"model {model}, local twin")
