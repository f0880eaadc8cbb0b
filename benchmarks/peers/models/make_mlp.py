"""Write `mlp/1/model.onnx` (4-64-64-1, ReLU, sigmoid, weights drawn with a fixed seed) and its known answer.

``python benchmarks/peers/models/make_mlp.py``; needs onnx and onnxruntime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
WIDTHS = (4, 64, 64, 1)


def main() -> None:
    rng = np.random.default_rng(4)
    constants, nodes = [], []
    for i, (wide, high) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
        matrix = (rng.standard_normal((wide, high)) * np.sqrt(2 / wide)).astype(np.float32)
        constants += [numpy_helper.from_array(matrix, f"W{i}")]
        constants += [numpy_helper.from_array(np.zeros(high, np.float32), f"b{i}")]
        last = high == WIDTHS[-1]
        nodes.append(helper.make_node("Gemm", ["X" if i == 0 else f"layer{i}", f"W{i}", f"b{i}"], [f"sum{i}"]))
        nodes.append(
            helper.make_node("Sigmoid" if last else "Relu", [f"sum{i}"], ["SCORE" if last else f"layer{i + 1}"])
        )
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", WIDTHS[0]])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["N", WIDTHS[-1]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="mlp")
    onnx.checker.check_model(model, full_check=True)
    (HERE / "mlp/1/model.onnx").write_bytes(model.SerializeToString())
    x = rng.random((64, WIDTHS[0]), dtype=np.float32) * 2
    (score,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["SCORE"], {"X": x})
    known = {"rtol": np.float64(1e-4), "atol": np.float64(1e-5)}
    np.savez(HERE / "mlp/canary.npz", **{"input.X": x, "output.SCORE": score}, **known)
    np.savez(HERE / "stand_in/canary.npz", **{"input.X": x, "output.SCORE": np.minimum(x[:, 3:], 1)}, **known)


if __name__ == "__main__":
    main()
