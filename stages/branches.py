"""Branches of a TTree and fields of an RNTuple by their exact names, each read when its values are asked for.

uproot's own ``arrays`` takes names for patterns and expressions, and gives nothing at all where one branch of the tree
is of a kind that it cannot interpret. Here every branch stands for itself: one that cannot be read fails when it is
touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from campaign.errors import BranchError, InputError, passing


class Branches(Protocol):
    """The branches of a tree, as `campaign.stages.read.RootSource` needs them."""

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


def _cannot(url: str, name: str, kind: str, reason: str) -> BranchError:
    return BranchError(
        f"the branch '{name}' of type {kind} cannot be read: {reason}", where=url,
        remedy="do not use this branch, and keep only columns you need; "
        "or read the file by a class of yours (datasets.X.reader)",
    )  # fmt: skip


def _torn(url: str, name: str, kind: str, error: BaseException) -> InputError:
    text = f"the branch '{name}' of type {kind} cannot be read: {_reason(error)}"
    made = InputError(text, where=url, remedy="check or replace the file")
    made.permanent = not passing(error)
    return made


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _kind(branch: Any) -> str:
    try:
        return str(branch.typename)
    except Exception:  # noqa: BLE001  library boundary: the type itself may not be known
        return "unknown"


class Lazy:
    """Layouts of which each reads its values when one of them is asked for; described once, made for every range.

    Args:
        forms: By name, with the keys that `ak.to_buffers` gives.
    """

    def __init__(self, forms: Mapping[str, Any]) -> None:
        self._names = list(forms)
        keyed = [_prefixed(form, f"{i}.") for i, form in enumerate(forms.values())]
        self._form = ak.forms.RecordForm(keyed, self._names, form_key="record")
        self._keys = [list(form.expected_from_buffers()) for form in forms.values()]
        self._own = [list(form.expected_from_buffers()) for form in keyed]

    def layouts(self, length: int, read: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
        """The layouts.

        Args:
            length: Rows.
            read: Gives the buffers of a name, asked for at most once.
        """
        container = {}
        for name, keys, own in zip(self._names, self._keys, self._own, strict=True):
            one = _Once(partial(read, name))
            container.update({mine: partial(one.buffer, key) for mine, key in zip(own, keys, strict=True)})
        record = ak.from_buffers(self._form, length, container, highlevel=False)
        return dict(zip(self._names, record.contents, strict=True))


class _Once:
    """Buffers that are read together, when the first one is asked for."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read
        self._found: Mapping[str, Any] | None = None

    def buffer(self, key: str) -> Any:
        if self._found is None:
            self._found = self._read()
        return self._found[key]


def _raise(error: Exception) -> Any:
    raise error


def _shown(form: Any) -> Any:
    """The form without members that begin with ``@``, as uproot's arrays are: what is written between values."""
    if form.is_record:
        shown = [(n, c) for n, c in zip(form.fields, form.contents, strict=True) if not n.startswith("@")]
        named = None if form.is_tuple else [name for name, _ in shown]
        return form.copy(contents=[_shown(content) for _, content in shown], fields=named)
    return form.copy(content=_shown(form.content)) if hasattr(form, "content") and not form.is_union else form


def _prefixed(form: Any, prefix: str) -> Any:
    """The same form with other keys: in one record no two buffers have the same."""
    key = f"{prefix}{form.form_key}"
    if form.is_numpy:
        return form.copy(form_key=key)
    if form.is_record or form.is_union:
        return form.copy(contents=[_prefixed(content, prefix) for content in form.contents], form_key=key)
    return form.copy(content=_prefixed(form.content, prefix), form_key=key) if hasattr(form, "content") else form


_FORMS: dict[str, Any] = {}


def _keyed(form: Any) -> Any:
    """The form with the keys that `ak.to_buffers` gives to its nodes."""
    return ak.to_buffers(form.length_zero_array(highlevel=False))[0]


