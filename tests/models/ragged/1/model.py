"""One event per request, with axes that vary: sums of rows, shifted edges, and how many rows there were."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """S = W times the sum of each row of F; D = E + rows of F; N = rows of F."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        f, e, w = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("F", "E", "W"))
        found = {"S": w * (f[:, 0] + f[:, 1] + f[:, 2]), "D": e + len(f), "N": np.array([len(f)], np.int64)}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in found.items()])
