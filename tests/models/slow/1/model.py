"""The identity, after sleeping the parameter delay_s (seconds) per request.

In the folder that the parameter mark names, a file with the server's pid stands as long as a request is in flight;
a number in a file ``pace`` there is taken in place of delay_s. The process of which a file ``hungry-PID`` stands there
takes memory until it is killed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Identity with a delay."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the delay from the model's configuration."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.delay_s = float(parameters.get("delay_s", {}).get("string_value", "0.2"))
        mark = parameters.get("mark", {}).get("string_value")
        self.mark = Path(mark) / str(os.getppid()) if mark else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own input, late."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        delay_s = self.delay_s
        if self.mark:
            self.mark.touch()
            pace = self.mark.with_name("pace")
            delay_s = float(pace.read_text()) if pace.exists() else delay_s
            held = []
            while self.mark.with_name(f"hungry-{os.getpid()}").exists():
                held.append(b"x" * (1 << 24))
        time.sleep(delay_s)
        if self.mark:
            self.mark.unlink()
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", x)])
