"""Figures and the table of the calibration: what a physicist looks at before believing a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matrix_method
import numpy as np

# matplotlib is imported where it draws: workers import this file too, and never draw.
COLOURS = {"quark": "#3f90da", "gluon": "#bd1f01", "data": "black"}
MARKERS = ["o", "s", "^", "D"]
POINT_COLOURS = ["#3f90da", "#bd1f01", "#832db6", "#e76300", "#717581", "#94a4a2"]
SHOWN_BIN = "800-1000 GeV"


def table(result: dict[str, Any]) -> str:
    """The scale factors of the nominal option as text."""
    nominal = result["options"][result["nominal"]]
    lines = [
        f"Scale factors (data / simulation), central jets reweighted by {result['nominal']}, statistical uncertainty.",
        "quark: efficiency below the cut; gluon: rejection above it. The cut is on the tagger's score.",
        "",
        (
            f"{'pT bin':<15}{'WP':>5}  {'flavour':<8}{'scale factor':>13}{'':4}{'unc.':<9}"
            f"{'simul.':>10}{'data':>10}{'cut':>8}"
        ),
    ]
    for name in _bins(result):
        for point in nominal["points"].get(name, []):
            for flavour in ("quark", "gluon"):
                v = point[flavour]
                lines.append(
                    f"{name:<15}{point['target']:>5.2f}  {flavour:<8}{v['scale_factor']:>13.4f} +- {v['sigma']:<9.4f}"
                    f"{v['mc']:>10.4f}{v['data']:>10.4f}{result['cut_edges'][point['cut']]:>8.3f}"
                )
        if name in nominal["refused"]:
            lines.append(f"{name:<15} REFUSED: {nominal['refused'][name]}")
    return "\n".join(lines) + "\n"


def draw(merged: Any, result: dict[str, Any], folder: Path) -> None:
    """Write the figures, each as PNG and PDF."""
    import matplotlib as mpl

    mpl.use("Agg")
    shown = SHOWN_BIN if SHOWN_BIN in result["options"][result["nominal"]]["points"] else _calibrated(result)[0]
    for variable in ("score", "ntrk"):
        with _figure(folder / f"{variable}_data_mc", 2, 2, sharex=True, height_ratios=[3, 1]) as axes:
            _data_and_mc(axes, merged, variable, result, shown)
    with _figure(folder / "extracted_spectra", 2, 2, sharex=True, height_ratios=[3, 1]) as axes:
        _extracted(axes, merged, result, shown)
    with _figure(folder / "method_closure", 1, 2) as axes:
        _closure(axes, result)
    for flavour in ("quark", "gluon"):
        with _figure(folder / f"scale_factors_{flavour}", 1, 1) as axes:
            _scale_factors(axes.item(), result, flavour)
    with _figure(folder / "efficiencies", 1, 2) as axes:
        _efficiencies(axes, result)
    with _figure(folder / "reweighting_options", 1, 2) as axes:
        _options(axes, result)


def _bins(result: dict[str, Any]) -> list[str]:
    edges = result["pt_edges"]
    return [f"{low}-{high} GeV" for low, high in zip(edges, edges[1:], strict=False)]


def _calibrated(result: dict[str, Any]) -> list[str]:
    """Names of the pT bins that were not refused, in order of pT."""
    return [name for name in _bins(result) if name in result["options"][result["nominal"]]["points"]]


@contextmanager
def _figure(path: Path, rows: int, columns: int, **layout: Any) -> Iterator[Any]:
    import matplotlib.pyplot as plt
    import mplhep

    # Numbers as plain text: laying out each tick label as mathematics would take most of the time.
    style = {"font.size": 12, "legend.fontsize": 11, "axes.formatter.use_mathtext": False}
    style |= {"xtick.major.pad": 6, "ytick.major.pad": 6, "xtick.labelsize": 11, "ytick.labelsize": 11}
    with plt.style.context([mplhep.style.ATLAS, style]):
        width, height = 5.2 * columns + 0.6, 5.2 if rows > 1 else 4.6
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **layout)
        # Margins by hand, in inches: to find them by drawing everything twice would take half of the time.
        figure.subplots_adjust(0.8 / width, 0.95 / height, 1 - 0.2 / width, 1 - 0.2 / height, wspace=0.22, hspace=0.08)
        try:
            yield axes
            for suffix in (".png", ".pdf"):
                figure.savefig(path.with_suffix(suffix), dpi=110)
        finally:
            plt.close(figure)


def _region_arrays(merged: Any, variable: str, option: str, b: int) -> tuple[Any, Any, Any, Any]:
    """Simulation (region, flavour, bin), data (region, bin) of one pT bin, each with squared weights, without flow."""
    import qg

    mc, data = (merged[dataset][variable][{"option": option}] for dataset in ("mc", "data"))
    arrays = (*qg.spectra(mc), *qg.data_spectra(data))
    return tuple(a[b][..., 1:-1] for a in arrays)  # type: ignore[return-value]


def _data_and_mc(axes: Any, merged: Any, variable: str, result: dict[str, Any], shown: str) -> None:
    import mplhep

    value = merged["mc"][variable].axes[-1]
    mc, mc2, data, data2 = _region_arrays(merged, variable, "none", _bins(result).index(shown))
    for r, region in enumerate(("forward", "central")):
        scale = data[r].sum() / mc[r].sum()
        top, bottom = axes[:, r]
        colours = [COLOURS["quark"], COLOURS["gluon"]]
        mplhep.histplot(
            list(mc[r] * scale), value.edges, stack=True, histtype="fill", ax=top, color=colours, alpha=0.75,
            label=["quark (simulation)", "gluon (simulation)"], yerr=False,
        )  # fmt: skip
        total, sigma = mc[r].sum(axis=0) * scale, np.sqrt(mc2[r].sum(axis=0)) * scale
        seen = data[r] > 0
        point = {"fmt": "o", "ms": 3.5, "color": COLOURS["data"], "lw": 1}
        top.errorbar(value.centers[seen], data[r][seen], np.sqrt(data2[r][seen]), label="data", **point)
        known = seen & (total > 0)
        ratio, band = data[r][known] / total[known], sigma[known] / total[known]
        bottom.errorbar(value.centers[known], ratio, np.sqrt(data2[r][known]) / total[known], **point)
        bottom.fill_between(value.centers[known], 1 - band, 1 + band, color="0.8", lw=0, step="mid")
        bottom.axhline(1, color="0.4", lw=0.8)
        bottom.set(ylim=(0.6, 1.4), xlabel=value.label, ylabel="data / sim.", xlim=(value.edges[0], value.edges[-1]))
        top.set(ylabel="jets", ylim=(0, 1.45 * max(data[r].max(), total.max())))
        top.legend(title=f"{region} jets, {shown}", loc="upper right")


def _extracted(axes: Any, merged: Any, result: dict[str, Any], shown: str) -> None:
    import mplhep

    value = merged["mc"]["score"].axes[-1]
    mc, mc2, data, data2 = _region_arrays(merged, "score", result["nominal"], _bins(result).index(shown))
    matrix = matrix_method.Matrix.from_truth(mc, mc2)
    from_mc, from_data = matrix.solve(mc.sum(axis=1)), matrix.solve(data)
    relative = data2 / data.sum(axis=1, keepdims=True) ** 2
    for i, (flavour, coefficients) in enumerate((("quark", matrix.quark), ("gluon", matrix.gluon))):
        top, bottom = axes[:, i]
        colour, sigma = COLOURS[flavour], np.sqrt(coefficients**2 @ relative)
        truth = matrix_method.normalised(mc[0, i])
        mplhep.histplot(
            truth, value.edges, ax=top, color=colour, histtype="fill", alpha=0.3, yerr=False,
            label="truth, forward, simulation",
        )  # fmt: skip
        mplhep.histplot(from_mc[i], value.edges, ax=top, color=colour, label="extracted from simulation", yerr=False)
        top.errorbar(
            value.centers, from_data[i], sigma, fmt="o", ms=3.5, lw=1, color="black", label="extracted from data"
        )
        known = from_mc[i] > 2e-3  # where hardly a jet of this flavour is left, the ratio says nothing
        ratio, error = from_data[i][known] / from_mc[i][known], sigma[known] / from_mc[i][known]
        bottom.errorbar(value.centers[known], ratio, error, fmt="o", ms=3.5, lw=1, color="black")
        bottom.axhline(1, color="0.4", lw=0.8)
        bottom.set(ylim=(0.5, 1.5), xlim=(0, 1), xlabel=value.label, ylabel="data / sim.")
        top.set(ylabel="share of jets per bin", ylim=(min(0, 1.2 * from_data[i].min()), 1.75 * from_mc[i].max()))
        top.legend(title=f"{flavour} jets, {shown}", loc="upper right")


def _against_pt(ax: Any, result: dict[str, Any], quantity: Callable[[Any], tuple[float, float]], **style: Any) -> None:
    """Draw quantity(point) -> (value, uncertainty) of each working point against pT."""
    nominal, names, edges = result["options"][result["nominal"]]["points"], _bins(result), result["pt_edges"]
    here = [names.index(name) for name in _calibrated(result)]
    low, high = np.take(edges, here), np.take(edges, np.array(here) + 1)
    for k, marker in enumerate(MARKERS):
        points = [nominal[names[b]][k] for b in here]
        y, sigma = np.array([quantity(point) for point in points]).T
        x = low + (high - low) * (0.26 + 0.16 * k)  # side by side within the bin
        label = f"{points[0]['target']:.0%}"
        ax.errorbar(x, y, sigma, fmt=marker, ms=4.5, lw=1.2, color=POINT_COLOURS[k], label=label, **style)
    for edge in edges:
        ax.axvline(edge, color="0.9", lw=0.6, zorder=0)
    ax.set(xlim=(edges[0], edges[-1]), xlabel="jet pT [GeV]")


def _scale_factors(ax: Any, result: dict[str, Any], flavour: str) -> None:
    _against_pt(ax, result, lambda point: (point[flavour]["scale_factor"], point[flavour]["sigma"]))
    ax.axhline(1, color="0.4", lw=0.8)
    what = {"quark": "quark efficiency", "gluon": "gluon rejection"}[flavour]
    ax.set(ylabel=f"scale factor, {what}", ylim=(0.76, 1.19))
    ax.legend(title="working point (statistical uncertainties)", ncols=4, loc="upper left")


def _efficiencies(axes: Any, result: dict[str, Any]) -> None:
    for ax, flavour, what in zip(axes[0], ("quark", "gluon"), ("quark efficiency", "gluon rejection"), strict=True):
        _against_pt(ax, result, lambda point: (point[flavour]["mc"], 0.0), mfc="none")  # noqa: B023  called at once
        ax.legend(title="working point; open: simulation, full: data", ncols=4, loc="upper left")
        _against_pt(ax, result, lambda point: (point[flavour]["data"], point[flavour]["data_sigma"]))  # noqa: B023
        ax.set(ylabel=what, ylim=(0.37, 1.07) if flavour == "quark" else (0.52, 1.12))


def _closure(axes: Any, result: dict[str, Any]) -> None:
    for ax, flavour, what in zip(axes[0], ("quark", "gluon"), ("quark efficiency", "gluon rejection"), strict=True):
        _against_pt(ax, result, lambda point: (point[flavour]["mc"] / point[flavour]["mc_truth"], 0.0))  # noqa: B023
        ax.axhspan(0.97, 1.03, color="0.92", zorder=0)
        ax.axhline(1, color="0.4", lw=0.8)
        ax.set(ylabel=f"{what}: extracted / true", ylim=(0.945, 1.075))
        ax.legend(title="simulation, working point (band: 3 %)", ncols=4, loc="upper left")


def _options(axes: Any, result: dict[str, Any]) -> None:
    names = [name for name, option in result["options"].items() if set(_calibrated(result)) <= set(option["points"])]
    calibrated = _calibrated(result)
    for ax, flavour in zip(axes[0], ("quark", "gluon"), strict=True):
        for b, name in enumerate(calibrated):
            points = [result["options"][option]["points"][name][0][flavour] for option in names]
            x = np.arange(len(names)) + 0.1 * (b - (len(calibrated) - 1) / 2)
            values, sigma = [p["scale_factor"] for p in points], [p["sigma"] for p in points]
            ax.errorbar(x, values, sigma, fmt="o", ms=3.5, lw=1, color=POINT_COLOURS[b], label=name)
        ax.axhline(1, color="0.4", lw=0.8)
        ax.set_xticks(range(len(names)), names, rotation=20, ha="right")
        ax.set(ylabel=f"{flavour} scale factor", ylim=(0.86, 1.2))
        ax.minorticks_off()
        ax.legend(title="working point 50 %, by reweighting of central jets", ncols=2, loc="upper left")
