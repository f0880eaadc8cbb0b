"""Hashes the code that a stage can reach: a changed helper redoes the stages that call it and no others.

What is installed (site-packages, the standard library, campaign itself) counts by nothing here: the versions are in
the report, and campaign's own is in every key.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle

Seen = set[tuple[Path, str | None]]
Held = dict[int, Any]


def of_name(file: Path, name: str) -> list[str]:
    """Source of a top-level name of a file and of all it refers to there and in the user's modules beside it.

    By syntax tree: comments, docstrings and layout do not count.
    """
    return _closure(file.resolve(), [name], set())


def files_of_name(file: Path, name: str) -> list[Path]:
    """The user's files that `of_name` has looked into, sorted."""
    seen: Seen = set()
    _closure(file.resolve(), [name], seen)
    return sorted({path for path, _ in seen})


def of_object(thing: Any) -> list[str]:
    """The parts of a function, class or callable object, by value, if it is in no file.

    By byte code and by the values of constants, defaults, closures and globals it uses.
    """
    return list(_parts(thing, {}))


def is_installed(module: str) -> bool:
    """True if a module is not the user's own code."""
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    return module != "__main__" and (module.split(".")[0] == "campaign" or file is None or _installed(Path(file)))


@functools.cache
def _installed(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    places = (Path(sysconfig.get_path(n)).resolve() for n in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(place in file.resolve().parents for place in places)


# By name, in files ----------------------------------------------------------------------------------------------------


def _closure(file: Path, names: Iterable[str] | None, seen: Seen) -> list[str]:
    """Parts of a file that names reach; all of it for None."""
    asked = [None] if names is None else list(names)
    new = [n for n in asked if (file, n) not in seen and (file, None) not in seen]
    if not new:
        return []
    seen.update((file, n) for n in new)
    try:
        tree = _bare(ast.parse(file.read_text()))
    except (SyntaxError, UnicodeDecodeError):
        return [repr(file.read_bytes())]
    reached = None if names is None else _reached(tree, [str(n) for n in new])
    parts: list[str] = []
    for node in tree.body:
        if reached is None or (reached | {"*"}) & set(_binds(node)):
            parts.append(ast.dump(node))
            parts += _imported(node, file, reached, seen)
    return parts


def _reached(tree: ast.Module, names: list[str]) -> set[str]:
    defined: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for bound in _binds(node):
            defined.setdefault(bound, []).append(node)
    todo, reached = list(names), set()
    while todo:
        current = todo.pop()
        if current not in reached:
            reached.add(current)
            for node in defined.get(current, ()):
                todo += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return reached


def _binds(node: ast.stmt) -> list[str]:
    """Names that a top-level statement may bind or change: of an `if`, a loop or a call, all that it mentions."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    plain = isinstance(node, (ast.Assign, ast.AnnAssign)) and not any(isinstance(n, ast.Call) for n in ast.walk(node))
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    if plain and all(isinstance(t, ast.Name) for t in targets):
        return [t.id for t in targets if isinstance(t, ast.Name)]
    names: list[str] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            names.append(inner.id)
        elif isinstance(inner, ast.alias):
            names.append(_bound(inner))
        elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(inner.name)
    return names


def _bound(alias: ast.alias) -> str:
    return (alias.asname or alias.name).split(".")[0]


def _imported(node: ast.stmt, file: Path, reached: set[str] | None, seen: Seen) -> list[str]:
    """Parts of the user's modules that a statement imports, inside functions too."""
    parts: list[str] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            for alias in inner.names:
                module = _module(alias.name, 0, file)
                parts += _closure(module, None, seen) if module else []
        elif isinstance(inner, ast.ImportFrom):
            wanted = [a for a in inner.names if inner is not node or reached is None or _bound(a) in reached | {"*"}]
            parts += _from(inner, wanted, file, seen)
    return parts


def _from(node: ast.ImportFrom, wanted: list[ast.alias], file: Path, seen: Seen) -> list[str]:
    parts: list[str] = []
    module = _module(node.module or "", node.level, file)
    for alias in wanted:
        dotted = f"{node.module}.{alias.name}" if node.module else alias.name
        inner = _module(dotted, node.level, file) if alias.name != "*" else None
        if inner is not None:  # `from package import module`
            parts += _closure(inner, None, seen)
        elif module is not None:
            parts += _closure(module, None if alias.name == "*" else [alias.name], seen)
    return parts


def _module(name: str, level: int, file: Path) -> Path | None:
    """The user's file that an import in ``file`` finds; None for an installed module."""
    roots = [file.parents[level - 1]] if level else [file.parent, _package_root(file)]
    for root in roots:
        stem = root.joinpath(*name.split(".")) if name else root
        for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
            if path.is_file():
                return None if _installed(path) else path
    loaded = getattr(sys.modules.get(name), "__file__", None) if level == 0 else None
    return Path(loaded) if loaded and loaded.endswith(".py") and not is_installed(name) else None


def _package_root(file: Path) -> Path:
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def _bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


# By value, in memory --------------------------------------------------------------------------------------------------


def _parts(thing: Any, seen: Held) -> Iterator[str]:
    if isinstance(thing, (int, float, str, bytes, complex, type(None), type(...))):
        yield repr(thing)
        return
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # held, so that its id stays its own
    if isinstance(thing, (FunctionType, type, ModuleType)):
        yield from _named_thing(thing, seen)
    elif isinstance(thing, MethodType):
        yield from _several([thing.__func__, thing.__self__], seen)
    elif isinstance(thing, (staticmethod, classmethod)):
        yield from _parts(thing.__func__, seen)
    elif isinstance(thing, property):
        yield from _several([thing.fget, thing.fset], seen)
    elif isinstance(thing, functools.partial):
        yield from _several([thing.func, thing.args, thing.keywords], seen)
    elif isinstance(thing, (list, tuple)):
        yield type(thing).__name__ + str(len(thing))
        yield from _several(thing, seen)
    elif isinstance(thing, (set, frozenset)):  # the order of a set of strings changes from process to process
        yield "set" + repr(sorted("\n".join(_parts(v, dict(seen))) for v in thing))
    elif isinstance(thing, Mapping):
        yield from _several([x for item in thing.items() for x in item], seen)
    elif is_installed(type(thing).__module__):
        yield _pickled(thing)
    else:
        yield from _several([type(thing), _state(thing)], seen)


def _state(thing: Any) -> Any:
    """Fields of an object of the user's; its class is hashed apart, so pickling it whole would say too much."""
    slots = [s for cls in type(thing).__mro__ for s in _as_tuple(cls.__dict__.get("__slots__", ()))]
    held = {s: getattr(thing, s) for s in slots if hasattr(thing, s) and s != "__dict__"}
    return {**held, **getattr(thing, "__dict__", {})}


def _as_tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _several(things: Iterable[Any], seen: Held) -> Iterator[str]:
    for thing in things:
        yield from _parts(thing, seen)


def _named_thing(thing: Any, seen: Held) -> Iterator[str]:
    module = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    if is_installed(module):
        yield f"{module}:{getattr(thing, '__qualname__', '')}"
    elif isinstance(thing, ModuleType):
        yield from _closure(Path(inspect.getfile(thing)).resolve(), None, set())
    elif isinstance(thing, type):
        yield from _class(thing, seen)
    else:
        yield from _function(thing, seen)


_NOT_CODE = {"__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "__annotations__",
             "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__"}  # fmt: skip


def _class(cls: type, seen: Held) -> Iterator[str]:
    yield f"class {cls.__qualname__}"
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        yield f"field {field.name}"
        yield from _several([d for d in (field.default, field.default_factory) if d is not dataclasses.MISSING], seen)
    for name, value in sorted(vars(cls).items()):
        generated = getattr(getattr(value, "__code__", None), "co_filename", "") == "<string>"  # by dataclasses
        if name not in _NOT_CODE and not generated and not inspect.ismemberdescriptor(value):
            yield name
            yield from _parts(value, seen)
    yield from _several(cls.__bases__, seen)


def _function(function: FunctionType, seen: Held) -> Iterator[str]:
    yield from _code(function.__code__, function.__doc__)
    cells = [c.cell_contents for c in function.__closure__ or () if not _is_empty(c)]
    yield from _several([function.__defaults__, function.__kwdefaults__, cells], seen)
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], seen)


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  reading it is the question
    except ValueError:
        return True
    return False


def _code(code: CodeType, doc: str | None) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    for i, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _code(constant, None)
        elif i or constant != doc:
            yield from _parts(constant, {})


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _pickled(thing: Any) -> str:
    try:
        return hashlib.sha256(cloudpickle.dumps(thing)).hexdigest()
    except Exception as error:  # noqa: BLE001  a thing that cannot travel is refused when the stage is packed
        return f"{type(thing).__qualname__} {type(error).__name__}"
