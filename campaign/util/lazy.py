"""Imports modules when they are first used: the driver starts servers before it needs the workers' modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """A module to come.

    Args:
        name: Its full name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
