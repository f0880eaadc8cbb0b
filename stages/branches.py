"""Branches of a TTree and fields of an RNTuple by their exact names, each read when its values are asked for.

uproot's own ``arrays`` takes names for patterns and expressions, and gives nothing at all where one branch of the tree
is of a kind that it cannot interpret. Here every branch stands for itself: one that cannot be read fails when it is
touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from keyword import iskeyword
from typing import Any, Protocol

import awkward as ak
import uproot
from uproot.interpretation.grouped import AsGrouped
from uproot.interpretation.identify import UnknownInterpretation
from uproot.interpretation.jagged import AsJagged
from uproot.interpretation.numerical import AsDtype
from uproot.language.python import python_language

from campaign.errors import InputError, passing


class Branches(Protocol):
    """What `campaign.stages.read.RootSource` needs of a tree."""

    names: list[str]

    def find(self, name: str) -> str | None:
        """The name under which a branch is known here, None if there is none."""

    def eager(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """Layouts of these branches, read now, their baskets together.

        Raises:
            InputError: One of them cannot be read.
        """

    def lazy(self, names: Iterable[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        """Layouts whose values are read when they are asked for; ``touched`` is called with the name then.

        Asking for the values of one that cannot be read raises an InputError with its name, type and the reason.
        """


def branches_of(tree: Any, url: str) -> Branches:
    """The branches of a TTree or the fields of an RNTuple."""
    return TreeBranches(tree, url) if isinstance(tree, uproot.TTree) else TupleFields(tree, url)


def _cannot(url: str, name: str, kind: str, reason: str, error: BaseException | None = None) -> InputError:
    made = InputError(
        f"the branch '{name}' of type {kind} cannot be read: {reason}", where=url,
        remedy="do not use this branch; or read the file by a class of yours (datasets.X.reader)",
    )  # fmt: skip
    made.permanent = error is None or not passing(error)
    return made


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _lazy(form: Any, length: int, buffers: Callable[[], dict[str, Any]]) -> Any:
    """A layout of this form whose buffers are made when one of them is asked for."""
    made: dict[str, Any] = {}

    def need(key: str) -> Any:
        if not made:
            made.update(buffers())
        return made[key]

    container = {key: partial(need, key) for key in form.expected_from_buffers()}
    return ak.from_buffers(form, length, container, highlevel=False)


def _refusing(length: int, error: InputError) -> Any:
    def refuse() -> dict[str, Any]:
        raise error

    return _lazy(_keyed(ak.forms.NumpyForm("float64")), length, refuse)


_FORMS: dict[str, Any] = {}


def _keyed(form: Any) -> Any:
    """The form with the keys that `ak.to_buffers` gives to its nodes."""
    return ak.to_buffers(form.length_zero_array(highlevel=False))[0]


class TreeBranches:
    """Branches of a TTree.

    A branch inside another one is known by its own name where no other branch has it, else by its path
    (``parent/child``), which `find` always takes. A name that stands twice on the top level is refused when it is used.
    Friend trees are not read.
    """

    def __init__(self, tree: Any, url: str) -> None:
        self._tree, self._url = tree, url
        every = list(_walk(tree.branches, ""))
        top = Counter(path for path, branch, inside in every if not inside)
        inner = Counter(branch.name for _, branch, inside in every if inside)
        self._branches: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        self._refused: dict[str, InputError] = {}
        self._forms: dict[str, Any] = {}
        self._not_plain = {*python_language.functions, *tree.aliases, *(b.name for _, b, inside in every if inside)}
        for path, branch, inside in every:
            short = inside and inner[branch.name] == 1 and branch.name not in top
            name = branch.name if short else path
            self._paths.setdefault(path, name)
            if not inside and top[path] > 1:
                self._refused[name] = _cannot(
                    url, name, branch.typename, f"the name stands {top[path]} times in the tree"
                )
            self._branches.setdefault(name, branch)
        self.names = list(self._branches)

    def find(self, name: str) -> str | None:
        """See `Branches.find`."""
        return name if name in self._branches else self._paths.get(name)

    def _form(self, name: str) -> Any:
        if name not in self._forms:
            try:
                self._forms[name] = self._looked_at(name)
            except Exception as error:  # noqa: BLE001  library boundary: uproot raises anything on what it does not know
                self._refuse(name, _reason(error))
                self._forms[name] = None
        return self._forms[name]

    def _looked_at(self, name: str) -> Any:
        branch = self._branches[name]
        interpretation = branch.interpretation
        if isinstance(interpretation, UnknownInterpretation):
            raise interpretation
        if not isinstance(interpretation, AsGrouped) and branch.num_entries != self._tree.num_entries:
            self._refuse(name, f"it has {branch.num_entries} entries, and the tree has {self._tree.num_entries}")
            return None
        inner = interpretation.content if isinstance(interpretation, AsJagged) else interpretation
        if type(inner) is AsDtype and inner.to_dtype.shape == () and inner.to_dtype.names is None:
            known = interpretation.cache_key  # the same for the hundreds of branches of a NanoAOD
            if known not in _FORMS:
                _FORMS[known] = _keyed(interpretation.awkward_form(branch.file))  # without reading
            return _FORMS[known]
        return _keyed(branch.array(entry_start=0, entry_stop=0, library="ak").layout.form)

    def _refuse(self, name: str, reason: str, error: BaseException | None = None) -> None:
        branch = self._branches[name]
        try:
            kind = str(branch.typename)
        except Exception:  # noqa: BLE001  library boundary: the type itself may not be known
            kind = "unknown"
        self._refused.setdefault(name, _cannot(self._url, name, kind, reason, error))

    def eager(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """See `Branches.eager`."""
        wanted = list(names)
        for name in wanted:
            if name in self._refused or self._form(name) is None:
                raise self._refused[name]
        top = {name for name in wanted if self._is_plain(name)}
        found: dict[str, Any] = {}
        chosen = {id(self._branches[name]) for name in top}
        if len(top) > 1:
            array = self._tree.arrays(
                filter_branch=lambda branch: id(branch) in chosen, entry_start=start, entry_stop=stop
            )
            found = dict(zip(array.layout.fields, array.layout.contents, strict=True))
        return {name: found[name] if name in found else self._read(name, start, stop).layout for name in wanted}

    def _is_plain(self, name: str) -> bool:
        """Whether uproot's ``arrays`` cannot take the name for an expression, an alias or a path."""
        known = name.isascii() and name.isidentifier() and not iskeyword(name) and name not in self._not_plain
        return known and not isinstance(self._branches[name].interpretation, AsGrouped)

    def _read(self, name: str, start: int, stop: int) -> Any:
        return self._branches[name].array(entry_start=start, entry_stop=stop, library="ak")

    def lazy(self, names: Iterable[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        """See `Branches.lazy`."""
        found = {}
        for name in names:
            form = None if name in self._refused else self._form(name)
            if form is None:
                found[name] = _refusing(stop - start, self._refused[name])
            else:
                found[name] = _lazy(form, stop - start, partial(self._buffers, name, start, stop, touched))
        return found

    def _buffers(self, name: str, start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        touched(name)
        try:
            form, length, buffers = ak.to_buffers(self._read(name, start, stop))
        except Exception as error:  # library boundary: a torn basket, a class that turns out to be unknown
            raise InputError.unreadable(self._url, error) from error
        if length != stop - start or form != self._forms[name]:
            got, want = f"{length} * {form.type}", f"{stop - start} * {self._forms[name].type}"
            reason = f"it is {got} in entries {start} to {stop}, where {want} was expected"
            raise _cannot(self._url, name, str(self._branches[name].typename), reason)
        return dict(buffers)


def _walk(branches: Iterable[Any], above: str) -> Iterator[tuple[str, Any, bool]]:
    for branch in branches:
        path = f"{above}/{branch.name}" if above else branch.name
        yield path, branch, bool(above)
        yield from _walk(branch.branches, path)


class TupleFields:
    """Fields of an RNTuple."""

    def __init__(self, tree: Any, url: str) -> None:
        self._tree, self._url = tree, url
        self.names = list(tree.keys(recursive=False))
        self._refused: dict[str, InputError] = {}

    def find(self, name: str) -> str | None:
        """See `Branches.find`."""
        return name if name in self.names else None

    def eager(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """See `Branches.eager`."""
        wanted = list(names)
        for name in wanted:
            if name in self._refused:
                raise self._refused[name]
        array = self._tree.arrays(filter_name=set(wanted).__contains__, entry_start=start, entry_stop=stop)
        return dict(zip(array.layout.fields, array.layout.contents, strict=True))

    def lazy(self, names: Iterable[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        """See `Branches.lazy`."""
        wanted = [name for name in names if name not in self._refused]
        try:
            found = self._virtual(wanted, start, stop, touched)
        except Exception:  # noqa: BLE001  library boundary: one of them; which is found out
            found = {}
            for name in wanted:
                try:
                    found |= self._virtual([name], start, stop, touched)
                except Exception as error:  # noqa: BLE001  library boundary
                    kind = str(getattr(self._tree[name], "typename", "unknown"))
                    self._refused[name] = _cannot(self._url, name, kind, _reason(error), error)
        return found | {name: _refusing(stop - start, self._refused[name]) for name in names if name in self._refused}

    def _virtual(self, names: list[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        if not names:
            return {}
        array = self._tree.arrays(
            filter_name=set(names).__contains__, entry_start=start, entry_stop=stop, virtual=True,
            access_log=_Log(set(names), touched),
        )  # fmt: skip
        return dict(zip(array.layout.fields, array.layout.contents, strict=True))


class _Log(list[Any]):
    """What uproot adds its accesses to; parts of jagged and nested fields have names of their own."""

    def __init__(self, names: set[str], touched: Callable[[str], None]) -> None:
        super().__init__()
        self._names, self._touched = names, touched

    def __iadd__(self, accesses: Iterable[Any]) -> _Log:  # type: ignore[misc]
        for access in accesses:
            if access.field_name in self._names:
                self._touched(access.field_name)
        return self
