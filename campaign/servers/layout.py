"""Copies models into a server's folder, and checks each file against its planned hash."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from campaign.errors import ModelError
from campaign.util.hashing import file_digest

_NUMBER = re.compile(r"\s*[-+]?[0-9]")  # how C++'s stoll begins
COPIED = 64 << 20  # bytes; a larger file is linked to


def tree(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, links followed, by relative name; what Python compiled is left out."""
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = sorted(f for f in folders if f != "__pycache__") if real not in seen else []
        seen.add(real)
        for name in sorted(files):
            path = Path(here, name)
            if path.is_file():
                yield str(path.relative_to(folder)), path


def beside(folder: Path) -> dict[str, Path]:
    """Files of a model's folder that belong to no version: labels, warm-up data, what a user's own backend looks for.

    Other versions, configurations, the known answer and texts for readers (``*.md``) are left out.

    Args:
        folder: The model's folder.

    Returns:
        Where they lie, by relative name.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name in ("config.pbtxt", "configs", "canary.npz", "__pycache__") or path.suffix.lower() == ".md":
            continue
        if path.is_dir() and _NUMBER.match(path.name):  # a version to Triton, which reads 2.5 as 2
            continue
        if path.is_file():
            found[path.name] = path
        elif path.is_dir():
            found |= {f"{path.name}/{name}": below for name, below in tree(path)}
    return found


def lay_out(target: Path, name: str, what: Mapping[str, Any], config: str) -> None:
    """Fill a model's folder in a server's own repository.

    Small files are copied while they are looked at, so what was looked at is what is served; large ones are linked to,
    not to fill the node's disk.

    Args:
        target: The model's folder there.
        name: The model.
        what: Its entry in the recipe.
        config: Name of the configuration.

    Raises:
        ModelError: A file is not what it was when the campaign was planned.
    """
    target.mkdir()  # not its parents: what is swept meanwhile is not made again
    _below(target, str(what["version"]), "configs")
    (target / "configs" / f"{config}.pbtxt").write_text(what["config"])
    for relative, (source, sha256) in what["files"].items():
        place = target / relative
        _below(target, str(Path(relative).parent))
        try:
            if Path(source).stat().st_size > COPIED:
                place.symlink_to(source)
            else:
                shutil.copy(source, place)
        except OSError as error:
            raise _changed(name, source, f"cannot be read ({error.strerror})") from error
        hold(name, source, sha256, place)
    if what["canary"] is not None:
        hold(name, *what["canary_file"])


def unpack(archive: str, sha256: str, target: Path, model: str) -> bool:
    """Unpack a model's Python environment into the server's private folder, where it goes with the server.

    Triton would unpack it into ``/tmp`` and leave it there when it is killed.

    Args:
        archive: The file.
        sha256: Its hash.
        target: The folder to make.
        model: Whose it is.

    Returns:
        Whether it is of a kind that is known here; if not, Triton unpacks it.

    Raises:
        ModelError: It is not what it was when the campaign was planned, or cannot be unpacked.
    """
    hold(model, archive, sha256)
    if not tarfile.is_tarfile(archive):
        return False
    try:
        with tarfile.open(archive) as content:
            content.extractall(target, filter="tar")
    except (OSError, tarfile.TarError) as error:
        raise ModelError(f"{archive} cannot be unpacked: {error}", where=f"model {model}") from error
    return True


def _below(target: Path, *folders: str) -> None:
    for folder in folders:
        here = target
        for part in Path(folder).parts:
            here /= part
            here.mkdir(exist_ok=True)


def hold(model: str, source: str, sha256: str, path: Path | None = None) -> None:
    """Hold a file (or its copy) against its hash.

    Raises:
        ModelError: It is another, or cannot be read.
    """
    try:
        found = file_digest(path or Path(source))
    except OSError as error:
        raise _changed(model, source, f"cannot be read ({error.strerror})") from error
    if found != sha256:
        raise _changed(model, source, f"has changed: sha256 {found[:12]}…, planned {sha256[:12]}…")


def _changed(model: str, source: str, how: str) -> ModelError:
    return ModelError(
        f"{source} {how}",
        where=f"model {model}",
        remedy="run again: the campaign is planned again with the files that are there",
    )
