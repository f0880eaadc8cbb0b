"""Train the quark/gluon tagger and write `1/model.onnx` and `canary.npz` beside this file.

Run it as ``python model_repository/qg_tagger/train.py``; it needs scikit-learn, onnx, onnxruntime and takes about ten
seconds of one core. The jets come from the example's generator, drawn with a seed that the example's data never use.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples" / "qg_calibration"))
import jets  # noqa: E402  (the example's own generator, found by the line above)

SEED = 20_240_229
HIDDEN = (24, 16)
Floats = NDArray[np.float32]


def sample(rng: np.random.Generator, n: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Inputs (n, 4) and truth (True = gluon), half of each, over the whole pT range with every pT equally likely."""
    gluon = rng.random(n) < 0.5
    label = jets.draw_labels(rng, ~gluon)
    pt = rng.uniform(*jets.PT_RANGE_GEV, n).astype(np.float32)
    return jets.draw_features(rng, label, pt).inputs(pt), gluon


def normalise(inputs: Floats) -> Floats:
    """The first three inputs are used by their logarithm: they span decades, and so do the differences."""
    return np.concatenate([np.log(inputs[:, :3]), inputs[:, 3:]], axis=1)


def build(network: MLPClassifier, mean: Floats, scale: Floats) -> onnx.ModelProto:
    """The network as ONNX: X (N, 4) float32 raw inputs, SCORE (N, 1) float32 in (0, 1), high = gluon-like."""
    tiny, is_log = np.array([1e-6], np.float32), np.array([[True, True, True, False]])
    constants = {"mean": mean, "scale": scale, "tiny": tiny, "is_log": is_log}
    nodes = [
        helper.make_node("Max", ["X", "tiny"], ["positive"]),  # a width of exactly 0 must not become -inf
        helper.make_node("Log", ["positive"], ["logs"]),
        helper.make_node("Where", ["is_log", "logs", "X"], ["mixed"]),
        helper.make_node("Sub", ["mixed", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["layer0"]),
    ]
    last = len(network.coefs_) - 1
    for i, (matrix, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        constants[f"W{i}"], constants[f"b{i}"] = matrix.astype(np.float32), bias.astype(np.float32)
        nodes.append(helper.make_node("Gemm", [f"layer{i}", f"W{i}", f"b{i}"], [f"sum{i}"]))
        nodes.append(
            helper.make_node(
                "Sigmoid" if i == last else "Relu", [f"sum{i}"], ["SCORE" if i == last else f"layer{i + 1}"]
            )
        )
    graph = helper.make_graph(
        nodes,
        "qg_tagger",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # Opset 13 and IR 8 are understood by every onnxruntime of the last years, so by old Triton containers too.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="qg_tagger"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, write the model and its known answer, print what the README quotes."""
    rng = np.random.default_rng(SEED)
    inputs, gluon = sample(rng, 300_000)
    features = normalise(inputs)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    network = MLPClassifier(HIDDEN, batch_size=2000, learning_rate_init=3e-3, max_iter=20, random_state=SEED, tol=0.0)
    warnings.simplefilter(
        "ignore", ConvergenceWarning
    )  # a fixed number of epochs is the point: same seed, same weights
    network.fit((features - mean) / scale, gluon)
    path = HERE / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build(network, mean.astype(np.float32), scale.astype(np.float32)).SerializeToString())

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    test_inputs, test_gluon = sample(rng, 200_000)
    score = session.run(["SCORE"], {"X": test_inputs})[0]
    for low, high in ((500, 2000), (500, 800), (800, 1200), (1200, 2000)):
        inside = (test_inputs[:, 0] > low) & (test_inputs[:, 0] < high)
        print(f"AUC {low:5d}-{high} GeV: {roc_auc_score(test_gluon[inside], score[inside, 0]):.4f}")
    canary = {
        "input.X": test_inputs[:64],
        "output.SCORE": score[:64],
        "rtol": np.float64(1e-4),
        "atol": np.float64(1e-5),
    }
    np.savez(HERE / "canary.npz", **canary)  # type: ignore[arg-type]  # numpy's stub takes the keywords for its own flag
    print(f"{path}: {path.stat().st_size} bytes, {sum(w.size for w in network.coefs_)} weights")


if __name__ == "__main__":
    main()
