"""The scale factors in the form of correctionlib (schema version 2), which analyses evaluate per jet."""

from __future__ import annotations

from typing import Any

SYSTEMATICS = {"nominal": 0.0, "stat_up": 1.0, "stat_down": -1.0}  # in standard deviations


def correction_set(result: dict[str, Any], variation: str) -> dict[str, Any]:
    """The scale factors of the nominal option as a correction ``qg_scale_factor``.

    A pT bin that the method refused has no value: its evaluation fails, so that no analysis takes 1 for an answer.

    Args:
        result: What `qg.extract` returns.
        variation: The campaign's variation that the scale factors belong to.
    """
    option = result["options"][result["nominal"]]
    targets = [point["target"] for point in next(iter(option["points"].values()))]
    correction = {
        "name": "qg_scale_factor",
        "version": 1,
        "description": f"Data / simulation. Variation {variation}; central jets reweighted by {result['nominal']}.",
        "inputs": [
            {"name": "flavour", "type": "string", "description": "quark: efficiency; gluon: rejection"},
            {"name": "working_point", "type": "string", "description": f"one of {', '.join(map(str, targets))}"},
            {"name": "systematic", "type": "string", "description": ", ".join(SYSTEMATICS)},
            {"name": "pt", "type": "real", "description": "pT of the jet in GeV"},
        ],
        "output": {"name": "weight", "type": "real"},
        "data": _by("flavour", {f: _by("working_point", _points(result, f, targets)) for f in ("quark", "gluon")}),
    }  # fmt: skip
    return {"schema_version": 2, "description": "Calibration of a quark/gluon tagger", "corrections": [correction]}


def _points(result: dict[str, Any], flavour: str, targets: list[float]) -> dict[str, Any]:
    return {
        str(target): _by("systematic", {name: _bins(result, flavour, i, s) for name, s in SYSTEMATICS.items()})
        for i, target in enumerate(targets)
    }


def _bins(result: dict[str, Any], flavour: str, point: int, sigmas: float) -> dict[str, Any]:
    edges, points = result["pt_edges"], result["options"][result["nominal"]]["points"]
    content: list[Any] = []
    for low, high in zip(edges, edges[1:], strict=False):
        found = points.get(f"{low}-{high} GeV")
        if found is None:
            content.append(_by("flavour", {f"refused: {low}-{high} GeV": 1.0}))
        else:
            content.append(found[point][flavour]["scale_factor"] + sigmas * found[point][flavour]["sigma"])
    return {
        "nodetype": "binning",
        "input": "pt",
        "edges": [float(edge) for edge in edges],
        "content": content,
        "flow": "error",
    }


def _by(name: str, content: dict[str, Any]) -> dict[str, Any]:
    items = [{"key": key, "value": value} for key, value in content.items()]
    return {"nodetype": "category", "input": name, "content": items}
