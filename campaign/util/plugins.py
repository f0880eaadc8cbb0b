"""Finds classes by the name of their entry point. A wrong name lists the right ones."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from campaign.errors import SpecError
from campaign.util.messages import unknown
from campaign.util.user_code import module_of

PROVIDERS, SERVERS, STAGES = "campaign.providers", "campaign.servers", "campaign.stages"


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
            f"'{name}' ({entry.value}) cannot be imported: {error}",
            key=key,
            remedy="install the packages that it needs",
        ) from error


def _hint(group: str, name: str) -> str:
    """The hint that one of the classes gives for an unknown name; see `campaign.protocols.Provider`."""
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
