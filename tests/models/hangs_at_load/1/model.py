"""Sleeps while it loads: only a start deadline ends the wait."""

from __future__ import annotations

import time
from typing import Any

HANG_S = 600.0


class TritonPythonModel:
    """Far too slow to load."""

    def initialize(self, args: dict[str, str]) -> None:
        """Hang for ten minutes."""
        time.sleep(HANG_S)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Never called."""
        raise NotImplementedError
