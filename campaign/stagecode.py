"""Stages by name: find them, load them on a worker, and hash the code they run.

A stage is a registered name, ``package.module:Name``, ``file.py:Name`` beside the campaign file, or a Python object.
The hash covers what the stage can reach in its own file and in the user's modules beside it, so that a changed
helper redoes the stages that call it and no others.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from campaign import __version__, registry
from campaign.errors import SpecError
from campaign.spec import Campaign, StageSpec


@dataclass(frozen=True)
class StageCode:
    """A stage that can travel to a worker.

    Attributes:
        name: Its name in the campaign.
        where: What the user wrote, for messages.
        file: Absolute path of the user's file, or empty.
        target: ``module:Name``, ``Name`` in ``file``, or empty for a pickled object.
        pickled: A function of ``__main__`` or a notebook, by value.
        options: The stage's options.
        digest: SHA-256 of the code it can reach.
        uses_servers: Whether that code mentions ``servers``.
    """

    name: str
    where: str
    file: str
    target: str
    pickled: bytes
    options: Mapping[str, Any]
    digest: str
    uses_servers: bool

    def load(self) -> Callable[..., Any]:
        """The stage, ready to be called with ``(batch, ctx)`` or ``(merged, ctx)``."""
        thing = self._thing()
        return thing(**self.options) if isinstance(thing, type) else thing  # type: ignore[no-any-return]

    def _thing(self) -> Any:
        if self.pickled:
            return cloudpickle.loads(self.pickled)
        if self.file:
            return getattr(load_file(Path(self.file)), self.target)
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def resolve(campaign: Campaign, name: str) -> StageCode:
    """Find a stage, check its options, hash its code.

    Raises:
        SpecError: There is no such stage, it is not callable, or an option is unknown or missing.
    """
    spec, key = campaign.stages[name], ("stages", name, "use")
    if callable(spec.use):
        thing, file, target = spec.use, "", ""
    else:
        thing, file, target = _named(campaign, spec.use, key)
    if not callable(thing):
        raise SpecError(f"{spec.use} is a {type(thing).__name__}, not a function or a class", key=key)
    _check_options(thing, spec, name)
    pickled = b""
    if callable(spec.use):
        file, target, pickled = _object(thing)
    code, uses = code_digest(thing)
    where = spec.use if isinstance(spec.use, str) else getattr(thing, "__qualname__", repr(thing))
    return StageCode(name, where, file, target, pickled, spec.given, code, uses)


def _named(campaign: Campaign, use: str, key: tuple[str, ...]) -> tuple[Any, str, str]:
    place, colon, name = use.partition(":")
    if not colon:
        if place.endswith(".py"):
            raise SpecError(f"'{use}' names no stage in the file", key=key, remedy=f"write {use}:NAME")
        thing = registry.get(registry.STAGES, use, key=key)
        return thing, "", f"{thing.__module__}:{thing.__qualname__}"
    if place.endswith(".py"):
        path = campaign.path(place)
        if not path.is_file():
            raise SpecError(f"there is no file {path}", key=key, remedy="paths are relative to the campaign file")
        module, file, target = _import(lambda: load_file(path), use, key), str(path), name
    else:
        module, file, target = _import(lambda: importlib.import_module(place), use, key), "", use
    if not hasattr(module, name):
        have = sorted(
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        )
        raise SpecError(registry.unknown(name, have, f"functions of {place}"), key=key)
    return getattr(module, name), file, target


def _import(load: Callable[[], ModuleType], use: str, key: tuple[str, ...]) -> ModuleType:
    try:
        return load()
    except Exception as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise SpecError(f"{use} cannot be imported{line}: {type(error).__name__}: {error}", key=key) from error


def load_file(path: Path) -> ModuleType:
    """Import a user's file under a name of its own, so that it can be called ``stages.py`` too.

    The folder of the file is put on ``sys.path`` (behind everything installed), so that it can import its neighbours.
    """
    name = f"campaign_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _object(thing: Any) -> tuple[str, str, bytes]:
    module = sys.modules.get(thing.__module__)
    if thing.__module__ != "__main__" and module is not None and getattr(module, thing.__qualname__, None) is thing:
        if thing.__module__.startswith("campaign_user_"):
            return str(Path(inspect.getsourcefile(thing) or "")), thing.__qualname__, b""
        if importlib.util.find_spec(thing.__module__) is not None:
            file = getattr(module, "__file__", None)
            # A module beside the script is importable here but perhaps not on the worker: it travels as its file.
            if file and "." not in thing.__module__ and "site-packages" not in file:
                return str(Path(file).resolve()), thing.__qualname__, b""
            return "", f"{thing.__module__}:{thing.__qualname__}", b""
    return "", "", cloudpickle.dumps(thing)


def _check_options(thing: Any, spec: StageSpec, name: str) -> None:
    key = ("stages", name)
    own = [f.alias or n for n, f in StageSpec.model_fields.items()]
    if not isinstance(thing, type):
        for option in spec.inline:
            raise SpecError(
                registry.unknown(option, own, "keys of a stage"),
                key=(*key, option),
                remedy=f"the options of a function stand under 'options: {{{option}: ...}}'",
            )
        return
    if not dataclasses.is_dataclass(thing):
        known = [p for p in inspect.signature(thing).parameters]
        needed = [n for n, p in inspect.signature(thing).parameters.items() if p.default is p.empty]
    else:
        known = [f.name for f in dataclasses.fields(thing)]
        missing = dataclasses.MISSING
        needed = [f.name for f in dataclasses.fields(thing) if f.default is missing and f.default_factory is missing]
    for option in spec.given:
        if option not in known:
            raise SpecError(registry.unknown(option, [*known, *own], f"keys of {spec.use}"), key=(*key, option))
    for option in needed:
        if option not in spec.given:
            raise SpecError(f"{spec.use} needs the key '{option}'", key=key, remedy=f"its keys: {', '.join(known)}")
    try:
        thing(**spec.given)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec.use} refuses its options: {error}", key=key) from error


def code_digest(thing: Any) -> tuple[str, bool]:
    """Hash of the source a stage can reach in the user's own files, and whether it mentions ``servers``.

    What is installed (site-packages, the standard library) counts by nothing here: the environment is recorded
    in the report. Stages that come with campaign count by campaign's version.
    """
    if getattr(thing, "__module__", "").startswith("campaign."):
        return hashlib.sha256(f"{thing.__module__}:{thing.__qualname__} {__version__}".encode()).hexdigest(), False
    try:
        file = inspect.getsourcefile(thing)
        source = Path(file).read_text() if file and Path(file).is_file() else None
    except (TypeError, OSError):
        file, source = None, None
    if source is None or file is None:
        parts = [_object_source(thing)]
        reached = _reached_objects(thing, {id(thing)})
    else:
        parts = _closure(source, thing.__qualname__.split(".")[0], Path(file).resolve().parent, set())
        reached = []
    text = "\n".join([*parts, *reached])
    return hashlib.sha256(text.encode()).hexdigest(), "servers" in text


def _object_source(thing: Any) -> str:
    try:
        return ast.dump(_bare(ast.parse(textwrap.dedent(inspect.getsource(thing)))))
    except (OSError, TypeError, SyntaxError):
        return repr(getattr(getattr(thing, "__code__", None), "co_code", thing))


def _reached_objects(thing: Any, seen: set[int]) -> list[str]:
    found: list[str] = []
    code = getattr(thing, "__code__", None)
    for name in sorted(code.co_names) if code else ():
        value = thing.__globals__.get(name)
        if inspect.isfunction(value) and id(value) not in seen:
            seen.add(id(value))
            found += [_object_source(value), *_reached_objects(value, seen)]
        elif isinstance(value, (int, float, str, bytes, tuple)):
            found.append(f"{name}={value!r}")
    return found


def _closure(source: str, name: str, folder: Path, seen: set[Path | tuple[Path, str]]) -> list[str]:
    """Source of a top-level name and of all it refers to, by syntax tree: comments and layout do not count."""
    tree = _bare(ast.parse(source))
    defined: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for bound in _binds(node):
            defined.setdefault(bound, []).append(node)
    todo, reached = [name], set()
    while todo:
        current = todo.pop()
        if current in reached or current not in defined:
            continue
        reached.add(current)
        for node in defined[current]:
            todo += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            todo += [
                n.value.id for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
            ]
    parts: list[str] = []
    for node in tree.body:
        if reached & set(_binds(node)):
            parts.append(ast.dump(node))
            parts += _neighbours(node, folder, seen)
    return parts


def _binds(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(a.asname or a.name).split(".")[0] for a in node.names]
    # An assignment, or anything else at top level that may bind or change a name (an `if`, a loop, a call).
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]


def _neighbours(node: ast.stmt, folder: Path, seen: set[Path | tuple[Path, str]]) -> list[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module]
    parts: list[str] = []
    for name in names:
        stem = folder.joinpath(*name.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file() and path not in seen:
                seen.add(path)
                tree = _bare(ast.parse(path.read_text()))
                parts.append(ast.dump(tree))
                for inner in tree.body:
                    parts += _neighbours(inner, path.parent, seen)
    return parts


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return tree
