"""Arguments of Parsl's classes from a campaign file, held against their signatures and types before one is made."""

from __future__ import annotations

import collections.abc
import importlib.util
import inspect
import math
import re
import typing
from collections.abc import Collection, Mapping
from typing import Any

import typeguard
from campaign.providers.batch_script import check_script

from campaign.util.messages import unknown

_WALLTIME = re.compile(r"[0-9]+:[0-5][0-9]:[0-5][0-9]")
_AT_LEAST_ONE = ("nodes_per_block", "max_blocks", "cmd_timeout", "cores_per_node", "cores_per_block")
_FRACTIONS = ("parallelism", "spot_max_bid")  # their defaults are whole numbers
_EXTRA = {  # what Parsl does not install by itself; these classes ask their cloud when they are made
    "AWSProvider": "boto3", "AzureProvider": "azure", "GoogleCloudProvider": "googleapiclient",
    "KubernetesProvider": "kubernetes",
}  # fmt: skip
_LISTS: tuple[Any, ...] = (list, tuple, collections.abc.Sequence)


class WrongArgument(ValueError):
    """An argument that Parsl would not take.

    Attributes:
        key: Where it stands below the class.
    """

    def __init__(self, message: str, *key: str) -> None:
        super().__init__(message)
        self.key = key


def check_arguments(
    cls: type, given: Mapping[str, Any], directive: str = "", made: Collection[str] = ()
) -> dict[str, Any]:
    """Hold arguments against a class's constructor.

    Args:
        cls: A class of Parsl.
        given: Its arguments.
        directive: See `campaign.providers.batch_script.check_script`.
        made: Arguments that describe objects yet to be made, and are looked at elsewhere.

    Returns:
        The arguments as the class takes them: lists are tuples where it asks for tuples, which YAML has not.

    Raises:
        WrongArgument: One is unknown, of another type, or missing; or would write into the batch script.
    """
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    found = dict(given)
    for name, value in given.items():
        if name not in named:
            raise WrongArgument(unknown(str(name), named, f"arguments of {cls.__name__}"), str(name))
        if name in made:
            continue
        try:
            check_script(name, value, directive)
        except ValueError as error:
            raise WrongArgument(str(error), name) from None
        found[name] = _fitted(value, hints.get(name, _of_default(name, parameters[name].default)))
        _check_value(name, value)
        _check_type(cls.__name__, name, found[name], hints.get(name, _of_default(name, parameters[name].default)))
    missing = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        raise WrongArgument(f"{cls.__name__} needs {', '.join(missing)}; its arguments: {', '.join(named)}")
    return found


def try_to_make(cls: type, arguments: Mapping[str, Any]) -> None:
    """Make an object as the run will, without any command of a batch system and without any cloud.

    Raises:
        WrongArgument: The class refuses its arguments, or needs a package that is not installed.
    """
    package = _EXTRA.get(cls.__name__)
    if package is not None:
        if importlib.util.find_spec(package) is None:
            raise WrongArgument(f"{cls.__name__} needs the Python package {package}, which is not installed", "class")
        return
    silent = type(cls.__name__, (cls,), {"execute_wait": lambda _self, _command, _timeout=None: (1, "", "")})
    try:
        silent(**arguments)
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise WrongArgument(f"{cls.__name__} refuses its arguments: {text[0]}") from error


def _check_value(name: str, value: Any) -> None:
    """Check rules that the types do not express."""
    if name == "walltime":
        if not (isinstance(value, str) and _WALLTIME.fullmatch(value)):
            raise WrongArgument(f"{value!r} is no walltime; write hours, minutes and seconds: '48:00:00'", name)
        if value.split(":")[:2] in (["0", "00"], ["00", "00"]):  # Slurm takes zero minutes for no limit
            raise WrongArgument(f"{value!r} is less than a minute, which Parsl cuts off; write '00:01:00'", name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        least = 1 if name in _AT_LEAST_ONE else 0
        if not math.isfinite(value) or value < least:
            raise WrongArgument(f"{value!r} is no {name}; write a number from {least} upward", name)


def _of_default(name: str, default: Any) -> Any:
    """The type that a default speaks for, where the class says none; Any if it speaks for none."""
    if name in _FRACTIONS:
        return float
    if default is None:  # names and paths; a number of an account may stand without quotes
        return str | int | None
    if default is inspect.Parameter.empty:
        return Any
    known = next((kind for kind in (bool, int, float, str) if isinstance(default, kind)), None)
    return known or Any


def _fitted(value: Any, hint: Any) -> Any:
    inner, origin = typing.get_args(hint), typing.get_origin(hint)
    if not isinstance(value, list):
        return value
    if origin is tuple:
        return tuple(value)
    if origin in _LISTS:
        return [_fitted(one, inner[0]) for one in value]
    wanted = next((part for part in inner if typing.get_origin(part) in _LISTS), None)
    return value if wanted is None else _fitted(value, wanted)


def _check_type(cls: str, name: str, value: Any, hint: Any) -> None:
    if hint is Any or _fits(value, hint):
        return
    wanted = _words(hint)
    remedy = ""
    if wanted.startswith("text") and isinstance(value, (bool, int, float)):
        remedy = "; write quotes around it, as it stands in the file"
    elif wanted.startswith("a whole number") and isinstance(value, float) and value == int(value):
        remedy = f"; write {int(value)}"
    alike = any(word in wanted for word in ("list", "mapping")) and isinstance(value, (list, tuple, Mapping))
    found = "holds something else" if alike else f"is {_words(type(value))}"
    shown = list(value) if isinstance(value, tuple) else value
    raise WrongArgument(f"{cls} takes {wanted} for {name}, and {shown!r} {found}{remedy}", name)


def _fits(value: Any, hint: Any) -> bool:
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool) and bool not in kinds:
        return False
    if isinstance(value, str) and str not in kinds:  # a text is a sequence of texts to Python
        kinds = tuple(kind for kind in kinds if typing.get_origin(kind) not in _LISTS)
    try:
        typeguard.check_type(value, typing.Union[kinds] if typing.get_origin(hint) not in (*_LISTS, dict) else hint)  # noqa: UP007  made of parts
    except typeguard.TypeCheckError:
        return False
    return not (isinstance(value, str) and typing.get_origin(hint) in _LISTS)


def _words(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in names:
        return names[hint]
    if origin is tuple:
        return f"a list of {' and '.join(map(_words, inner))}"
    if origin in _LISTS or hint in _LISTS:
        return "a list" + (f" of {_words(inner[0])}" if inner else "")
    if origin is dict or hint is dict:
        return "a mapping" + (f" of {_words(inner[0])} to {_words(inner[1])}" if inner else "")
    if inner and origin is not collections.abc.Callable:
        return " or ".join(dict.fromkeys(map(_words, inner)))
    return "an object made in Python" if inner else str(getattr(hint, "__name__", hint))
