"""Reads a model's known answer (canary) and compares a server's answer with it.

READY alone proves nothing: it stays so after a model is unloaded or its Python process has died, and a model whose
environment is wrong answers READY and then nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from campaign.discovery.credentials import Credentials
from campaign.errors import ModelError
from campaign.inference.kserve import ModelInfo, as_input, model_info, open_client
from campaign.util.casting import DoesNotFit, as_dtype
from campaign.util.text import as_bytes_objects


def client_of(name: str, url: str, secret: Credentials | None = None) -> grpcclient.InferenceServerClient:
    """A client of a server that is being started."""
    return open_client({"name": name, "url": url, "secret": secret, "own": True})


def ready(client: grpcclient.InferenceServerClient) -> bool:
    """True if the server answers and is ready."""
    try:
        return bool(client.is_server_ready(client_timeout=2))
    except InferenceServerException:
        return False


def prove(client: grpcclient.InferenceServerClient, model: str, canary: str | None, deadline_s: float) -> str:
    """Hold a model to its known answer.

    Args:
        client: Of the server.
        model: Its name.
        canary: ``.npz`` with arrays ``input.NAME`` and ``output.NAME`` and, optionally, numbers ``rtol`` and ``atol``;
            None: one request of zeros is sent and only shapes are looked at.
        deadline_s: For the answer.

    Returns:
        A warning, or nothing.

    Raises:
        ModelError: It is not loaded, fails, or answers something else.
    """
    try:
        info = model_info(client, model, None)
        if canary is None:
            _check_shapes(info, _ask(client, info, _zeros(info), deadline_s))
            return (
                f"model {model} has no canary.npz (version {info.version}): only the shapes of its answer were checked"
            )
        known = known_answer(Path(canary))
        answer = _ask(client, info, known.inputs, deadline_s)
    except InferenceServerException as error:
        raise ModelError(f"does not serve its canary: {error.message()}", where=f"model {model}") from error
    known.hold(model, answer)
    return ""


@dataclass(frozen=True)
class KnownAnswer:
    """A known answer.

    Attributes:
        inputs, outputs: Arrays by name.
        rtol, atol: How far an answer may be from it.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rtol: float
    atol: float

    def hold(self, model: str, answer: dict[str, Any], rtol: float | None = None, atol: float | None = None) -> None:
        """Compare an answer with it.

        Raises:
            ModelError: It is another one.
        """
        rtol, atol = self.rtol if rtol is None else rtol, self.atol if atol is None else atol
        for name, want in self.outputs.items():
            _compare(model, name, answer, want, rtol, atol)


