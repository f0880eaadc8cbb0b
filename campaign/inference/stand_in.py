"""Servers that answer zeros of the declared shapes, for trying stages before a real server is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from campaign.errors import InferenceError
from campaign.inference.kserve import ModelInfo, Tensor, check_inputs
from campaign.inference.ragged import Ragged, events, parts
from campaign.util.messages import unknown

Signature = Mapping[str, Any]
"""A model's ``inputs`` and ``outputs`` (name, datatype, shape), ``batch``, ``max_batch``, ``optional``: JSON-able."""


def info_of(name: str, signature: Signature) -> ModelInfo:
    """The metadata that a client would get for the model."""
    inputs, outputs = (
        tuple(Tensor(n, kind, tuple(shape)) for n, kind, shape in signature[side]) for side in ("inputs", "outputs")
    )
    return ModelInfo(
        name,
        inputs,
        outputs,
        signature["batch"],
        signature["max_batch"],
        False,
        optional=frozenset(signature["optional"]),
    )


class NotAsked(InferenceError):
    """A model of servers that already run, which a try does not ask."""


class StandInServers:
    """The ``ctx.servers`` of a stage that is tried. It checks inputs as a real server does.

    Args:
        signatures: Of the models there are.

    Attributes:
        taken: The inputs that each model was given first.
        calls: How often one was asked.
    """

    stand_in = True

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self._models = {name: info_of(name, signature) for name, signature in signatures.items()}
        self.taken: dict[str, dict[str, Any]] = {}
        self.calls = 0

    def model(self, name: str) -> ModelInfo:
        """See `campaign.inference.client.Servers.model`.

        Raises:
            InferenceError: There is no such model.
        """
        if not self._models:
            raise NotAsked("servers that already run are not asked for their models", where=f"model {name}")
        if name not in self._models:
            raise InferenceError(
                unknown(name, sorted(self._models), "models of the campaign"), where=f"model {name}", permanent=True
            )
        return self._models[name]

    def start(self, model: str, inputs: Mapping[str, Any]) -> StandInAnswer:
        """See `campaign.inference.client.Servers.start`.

        Raises:
            InferenceError: Wrong name, shape or dtype.
        """
        info = self.model(model)
        self.calls += 1
        if any(isinstance(given, Ragged) for given in inputs.values()):
            rows = len(parts(info, events(info, inputs)))
            self.taken.setdefault(model, dict(inputs))
            return StandInAnswer(info, rows, events=True)
        arrays = check_inputs(info, inputs)
        self.taken.setdefault(model, arrays)
        return StandInAnswer(info, len(next(iter(arrays.values()))), events=False)

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `campaign.inference.client.Servers.infer`."""
        return self.start(model, inputs).result()

    def infer_events(self, model: str, given: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `campaign.inference.client.Servers.infer_events`."""
        return [self.infer(model, event) for event in given]

    def infer_ragged(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `campaign.inference.client.Servers.infer_ragged`."""
        return self.infer(model, events(self.model(model), inputs))


class StandInAnswer:
    """Zeros (empty text) in the shapes that the model declares; an open axis has one entry."""

    sent = True

    def __init__(self, info: ModelInfo, rows: int, *, events: bool) -> None:
        self._info, self._rows, self._events = info, rows, events

    def result(self) -> dict[str, Any]:
        """The outputs by name."""
        return {t.name: self._zeros(t) for t in self._info.outputs}

    def cancel(self) -> None:
        """Nothing is under way."""

    def _zeros(self, tensor: Tensor) -> Any:
        inner = tensor.shape[1:] if self._info.batch else tensor.shape
        if self._events and -1 in tensor.shape:
            size = self._rows * int(np.prod([max(n, 1) for n in tensor.shape]))
            return Ragged(np.zeros(size, tensor.answer_dtype), np.ones(self._rows, np.int64), tensor.shape)
        if not self._info.batch and not self._events:  # one request with the arrays as they are: -1 is the rows
            shape = [self._rows if n == -1 else n for n in tensor.shape]
        else:
            shape = [self._rows, *(max(n, 1) for n in inner)]
        made = np.zeros(shape, tensor.answer_dtype)
        if tensor.datatype == "BYTES":
            made[...] = b""
        return made
