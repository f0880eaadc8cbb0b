"""A stand-in for a model on an accelerator: each request takes delay_s seconds and none of this machine's cores."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Waits, then gives back each row's first feature as its score."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the delay from the model's configuration."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.delay_s = float(parameters["delay_s"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one request after the other, each after the delay."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        time.sleep(self.delay_s)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORE", np.ascontiguousarray(x[:, :1]))])
