"""Runs a function in a thread while the caller goes on looking around."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def aside(name: str, do: Callable[..., T], *args: Any) -> Future[T]:
    """Start ``do(*args)`` in a daemon thread called ``campaign-NAME``. The process does not wait for it at its end."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(do(*args))
        except BaseException as error:  # noqa: BLE001  thread boundary: whoever asks for the result gets it
            done.set_exception(error)

    threading.Thread(target=work, name=f"campaign-{name}", daemon=True).start()
    return done
