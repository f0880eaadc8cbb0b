"""Tasks and batches of tasks, as they are pickled for a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from campaign.planning.datasets import File, Files, metadata_of
from campaign.util.hashing import digest

KEY = 32  # bytes of a key: SHA-256


@dataclass(frozen=True)
class SourceSpec:
    """Events of one file, as one group of variations reads them.

    Attributes:
        dataset: Name of the dataset; its reader is the job's.
        file: The file, with its identity and metadata.
        tree: Tree name.
        branches: ``(name the stage uses, branch in the file)``, sorted.
        is_mc: Simulation or data.
    """

    dataset: str
    file: File
    tree: str
    branches: tuple[tuple[str, str], ...]
    is_mc: bool

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that stages get as ``ctx.metadata``."""
        return {"is_mc": self.is_mc, **metadata_of(self.file.metadata_json)}


@dataclass(frozen=True)
class Step:
    """One stage on one file for one variation.

    Attributes:
        stage, variation: Names.
        key: Hash of everything its result depends on.
        parent: Key of the step whose result it takes; None: the events of the source.
        weight: Expression of the variation's event weight, evaluated for the first stage.
        frozen: ``(reduce stage, variation)`` of the frozen values it needs.
        emit: Whether it leaves a partial.
        level: How many barriers lie before it.
        source: The events it is made from, through its parents.
        weighs: Whether its variation has a weight, which the stage must use or hand on.
        followed: Whether other stages take what it returns.
    """

    stage: str
    variation: str
    key: str
    parent: str | None
    weight: str | None
    frozen: tuple[tuple[str, str], ...]
    emit: bool
    level: int
    source: SourceSpec
    weighs: bool = False
    followed: bool = False


@dataclass(frozen=True)
class Task:
    """Steps that share what they read: one file's events, or one artefact.

    Attributes:
        steps: In the order they are run: a parent before its children.
        artefact: Key of the artefact read instead of the file, or None.
    """

    steps: tuple[Step, ...]
    artefact: str | None = None

    @property
    def source(self) -> SourceSpec:
        """The file behind it."""
        return self.steps[0].source

    @cached_property
    def id(self) -> str:
        """Hash of what it leaves."""
        return digest([s.key for s in self.steps if s.emit])[:32]


class Keys(Sequence[str]):
    """Keys (hex) of consecutive files, packed: 32 bytes each."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed) // KEY

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Keys: ...
    def __getitem__(self, at: int | slice) -> str | Keys:
        if isinstance(at, slice):
            start, stop, _ = at.indices(len(self))
            return Keys(self.packed[start * KEY : stop * KEY])
        i = range(len(self))[at]
        return self.packed[i * KEY : (i + 1) * KEY].hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all."""
        return hashlib.sha256(self.packed).hexdigest()

    def pick(self, places: Iterable[int]) -> Keys:
        """Those of some files."""
        return Keys(b"".join([self.packed[i * KEY : (i + 1) * KEY] for i in places]))


@dataclass(frozen=True)
class StepTemplate:
    """The common part of the steps of a batch's tasks; see `Step`. ``parent``: a place, -1 for the artefact."""

    stage: str
    variation: str
    parent: int | None
    weight: str | None
    frozen: tuple[tuple[str, str], ...]
    emit: bool
    level: int
    weighs: bool
    followed: bool


@dataclass(frozen=True)
class Batch:
    """Tasks of one shape on some files; what travels to a worker, some 200 bytes each.

    Attributes:
        steps: What their steps have in common.
        dataset, tree, branches, is_mc: See `SourceSpec`.
        files: The files.
        keys: Of each step, one per file.
        artefacts: Keys of what they read instead of the files, or None.
    """

    steps: tuple[StepTemplate, ...]
    dataset: str
    tree: str
    branches: tuple[tuple[str, str], ...]
    is_mc: bool
    files: Files
    keys: tuple[Keys, ...]
    artefacts: Keys | None

    def __len__(self) -> int:
        return len(self.files)

    def task(self, i: int) -> Task:
        """One of them."""
        source = SourceSpec(self.dataset, self.files[i], self.tree, self.branches, self.is_mc)
        keys = [k[i] for k in self.keys]
        artefact = self.artefacts[i] if self.artefacts is not None else None
        steps = []
        for c, key in zip(self.steps, keys, strict=True):
            parent = None if c.parent is None else artefact if c.parent < 0 else keys[c.parent]
            steps.append(
                Step(
                    c.stage, c.variation, key, parent, c.weight, c.frozen, c.emit, c.level, source, c.weighs, c.followed
                )
            )  # fmt: skip
        return Task(tuple(steps), artefact)
