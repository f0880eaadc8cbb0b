"""The same model in the task's own process: the last rung of the ladder, for campaigns that allow it.

A server and its twin need not agree to the last bit (another build of the runtime, a GPU on the other side), so a twin
must first give the known answer that servers must give, and a report says where one was used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import CampaignError, InferenceError, SpecError
from campaign.spec.models import ModelSpec
from campaign.util.text import as_bytes_objects
from campaign.util.user_code import named

if TYPE_CHECKING:
    from campaign.inference.kserve import ModelInfo, Tensor
    from campaign.inference.request import Request

NOTE = "rows were answered by the model's local twin"
DEADLINE_S = 300.0  # of the check: a large model takes a while to load

Tensors = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, KServe datatype and shape (with the batch's axis) of each input or output."""


@dataclass(frozen=True)
class Twin:
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
        """What a client needs to know of the model."""
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

    def __init__(self, made: Callable[[Mapping[str, Any]], Mapping[str, Any]], twin: Twin) -> None:
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


def twin_of(kind: Any, base: Path, model: str, spec: ModelSpec) -> Twin | None:
    """The twin that a campaign allows for a model, None if it allows none.

    Args:
        kind: The server kind; one that knows a model's folder and configuration has ``folder`` and ``config``.
        base: Where relative paths start.
        model: Its name.
        spec: How it is used.

    Raises:
        SpecError: A file is missing, or the kind does not know its models.
    """
    given, key = spec.local_twin, ("servers", "models", model, "local_twin")
    if given is None:
        return None
    if not hasattr(kind, "folder") or not hasattr(kind, "config"):
        raise SpecError("only servers started for the campaign know what a twin must be", key=key, remedy="take it out")

    def path(name: str) -> Path:
        return (base / Path(name).expanduser()).resolve()

    folder = kind.folder(model)
    version = folder / str(kind.version(model))
    own = kind.onnx(model) if hasattr(kind, "onnx") else None
    usual = path(spec.files["model.onnx"]) if "model.onnx" in spec.files else own or version / "model.onnx"
    if given.use != "onnx" and given.file is None:
        usual = version
    file = path(given.file) if given.file else usual
    canary = kind.canary(model)
    if not file.exists():
        raise SpecError(f"there is no {file}", key=key, remedy="name the model's file: local_twin: {file: ...}")
    if not canary.is_file():
        raise SpecError(
            f"needs a known answer to be held to, and there is no {canary}",
            key=key,
            remedy=f"make it: campaign canary FILE {model}",
        )
    config = kind.config(model)
    first = (-1,) if config.max_batch_size else ()

    def tensors(given: Iterable[Any]) -> Tensors:
        names = {t.name: type(t).DESCRIPTOR.fields_by_name["data_type"].enum_type for t in given}
        return tuple(
            (t.name, _datatype(names[t.name].values_by_number[t.data_type].name), (*first, *t.dims)) for t in given
        )

    use = given.use
    if use != "onnx" and use.partition(":")[0].endswith(".py"):
        use = f"{path(use.rpartition(':')[0])}:{use.rpartition(':')[2]}"
    most = int(config.max_batch_size)
    return Twin(
        model, use, str(file), str(canary), given.rtol, given.atol, tensors(config.input), tensors(config.output),
        min(spec.batch or most, most), most, tuple(sorted(spec.tails)),
        _reshaped(config), str(kind.version(model)), tuple(t.name for t in config.input if t.optional),
    )  # fmt: skip


def _reshaped(config: Any) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    if not any(t.HasField("reshape") for t in (*config.input, *config.output)):
        return None
    return tuple((t.name, tuple(t.reshape.shape)) for t in config.input if t.HasField("reshape"))


def _datatype(name: str) -> str:
    """KServe's name of a datatype of Triton's configuration."""
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def _array(tensor: Tensor, content: bytes, shape: tuple[int, ...]) -> Any:
    if tensor.datatype != "BYTES":
        return np.frombuffer(content, tensor.dtype).reshape(shape)
    from tritonclient.utils import deserialize_bytes_tensor

    array = deserialize_bytes_tensor(content)
    return np.array([value.decode() for value in array.tolist()], object).reshape(shape)  # as onnxruntime takes text


# In the task's process.
class Twins:
    """The twins of a process, each loaded when it is first asked.

    Args:
        twins: Those the campaign allows.
    """

    def __init__(self, twins: Iterable[Twin]) -> None:
        self._twins = {twin.model: twin for twin in twins}
        self._loaded: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {}
        self._lock = threading.Lock()  # one answer at a time: a process is given one core

    def info(self, model: str) -> ModelInfo | None:
        """What is known of a model without asking a server."""
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


# Before anything is started.
def agree(twins: Iterable[Twin]) -> CampaignError | None:
    """Hold twins to the known answers of their models.

    Returns:
        What is wrong with the first that does not give it.
    """
    from campaign.inference.canary import known_answer

    for twin in twins:
        key = ("servers", "models", twin.model, "local_twin")
        try:
            known = known_answer(Path(twin.canary))
            known.hold(twin.model, dict(twin.load()(known.inputs)), twin.rtol, twin.atol)
        except CampaignError as error:
            return SpecError(f"{error.message} (its canary is {twin.canary})", key=key, remedy="see local_twin.rtol")
        except Exception as error:  # noqa: BLE001  a model may raise anything
            remedy = "pip install onnxruntime" if isinstance(error, ImportError) else "see local_twin.file"
            return SpecError(f"cannot be asked: {type(error).__name__}: {error}", key=key, remedy=remedy)
    return None


def agree_and_tell(pipe: Connection, twins: tuple[Twin, ...]) -> None:
    """`agree`, in a process of its own: a model's runtime does not belong into the driver."""
    pipe.send(agree(twins))
