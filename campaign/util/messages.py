"""Words that messages share: lists of names, the nearest name, counted nouns, expected values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST, FEW = 20, 5  # names that a message lists all; of more, so many


def unknown(name: str, known: list[str], what: str) -> str:
    """The sentence for a name that is not known, with the nearest one and the list."""
    if not known:
        return f"'{name}' is not one of the {what}: there are none"
    return f"'{name}' is not one of the {what}{meant(name, known)} (known: {listed(known, name)})"


def meant(name: str, known: Sequence[str]) -> str:
    """The question for the nearest name, behind a sentence: ``; did you mean 'x'?``; empty if none is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def listed(names: Iterable[str], near: str = "") -> str:
    """Names for a message: all of a few, else the five nearest and how many more there are.

    Args:
        names: The names.
        near: What they shall be near to; empty: the first five.
    """
    every = list(names)
    if len(every) <= MOST:
        return ", ".join(every)
    close = difflib.get_close_matches(near, every, FEW, cutoff=0.0) if near else every[:FEW]
    return f"{', '.join(close)} and {len(every) - FEW:,} more"


def counted(n: int, noun: str) -> str:
    """A number and its noun: ``1 file``, ``2 files``, ``1,000 files``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def article(noun: str) -> str:
    """A noun behind its indefinite article: ``a str``, ``an Array``."""
    return f"{'an' if noun[:1].lower() in 'aeiou' or noun == 'ndarray' else 'a'} {noun}"


_NEEDED = (  # what pydantic's type of an error begins with: in our words
    (("dict", "mapping", "model", "dataclass"), "a mapping of keys is needed"),
    (("list", "tuple", "set", "iterable"), "a list is needed"),
    (("string_too_short",), "text that is not empty is needed"),
    (("string_type", "path", "callable"), "text is needed"),
    (("int",), "a whole number is needed"),
    (("float", "decimal"), "a number is needed"),
    (("finite",), "a finite number is needed"),
    (("bool",), "true or false is needed"),
    (("greater_than_equal",), "at least {ge} is needed"),
    (("greater_than",), "more than {gt} is needed"),
    (("less_than_equal",), "at most {le} is needed"),
    (("less_than",), "less than {lt} is needed"),
    (("literal",), "one of {expected} is needed"),
    (("too_short",), "at least {min_length} entries are needed"),
    (("too_long",), "at most {max_length} entries are allowed"),
)


def needed(item: Mapping[str, Any], *, secret: bool = False) -> str:
    """The error in a value, in plain words.

    Args:
        item: One of pydantic's ``errors()``; keys beside the one at fault are not shown: headers may be among them.
        secret: The value is not shown either.
    """
    given = item.get("input")
    if given is None:
        return "nothing stands behind this key; write a value, or remove the key"
    found = "a mapping" if isinstance(given, Mapping) else "a list" if isinstance(given, (list, tuple)) else repr(given)
    words = next((words for kinds, words in _NEEDED if item["type"].startswith(kinds)), None)
    text = words.format(**item.get("ctx", {})) if words else str(item["msg"]).removeprefix("Value error, ")
    return text if secret else f"{text}; found {found[:80]}"