def known_answer(path: Path) -> KnownAnswer:
    """Read a ``canary.npz``.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            known = {name: file[name] for name in file.files}
            inputs, outputs = (
                {n.removeprefix(p): a for n, a in known.items() if n.startswith(p)} for p in ("input.", "output.")
            )
            return KnownAnswer(inputs, outputs, float(known.get("rtol", 1e-5)), float(known.get("atol", 1e-6)))
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"its canary cannot be read: {error}", where=str(path)) from error


def _zeros(info: ModelInfo) -> dict[str, Any]:
    made = {t.name: np.zeros([max(n, 1) for n in t.shape], t.dtype) for t in info.inputs}
    for tensor in info.inputs:
        if tensor.datatype == "BYTES":
            made[tensor.name][...] = b""
    return made


def ask(record: Mapping[str, Any], model: str, inputs: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    """The answer of one server to one request, neither cut nor padded.

    Args:
        record: The server's.
        model: Its name.
        inputs: Arrays by input.
        deadline_s: For the answer.

    Raises:
        ModelError: It does not answer.
    """
    with closing(open_client(record)) as client:
        try:
            return _ask(client, model_info(client, model, None), inputs, deadline_s)
        except InferenceServerException as error:
            raise ModelError(f"does not answer: {error.message()}", where=f"model {model}") from error


def _ask(
    client: grpcclient.InferenceServerClient, info: ModelInfo, inputs: dict[str, Any], deadline_s: float
) -> dict[str, Any]:
    given = []
    for tensor in info.inputs:
        if tensor.name in info.optional and tensor.name not in inputs:
            continue
        if tensor.name not in inputs:
            raise ModelError(f"its canary has no input.{tensor.name}", where=f"model {info.name}")
        try:
            array = inputs[tensor.name]
            array = as_bytes_objects(array) if tensor.datatype == "BYTES" else as_dtype(array, tensor.dtype)
        except DoesNotFit as error:
            where = f"model {info.name}"
            raise ModelError(f"its canary's input.{tensor.name}, row {error.row}: {error}", where=where) from None
        given.append(as_input(tensor, np.ascontiguousarray(array)))
    # A Python model may answer late right after loading; the deadline is the server's start deadline.
    result = client.infer(info.name, given, client_timeout=deadline_s)
    found = {t.name: result.as_numpy(t.name) for t in info.outputs}
    return {
        t.name: found[t.name] if found[t.name] is None else found[t.name].astype(t.answer_dtype, copy=False)
        for t in info.outputs
    }


def _check_shapes(info: ModelInfo, answer: dict[str, Any]) -> None:
    for tensor in info.outputs:
        got = answer.get(tensor.name)
        shape, want = () if got is None else got.shape, tensor.shape
        if len(shape) != len(want) or any(w not in (-1, n) for w, n in zip(want, shape, strict=True)):
            raise ModelError(
                f"gives {tensor.name} of shape {shape}, its metadata says {want}", where=f"model {info.name}"
            )


def _compare(model: str, name: str, answer: dict[str, Any], want: Any, rtol: float, atol: float) -> None:
    got = answer.get(name)
    where = f"model {model}"
    if got is None:
        raise ModelError(f"gives no output {name}, its known answer has one", where=where)
    if got.shape != want.shape:
        raise ModelError(f"wrong answer: {name} has shape {got.shape}, known is {want.shape}", where=where)
    if want.dtype.kind in "SUO" or got.dtype.kind == "O":
        same = bool(np.array_equal(_text(got), _text(want)))
    elif want.dtype.kind in "fc":
        same = np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    else:
        same = bool(np.array_equal(got, want))
    if not same:
        raise ModelError(
            f"wrong answer: {name} is {_few(got)}, known is {_few(want)}",
            where=where,
            remedy="the server's environment (numpy 2?) or the model differs from what made canary.npz; "
            f"for another model make another one: campaign canary FILE {model}",
        )


def _text(array: Any) -> Any:
    try:
        return as_bytes_objects(np.asarray(array))
    except DoesNotFit:
        return array


def hold_rows(client: grpcclient.InferenceServerClient, model: str, canary: str | None, deadline_s: float) -> int:
    """Hold a model whose first axis was taken to count rows to that: a row has one answer, alone and among others.

    Args:
        client: Of the server.
        model: Its name.
        canary: Where rows come from; None, or where it has one row: numbers drawn at random.
        deadline_s: For each answer.

    Returns:
        The number of requests sent.

    Raises:
        ModelError: The answer to a row depends on the other rows of its request.
    """
    info = model_info(client, model, None)
    if info.batch < 2:
        return 0
    inputs = known_answer(Path(canary)).inputs if canary else {}
    rows = min((len(array) for array in inputs.values()), default=0)
    if rows < 2:  # one row cannot tell
        inputs = _drawn(info)
        rows = len(next(iter(inputs.values())))
    try:
        among = _ask(client, info, inputs, deadline_s)
        alone = _ask(client, info, {name: array[:1] for name, array in inputs.items()}, deadline_s)
    except InferenceServerException:
        return 0  # what it cannot answer tells nothing; its known answer, or zeros, will
    for name, one in alone.items():
        many = among[name]
        if len(many) != rows or (one.shape == many[:1].shape and not _alike(one, many[:1])):
            raise ModelError(
                f"the answer to a row depends on the other rows of its request: {name} is {_few(one)} alone, "
                f"{_few(many[:1])} among {rows} rows; its first axis does not count rows",
                where=f"model {model}",
                remedy="make it a folder of a model repository with a config.pbtxt that says max_batch_size: 0",
            )
    return 2


def _drawn(info: ModelInfo) -> dict[str, Any]:
    made, rng = _zeros(info), np.random.default_rng(0)
    for name, array in made.items():
        array = np.repeat(array, min(4, info.max_batch), axis=0)
        made[name] = rng.normal(size=array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
    return made


def _alike(one: Any, other: Any) -> bool:
    """Equal but for what another order of the same operations may do."""
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    far = 2e-2 if one.dtype.itemsize < 4 else 1e-3
    scale = float(np.nanmax(np.abs(other), initial=0.0))
    return bool(np.allclose(one, other, rtol=far, atol=far * (scale if np.isfinite(scale) else 1.0), equal_nan=True))


def _few(array: Any) -> str:
    return np.array2string(np.asarray(array).ravel()[:4], precision=6, threshold=4)


Counts = dict[str, list[int]]
"""``{model: [rows inferred, executions, ns computing, ns queueing, requests answered, requests failed]}``"""

NOTHING = [0, 0, 0, 0, 0, 0]
OK, FAILED = 4, 5  # where in these numbers


def statistics(client: grpcclient.InferenceServerClient, timeout_s: float = 2.0) -> Counts | None:
    """The counters of the server since its start. Compute time includes the copies in and out.

    Returns:
        Counts; none for a server that answers and keeps none. None: it does not answer.
    """
    try:
        told = client.get_inference_statistics(client_timeout=timeout_s)
    except InferenceServerException as error:
        return None if any(x in str(error.status()) for x in ("DEADLINE", "UNAVAILABLE", "CANCELLED")) else {}
    return {m.name: [m.inference_count, m.execution_count, *_times(m)] for m in told.model_stats}


def _times(model: Any) -> list[int]:
    s = model.inference_stats
    # A batch computes once for all of its requests: the requests' own times would count it as often as it has members.
    once = [
        getattr(b, part).ns for b in model.batch_stats for part in ("compute_input", "compute_infer", "compute_output")
    ]
    return [sum(once), s.queue.ns, s.success.count, s.fail.count]
