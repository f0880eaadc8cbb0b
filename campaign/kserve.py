"""The KServe v2 side of a call: what a model takes and gives, what is sent held against it, errors told by evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from campaign.errors import InferenceError

Arrays = Mapping[str, Any]

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # each channel connections of its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model, as its metadata says; -1 stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type (object for BYTES).

        Raises:
            InferenceError: It has none.
        """
        known = triton_to_np_dtype(self.datatype)
        if known is None or self.datatype == "BF16":
            raise InferenceError(f"the datatype {self.datatype} of {self.name} has no numpy type", permanent=True)
        dtype: np.dtype[Any] = np.dtype(known)
        return dtype


@dataclass(frozen=True)
class ModelInfo:
    """What a client needs to know of a model.

    Attributes:
        batch: Rows of one request, 0 for a model that does not batch.
        tails: Sizes that the last request may have instead, ascending.
        max_batch: The model's ``max_batch_size``.
        dynamic: Whether the server may mix requests of several callers into one execution.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: int
    max_batch: int
    dynamic: bool
    tails: tuple[int, ...] = ()


def open_client(record: Mapping[str, Any]) -> grpcclient.InferenceServerClient:
    """A gRPC client for a server's record."""
    tls = record.get("tls") or {}
    return grpcclient.InferenceServerClient(
        str(record["url"]),
        ssl=bool(tls),
        root_certificates=tls.get("ca"),
        private_key=tls.get("key"),
        certificate_chain=tls.get("cert"),
        channel_args=CHANNEL_OPTIONS,
    )


def model_info(
    client: grpcclient.InferenceServerClient, name: str, batch: int | None, headers: Mapping[str, str] | None = None
) -> ModelInfo:
    """Ask a server for a model's metadata and configuration."""
    metadata = client.get_model_metadata(name, headers=dict(headers or {}), client_timeout=30)
    config = client.get_model_config(name, headers=dict(headers or {}), client_timeout=30).config
    most = int(config.max_batch_size)

    def tensors(given: Any) -> tuple[Tensor, ...]:
        return tuple(Tensor(t.name, t.datatype, tuple(int(n) for n in t.shape)) for t in given)

    size = min(batch or most, most)
    return ModelInfo(
        name, tensors(metadata.inputs), tensors(metadata.outputs), size, most, config.HasField("dynamic_batching")
    )


def check_names(info: ModelInfo, inputs: Arrays) -> None:
    """Every input is given, and nothing else.

    Raises:
        InferenceError: Says what the model takes and what was given.
    """
    known = [t.name for t in info.inputs]
    if set(inputs) != set(known):
        raise InferenceError(
            f"takes the inputs {', '.join(known)}; given: {', '.join(inputs)}",
            where=f"model {info.name}",
            permanent=True,
        )


def check_inputs(info: ModelInfo, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Hold arrays against the model's metadata.

    Raises:
        InferenceError: A name, a dtype or a shape is not the model's; says which and what it should be.
    """
    check_names(info, inputs)
    known = {t.name: t for t in info.inputs}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in known.items():
        array = np.asarray(inputs[name])
        where = f"model {info.name}, input {name}"
        if array.dtype != tensor.dtype:
            raise InferenceError(
                f"expected {tensor.dtype}, got {array.dtype}",
                where=where,
                permanent=True,
                remedy=f"convert with .astype('{tensor.dtype}')",
            )
        fits = len(array.shape) == len(tensor.shape) and all(
            n in (-1, m) for n, m in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits:
            want = tuple("any" if n == -1 else n for n in tensor.shape)
            raise InferenceError(
                f"expected shape {want}, got {array.shape}".replace("'", ""), where=where, permanent=True
            )
        arrays[name] = np.ascontiguousarray(array)
    if info.batch:
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise InferenceError(f"inputs differ in rows: {lengths}", where=f"model {info.name}", permanent=True)
    return arrays


def as_input(tensor: Tensor, array: np.ndarray[Any, Any]) -> grpcclient.InferInput:
    """An array as tritonclient wants it."""
    given = grpcclient.InferInput(tensor.name, list(array.shape), tensor.datatype)
    given.set_data_from_numpy(array)
    return given


def permanent(error: InferenceServerException) -> bool:
    """Whether asking again, anywhere, cannot help. Judged by the message too: refusals also come as UNAVAILABLE."""
    status, text = str(error.status()), str(error.message())
    if "restricted" in text or "CERTIFICATE" in text.upper():
        return True
    if "NOT_FOUND" in status:
        return "no available versions" not in text  # that is how a draining server says goodbye
    return any(code in status for code in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"))


def is_model_error(error: InferenceServerException) -> bool:
    """Whether the model itself failed on this input, and not the process it runs in."""
    return "INTERNAL" in str(error.status()) and "is not healthy" not in str(error.message())
