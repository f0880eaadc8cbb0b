"""The identity, until an input value is 666: then the backend's process dies while the server still says ready."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"

DEADLY = 666.0


class TritonPythonModel:
    """Identity that can be killed by a request."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own input, or die."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        if (x == DEADLY).any():
            os._exit(1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", x)])
