"""The plan: layers of equal steps over many files. Steps and tasks are made when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from campaign.planning.datasets import Files
from campaign.planning.stage_code import StageCode
from campaign.planning.task import Batch, Keys, StepTemplate, Task
from campaign.spec.models import NOMINAL, Campaign
from campaign.util.card import Card, Shown
from campaign.util.hashing import digest


@dataclass(frozen=True, eq=False)
class InputGroup:
    """The files of a dataset, as one group of variations reads them.

    Attributes:
        dataset, variation: Dataset and variation. ``nominal`` stands for all variations that read the same.
        files: The files.
        tree, branches, is_mc: See `campaign.planning.task.SourceSpec`.
    """

    dataset: str
    variation: str
    files: Files
    tree: str
    branches: tuple[tuple[str, str], ...]
    is_mc: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """One stage for one variation on all files of its events.

    Attributes:
        number: Its place in the plan.
        events: The input files.
        parent: The layer whose results it takes. None: it takes the events.
        keys: Keys of its steps, one per file.
        stage, variation, weight, frozen, emit, level, weighs, followed: See `campaign.planning.task.Step`.
    """

    number: int
    stage: str
    variation: str
    events: InputGroup
    parent: Layer | None
    weight: str | None
    frozen: tuple[tuple[str, str], ...]
    emit: bool
    level: int
    keys: Keys
    weighs: bool = False
    followed: bool = False

    @property
    def name(self) -> str:
        """``stage/dataset/variation``."""
        return f"{self.stage}/{self.events.dataset}/{self.variation}"

    @cached_property
    def depth(self) -> int:
        """Number of layers before it."""
        return 0 if self.parent is None else 1 + self.parent.depth

    @cached_property
    def needs(self) -> frozenset[tuple[str, str]]:
        """Frozen values that it, or a layer before it, depends on."""
        return frozenset(self.frozen) | (self.parent.needs if self.parent else frozenset())

    def common(self, lines: Sequence[Layer]) -> StepTemplate:
        """The common part of its steps, in a task of these layers."""
        here = [i for i, other in enumerate(lines) if other is self.parent]
        parent = None if self.parent is None else here[0] if here else -1
        return StepTemplate(
            self.stage, self.variation, parent, self.weight, self.frozen, self.emit, self.level, self.weighs,
            self.followed,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TaskTemplate:
    """The common part of tasks on many files.

    Attributes:
        lines: The layers of their steps, a parent before its children.
        artefact: The layer whose artefacts they read. None: they read the events.
    """

    lines: tuple[Layer, ...]
    artefact: Layer | None

    @property
    def events(self) -> InputGroup:
        """The input group of the files."""
        return self.lines[0].events

    @cached_property
    def emits(self) -> tuple[Layer, ...]:
        """The layers that leave partials."""
        return tuple(line for line in self.lines if line.emit)

    @cached_property
    def nominal(self) -> bool:
        """True if some of them belong to no variation."""
        return any(line.variation == NOMINAL for line in self.lines)

    @cached_property
    def frozen(self) -> frozenset[tuple[str, str]]:
        """Frozen values that the tasks, or the artefacts they read, depend on."""
        return frozenset(at for line in self.lines for at in line.needs)

    def tasks(self, places: Iterable[int]) -> Batch:
        """The tasks on some files."""
        at, events = list(places), self.events
        return Batch(
            tuple(line.common(self.lines) for line in self.lines), events.dataset, events.tree, events.branches,
            events.is_mc, events.files.pick(at), tuple(x.keys.pick(at) for x in self.lines),
            None if self.artefact is None else self.artefact.keys.pick(at),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Output:
    """One merged output: ``stage/dataset/variation``, its partials in canonical order."""

    stage: str
    dataset: str
    variation: str
    keys: Sequence[str]
    files: Sequence[str]
    level: int
    line: Layer | None = None

    @property
    def name(self) -> str:
        """``stage/dataset/variation``."""
        return f"{self.stage}/{self.dataset}/{self.variation}"


class Urls(Sequence[str]):
    """Names of files. A name is made when it is asked for."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        places = range(len(self))[at]
        return [self._files.url(i) for i in places] if isinstance(places, range) else self._files.url(places)


@dataclass(frozen=True)
class Reduce:
    """One call of a reduce stage: ``merged`` by dataset in, a frozen value out."""

    stage: str
    variation: str
    key: str
    inputs: Mapping[str, Output]
    frozen: tuple[tuple[str, str], ...]
    level: int


