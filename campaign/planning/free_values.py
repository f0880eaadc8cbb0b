"""Lists the free-form values of a campaign as they were read, for ``campaign plan``. Only text is in quotes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from campaign.planning.plan import Plan
from campaign.spec.models import Campaign

WIDTH, KINDS = 300, 5  # characters of one value; different metadata of one dataset


Models = Mapping[str, Mapping[str, Any]]


def as_taken(campaign: Campaign, plan: Plan, models: Models) -> list[str]:
    """One line per place where a file may say anything: metadata, options of stages, servers and provider.

    Args:
        campaign: The campaign.
        plan: Its plan, whose files have the metadata.
        models: What each model's answers depend on (`campaign.protocols.ServerKind.identity`).
    """
    return [f"  {key}: {_short(value)}" for key, value in _values(campaign, plan, models)]


def _values(campaign: Campaign, plan: Plan, models: Models) -> Iterator[tuple[str, Any]]:
    for name, files in plan.files.items():
        counted: dict[str, int] = {}
        for file in files:
            counted[file.metadata_json] = counted.get(file.metadata_json, 0) + 1
        kinds = [(text, n) for text, n in counted.items() if text != "{}"]
        for text, n in kinds[:KINDS]:
            yield f"datasets.{name}.metadata of {n} file{'s' * (n != 1)}", json.loads(text)
        if len(kinds) > KINDS:
            yield f"datasets.{name}.metadata", f"{len(kinds) - KINDS} more"
    for name, stage in campaign.stages.items():
        if stage.given:
            yield f"stages.{name}", stage.given
    for name, variation in campaign.variations.items():
        if isinstance(variation.metadata, Mapping):
            yield f"variations.{name}.metadata", variation.metadata
    for name, model in campaign.servers.models.items() if campaign.servers is not None else ():
        version = models[name].get("version")
        yield f"servers.models.{name}", f"version {version}" if version else "the newest version the servers have"
        if model.parameters:
            yield f"servers.models.{name}.parameters", model.parameters
    if campaign.provider.given:
        yield f"provider {campaign.provider.kind}", campaign.provider.given


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}... ({len(text)} characters)"


def _text(value: Any) -> str:
    # As JSON, but keys that are numbers stay numbers: no quotes.
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value, default=repr, ensure_ascii=False)
