"""The identity, twice; unless the first number says to answer wrongly: -1 a row too few, -2 an output too few."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Identity that can be told to be wrong."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        y = x[:-1] if x[0, 0] == -1 else x
        outputs = [pb_utils.Tensor("Y", y), pb_utils.Tensor("Z", x)]
        return pb_utils.InferenceResponse(outputs[:1] if x[0, 0] == -2 else outputs)