@dataclass(frozen=True, eq=False)
class PendingTasks:
    """Tasks of one shape that are to be done.

    Attributes:
        shape: Their template.
        places: Their files, ascending, shape (n,), int64.
    """

    shape: TaskTemplate
    places: NDArray[np.int64]


@dataclass
class Plan(Shown):
    """Everything that a campaign will do, in canonical order. It depends on the campaign and its inputs alone.

    Attributes:
        campaign: The campaign.
        code, readers: Code of its stages, and of the readers of its datasets.
        ingredients: By stage, the ``code`` (a digest), ``options`` and ``models`` that its results depend on.
        lines, outputs, reduces: Layers of steps, merged outputs, and calls of reduce stages.
        files: Files of the datasets.
    """

    campaign: Campaign
    code: dict[str, StageCode]
    readers: dict[str, StageCode] = field(default_factory=dict)
    ingredients: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[Layer] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    reduces: list[Reduce] = field(default_factory=list)
    files: dict[str, Files] = field(default_factory=dict)

    @cached_property
    def events(self) -> list[InputGroup]:
        """The input groups, each once."""
        return list(dict.fromkeys(line.events for line in self.lines))

    def todo(
        self, missing: Mapping[InputGroup, Mapping[frozenset[Layer], NDArray[np.int64]]] | None = None
    ) -> list[PendingTasks]:
        """The pending tasks, in canonical order.

        Args:
            missing: For each group of files, the files by the layers that they have partials of. None: there are none.
        """
        nothing: frozenset[Layer] = frozenset()
        found: list[PendingTasks] = []
        for events in self.events:
            lines = [line for line in self.lines if line.events is events]
            groups = {nothing: np.arange(len(events.files))} if missing is None else missing[events]
            for have, places in groups.items():
                found += [PendingTasks(shape, places) for shape in shapes(lines, have)]
        place = {events: i for i, events in enumerate(self.events)}
        return sorted(found, key=lambda p: (p.shape.lines[0].level, place[p.shape.events]))  # stable

    def without_outputs(self) -> Plan:
        """A plan of the same tasks, whose results are neither merged nor reduced."""
        return replace(self, outputs=[], reduces=[])

    def infers(self, stage: str) -> bool:
        """True if a stage calls servers."""
        code = self.code[stage]
        return code.uses_servers or isinstance(code.options.get("model"), str)

    @property
    def tasks(self) -> list[Task]:
        """All tasks in canonical order, for users and tests. A run makes them batch by batch."""
        return [t for p in self.todo() for t in tasks_of(p)]

    @property
    def total(self) -> int:
        """Number of tasks."""
        return sum(len(p.places) for p in self.todo())

    _repr_pretty_ = Shown._repr_pretty_  # IPython would take the dataclass's own __repr__

    def _card(self) -> Card:
        from campaign.planning.card import card

        return card(self)

    @cached_property
    def digest(self) -> str:
        """Hash of all the plan's keys."""
        lines = [[x.stage, x.events.dataset, x.variation, x.keys.digest] for x in self.lines]
        return digest([lines, [r.key for r in self.reduces]])


def tasks_of(some: PendingTasks) -> Iterator[Task]:
    """The pending tasks, made one by one."""
    for i in some.places.tolist():
        yield some.shape.tasks((i,)).task(0)


def shapes(lines: Iterable[Layer], have: frozenset[Layer]) -> list[TaskTemplate]:
    """Join layers that read the same input into one task; leave out layers that have their partials.

    Args:
        lines: All layers of one group of files.
        have: Layers whose partial exists.
    """
    wanted: dict[tuple[int, int], dict[Layer, None]] = {}
    artefacts: dict[tuple[int, int], Layer | None] = {}
    for line in lines:
        if not line.emit or line in have:
            continue
        chain = [line]
        while True:
            parent = chain[-1].parent
            # An artefact of an earlier pass is read; so is one of this pass that an earlier run has left.
            if parent is None or parent.level < line.level or (parent.emit and parent in have):
                break
            chain.append(parent)
        artefact = chain[-1].parent
        at = (line.level, -1 if artefact is None else artefact.number)
        artefacts[at] = artefact
        wanted.setdefault(at, {}).update(dict.fromkeys(reversed(chain)))
    # By depth: the requests of all variations are on their way before the first answer is waited for.
    return [
        TaskTemplate(
            tuple(sorted(wanted[at], key=lambda x: (x.depth, x.stage, x.variation != NOMINAL, x.variation))), made
        )
        for at, made in sorted(artefacts.items(), key=lambda item: item[0])
    ]


def longest_first(places: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Files in the order of submission: by size, then canonical. Results do not depend on the order."""
    return places[np.argsort(-sizes[places], kind="stable")]
