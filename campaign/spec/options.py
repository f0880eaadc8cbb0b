"""Checks the options of stages, servers and providers against the models that these publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from campaign.errors import SpecError
from campaign.util import messages, plugins


def option_models(what: str) -> dict[str, type[BaseModel]]:
    """The ``Options`` of every registered server kind or provider."""
    group = f"campaign.{what}"
    return {name: plugins.get(group, name).Options for name in plugins.names(group)}


def check_options(
    options: type[BaseModel], given: Mapping[str, Any], key: tuple[str, ...], owner: type[BaseModel], remedy: str = ""
) -> BaseModel:
    """Validate options. A value given for a field with ``repr=False`` is a secret and is never shown.

    Args:
        options: The model of the options.
        given: The options.
        key: Where they stand in the campaign.
        owner: The model of the campaign whose own keys stand beside them.
        remedy: What to do about a key that is not one of them.

    Raises:
        SpecError: Holds the wrong key, the value that was found and the values that are allowed.
    """
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        items = error.errors()  # a misspelt key is also a missing one: it is the misspelling that helps
        item = next((i for i in items if i["type"] == "extra_forbidden"), items[0])
        at = (*key, *(part for part in item["loc"] if isinstance(part, (str, int))))
        inside = getattr(item.get("ctx", {}).get("error"), "key", None)  # a validator may know the place more closely
        if inside is not None:
            raise SpecError(item["msg"].removeprefix("Value error, "), key=(*at, *inside)) from None
        own = [f.alias or n for n, f in owner.model_fields.items() if n != "options"]
        known = [*own, *(f.alias or n for n, f in options.model_fields.items())]
        if item["type"] == "extra_forbidden":
            raise SpecError(messages.unknown(str(at[-1]), known, "keys here"), key=at, remedy=remedy) from None
        if item["type"] == "missing":
            raise SpecError(f"the key '{at[-1]}' is needed", key=key, remedy=f"allowed: {', '.join(known)}") from None
        field = options.model_fields.get(str(item["loc"][0])) if item["loc"] else None
        raise SpecError(messages.needed(item, secret=field is not None and not field.repr), key=at) from None
