"""Triton's side of the networks of `gpu.py`: one request is one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networks
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The network its parameter names, on the device Triton gave this instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build it."""
        config = json.loads(args["model_config"])
        gpu = args["model_instance_kind"] == "GPU"
        self.device = f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.output = config["output"][0]["name"]
        name = config["parameters"]["network"]["string_value"]
        self.network = networks.build(name, self.device, Path(__file__).parent)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
        result = networks.answer(self.network, self.device, arrays)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.output, result)])
