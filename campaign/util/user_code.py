"""Imports a user's own Python file under a private name, with its neighbouring files importable."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "campaign_user_"


def load_file(path: Path) -> ModuleType:
    """Import a user's file under a name of its own, so that it can be called ``stages.py`` too.

    The folder of the file is put on ``sys.path`` (behind everything installed), so that it can import its neighbours.
    A file that has changed is imported anew: a notebook lives long.
    """
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    if name in sys.modules and sys.modules[name].__dict__.get("__campaign_stamp__") == stamp:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    look_in(path.parent)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__campaign_stamp__"] = stamp
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with _hushed():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hide the file's prints at import from the terminal. In a worker they go to the log of the stage."""
    if multiprocessing.parent_process() is not None:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def look_in(folder: Path) -> None:
    """Let a folder's modules be imported, behind everything installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def named(reference: str, base: Path | None = None) -> Any:
    """The object that ``package.module:Name`` or ``file.py:Name`` (relative to ``base``) names.

    Raises:
        ImportError, OSError, AttributeError: There is no such thing.
    """
    return getattr(module_of(reference, base), reference.rpartition(":")[2])


def module_of(reference: str, base: Path | None = None) -> ModuleType:
    """The module in which `named` looks."""
    place = reference.rpartition(":")[0]
    return load_file((base or Path()) / place) if place.endswith(".py") else importlib.import_module(place)


def reference(thing: Any) -> str:
    """The text by which `named` finds a class again, in another process too."""
    if thing.__module__.startswith(PREFIX):
        return f"{Path(inspect.getfile(thing)).resolve()}:{thing.__qualname__}"
    return f"{thing.__module__}:{thing.__qualname__}"
