"""Checks the options of stages, servers and providers against the models that these publish."""

from __future__ import annotations

import re
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
        options: The model they are held against.
        given: The options.
        key: Where they stand in the campaign.
        owner: The model of the campaign whose own keys stand beside them.
        remedy: What to do about a key that is not one of them.

    Raises:
        SpecError: With the key at fault, what was found and what is allowed.
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


SHELL = ("worker_init",)  # options that are lines of a shell script on purpose


def check_script(name: str, value: Any, directive: str = "") -> None:
    """Refuse an option that would put lines of its own into the script that a batch system is given.

    Args:
        name: The option. Those of `SHELL` may have lines. ``scheduler_options`` may, if each is a directive.
        value: What was given; text inside lists and mappings counts too.
        directive: What each line of ``scheduler_options`` begins with (``#SBATCH``, say), or ``NAME =`` where lines
            are assignments (HTCondor).

    Raises:
        ValueError: Naming the option, and the line at fault.
    """
    if isinstance(value, Mapping):
        for inner in [*value, *value.values()]:
            check_script(name, inner, directive)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_script(name, inner, directive)
    elif isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"{name} holds a NUL")
        lines = value.splitlines()
        if name == "scheduler_options":
            wrong = next((x for x in lines if x.strip() and not _is_directive(x, directive)), None)
            if wrong is not None:
                raise ValueError(f"every line of {name} begins with {directive or 'a directive'}; found {wrong!r}")
        elif name not in SHELL and (len(lines) > 1 or value != "".join(lines)):
            raise ValueError(f"{name} holds a line break; found {value!r}")


def _is_directive(line: str, directive: str) -> bool:
    if directive == ASSIGNMENT:
        return re.match(r"\+?[A-Za-z_][\w.]*\s*=", line) is not None
    return bool(directive) and re.match(re.escape(directive) + r"(\s|$)", line) is not None


ASSIGNMENT = "NAME ="
