"""Files of a dataset: found, put into canonical order, identified, and given their metadata."""

from __future__ import annotations

import asyncio
import fnmatch
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

from campaign.errors import SpecError
from campaign.rundir import canonical_json
from campaign.spec import Campaign


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
        """What a result depends on."""
        return [self.url, self.size, self.stamp]

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata."""
        return dict(json.loads(self.metadata_json))


def is_url(name: str) -> bool:
    """Whether a name is a URL and no path."""
    return "://" in name


def expand(c: Campaign, patterns: Iterable[str], metadata: Any, key: tuple[str, ...]) -> list[File]:
    """The files that patterns mean, sorted by name, each with identity and metadata.

    Raises:
        SpecError: A pattern means no file, a file stands twice, or the side file does not say what a file is.
    """
    try:
        names: list[str] = []
        for pattern in patterns:
            names += _names(c, pattern, key)
        twice = sorted(n for n, times in Counter(names).items() if times > 1)
        if twice:
            raise SpecError(f"{twice[0]} stands twice: its events would count twice", key=key, remedy="name it once")
        told = _Metadata(c, metadata, (*key[:-1], "metadata"))
        return [_file(name, told.of(name), key) for name in sorted(names)]
    except SpecError as error:
        raise c.locate(error) from error.__cause__


def _names(c: Campaign, pattern: str, key: tuple[str, ...]) -> list[str]:
    if is_url(pattern):
        return _remote(pattern, key)
    path = Path(os.path.normpath(c.base / Path(pattern).expanduser()))  # links are kept: names are what users gave
    if path.is_dir():
        found = [str(p) for p in path.glob("*.root")]
        what = f"the directory {path} holds no *.root"
    elif path.is_file():
        return _listed(c, path, key) if path.suffix == ".txt" else [str(path)]
    else:
        found = [p for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        what = f"no file matches {path}" if glob.has_magic(str(path)) else f"there is no file {path}"
    if not found:
        raise SpecError(what, key=key, remedy="paths are relative to the campaign file; check it, or the pattern")
    return found


def _listed(c: Campaign, path: Path, key: tuple[str, ...]) -> list[str]:
    there = c.at(path.parent)
    names: list[str] = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as a list of names: {error}", key=key) from None
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split("#", 1)[0].strip()
        if name:
            try:
                names += _names(there, name, key)
            except SpecError as error:
                raise SpecError(f"{path}:{number}: {error.message}", key=key, remedy=error.remedy) from None
    if not names:
        raise SpecError(f"{path} names no file", key=key, remedy="write one name per line; '#' begins a comment")
    return names


def _unreachable() -> tuple[type[Exception], ...]:
    import aiohttp  # what fsspec lets through for http; only campaigns with URLs pay for it

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


def _file(name: str, metadata: dict[str, Any], key: tuple[str, ...]) -> File:
    if not is_url(name):
        stat = Path(name).stat()
        return File(name, stat.st_size, str(stat.st_mtime_ns), canonical_json(metadata))
    if name.startswith("root://"):  # uproot opens these itself; a look at each would cost a connection each
        return File(name, 0, "", canonical_json(metadata))
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
    return File(name, int(info.get("size") or 0), stamp, canonical_json(metadata))


class _Metadata:
    """Metadata of each file: the same for all, or by pattern from a side file."""

    def __init__(self, c: Campaign, given: Any, key: tuple[str, ...]) -> None:
        self.same = _plain(dict(given), "metadata", key) if isinstance(given, dict) else {}
        self.path = c.path(given) if isinstance(given, str) else None
        self.key = key
        self.table = _side_file(self.path, key) if self.path else {}

    def of(self, name: str) -> dict[str, Any]:
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
        return found

    def _matches(self, name: str, pattern: str) -> bool:
        assert self.path is not None
        relative = name if is_url(name) else os.path.relpath(name, self.path.parent)
        return fnmatch.fnmatchcase(relative, pattern) or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)


@cache
def _read_side_file(path: Path, stamp: int) -> Any:  # noqa: ARG001  a changed file is read anew
    from campaign.specfile import parse

    return parse(path)[0]


def _side_file(path: Path, key: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise SpecError(f"there is no side file {path}", key=key, remedy="paths are relative to the campaign file")
    table = _read_side_file(path, path.stat().st_mtime_ns)
    if not isinstance(table, dict) or not all(isinstance(k, str) and isinstance(v, dict) for k, v in table.items()):
        raise SpecError(f"{path} is not a mapping of file pattern to mapping", key=key)
    return _plain(table, str(path), key)


def _plain(table: dict[str, Any], what: str, key: tuple[str, ...]) -> dict[str, Any]:
    try:
        canonical_json(table)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what}: {error}", key=key, remedy="use numbers, text, lists and mappings of them") from None
    return table
