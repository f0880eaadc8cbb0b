"""The matrix method: pure quark and gluon spectra out of two regions that hold both in different proportions.

Arrays hold sums of weights `w` and of squared weights `w2`. Regions come in the order (forward, central), flavours in
the order (quark, gluon). Everything here is about one pT bin and knows no histogram library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIN_D, MIN_SIGNIFICANCE = 0.05, 5.0


class Degenerate(ValueError):
    """Nothing can be said of this pT bin: a region is empty, or the two cannot be told apart."""


def reweighting(forward: Array, central: Array) -> tuple[Array, float]:
    """Factors that give central jets the forward shape, bin by bin.

    Args:
        forward: Sums of weights of forward jets of one flavour.
        central: The same of central jets.

    Returns:
        The ratio of the two normalised spectra, 0 where the central one is empty, and the share of the forward weight
        that lies in such bins and is lost thereby.
    """
    shape_forward, shape_central = normalised(forward), normalised(central)
    filled = shape_central > 0
    factors = np.divide(shape_forward, shape_central, out=np.zeros_like(shape_forward), where=filled)
    return factors, float(np.abs(shape_forward[~filled]).sum())


def normalised(spectrum: Array) -> Array:
    """The spectrum divided by its sum; all zeros if there is nothing in it."""
    total = spectrum.sum()
    return spectrum / total if total > 0 else np.zeros_like(spectrum)


def efficiency(w: Array, w2: Array, passed: slice) -> tuple[float, float]:
    """Share of the weight in the bins `passed`, and its variance.

    The variance is that of a weighted binomial: ((1 - 2 e) sum_pass w2 + e^2 sum w2) / (sum w)^2.
    """
    total = w.sum()
    eff = w[passed].sum() / total
    var = ((1 - 2 * eff) * w2[passed].sum() + eff**2 * w2.sum()) / total**2
    return float(eff), max(0.0, float(var))  # a share of 1 may leave a rounding error below 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """Flavour fractions of the two regions, and their inverse.

    Attributes:
        quark: Coefficients (forward, central) that make the quark spectrum: f_CG / D and -f_FG / D.
        gluon: Coefficients that make the gluon spectrum: -f_CQ / D and f_FQ / D.
        determinant: D = f_FQ - f_CQ.
        sigma: Statistical uncertainty of D.
    """

    quark: Array
    gluon: Array
    determinant: float
    sigma: float

    @classmethod
    def from_truth(cls, w: Array, w2: Array) -> Matrix:
        """From simulation: arrays (2 regions, 2 flavours, bins).

        Raises:
            Degenerate: |D| < 0.05, or D is less than five standard deviations from 0, or a region is empty.
        """
        _refuse_empty(w.sum(axis=1), "simulation")
        regions = [efficiency(w[r].sum(axis=-1), w2[r].sum(axis=-1), slice(0, 1)) for r in (0, 1)]
        (forward, var_forward), (central, var_central) = regions
        determinant, sigma = forward - central, float(np.sqrt(var_forward + var_central))
        if not (
            abs(determinant) >= MIN_D and abs(determinant) >= MIN_SIGNIFICANCE * sigma
        ):  # `not`: NaN is refused too
            raise Degenerate(
                f"quark fractions {forward:.3f} forward and {central:.3f} central differ by D = {determinant:.3f} "
                f"+- {sigma:.3f}; needed are {MIN_D} and {MIN_SIGNIFICANCE:g} sigma"
            )
        quark = np.array([1 - central, forward - 1]) / determinant
        return cls(quark, np.array([-central, forward]) / determinant, determinant, sigma)

    def solve(self, spectra: Array) -> tuple[Array, Array]:
        """Normalised quark and gluon spectra out of the regions' spectra (2 regions, bins)."""
        shapes = np.stack([normalised(region) for region in spectra])
        return self.quark @ shapes, self.gluon @ shapes


def _refuse_empty(spectra: Array, what: str) -> None:
    for region, name in zip(spectra, ("forward", "central"), strict=True):
        if not region.sum() > 0:  # `not`: NaN is refused too
            raise Degenerate(f"the {name} region of {what} is empty")


def working_point(quark: Array, target: float) -> int:
    """First bin at which the cumulative quark spectrum reaches `target`; the bin belongs to the quark side."""
    reached = np.flatnonzero(np.cumsum(quark) >= target)
    if not len(reached):
        raise ValueError(f"the quark spectrum never reaches {target}: it sums to {quark.sum()}")
    return int(reached[0])


def separated(matrix: Matrix, w: Array, w2: Array, cut: int) -> dict[str, tuple[float, float]]:
    """Quark efficiency (up to and with bin `cut`) and gluon rejection (above it), each with its uncertainty."""
    eff, var = np.transpose([efficiency(w[r], w2[r], slice(0, cut + 1)) for r in (0, 1)])
    return {
        "quark": (float(matrix.quark @ eff), float(np.sqrt(matrix.quark**2 @ var))),
        "gluon": (float(1 - matrix.gluon @ eff), float(np.sqrt(matrix.gluon**2 @ var))),
    }


def scale_factors(mc_w: Array, mc_w2: Array, data_w: Array, data_w2: Array, targets: Any) -> list[dict[str, Any]]:
    """Scale factors of one pT bin.

    Args:
        mc_w: Simulation (2 regions, 2 flavours, bins), central jets reweighted.
        mc_w2: The same of squared weights.
        data_w: Data (2 regions, bins), central jets reweighted.
        data_w2: The same of squared weights.
        targets: Quark efficiencies that define the working points.

    Returns:
        Per working point `target`, `cut` (index of the last bin on the quark side), and for `quark` (efficiency) and
        `gluon` (rejection) the values and uncertainties in simulation and data, the scale factor data / simulation,
        and the true value of forward jets in simulation.

    Raises:
        Degenerate: A region is empty, or the two cannot be told apart.
    """
    matrix = Matrix.from_truth(mc_w, mc_w2)
    _refuse_empty(data_w, "data")
    quark, _ = matrix.solve(mc_w.sum(axis=1))
    points = []
    for target in targets:
        cut = working_point(quark, target)
        mc = separated(matrix, mc_w.sum(axis=1), mc_w2.sum(axis=1), cut)
        data = separated(matrix, data_w, data_w2, cut)
        quark_passes, gluon_passes = (normalised(mc_w[0, flavour])[: cut + 1].sum() for flavour in (0, 1))
        truth = {"quark": float(quark_passes), "gluon": float(1 - gluon_passes)}
        point: dict[str, Any] = {"target": float(target), "cut": cut}
        for flavour in ("quark", "gluon"):
            (m, sigma_m), (d, sigma_d) = mc[flavour], data[flavour]
            if not m > 0:
                raise Degenerate(f"simulation has no {flavour} jets on their side of working point {target}")
            factor = d / m
            point[flavour] = {
                "mc": m, "mc_sigma": sigma_m, "data": d, "data_sigma": sigma_d, "mc_truth": truth[flavour],
                "scale_factor": factor, "sigma": float(np.hypot(sigma_d, factor * sigma_m)) / m,
            }  # fmt: skip
        points.append(point)
    return points
