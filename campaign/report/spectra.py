"""Projects histograms of any number of axes to one axis, and puts datasets and variations together for a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOMINAL = "nominal"
MOST_CATEGORIES = 12  # of an axis of text: each is a figure of its own


@dataclass(frozen=True)
class Spectrum:
    """Sums of weights along one axis; a category axis has its labels.

    Attributes:
        edges: Edges of the bins, shape (n + 1,).
        values, variances: Shape (n,).
        outside: The sum of weights below and above the axis.
        label: Of the axis.
        categories: Names of the bins of a category axis; empty: the axis has numbers.
        summed: Names of the axes that were summed over.
    """

    edges: Any
    values: Any
    variances: Any
    outside: float
    label: str
    categories: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()

    def same_axis(self, other: Spectrum) -> bool:
        """True if both fit in one figure."""
        return np.array_equal(self.edges, other.edges) and self.categories == other.categories


def spectra(h: Any) -> Iterator[tuple[str, Spectrum]]:
    """A histogram along its last axis of numbers (of categories, if it has no other), summed over the others.

    Categories of text are choices, and their sum is of no use: each gives a spectrum, with its name before it.

    Args:
        h: A ``hist.Hist`` or ``boost_histogram.Histogram`` with Weight storage.
    """
    view = h.view(flow=True)
    sums = np.stack([np.asarray(view["value"], float), np.asarray(view["variance"], float)])
    axes = list(h.axes)
    numbers = [i for i, axis in enumerate(axes) if not _categories(axis)]
    shown = numbers[-1] if numbers else len(axes) - 1
    choice = next((i for i, a in enumerate(axes) if i != shown and type(a).__name__ == "StrCategory"), None)
    if choice is None:
        yield "", _spectrum(axes, sums, shown, ())
        return
    name = _name(axes[choice]) or "category"
    for at, category in enumerate(list(axes[choice])[:MOST_CATEGORIES]):
        yield f"{name} = {category}", _spectrum(axes, np.take(sums, [at], choice + 1), shown, (choice,))


def _spectrum(axes: list[Any], sums: Any, shown: int, chosen: tuple[int, ...]) -> Spectrum:
    axis, over = axes[shown], tuple(i + 1 for i in range(len(axes)) if i != shown)
    with np.errstate(all="ignore"):
        values, variances = sums.sum(axis=over)
    under, n = int(axis.traits.underflow), len(axis)
    inside = slice(under, under + n)
    outside = float(np.delete(values, np.r_[inside]).sum())
    summed = tuple(_name(a) or f"axis {i}" for i, a in enumerate(axes) if i != shown and i not in chosen)
    categories = _categories(axis)
    edges = np.arange(n + 1.0) if categories else _finite(np.asarray(axis.edges, float))
    label = axis.__dict__.get("label") or _name(axis) or "value"
    return Spectrum(edges, values[inside], variances[inside], outside, label, categories, summed)


def _finite(edges: Any) -> Any:
    """Edges that can be drawn: an infinite one stands as far out as its bin's neighbour is wide."""
    edges = edges.copy()
    good = edges[np.isfinite(edges)]
    if len(good) == len(edges):
        return edges
    if not len(good):
        return np.arange(float(len(edges)))
    width = np.diff(good).mean() if len(good) > 1 else 1.0
    edges[edges == -np.inf], edges[edges == np.inf] = good[0] - width, good[-1] + width
    return edges


def _name(axis: Any) -> str:
    return str(axis.__dict__.get("name") or getattr(axis, "name", "") or "")


def _categories(axis: Any) -> tuple[str, ...]:
    kind = type(axis).__name__
    if kind == "Boolean":
        return ("False", "True")
    return tuple(map(str, axis)) if kind in ("StrCategory", "IntCategory") else ()


@dataclass
class Figure:
    """The histograms of one figure.

    Attributes:
        title: ``stage: histogram``, and the category.
        simulated: Nominal spectra of simulation (or of anything that is not known to be data) by dataset.
        observed: Nominal spectra of data by dataset.
        varied: By variation, the spectra of datasets that have it.
        outputs: Names of the outputs that it shows.
        axis: A spectrum that has the axis of all.
    """

    title: str
    simulated: dict[str, Spectrum] = field(default_factory=dict)
    observed: dict[str, Spectrum] = field(default_factory=dict)
    varied: dict[str, dict[str, Spectrum]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    axis: Spectrum | None = None

    @property
    def empty(self) -> bool:
        """True if nothing was filled, not even under- and overflow."""
        every = [
            *self.simulated.values(),
            *self.observed.values(),
            *(s for v in self.varied.values() for s in v.values()),
        ]
        return not any(np.any(s.values) or np.any(s.variances) or s.outside for s in every)

    def variations(self, of: Mapping[str, Spectrum]) -> dict[str, Spectrum]:
        """The sum of some datasets under each variation; one without it stands with its nominal spectrum."""
        return {
            variation: added([by_dataset.get(d, s) for d, s in of.items()])
            for variation, by_dataset in self.varied.items()
            if any(d in of for d in by_dataset)
        }


def added(parts: list[Spectrum]) -> Spectrum:
    """The sum of spectra of one axis."""
    first = parts[0]
    values, variances = sum(p.values for p in parts), sum(p.variances for p in parts)
    outside = sum(p.outside for p in parts)
    return Spectrum(first.edges, values, variances, outside, first.label, first.categories, first.summed)


def put_together(found: Mapping[str, Mapping[str, list[tuple[str, Spectrum]]]], data: set[str]) -> list[Figure]:
    """Figures of all outputs: one for each histogram of a stage, with its datasets and variations.

    Args:
        found: By output (``stage/dataset/variation``) and histogram: what `spectra` gives.
        data: Names of the datasets that are no simulation.
    """
    figures: dict[tuple[str, str, str], list[Figure]] = {}
    for output, histograms in found.items():
        stage, dataset, variation = output.split("/")
        for name, drawn in histograms.items():
            for category, spectrum in drawn:
                title = f"{stage}: {name}" + (f", {category}" if category else "")
                figure = _with_axis(figures.setdefault((stage, name, category), []), spectrum, title)
                figure.outputs.append(output)
                if variation != NOMINAL:
                    figure.varied.setdefault(variation, {})[dataset] = spectrum
                else:
                    (figure.observed if dataset in data else figure.simulated)[dataset] = spectrum
    return [_drawable(figure) for at in sorted(figures) for figure in figures[at]]


def _with_axis(figures: list[Figure], spectrum: Spectrum, title: str) -> Figure:
    """The figure whose spectra have this one's axis: datasets with other axes have figures of their own."""
    for figure in figures:
        if figure.axis is None or figure.axis.same_axis(spectrum):
            break
    else:
        figure = Figure(title)
        figures.append(figure)
    figure.axis = figure.axis or spectrum
    return figure


def _drawable(figure: Figure) -> Figure:
    """The figure; variations of datasets that have no nominal spectrum here become spectra of their own."""
    known = {**figure.simulated, **figure.observed}
    for variation, by_dataset in figure.varied.items():
        for dataset in [d for d in by_dataset if d not in known]:
            figure.simulated[f"{dataset} {variation}"] = by_dataset.pop(dataset)
    figure.varied = {variation: found for variation, found in figure.varied.items() if found}
    return figure
