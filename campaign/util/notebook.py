"""Detects a notebook's kernel, and replaces output in a notebook."""

from __future__ import annotations

import contextvars
import secrets
import sys
from collections.abc import Callable
from typing import Any


def in_kernel() -> bool:
    """True if this process runs the cells of a notebook. IPython in a terminal does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Places:
    """Outputs of cells that show the same thing, updated together.

    A frontend finds an output by its id. A program that executes a notebook looks only at messages that belong to the
    cell under way. So updates are sent in the name of the cell that has asked last.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._context: contextvars.Context | None = None

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, html: str, text: str) -> None:
        """Show it below the cell that runs now, too."""
        from IPython.display import display

        new = f"campaign-{secrets.token_hex(8)}"
        self._context = contextvars.copy_context()
        display(_bundle(html, text), raw=True, display_id=new)
        self._ids.append(new)

    def update(self, html: str, text: str) -> None:
        """Replace what is shown, from any thread."""
        from IPython.display import update_display

        send: Callable[..., Any] = update_display
        context = self._context.copy() if self._context is not None else contextvars.copy_context()
        for each in self._ids:
            context.run(send, _bundle(html, text), raw=True, display_id=each)


def _bundle(html: str, text: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": text}
