"""Y = X minus the mean of X over everything that is executed together: batching by the server shows in the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Sees the requests of one execution as one batch, as a model behind a concatenating backend does."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Subtract the mean over all rows of all requests."""
        rows = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        mean = np.concatenate(rows).mean(dtype=np.float64)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", (x - mean).astype(np.float32))]) for x in rows]
