"""The Z peak in di-muon events: read the muons, let a server make the mass, fill a spectrum, fit its peak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hist
import mplhep
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from campaign import Histogram, Histograms

FOUR_VECTORS = [f"{component}{muon}" for muon in (1, 2) for component in ("E", "px", "py", "pz")]
PARAMETERS = ("amplitude", "mu", "sigma", "constant")

Array = NDArray[np.float64]


def select(batch: Any, ctx: Any) -> dict[str, Any]:
    """All events; of their branches only the two four-vectors are read."""
    return {name: batch[name] for name in [*FOUR_VECTORS, ctx.weight]}


def fill(batch: Any, ctx: Any) -> Histograms:
    """The spectrum around the Z."""
    axis = hist.axis.Regular(40, 80.0, 100.0, name="mass", label=r"$m_{\mu\mu}$ [GeV]")
    return Histograms(mass=Histogram(axis).fill(batch["mass"], weight=batch[ctx.weight]))


def peak(mass: Array, amplitude: float, mu: float, sigma: float, constant: float) -> Array:
    """A Gaussian on a constant background, in events per bin."""
    return amplitude * np.exp(-0.5 * ((mass - mu) / sigma) ** 2) + constant


def fit(merged: dict[str, dict[str, hist.Hist]], ctx: Any) -> dict[str, Any]:
    """Fit the peak in the events of all datasets; write a figure and a table, return the numbers."""
    spectra = [histograms["mass"] for histograms in merged.values()]
    counts = np.sum([spectrum.values() for spectrum in spectra], axis=0)
    result = fit_peak(spectra[0].axes[0].centers, counts)
    (ctx.artefacts / "peak.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(spectra[0].axes[0], counts, result, ctx.artefacts / "peak.png")
    return result


def fit_peak(centers: Array, counts: Array) -> dict[str, Any]:
    """Least squares with the errors of counts, at least 1 per bin so that an empty bin has a say too."""
    errors = np.sqrt(np.maximum(counts, 1.0))
    start = (counts.max(), centers[counts.argmax()], 2.5, max(counts.min(), 1.0))
    best, covariance = curve_fit(peak, centers, counts, p0=start, sigma=errors, absolute_sigma=True)
    best[2] = abs(best[2])  # the width enters squared, so its sign is free
    return {
        "parameters": dict(zip(PARAMETERS, best.tolist(), strict=True)),
        "errors": dict(zip(PARAMETERS, np.sqrt(np.diag(covariance)).tolist(), strict=True)),
        "chi2": float((((counts - peak(centers, *best)) / errors) ** 2).sum()),
        "ndf": int(counts.size - best.size),
        "events": float(counts.sum()),
    }


def draw(axis: Any, counts: Array, result: dict[str, Any], path: Path) -> None:
    """Data, curve and the fitted numbers."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    style: dict[str, Any] = {"histtype": "errorbar", "color": "black", "markersize": 5, "label": "Data"}
    mplhep.histplot(counts, axis.edges, yerr=np.sqrt(counts), ax=axes, **style)
    mass = np.linspace(axis.edges[0], axis.edges[-1], 400)
    values, errors = result["parameters"], result["errors"]
    axes.plot(mass, peak(mass, *(values[name] for name in PARAMETERS)), color="tab:red", label="Gaussian + constant")
    text = [rf"$\{name} = {values[name]:.3f} \pm {errors[name]:.3f}$ GeV" for name in ("mu", "sigma")]
    text.append(rf"$\chi^2 / \mathrm{{ndf}} = {result['chi2']:.1f} / {result['ndf']}$")
    axes.text(0.04, 0.95, "\n".join(text), transform=axes.transAxes, va="top")
    axes.set(xlabel=axis.label, ylabel=f"Events / {axis.widths[0]:g} GeV", xlim=(mass[0], mass[-1]), ylim=(0, None))
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)
