"""Invariant mass of a pair of four-vectors: the smallest model that is of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """P = (E1, px1, py1, pz1, E2, px2, py2, pz2) in GeV to MASS in GeV; a row's answer depends on that row alone."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        p = pb_utils.get_input_tensor_by_name(request, "P").as_numpy()
        energy, px, py, pz = (p[:, :4] + p[:, 4:]).T
        square = energy**2 - px**2 - py**2 - pz**2
        # Two parallel massless particles have mass 0, which rounding may make the root of a negative number.
        mass = np.sqrt(np.maximum(square, 0.0))[:, None]
        return pb_utils.InferenceResponse([pb_utils.Tensor("MASS", mass)])
