"""Serves an ONNX file in Triton's Python backend: the ``model.py`` of a model that has none.

It runs in the server's own environment, which holds numpy 1 and onnxruntime, and nothing of campaign.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """One instance of the model, on the CPU or on the GPU that Triton gave it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph; one thread, so that an answer does not depend on how many cores the machine has."""
        import onnxruntime  # type: ignore[import-not-found,unused-ignore]

        if int(np.__version__.split(".")[0]) >= 2:  # its arrays would be read wrongly by this server's Python stub
            raise RuntimeError(f"numpy {np.__version__} in the server's environment: numpy<2 is needed there")
        config = json.loads(args["model_config"])
        options = _options(config, onnxruntime)
        path = Path(__file__).with_name(config["parameters"]["onnx_file"]["string_value"])
        self._session = onnxruntime.InferenceSession(str(path), options, providers=_providers(args, onnxruntime))
        self._inputs = {item["name"]: item["data_type"] for item in config["input"]}
        self._outputs = [item["name"] for item in config["output"]]
        first = [i.shape[0] for i in self._session.get_inputs() if i.name in self._inputs and i.shape]
        # A graph made for a fixed number of rows gets that many, whatever the request holds.
        self._rows = first[0] if int(config["max_batch_size"]) and first and isinstance(first[0], int) else 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: neighbours never share a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

        inputs, rows = {}, 0
        for name, kind in self._inputs.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:  # optional in the configuration
                continue
            array = tensor.as_numpy()
            if kind == "TYPE_STRING":
                array = np.array([value.decode() for value in array.reshape(-1)], object).reshape(array.shape)
            rows = len(array) if array.ndim else 0
            missing = self._rows - rows if self._rows else 0
            inputs[name] = np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing > 0 else array
        found = self._session.run(self._outputs, inputs)
        found = [array[:rows] if self._rows else array for array in found]
        tensors = [pb_utils.Tensor(name, _sent(array)) for name, array in zip(self._outputs, found)]  # noqa: B905  3.10
        return pb_utils.InferenceResponse(tensors)


def _options(config: dict[str, Any], onnxruntime: Any) -> Any:
    """Settings of Triton's onnxruntime backend that change an answer; one thread unless the configuration says more.

    Source: README of onnxruntime_backend, "Model Config Options".
    """
    given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(given.get("intra_op_thread_count", 1))
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", 1))
    if given.get("execution_mode") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    levels = onnxruntime.GraphOptimizationLevel
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    known = {-1: levels.ORT_ENABLE_BASIC, 1: levels.ORT_ENABLE_EXTENDED, 2: levels.ORT_DISABLE_ALL}
    options.graph_optimization_level = known.get(level, levels.ORT_ENABLE_ALL)
    for name, value in given.items():
        if name.startswith("session."):
            options.add_session_config_entry(name, value)
    return options


def _sent(array: Any) -> Any:
    """Text as bytes, which is how Triton's Python backend takes it."""
    if array.dtype.kind not in "OU":
        return array
    return np.array([str(value).encode() for value in array.reshape(-1)], object).reshape(array.shape)


def _providers(args: dict[str, str], onnxruntime: Any) -> list[Any]:
    """CUDA where Triton placed this instance on a GPU and onnxruntime can use it, else the CPU."""
    if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # TF32 would round the inputs of every product to 10 bits.
        cuda = {"device_id": int(args["model_instance_device_id"]), "use_tf32": 0}
        return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
