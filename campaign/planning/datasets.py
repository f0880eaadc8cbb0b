"""Finds the files of a dataset, sorts them canonically, identifies them, and reads their metadata."""

from __future__ import annotations

import copy
import fnmatch
import glob
import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, overload

from campaign.errors import SpecError
from campaign.spec.models import Campaign
from campaign.util.hashing import canonical_json
from campaign.util.lazy import LazyModule
from campaign.util.messages import listed

fsspec: Any = LazyModule("fsspec")  # only campaigns with URLs pay for it


@dataclass(frozen=True)
class File:
    """One input file.

    Attributes:
        url: Absolute path or URL.
        size: Bytes; 0 where a server does not tell.
        stamp: What changes when the file does: modification time in ns, or a server's ETag or date.
        metadata_json: Its metadata, canonical JSON (so that a File is hashable).
    """

    url: str
    size: int
    stamp: str
    metadata_json: str = field(default="{}")

    @property
    def identity(self) -> list[Any]:
        """The properties of a file on which results depend."""
        return [self.url, self.size, self.stamp]

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata."""
        return metadata_of(self.metadata_json)


def metadata_of(text: str) -> dict[str, Any]:
    """The metadata from canonical JSON, a new object at each call, so that no caller changes another's."""
    return copy.deepcopy(_parsed(text)) if text != "{}" else {}


