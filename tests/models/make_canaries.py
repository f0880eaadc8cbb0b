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


def main() -> None:
    """Write one canary.npz per model."""
    for model, y in answers().items():
        np.savez(
            HERE / model / "canary.npz",
            **{"input.X": X, "output.Y": y, "rtol": np.float64(0), "atol": np.float64(1e-6)},
        )


if __name__ == "__main__":
    main()
