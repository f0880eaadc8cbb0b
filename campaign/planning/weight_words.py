"""Searches a stage's code for names through which it could use the weight of a variation."""

from __future__ import annotations

import inspect
import re
from typing import Any

from campaign.protocols import WEIGHT

_CALLS = ("__call__", "start")  # of a class that is a stage


def may_weigh(thing: Any, text: str) -> bool:
    """False only if the code neither asks for ``ctx.weight`` nor hands ``ctx`` to something that could.

    A stage may look at the weight only where some of a file's events are selected, so that it has not looked is no
    proof; that it never says the word is one.

    Args:
        thing: The function, class or object.
        text: Its code (`campaign.planning.code_hash`): syntax trees, or names beside byte code.
    """
    if WEIGHT in text:
        return True
    if "Name(id=" not in text:  # byte code: whose attribute it is cannot be told
        return "'weight'" in text
    found = [_parameters(function) for function in _functions(thing)]
    if not found or None in found:  # what it calls its context cannot be told
        return "attr='weight'" in text
    return any(_asks(text, *names) for names in found if names)


def _asks(text: str, events: str, ctx: str) -> bool:
    if f"Name(id='{ctx}', ctx=Load()), attr='weight'" in text:
        return True
    handed_on = re.search(rf"Name\(id='{ctx}', ctx=Load\(\)\)(?!, attr=)", text)
    others = text.replace(f"Name(id='{events}', ctx=Load()), attr='weight'", "")
    return bool(handed_on) and ("attr='weight'" in others or "Name(id='getattr'" in others)


def _functions(thing: Any) -> list[Any]:
    if isinstance(thing, type):
        return [getattr(thing, name) for name in _CALLS if any(name in vars(c) for c in thing.__mro__)]
    return [thing.start if hasattr(thing, "start") and hasattr(thing, "finish") else thing]


def _parameters(function: Any) -> tuple[str, str] | None:
    """The names of a function's parameters for the batch and the context."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # written in C, for example
        return None
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"]
    return (names[0], names[1]) if len(names) >= 2 else None