@cache
def _parsed(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


class Files(Sequence[File]):
    """Files in canonical order, packed: some 20 bytes each besides its name.

    Args:
        told: ``(url, size, stamp, metadata_json)`` of each, sorted by URL.
    """

    def __init__(self, told: Iterable[tuple[str, int, str, str]]) -> None:
        names = bytearray()
        self._ends, self.sizes, self._stamps, self._meta = array("q"), array("q"), array("q"), array("q")
        self._odd: dict[int, str] = {}  # stamps that are no number, as a server gives them
        known: dict[str, int] = {}  # metadata, few
        for i, (url, size, stamp, metadata) in enumerate(told):
            names += url.encode(errors="surrogateescape")
            self._ends.append(len(names))
            self.sizes.append(size)
            plain = stamp.isascii() and stamp.isdigit() and len(stamp) < 19 + (stamp < "9") and stamp[:1] != "0"
            self._stamps.append(int(stamp) if plain else -1)
            if not plain:
                self._odd[i] = stamp
            self._meta.append(known.setdefault(metadata, len(known)))
        self._names, self._known = bytes(names), list(known)

    def __len__(self) -> int:
        return len(self._ends)

    def url(self, i: int) -> str:
        """Path or URL of one."""
        return self._names[self._ends[i - 1] if i else 0 : self._ends[i]].decode(errors="surrogateescape")

    def one(self, i: int) -> File:
        """One of them."""
        stamp = self._odd[i] if self._stamps[i] < 0 else str(self._stamps[i])
        return File(self.url(i), self.sizes[i], stamp, self._known[self._meta[i]])

    @overload
    def __getitem__(self, at: int) -> File: ...
    @overload
    def __getitem__(self, at: slice) -> list[File]: ...
    def __getitem__(self, at: int | slice) -> File | list[File]:
        if isinstance(at, slice):
            return [self.one(i) for i in range(*at.indices(len(self)))]
        return self.one(range(len(self))[at])

    def __iter__(self) -> Iterator[File]:
        return map(self.one, range(len(self)))

    def pick(self, places: Sequence[int]) -> Files:
        """Some of them."""
        found = Files(())
        parts = [self._names[self._ends[i - 1] if i else 0 : self._ends[i]] for i in places]
        found._names, found._ends = b"".join(parts), array("q", accumulate(map(len, parts)))
        found.sizes, found._stamps = (array("q", [a[i] for i in places]) for a in (self.sizes, self._stamps))
        found._meta, found._known = array("q", [self._meta[i] for i in places]), self._known
        found._odd = {j: self._odd[i] for j, i in enumerate(places) if i in self._odd} if self._odd else {}
        return found

    def identities(self) -> Iterator[bytes]:
        """The identity of each file. Files that differ have different identities."""
        start, metadata = 0, [text.encode() for text in self._known]
        for i, (end, size, stamp, meta) in enumerate(
            zip(self._ends, self.sizes, self._stamps, self._meta, strict=True)
        ):
            said = b"%d" % stamp if stamp >= 0 else self._odd[i].encode(errors="surrogateescape")
            yield b"%b\0%d\0%b\0%b" % (self._names[start:end], size, said, metadata[meta])
            start = end

    def urls(self) -> Iterator[str]:
        """Paths or URLs, in order."""
        return map(self.url, range(len(self)))


def is_url(name: str) -> bool:
    """True if a name is a URL, not a path."""
    return "://" in name


def expand(c: Campaign, patterns: Iterable[str], metadata: Any, key: tuple[str, ...]) -> Files:
    """The files that patterns mean, sorted by name, each with identity and metadata.

    Raises:
        SpecError: A pattern means no file, a file stands twice, or the side file does not say what a file is.
    """
    try:
        names: list[str] = []
        for pattern in patterns:
            names += _names(c, pattern, key)
        names.sort()
        twice = next((a for a, b in pairwise(names) if a == b), None)
        if twice is not None:
            raise SpecError(f"{twice} stands twice: its events would count twice", key=key, remedy="name it once")
        told = _Metadata(c, metadata, (*key[:-1], "metadata"))
        names.reverse()  # each is let go when it is packed
        return Files(
            (name, *_identity(name, key), told.of(name)) for name in iter(lambda: names.pop() if names else "", "")
        )
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else listed(patterns)
        link = isinstance(error, FileNotFoundError) and os.path.islink(name)  # noqa: PTH114  as it was named
        said = "is a link to a file that is not there" if link else f"cannot be looked at: {error.strerror or error}"
        raise c.locate(SpecError(f"{name} {said}", key=key, remedy="mend it, or take it away")) from error
    except SpecError as error:
        raise c.locate(error) from error.__cause__


def _names(c: Campaign, pattern: str, key: tuple[str, ...]) -> list[str]:
    if is_url(pattern):
        return _remote(pattern, key)
    path = Path(os.path.normpath(c.base / Path(pattern).expanduser()))  # links are kept: names are what users gave
    if path.is_dir():
        with os.scandir(path) as entries:
            found = [e.path for e in entries if e.name.endswith(".root")]
        what = f"the directory {path} holds no *.root"
    elif path.is_file():
        return _listed(c, path, key) if path.suffix == ".txt" else [str(path)]
    else:
        found = _globbed(path)
        what = f"no file matches {path}" if glob.has_magic(str(path)) else f"there is no file {path}"
    if not found:
        raise SpecError(what, key=key, remedy="paths are relative to the campaign file; check it, or the pattern")
    return found


def _globbed(path: Path) -> list[str]:
    if glob.has_magic(str(path.parent)) or path.name == "**":
        return [p for p in glob.iglob(str(path), recursive=True) if Path(p).is_file()]
    if not glob.has_magic(path.name) or not path.parent.is_dir():
        return []
    # By far the most frequent pattern, and of perhaps 100,000 files: one pass, no call of the kernel for each.
    matches = re.compile(fnmatch.translate(path.name)).match
    hidden = path.name.startswith(".")
    with os.scandir(path.parent) as entries:
        return [e.path for e in entries if matches(e.name) and (hidden or e.name[0] != ".") and e.is_file()]


_COMMENT = re.compile(r"(?:^|\s)#.*")


def _listed(c: Campaign, path: Path, key: tuple[str, ...]) -> list[str]:
    there = c.at(path.parent)
    names: list[str] = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as a list of names: {error}", key=key) from None
    for number, line in enumerate(text.splitlines(), 1):
        name = _COMMENT.sub("", line).strip()  # run#1.root is a name
        if name:
            try:
                names += _names(there, name, key)
            except SpecError as error:
                raise SpecError(f"{path}:{number}: {error.message}", key=key, remedy=error.remedy) from None
    if not names:
        raise SpecError(f"{path} names no file", key=key, remedy="write one name per line; ' #' begins a comment")
    return names


def _unreachable() -> tuple[type[Exception], ...]:
    import asyncio

    import aiohttp  # what fsspec lets through for http

    return (OSError, ImportError, ValueError, asyncio.TimeoutError, aiohttp.ClientError)


def _remote(url: str, key: tuple[str, ...]) -> list[str]:
    if not glob.has_magic(url.partition("?")[0]):
        return [url]
    try:
        system, path = fsspec.core.url_to_fs(url)
        found = [system.unstrip_protocol(p) for p in system.glob(path)]
    except _unreachable() as error:
        raise SpecError(f"{url} cannot be listed: {error}", key=key, remedy="list the files in a .txt file") from error
    if not found:
        raise SpecError(f"no file matches {url}", key=key)
    return found


def _identity(name: str, key: tuple[str, ...]) -> tuple[int, str]:
    """Size and stamp; see `File`."""
    if not is_url(name):
        stat = os.stat(name)  # noqa: PTH116  a Path for each of 100,000 names costs more than the call itself
        return stat.st_size, str(stat.st_mtime_ns)
    if name.startswith("root://"):  # uproot opens these itself; a look at each would cost a connection each
        return 0, ""
    try:
        system, path = fsspec.core.url_to_fs(name)
        info = system.info(path)
    except FileNotFoundError:
        raise SpecError(f"there is no file {name}", key=key, remedy="check the URL") from None
    except _unreachable() as error:
        raise SpecError(
            f"{name} cannot be reached: {error}", key=key, remedy="check the URL and the network"
        ) from error
    stamp = next((str(info[k]) for k in ("ETag", "etag", "mtime", "Last-Modified", "LastModified") if info.get(k)), "")
    return int(info.get("size") or 0), stamp


def changed(file: File) -> str:
    """The difference between a file and its plan, in words; empty if there is none."""
    if not file.size and not file.stamp:
        return ""
    try:
        size, stamp = _identity(file.url, ())
    except FileNotFoundError:
        return "it is gone"
    except (OSError, SpecError):
        return ""  # who reads it will see
    if size != file.size:
        return f"it had {file.size} bytes and has {size}"
    return "it was written again" if stamp != file.stamp else ""


class _Metadata:
    """Metadata of each file: the same for all, or by pattern from a side file."""

    def __init__(self, c: Campaign, given: Any, key: tuple[str, ...]) -> None:
        self.same = canonical_json(_plain(dict(given) if isinstance(given, dict) else {}, "metadata", key))
        self.path = c.path(given) if isinstance(given, str) else None
        self.key = key
        self.table = _side_file(self.path, key) if self.path else {}
        for values in [given if isinstance(given, dict) else {}, *self.table.values()]:
            if "is_mc" in values:
                raise SpecError(
                    f"{self.path or 'metadata'} has the key 'is_mc', which the dataset itself gives to the stages",
                    key=key, remedy=f"take it out, and write it beside 'files': {'.'.join(key[:-1])}.is_mc",
                )  # fmt: skip

    def of(self, name: str) -> str:
        """Canonical JSON."""
        if self.path is None:
            return self.same
        found: dict[str, Any] = {}
        matching = [values for pattern, values in self.table.items() if self._matches(name, pattern)]
        for values in matching:
            for k, v in values.items():
                if k in found and found[k] != v:
                    raise SpecError(f"{self.path}: two patterns give {name} another '{k}'", key=self.key)
                found[k] = v
        if not matching:
            raise SpecError(f"{self.path} has no pattern for {name}", key=self.key, remedy="add one, '*' for the rest")
        return canonical_json(found)

    def _matches(self, name: str, pattern: str) -> bool:
        assert self.path is not None
        relative = name if is_url(name) else os.path.relpath(name, self.path.parent)
        return fnmatch.fnmatchcase(relative, pattern) or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)


