"""Write the canaries of the test models beside them; run again after a change here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
X = np.array([[0.5], [-2.0], [3.25], [7.0]], dtype=np.float32)
IDENTITIES = ("slow", "stub_dies", "hangs_at_load", "crashes_at_load", "uses_identity_c", "uses_identity_py")


def answers() -> dict[str, np.ndarray]:
    """The output each model is expected to give for X; wrong_answer's is wrong on purpose."""
    centred = (X - X.mean(dtype=np.float64)).astype(np.float32)
    return {
        "batch_sensitive": centred,
        "batch_sensitive_dynamic": centred,
        "wrong_answer": X + np.float32(1.0),
        **dict.fromkeys(IDENTITIES, X),
    }


def other_answers() -> dict[str, dict[str, np.ndarray]]:
    """Inputs and outputs of the models that have more than X and Y."""
    f, e = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([[0, 1, 3], [1, 2, 0]])
    return {
        "odd": {"input.X": X, "output.Y": X, "output.Z": X},
        "ragged": {
            "input.F": f, "input.E": e, "input.W": np.array([0.5], np.float32),
            "output.S": f.sum(axis=1) / 2, "output.D": e + 4, "output.N": np.array([4]),
        },
    }  # fmt: skip


def main() -> None:
    """Write one canary.npz per model."""
    known = {model: {"input.X": X, "output.Y": y} for model, y in answers().items()} | other_answers()
    for model, arrays in known.items():
        np.savez(HERE / model / "canary.npz", **arrays, rtol=np.float64(0), atol=np.float64(1e-6))


if __name__ == "__main__":
    main()
