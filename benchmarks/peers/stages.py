"""The stages of `campaign.yaml`."""

from __future__ import annotations

from typing import Any

import physics

from campaign import Histogram, Histograms


def select(events: Any, _ctx: Any) -> dict[str, Any]:
    columns = physics.select(events)
    return columns | {"x": physics.features(columns)}


def fill(jets: Any, _ctx: Any) -> Histograms:
    return Histograms(physics.fill({name: jets[name] for name in jets.fields}, jets.score, Histogram))
