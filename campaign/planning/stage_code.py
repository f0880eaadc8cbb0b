"""Finds stages by name, loads them on a worker, and hashes their code.

A stage is a registered name, ``package.module:Name``, ``file.py:Name`` beside the campaign file, or a Python object.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from campaign._version import __version__
from campaign.errors import SpecError
from campaign.planning import code_hash, weight_words
from campaign.spec.models import Campaign, StageSpec
from campaign.util import messages, plugins
from campaign.util.user_code import PREFIX, load_file, look_in


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
        folder: Where modules are looked for that are not installed.
        may_weigh: Whether that code may ask for ``ctx.weight``; False: it does not.
    """

    name: str
    where: str
    file: str
    target: str
    pickled: bytes
    options: Mapping[str, Any]
    digest: str
    uses_servers: bool
    folder: str = ""
    may_weigh: bool = True

    def load(self) -> Callable[..., Any]:
        """The stage, ready to be called with ``(batch, ctx)`` or ``(merged, ctx)``."""
        thing = self.thing()
        return thing(**self.options) if isinstance(thing, type) else thing  # type: ignore[no-any-return]

    def sources(self) -> list[Path]:
        """The user's files from which the digest was made; none for code sent by value and for installed code."""
        module, _, name = self.target.rpartition(":")
        place = self.file or getattr(sys.modules.get(module), "__file__", None) or ""
        if not self.target or module.split(".")[0] == "campaign" or not place.endswith(".py"):
            return []
        return code_hash.files_of_name(Path(place), name.split(".")[0])

    def thing(self) -> Any:
        """The function, class or object that the user named."""
        if self.file:
            return getattr(load_file(Path(self.file)), self.target)
        look_in(Path(self.folder))
        if self.pickled:
            return cloudpickle.loads(self.pickled)
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def resolve(campaign: Campaign, name: str) -> StageCode:
    """Find a stage, check its options, hash its code.

    Raises:
        SpecError: There is no such stage, it is not callable, or an option is unknown or missing.
    """
    spec, key = campaign.stages[name], ("stages", name, "use")

    def check(thing: Any, where: str) -> None:
        _check_callable(thing, where, key)
        _check_options(thing, spec, name, where)
        _check_call(thing, where, key, spec.reduce is not None)

    return _resolve(campaign, name, spec.use, spec.given, key, check)


def resolve_reader(campaign: Campaign, dataset: str) -> StageCode:
    """Find what opens a dataset's files, and hash its code.

    Raises:
        SpecError: There is no such class, or it is no `campaign.protocols.Source`.
    """
    key = ("datasets", dataset, "reader")

    def check(thing: Any, where: str) -> None:
        lacks = [m for m in ("read", "weight", "close") if not (isinstance(thing, type) and _has(thing, m))]
        if lacks:
            raise SpecError(
                f"{where} is no reader: it has no {', no '.join(map(repr, lacks))}", key=key,
                remedy="name a class like campaign.protocols.Source",
            )  # fmt: skip

    return _resolve(campaign, dataset, campaign.datasets[dataset].reader, {}, key, check)


def _resolve(
    campaign: Campaign, name: str, use: str | Callable[..., Any], options: Mapping[str, Any], key: tuple[str, ...],
    check: Callable[[Any, str], None],
) -> StageCode:  # fmt: skip
    thing, file, target = _named(campaign, use, key) if isinstance(use, str) else (use, "", "")
    where = use if isinstance(use, str) else getattr(thing, "__qualname__", type(thing).__qualname__)
    check(thing, where)
    pickled, folder = b"", str(campaign.base)
    if not isinstance(use, str):
        file, target = _importable(thing)
        if not target:
            pickled, folder = _packed(thing, where, key), _folder(thing)
    text = code_text(thing, file, target)
    code, may_weigh = hashlib.sha256(text.encode()).hexdigest(), weight_words.may_weigh(thing, text)
    own = target.split(".")[0] == "campaign"  # what comes with campaign says itself which model it asks
    return StageCode(
        name, where, file, target, pickled, options, code, "servers" in text and not own, folder, may_weigh or own
    )


def _check_callable(thing: Any, where: str, key: tuple[str, ...]) -> None:
    if not callable(thing):
        raise SpecError(f"{where} is a {type(thing).__name__}, not a function or a class", key=key)
    if isinstance(thing, type) and not _has(thing, "__call__") and not (_has(thing, "start") and _has(thing, "finish")):
        raise SpecError(f"objects of {where} cannot be called", key=key, remedy="define __call__(self, batch, ctx)")


def _has(cls: type, method: str) -> bool:
    return any(method in vars(c) for c in cls.__mro__)


