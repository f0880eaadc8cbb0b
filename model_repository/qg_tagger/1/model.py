"""The quark/gluon tagger in Triton's python backend: `model.onnx` beside this file, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

assert int(np.__version__.split(".")[0]) < 2, (
    f"numpy {np.__version__} in the server's environment: this backend was built for numpy 1 and would silently read "
    "every element of an input as the first one; install numpy<2 there"
)


class TritonPythonModel:
    """One instance of the model, on the CPU or on the GPU that Triton gave it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph; one thread, so that an answer does not depend on how many cores the machine has."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(__file__).with_name("model.onnx")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=_providers(args))
        self._declared = {item["name"] for item in json.loads(args["model_config"])["input"]}
        expected = {item.name for item in self._session.get_inputs()}
        if self._declared != expected:
            raise pb_utils.TritonModelException(f"config declares inputs {self._declared}, {path} takes {expected}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: neighbours never share a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        inputs = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._declared}
        (score,) = self._session.run(["SCORE"], inputs)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORE", score)])


def _providers(args: dict[str, str]) -> list[Any]:
    """CUDA where Triton placed this instance on a GPU and onnxruntime can use it, else the CPU."""
    on_gpu = args["model_instance_kind"] == "GPU"
    if on_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # TF32 would round the inputs of every product to 10 bits.
        cuda = {"device_id": int(args["model_instance_device_id"]), "use_tf32": 0}
        return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
