"""Triton's side of the track GNN: one request is one event, FEATURES and EDGES in, LOGITS and LABELS out."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from gnn import TrackGNN, check_edges, track_labels

# The stub of this server reads every element as the first one under numpy 2, and says nothing.
assert int(np.__version__.split(".")[0]) < 2, f"the python backend needs numpy < 2, found {np.__version__}"


class TritonPythonModel:
    """Classifies the edges of an event and numbers its tracks, on one core."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002  Triton prescribes the signature
        """Load the weights that lie beside this file."""
        if not _one_blas_thread():
            pb_utils.Logger.log_warn("track_gnn: numpy's OpenBLAS was not found; set OPENBLAS_NUM_THREADS=1")
        _keep_memory()
        with np.load(Path(__file__).with_name("weights.npz")) as weights:
            self.network = TrackGNN(dict(weights))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own: events are never mixed."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        features = pb_utils.get_input_tensor_by_name(request, "FEATURES").as_numpy()
        edges = pb_utils.get_input_tensor_by_name(request, "EDGES").as_numpy()
        wrong = check_edges(edges, len(features))
        if wrong:
            error = pb_utils.TritonError(f"track_gnn: {wrong}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        logits = self.network.logits(features, edges)
        labels = track_labels(len(features), edges, logits)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits), pb_utils.Tensor("LABELS", labels)])


def _one_blas_thread() -> bool:
    """Keep numpy on one core: neither the answer's last bits nor the neighbours shall depend on the machine's size.

    The stub has imported numpy before this file is read, so an environment variable set here would come too late.
    """
    for library in Path(np.__file__).parent.parent.glob("numpy.libs/lib*openblas*"):
        for prefix in ("", "scipy_"):
            setter = getattr(ctypes.CDLL(str(library)), f"{prefix}openblas_set_num_threads64_", None)
            if setter is not None:
                setter(1)
                return True
    return False


def _keep_memory() -> None:
    """Let malloc keep what an event's arrays took: given back, it is cleared page by page for the next event.

    That is 344 page faults per event of 314 points, a tenth of its time.
    """
    trim_threshold, mmap_threshold = -1, -3  # glibc's malloc.h; another C library is left as it is
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, 1 << 30)