@cache
def _read_side_file(path: Path, stamp: int) -> Any:  # noqa: ARG001  a changed file is read anew
    from campaign.spec.yaml_file import parse

    return parse(path)[0]


def _side_file(path: Path, key: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise SpecError(f"there is no side file {path}", key=key, remedy="paths are relative to the campaign file")
    table = _read_side_file(path, path.stat().st_mtime_ns)
    if not isinstance(table, dict):
        raise SpecError(f"{path} is not a mapping of file pattern to mapping", key=key)
    for pattern, values in table.items():
        if not isinstance(pattern, str):
            raise SpecError(
                f"{path}: the pattern {pattern!r} is no text",
                key=key,
                remedy="write quotes around it, as it stands there",
            )
        if not isinstance(values, dict):
            raise SpecError(
                f"{path}: '{pattern}' is not a mapping but {values!r}", key=key,
                remedy=f"write '{pattern}': {{name: value}}",
            )  # fmt: skip
    return _plain(table, str(path), key)


def _plain(table: dict[str, Any], what: str, key: tuple[str, ...]) -> dict[str, Any]:
    for at, said, remedy in _odd(table, ()):
        raise SpecError(f"{what}: {'.'.join(at)} {said}", key=(*key, *at) if what == "metadata" else key, remedy=remedy)
    try:
        canonical_json(table)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what}: {error}", key=key, remedy="use numbers, text, lists and mappings of them") from None
    return table


def _odd(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The first value that JSON would change or cannot hold. Metadata is sent as JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                yield (*at, str(name)), f"is a key that is no text: {name!r}", "write quotes around it"
            yield from _odd(inner, (*at, str(name)))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _odd(inner, (*at, str(i)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield at, f"is {value!r}, which metadata cannot hold", "write a finite number, text or null"
