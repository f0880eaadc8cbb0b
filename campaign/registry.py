"""Name -> class, by entry point; a wrong name lists the right ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from campaign.errors import SpecError
from campaign.userfile import module_of

PROVIDERS, SERVERS, STAGES = "campaign.providers", "campaign.servers", "campaign.stages"


MOST, FEW = 20, 5  # names that a message lists all; of more, so many


@cache
def _found(group: str) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=group)}


def names(group: str) -> list[str]:
    """Registered names of a group, sorted."""
    return sorted(_found(group))


def modules(group: str) -> list[str]:
    """Modules of this package in which a group's classes are found, sorted."""
    return sorted({e.module for e in _found(group).values() if e.module.startswith("campaign.")})


def get(group: str, name: str, *, key: tuple[str, ...] = (), base: Path | None = None) -> Any:
    """The class registered under a name, or a user's own by ``package.module:Name`` or ``file.py:Name``.

    Args:
        group: `PROVIDERS`, `SERVERS` or `STAGES`.
        name: The registered name, or where the user's own class is.
        key: Where in the campaign the name was given, for the error.
        base: Folder that a file is relative to.

    Raises:
        SpecError: No such name (the message lists those there are), or what it needs is not installed.
    """
    if ":" in name:
        return _own(name, key, base)
    if name not in _found(group):
        raise SpecError(unknown(name, names(group), group.split(".")[1]), key=key, remedy=_hint(group, name))
    entry = _found(group)[name]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"'{name}' ({entry.value}) cannot be imported: {error}", key=key, remedy="install what it needs"
        ) from error


def _hint(group: str, name: str) -> str:
    """What one of the classes says of a name that is none of theirs; see `campaign.protocols.Provider`."""
    for entry in _found(group).values():
        with suppress(ImportError, AttributeError):  # what it needs is not installed, or it says nothing
            if said := entry.load().hint(name):
                return str(said)
    return ""


def _own(name: str, key: tuple[str, ...], base: Path | None) -> Any:
    place, _, own = name.rpartition(":")
    path = (base or Path()) / place
    if place.endswith(".py") and not path.is_file():
        raise SpecError(f"there is no file {path}", key=key, remedy="paths are relative to the campaign file")
    try:
        module = module_of(name, base)
        if hasattr(module, own):
            return getattr(module, own)
    except (ImportError, OSError, AttributeError, ValueError, SyntaxError) as error:
        raise SpecError(
            f"'{name}' cannot be imported: {type(error).__name__}: {error}", key=key, remedy="write file.py:Class"
        ) from error
    have = sorted(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__)
    raise SpecError(unknown(own, have, f"classes of {place}"), key=key)


def unknown(name: str, known: list[str], what: str) -> str:
    """The sentence for a name that is not known, with the nearest one and the list."""
    near = difflib.get_close_matches(name, known, 1)
    guess = f"; did you mean '{near[0]}'?" if near else ""
    if not known:
        return f"'{name}' is none of the {what}: there are none"
    return f"'{name}' is none of the {what}{guess} (known: {listed(known, name)})"


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


def needed(item: Mapping[str, Any]) -> str:
    """What is wrong with a value, in words of ours.

    Args:
        item: One of pydantic's ``errors()``; keys beside the one at fault are not shown: headers may be among them.
    """
    given = item.get("input")
    if given is None:
        return "nothing stands behind this key; write a value, or remove the key"
    found = "a mapping" if isinstance(given, Mapping) else "a list" if isinstance(given, (list, tuple)) else repr(given)
    words = next((words for kinds, words in _NEEDED if item["type"].startswith(kinds)), None)
    text = words.format(**item.get("ctx", {})) if words else str(item["msg"]).removeprefix("Value error, ")
    return f"{text}; found {found[:80]}"