def code_text(thing: Any, file: str, target: str) -> str:
    """The code a stage can reach, as syntax trees or byte code: what its results depend on.

    Args:
        thing: The function, class or object.
        file: Absolute path of the user's file, or empty.
        target: Its name in ``file``, ``module:Name``, or empty for one that travels by value.
    """
    module, _, name = target.rpartition(":")
    if module.split(".")[0] == "campaign":  # comes with campaign, whose version is in every key
        return f"{target} {__version__}"
    place = file or getattr(sys.modules.get(module), "__file__", None)
    by_name = bool(target and place and place.endswith(".py"))
    parts = code_hash.of_name(Path(str(place)), name.split(".")[0]) if by_name else code_hash.of_object(thing)
    return "\n".join(parts)


def _named(campaign: Campaign, use: str, key: tuple[str, ...]) -> tuple[Any, str, str]:
    place, colon, name = use.partition(":")
    if not colon:
        if place.endswith(".py"):
            raise SpecError(f"'{use}' names no stage in the file", key=key, remedy=f"write {use}:NAME")
        thing = plugins.get(plugins.STAGES, use, key=key)
        return thing, "", f"{thing.__module__}:{thing.__qualname__}"
    look_in(campaign.base)
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
        raise SpecError(messages.unknown(name, have, f"functions of {place}"), key=key)
    return getattr(module, name), file, target


def _import(load: Callable[[], ModuleType], use: str, key: tuple[str, ...]) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise SpecError(f"{use} cannot be imported{line}: {type(error).__name__}: {error}", key=key) from error


def _importable(thing: Any) -> tuple[str, str]:
    """File and name, or ``module:Name``, under which a worker finds an object; empty for one that travels by value."""
    name, module_name = getattr(thing, "__qualname__", ""), getattr(thing, "__module__", "")
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__" or not name or getattr(module, name, None) is not thing:
        return "", ""
    file = getattr(module, "__file__", None) or ""
    if module_name.startswith(PREFIX):
        return file, name
    if getattr(module, "__spec__", None) is None:
        return "", ""
    # A module beside the script is importable here but perhaps not on the worker: it travels as its file.
    if file.endswith(".py") and "." not in module_name and not code_hash.is_installed(module_name):
        return str(Path(file).resolve()), name
    return "", f"{module_name}:{name}"


def _packed(thing: Any, where: str, key: tuple[str, ...]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(thing))
    except Exception as error:
        raise SpecError(
            f"{where} cannot travel to the workers: {type(error).__name__}: {error}", key=key,
            remedy="open such objects inside the function",
        ) from error  # fmt: skip


def _folder(thing: Any) -> str:
    """The folder from which an object sent by value may import: that of the script or of the notebook."""
    file = getattr(sys.modules.get(getattr(thing, "__module__", "")), "__file__", None)
    return str(Path(file).resolve().parent if file else Path.cwd())


def _check_call(thing: Any, where: str, key: tuple[str, ...], reduces: bool) -> None:
    """Refuse what cannot be called as a stage is."""
    is_class = isinstance(thing, type)
    if is_class and _has(thing, "start") and _has(thing, "finish"):
        return
    called = thing.__call__ if is_class else thing
    given = (None,) * (3 if is_class else 2)
    try:
        signature = inspect.signature(called)
    except (ValueError, TypeError):
        return  # of a builtin nobody knows
    try:
        signature.bind(*given)
    except TypeError:
        names = ", ".join(list(signature.parameters)[1 if is_class else 0 :])
        wanted = "(merged, ctx)" if reduces else "(batch, ctx)"
        raise SpecError(
            f"{where} takes ({names}), and a stage is called with {wanted}", key=key, remedy=f"write def NAME{wanted}"
        ) from None


def _check_options(thing: Any, spec: StageSpec, name: str, where: str) -> None:
    key = ("stages", name)
    own = [f.alias or n for n, f in StageSpec.model_fields.items()]
    if not isinstance(thing, type):
        for option in spec.inline:
            raise SpecError(
                messages.unknown(option, own, "keys of a stage"),
                key=(*key, option),
                remedy=f"the options of a function stand under 'options: {{{option}: ...}}'",
            )
        return
    parameters = inspect.signature(thing).parameters
    known = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if "weighted" in known and "weighted" in spec.model_fields_set:
        raise SpecError(
            f"'weighted' is a key of every stage, and one of {where}", key=(*key, "weighted"),
            remedy="write that of the class under 'options: {weighted: ...}'",
        )  # fmt: skip
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in spec.given:
        if option not in known and not open_ended:
            raise SpecError(messages.unknown(option, [*known, *own], f"keys of {where}"), key=(*key, option))
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in spec.given:
            raise SpecError(f"{where} needs the key '{option}'", key=key, remedy=f"its keys: {', '.join(known)}")
    try:
        thing(**spec.given)
    except Exception as error:  # the user's class may raise anything
        inside = getattr(error, "key", ())  # ours say where among the options
        raise SpecError(f"{where} refuses its options: {error or type(error).__name__}", key=(*key, *inside)) from error
