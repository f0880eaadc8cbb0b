"""Arguments of Parsl's classes from a campaign file, held against their signatures and types before one is made."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

import typeguard

from campaign.checks import check_script
from campaign.registry import unknown

_WALLTIME = re.compile(r"(?:[0-9]+-)?[0-9]+:[0-5][0-9]:[0-5][0-9]")


class WrongArgument(ValueError):
    """An argument that Parsl would not take.

    Attributes:
        key: Where it stands below the class.
    """

    def __init__(self, message: str, *key: str) -> None:
        super().__init__(message)
        self.key = key


def check_arguments(cls: type, given: Mapping[str, Any], directive: str = "") -> None:
    """Hold arguments against a class's constructor.

    Args:
        cls: A class of Parsl.
        given: Its arguments; ``{class: ...}`` is an object yet to be made, and is not looked at.
        directive: See `campaign.checks.check_script`.

    Raises:
        WrongArgument: One is unknown, of another type, or missing; or would write into the batch script.
    """
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    for name, value in given.items():
        if name not in named:
            raise WrongArgument(unknown(name, named, f"arguments of {cls.__name__}"), name)
        if isinstance(value, Mapping) and "class" in value:
            continue
        try:
            check_script(name, value, directive)
        except ValueError as error:
            raise WrongArgument(str(error), name) from None
        if name == "walltime" and not (isinstance(value, str) and _WALLTIME.fullmatch(value)):
            raise WrongArgument(f"{value!r} is no walltime; write hours, minutes and seconds: '01:30:00'", name)
        _check_type(cls.__name__, name, value, hints.get(name, _of_default(parameters[name].default)))
    missing = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        raise WrongArgument(f"{cls.__name__} needs {', '.join(missing)}; its arguments: {', '.join(named)}")


def _of_default(default: Any) -> Any:
    """The type that a default speaks for, where the class says none; Any if it speaks for none."""
    kinds = {str: str, bool: bool, int: typing.Union[int, float], float: typing.Union[int, float]}  # noqa: UP007  3.10
    return kinds.get(type(default), Any)


def _check_type(cls: str, name: str, value: Any, hint: Any) -> None:
    numbers = isinstance(value, bool) and hint in (int, float, int | float, int | None, float | None)
    if hint is not Any and not numbers:
        try:
            typeguard.check_type(value, hint)
            return
        except typeguard.TypeCheckError:
            pass
    elif not numbers:
        return
    wanted = _words(hint)
    remedy = f"; write quotes: {name}: '{value}'" if wanted.startswith("text") and not isinstance(value, str) else ""
    raise WrongArgument(f"{cls} takes {wanted} for {name}, and {value!r} is {_words(type(value))}{remedy}", name)


def _words(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    if hint in names:
        return names[hint]
    parts = [_words(part) for part in typing.get_args(hint)]
    if typing.get_origin(hint) in (list, tuple) or hint in (list, tuple):
        return "a list"
    if parts and str(typing.get_origin(hint)) not in ("<class 'dict'>",):
        return " or ".join(dict.fromkeys(parts))
    return str(getattr(hint, "__name__", hint))