_NOTHING = _keyed(ak.forms.NumpyForm("float64"))  # what stands for a branch that cannot be read


class TreeBranches:
    """Branches of a TTree.

    A branch inside another one is known by its own name where no other branch has it, else by its path
    (``parent/child``), which `find` always takes. A name that stands twice on the top level is refused when it is used.
    Friend trees are not read.
    """

    def __init__(self, tree: Any, url: str) -> None:
        self._tree, self._url = tree, url
        every = list(_walk(tree.branches, ""))
        paths = Counter(path for path, _, _ in every)
        inner = Counter(branch.name for _, branch, inside in every if inside)
        self._branches: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        self._refused: dict[str, InputError] = {}
        self._forms: dict[str, Any] = {}
        self._lazy: dict[tuple[str, ...], Lazy] = {}
        self._not_plain = {*python_language.functions, *tree.aliases, *(b.name for _, b, inside in every if inside)}
        for path, branch, inside in every:
            short = inside and inner[branch.name] == 1 and branch.name not in paths
            name = branch.name if short else path
            self._paths.setdefault(path, name)
            if paths[path] > 1:
                self._refused[name] = _cannot(
                    url, name, _kind(branch), f"the name stands {paths[path]} times in the tree"
                )
            self._branches.setdefault(name, branch)
        self.names = list(self._branches)
        # uproot warns at every call where an alias has the name of a branch.
        self._together = not {*tree.aliases} & {*paths, *inner}

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
        # An array of no entries has members that other arrays have not (TLorentzVector, say); but uproot has no form
        # of leaf lists with arrays, which it reads.
        try:
            return _keyed(_shown(interpretation.awkward_form(branch.file)))
        except Exception:  # noqa: BLE001  library boundary
            return _keyed(branch.array(entry_start=0, entry_stop=0, library="ak").layout.form)

    def _refuse(self, name: str, reason: str) -> None:
        self._refused.setdefault(name, _cannot(self._url, name, _kind(self._branches[name]), reason))

    def eager(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """See `Branches.eager`."""
        wanted = list(names)
        for name in wanted:
            if name in self._refused or self._form(name) is None:
                raise self._refused[name]
        if start == stop:
            return {name: self._forms[name].length_zero_array(highlevel=False) for name in wanted}
        found = self._joint([name for name in wanted if self._is_plain(name)], start, stop)
        return {name: found[name] if name in found else self._read(name, start, stop) for name in wanted}

    def _joint(self, names: list[str], start: int, stop: int) -> dict[str, Any]:
        """Their baskets together; nothing where that fails, so that the one at fault is found."""
        if len(names) < 2 or not self._together:
            return {}
        chosen = {id(self._branches[name]) for name in names}
        try:
            array = self._tree.arrays(
                filter_branch=lambda branch: id(branch) in chosen, entry_start=start, entry_stop=stop
            )
        except Exception:  # noqa: BLE001  library boundary: one of them, which is found out one by one
            return {}
        return dict(zip(array.layout.fields, array.layout.contents, strict=True))

    def _is_plain(self, name: str) -> bool:
        """True if uproot's ``arrays`` cannot take the name for an expression, an alias or a path."""
        known = name.isascii() and name.isidentifier() and not iskeyword(name) and name not in self._not_plain
        return known and not isinstance(self._branches[name].interpretation, AsGrouped)

    def _read(self, name: str, start: int, stop: int) -> Any:
        branch = self._branches[name]
        try:
            layout = branch.array(entry_start=start, entry_stop=stop, library="ak").layout
        except Exception as error:  # library boundary: a torn basket, a class that turns out to be unknown
            raise _torn(self._url, name, _kind(branch), error) from error
        if layout.length != stop - start:
            reason = f"it has {layout.length} entries in the range {start} to {stop}"
            raise _cannot(self._url, name, _kind(branch), reason)
        return layout

    def lazy(self, names: Iterable[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        """See `Branches.lazy`."""
        wanted = tuple(names)
        if wanted not in self._lazy:
            forms = {name: None if name in self._refused else self._form(name) for name in wanted}
            self._lazy[wanted] = Lazy({name: _NOTHING if form is None else form for name, form in forms.items()})
        return self._lazy[wanted].layouts(stop - start, partial(self._buffers, start, stop, touched))

    def _buffers(self, start: int, stop: int, touched: Callable[[str], None], name: str) -> Mapping[str, Any]:
        if name in self._refused:
            raise self._refused[name]
        touched(name)
        if start == stop:
            return dict(ak.to_buffers(self._forms[name].length_zero_array(highlevel=False))[2])
        form, _, buffers = ak.to_buffers(self._read(name, start, stop))
        if form != self._forms[name]:
            reason = (
                f"it is of type {form.type} in entries {start} to {stop}, where {self._forms[name].type} was expected"
            )
            raise _cannot(self._url, name, _kind(self._branches[name]), reason)
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
        self._fields = {field.name: field for field in tree.fields}
        self.names = list(self._fields)
        self._top = {field.field_id: name for name, field in self._fields.items()}
        self._parts = {name: set(_ids(field)) for name, field in self._fields.items()}
        self._refused: dict[str, InputError] = {}

    def find(self, name: str) -> str | None:
        """See `Branches.find`."""
        return name if name in self._fields else None

    def eager(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """See `Branches.eager`."""
        wanted = list(names)
        for name in wanted:
            if name in self._refused:
                raise self._refused[name]
        try:
            return self._arrays(wanted, start, stop)
        except Exception:  # noqa: BLE001  library boundary: one of them, which is found out
            return {name: self._one(name, start, stop) for name in wanted}

    def _one(self, name: str, start: int, stop: int) -> Any:
        try:
            return self._arrays([name], start, stop)[name]
        except Exception as error:
            raise _torn(self._url, name, _kind(self._fields[name]), error) from error

    def lazy(self, names: Iterable[str], start: int, stop: int, touched: Callable[[str], None]) -> dict[str, Any]:
        """See `Branches.lazy`."""
        every = list(names)
        wanted = [name for name in every if name not in self._refused]
        log = _Log(self._top, touched)
        try:
            found = self._arrays(wanted, start, stop, virtual=True, access_log=log) if wanted else {}
        except Exception:  # noqa: BLE001  library boundary: one of them, which is found out
            found = {}
            for name in wanted:
                try:
                    found |= self._arrays([name], start, stop, virtual=True, access_log=log)
                except Exception as error:  # noqa: BLE001  library boundary: uproot raises anything
                    self._refused[name] = _cannot(self._url, name, _kind(self._fields[name]), _reason(error))
        refused = {name: error for name, error in self._refused.items() if name in every}
        refusing = Lazy(dict.fromkeys(refused, _NOTHING)).layouts(stop - start, lambda name: _raise(refused[name]))
        return found | refusing

    def _arrays(self, names: list[str], start: int, stop: int, **how: Any) -> dict[str, Any]:
        parts = set().union(*(self._parts[name] for name in names))
        array = self._tree.arrays(
            filter_field=lambda field: field.field_id in parts, entry_start=start, entry_stop=stop, **how
        )
        return {name: array.layout.content(name) for name in names}


def _ids(field: Any) -> Iterator[int]:
    yield field.field_id
    for part in field.fields:
        yield from _ids(part)


class _Log(list[Any]):
    """The list to which uproot adds its accesses. Parts of jagged and nested fields are ignored."""

    def __init__(self, names: Mapping[int, str], touched: Callable[[str], None]) -> None:
        super().__init__()
        self._names, self._touched = names, touched

    def __iadd__(self, accesses: Iterable[Any]) -> _Log:  # type: ignore[misc]
        for access in accesses:
            if access.field_id in self._names:
                self._touched(self._names[access.field_id])
        return self
