"""Text in, the same text in capitals out."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Capitals."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        y = np.array([[bytes(cell).decode().upper().encode() for cell in row] for row in x], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", y)])
