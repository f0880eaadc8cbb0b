"""Write `canary.npz`: pairs of particles whose mass is known from how they are made, not from the model's formula.

A particle of mass M decays at rest into two massless ones, and the pair is boosted and turned: M stays what it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SEED, ROWS = 91, 32


def boosted_pairs(mass: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Four-vectors (rows, 8) of the two massless daughters of particles of the given masses, isotropic and boosted."""
    cos, phi = rng.uniform(-1, 1, mass.size), rng.uniform(-np.pi, np.pi, mass.size)
    rapidity = rng.normal(0, 1, mass.size)
    sin, half = np.sqrt(1 - cos**2), mass / 2
    rows = []
    for sign in (1.0, -1.0):
        energy, pz = half, sign * half * cos
        rows += [
            np.cosh(rapidity) * energy + np.sinh(rapidity) * pz,
            sign * half * sin * np.cos(phi),
            sign * half * sin * np.sin(phi),
            np.sinh(rapidity) * energy + np.cosh(rapidity) * pz,
        ]
    return np.stack(rows, axis=1)


if __name__ == "__main__":
    generator = np.random.default_rng(SEED)
    masses = generator.uniform(1.0, 200.0, ROWS)
    pairs = boosted_pairs(masses, generator)
    canary: dict[str, Any] = {"input.P": pairs, "output.MASS": masses[:, None], "rtol": 1e-10, "atol": 0.0}
    np.savez(HERE / "canary.npz", **canary)
