"""Raises while it loads: the message must reach whoever started the campaign."""

from __future__ import annotations

from typing import Any


class TritonPythonModel:
    """Never gets further than its initialisation."""

    def initialize(self, args: dict[str, str]) -> None:
        """Fail with a message that a test can recognise."""
        raise RuntimeError("crashes_at_load: the weights of this model are missing on purpose")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Never called."""
        raise NotImplementedError
