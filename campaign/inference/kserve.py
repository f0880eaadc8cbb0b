"""Describes a model's inputs and outputs (KServe v2), checks arrays against them, and classifies errors of servers."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from campaign.discovery.credentials import Credentials
from campaign.errors import InferenceError
from campaign.util.casting import DoesNotFit, as_dtype
from campaign.util.messages import listed, meant
from campaign.util.ownership import door
from campaign.util.text import as_bytes_objects

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
        """The numpy type (object for BYTES, ``ml_dtypes.bfloat16`` for BF16).

        Raises:
            InferenceError: It has none.
        """
        if self.datatype == "BF16":
            import ml_dtypes  # numpy has no such type

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        known = triton_to_np_dtype(self.datatype)
        if known is None:
            raise InferenceError(f"the datatype {self.datatype} of {self.name} has no numpy type", permanent=True)
        dtype: np.dtype[Any] = np.dtype(known)
        return dtype

    @property
    def answer_dtype(self) -> np.dtype[Any]:
        """The numpy type of an answer: BF16 comes as float32, which holds each of its numbers."""
        return np.dtype(np.float32) if self.datatype == "BF16" else self.dtype


@dataclass(frozen=True)
class ModelInfo:
    """A model's metadata, as far as a client needs it.

    Attributes:
        batch: Rows of one request, 0 for a model that does not batch.
        tails: Sizes that the last request may have instead, ascending.
        max_batch: The model's ``max_batch_size``.
        optional: Inputs that may be left out.
        version: The version that answers; empty: the server names none.
        dynamic: Whether the server may mix requests of several callers into one execution.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: int
    max_batch: int
    dynamic: bool
    tails: tuple[int, ...] = ()
    version: str = ""
    optional: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Way:
    """How to reach a server.

    Attributes:
        target: For gRPC.
        credentials: Of TLS; None: it listens without.
        options: Of the channel.
    """

    target: str
    credentials: Any
    options: list[tuple[str, Any]]
    _door: int

    def keep_open(self, user: Any) -> None:
        """Keep what it goes through open for as long as ``user`` lives."""
        if self._door >= 0:
            weakref.finalize(user, os.close, self._door)


def way_to(record: Mapping[str, Any]) -> Way:
    """The way to the server of a record: through a folder of our own, or TLS, where its identity is checked first."""
    url, secret = str(record["url"]), record.get("secret") or Credentials()
    options: list[tuple[str, Any]] = list(CHANNEL_OPTIONS)
    if not secret.ca:
        target, fd = door(url) if record.get("own") and url.startswith("unix:") else (url, -1)
        return Way(target, None, options, fd)
    identity = secret.identity(str(record["name"]))
    if identity:
        options.append(("grpc.ssl_target_name_override", identity))
    given = (secret.ca, secret.key or None, secret.cert or None)
    return Way(url, grpc.ssl_channel_credentials(*given), options, -1)


def open_client(record: Mapping[str, Any]) -> grpcclient.InferenceServerClient:
    """A gRPC client for a server's record."""
    way = way_to(record)
    client = grpcclient.InferenceServerClient(way.target, creds=way.credentials, channel_args=way.options)
    way.keep_open(client)
    return client


def model_info(
    client: grpcclient.InferenceServerClient,
    name: str,
    batch: int | None,
    headers: Mapping[str, str] | None = None,
    version: int | None = None,
) -> ModelInfo:
    """Ask a server for a model's metadata and configuration.

    Args:
        client: Of the server.
        name: The model.
        batch: Rows of one request; None: the model's ``max_batch_size``.
        headers: Sent with the question.
        version: The version to ask for; None: the newest that the server has.
    """
    asked = "" if version is None else str(version)
    sent = dict(headers or {})
    metadata = client.get_model_metadata(name, model_version=asked, headers=sent, client_timeout=30)
    there = [int(v) for v in metadata.versions if v.isdigit()]
    asked = asked or (str(max(there)) if there else "")
    config = client.get_model_config(name, model_version=asked, headers=sent, client_timeout=30).config
    most = int(config.max_batch_size)

    def tensors(given: Any) -> tuple[Tensor, ...]:
        return tuple(Tensor(t.name, t.datatype, tuple(int(n) for n in t.shape)) for t in given)

    size = min(batch or most, most)
    return ModelInfo(
        name, tensors(metadata.inputs), tensors(metadata.outputs), size, most, config.HasField("dynamic_batching"),
        version=asked, optional=frozenset(t.name for t in config.input if t.optional),
    )  # fmt: skip


def check_names(info: ModelInfo, inputs: Arrays) -> None:
    """Every input that is not optional is given, and nothing else.

    Raises:
        InferenceError: Says what the model takes and what was given.
    """
    known = [t.name for t in info.inputs]
    if not set(known) - info.optional <= set(inputs) <= set(known) or not inputs:
        shown = listed(f"{name} (optional)" if name in info.optional else name for name in known)
        strange = next((name for name in inputs if name not in known), "")
        raise InferenceError(
            f"takes the inputs {shown}; given: {listed(inputs) or 'none'}{meant(strange, known)}",
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
        if name not in inputs:
            continue
        where = f"model {info.name}, input {name}"
        array = _as_sent(np.asarray(inputs[name]), tensor, where)
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


def _as_sent(array: np.ndarray[Any, Any], tensor: Tensor, where: str) -> np.ndarray[Any, Any]:
    """Text as bytes, and floats as BF16 where the model takes that; everything else must be of the dtype already."""
    try:
        if tensor.datatype == "BYTES":
            return as_bytes_objects(array)
        if tensor.datatype == "BF16" and array.dtype.kind == "f":
            return as_dtype(array, tensor.dtype)
    except DoesNotFit as error:
        text = f"row {error.row}: {error}"
        raise InferenceError(text, where=where, permanent=True, remedy="correct the value") from None
    return array


def as_input(tensor: Tensor, array: np.ndarray[Any, Any]) -> grpcclient.InferInput:
    """An array as tritonclient wants it."""
    given = grpcclient.InferInput(tensor.name, list(array.shape), tensor.datatype)
    given.set_data_from_numpy(array)
    return given


def permanent(error: InferenceServerException) -> bool:
    """True if no retry on any server can help. The message counts too: refusals also come as UNAVAILABLE."""
    status, text = str(error.status()), str(error.message())
    if identity_refused(error):
        return False  # another server may be the right one
    if "restricted" in text:
        return True
    if "NOT_FOUND" in status:
        return "no available versions" not in text  # that is how a draining server says goodbye
    return any(code in status for code in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"))


def identity_refused(error: InferenceServerException, record: Mapping[str, Any] | None = None) -> bool:
    """True if the listener is not the server of the record. Nothing was sent to it; a retry cannot help.

    Args:
        error: What was said.
        record: Of a server that this campaign has started nobody stands in front: a failed handshake is a stranger.
            Of another it may be a load balancer without a server at the moment.
    """
    text = str(error.message()).lower()
    ours = record is not None and bool((record.get("secret") or Credentials()).domain)
    words = (*_REFUSED, "handshake failed") if ours else _REFUSED
    return "UNAVAILABLE" in str(error.status()) and any(said in text for said in words)


# gRPC's words where the certificate is another's, or expired.
_REFUSED = ("hostname verification", "certificate_verify", "certificate verify failed", "peer name")


def is_model_error(error: InferenceServerException) -> bool:
    """True if the model failed on this input, and its process did not."""
    return "INTERNAL" in str(error.status()) and "is not healthy" not in str(error.message())
