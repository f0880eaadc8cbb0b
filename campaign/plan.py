"""Campaign -> tasks. A step's key is a hash of all its result depends on: input, code, options, model, variation."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from campaign import __version__
from campaign.datasets import File, expand
from campaign.errors import SpecError
from campaign.rundir import digest
from campaign.spec import NOMINAL, Campaign, Variation
from campaign.stagecode import StageCode, resolve

FORMAT = 1  # of keys; raised when the same key would name another result


@dataclass(frozen=True)
class SourceSpec:
    """Events of one file, as one group of variations reads them.

    Attributes:
        dataset: Name of the dataset.
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

    @cached_property
    def key(self) -> str:
        """Hash of what is read."""
        return digest(
            [FORMAT, self.dataset, self.file.identity, self.tree, list(map(list, self.branches)), self.metadata]
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What reaches the stages as ``ctx.metadata``."""
        return {"is_mc": self.is_mc, **self.file.metadata}


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


@dataclass(frozen=True)
class Output:
    """One merged output: ``stage/dataset/variation``, its partials in canonical order."""

    stage: str
    dataset: str
    variation: str
    keys: tuple[str, ...]
    files: tuple[str, ...]
    level: int

    @property
    def name(self) -> str:
        """``stage/dataset/variation``."""
        return f"{self.stage}/{self.dataset}/{self.variation}"


@dataclass(frozen=True)
class Reduce:
    """One call of a reduce stage: ``merged`` by dataset in, a frozen value out."""

    stage: str
    variation: str
    key: str
    inputs: Mapping[str, Output]
    frozen: tuple[tuple[str, str], ...]
    level: int


@dataclass
class Plan:
    """Everything a campaign will do, in canonical order; a function of the campaign and its inputs alone."""

    campaign: Campaign
    code: dict[str, StageCode]
    tasks: list[Task] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    reduces: list[Reduce] = field(default_factory=list)
    files: dict[str, list[File]] = field(default_factory=dict)

    @property
    def levels(self) -> int:
        """Passes over the files."""
        return 1 + max((s.level for t in self.tasks for s in t.steps), default=0)

    def at(self, level: int) -> list[Task]:
        """Tasks of one pass."""
        return [t for t in self.tasks if t.steps[0].level == level]

    @cached_property
    def digest(self) -> str:
        """Hash of all the plan's keys."""
        return digest([[s.key for t in self.tasks for s in t.steps], [r.key for r in self.reduces]])


def plan(campaign: Campaign, models: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Make the plan. Reads file sizes and dates, and the stages' source; starts nothing.

    Args:
        campaign: The campaign.
        models: What each model's answers depend on (`ServerKind.identity`).

    Raises:
        SpecError: A stage, a file, or a side file is missing or wrong.
    """
    code = {}
    for name in campaign.stages:
        try:
            code[name] = resolve(campaign, name)
        except SpecError as error:
            raise campaign.locate(error) from error.__cause__
    return _Planner(campaign, code, models).build()


class _Planner:
    def __init__(self, campaign: Campaign, code: dict[str, StageCode], models: Mapping[str, Mapping[str, Any]]) -> None:
        self.c, self.code, self.models = campaign, code, models
        self.variations: dict[str, Variation | None] = {NOMINAL: None, **campaign.variations}
        self.steps: dict[tuple[str, str, str, str], Step] = {}  # (stage, dataset, variation, file)
        self.sources: dict[tuple[str, str], list[SourceSpec]] = {}
        self.reduces: dict[tuple[str, str], Reduce] = {}
        self.outputs: dict[tuple[str, str, str], Output] = {}
        # Asked again for every file; the answers depend on names alone.
        self.datasets: Callable[[str], list[str]] = cache(self._datasets)
        self.level: Callable[[str], int] = cache(self._level)
        self.varied: Callable[[str, str, str], bool] = cache(self._varied)
        self.reduce_varied: Callable[[str, str], bool] = cache(self._reduce_varied)
        self.code_key: Callable[[str], str] = cache(self._code_key)

    def build(self) -> Plan:
        made = Plan(self.c, self.code)
        made.files = {d: [s.file for s in self.events(d, NOMINAL)] for d in sorted(self.c.datasets)}
        stages = sorted(self.c.stages)  # the order of the description shows nowhere
        for stage in stages:
            self.check_keep(stage)
        for variation in [NOMINAL, *sorted(self.c.variations)]:
            for stage in stages:
                if self.c.stages[stage].reduce is not None:
                    if variation == NOMINAL or self.reduce_varied(stage, variation):
                        made.reduces.append(self.reduce(stage, variation))
                elif self.emits(stage):
                    for dataset in self.datasets(stage):
                        if variation == NOMINAL or self.varied(stage, dataset, variation):
                            made.outputs.append(self.output(stage, dataset, variation))
        made.tasks = list(group(self.steps.values()))
        made.reduces.sort(key=lambda r: (r.level, r.stage, r.variation != NOMINAL, r.variation))
        return made

    # What exists, and what depends on what.
    def _datasets(self, stage: str) -> list[str]:
        spec = self.c.stages[stage]
        before = self.datasets(spec.from_) if spec.from_ else sorted(self.c.datasets)
        wanted = before if spec.datasets is None else list(spec.datasets)
        for name in wanted:
            if name not in before:
                raise self.c.locate(
                    SpecError(
                        f"the stage before it, '{spec.from_}', has no '{name}'", key=("stages", stage, "datasets")
                    )
                )
        return sorted(wanted)

    def _level(self, stage: str) -> int:
        spec = self.c.stages[stage]
        if spec.reduce is not None:
            return max([self.level(spec.reduce), *(self.level(w) + 1 for w in spec.with_)])
        return max([self.level(spec.from_) if spec.from_ else 0, *(self.level(w) + 1 for w in spec.with_)])

    def emits(self, stage: str) -> bool:
        followed = any(s.from_ == stage for s in self.c.stages.values())
        merged = any(s.reduce == stage for s in self.c.stages.values())
        return self.c.stages[stage].keep or merged or not followed

    def check_keep(self, stage: str) -> None:
        before = self.c.stages[stage].from_
        if before and self.level(before) < self.level(stage) and not self.c.stages[before].keep:
            raise self.c.locate(
                SpecError(
                    f"'{stage}' reads it in a later pass, but it leaves nothing to read",
                    key=("stages", before),
                    remedy="add 'keep: true' to it",
                )
            )

    def affects(self, variation: str, dataset: str) -> bool:
        v = self.variations[variation]
        return v is not None and (v.datasets is None or dataset in v.datasets)

    def _varied(self, stage: str, dataset: str, variation: str) -> bool:
        spec = self.c.stages[stage]
        before = self.varied(spec.from_, dataset, variation) if spec.from_ else self.affects(variation, dataset)
        return before or any(self.reduce_varied(w, variation) for w in spec.with_)

    def _reduce_varied(self, stage: str, variation: str) -> bool:
        spec = self.c.stages[stage]
        assert spec.reduce is not None
        return any(self.varied(spec.reduce, d, variation) for d in self.datasets(spec.reduce)) or any(
            self.reduce_varied(w, variation) for w in spec.with_
        )

    # What is read.
    def events(self, dataset: str, variation: str) -> list[SourceSpec]:
        v = self.variations[variation]
        if v is None or not self.affects(variation, dataset) or v.weight_only:
            variation, v = NOMINAL, None
        if (dataset, variation) not in self.sources:
            self.sources[dataset, variation] = self._events(dataset, variation, v)
        return self.sources[dataset, variation]

    def _events(self, dataset: str, variation: str, v: Variation | None) -> list[SourceSpec]:
        d = self.c.datasets[dataset]
        v = v or Variation()
        if v.files is not None:
            key = ("variations", variation, "files")
            metadata = v.metadata if v.metadata is not None else d.metadata
            files = expand(self.c, v.files, metadata, key)
        elif v.metadata is not None:
            files = expand(self.c, d.files, v.metadata, ("variations", variation, "metadata"))
        elif variation != NOMINAL:
            files = [s.file for s in self.events(dataset, NOMINAL)]
        else:
            files = expand(self.c, d.files, d.metadata, ("datasets", dataset, "files"))
        branches = tuple(sorted({**d.branches, **v.branches}.items()))
        return [SourceSpec(dataset, f, v.tree or d.tree, branches, d.is_mc) for f in files]

    # Steps, outputs and reduces.
    def step(self, stage: str, dataset: str, variation: str, i: int) -> Step:
        if variation != NOMINAL and not self.varied(stage, dataset, variation):
            variation = NOMINAL
        source = self.events(dataset, variation)[i]
        at = (stage, dataset, variation, source.file.url)
        if at not in self.steps:
            self.steps[at] = self._step(stage, dataset, variation, i, source)
        return self.steps[at]

    def _step(self, stage: str, dataset: str, variation: str, i: int, source: SourceSpec) -> Step:
        spec = self.c.stages[stage]
        parent = self.step(spec.from_, dataset, variation, i).key if spec.from_ else None
        weight = None
        if parent is None and self.affects(variation, dataset):
            v = self.variations[variation]
            weight = v.weight if v else None
        frozen = tuple((w, variation if self.reduce_varied_at(w, variation) else NOMINAL) for w in spec.with_)
        key = digest(
            [
                FORMAT,
                __version__,
                self.c.read_rows,
                parent or source.key,
                weight,
                stage,
                variation,
                self.code_key(stage),
            ]
            + [self.reduce(*f).key for f in frozen]
        )
        return Step(stage, variation, key, parent, weight, frozen, self.emits(stage), self.level(stage), source)

    def reduce_varied_at(self, stage: str, variation: str) -> bool:
        return variation != NOMINAL and self.reduce_varied(stage, variation)

    def _code_key(self, stage: str) -> str:
        code = self.code[stage]
        model = code.options.get("model")
        used = [model] if isinstance(model, str) and model in self.models else []
        if code.uses_servers:
            used = sorted(self.models)
        options = {k: self.option_key(stage, k, v) for k, v in code.options.items()}
        return digest([code.digest, options, [[m, self.models[m]] for m in used]])

    def option_key(self, stage: str, name: str, value: Any) -> Any:
        if _plain(value):
            return value
        try:
            # What YAML cannot hold comes from Python and travels to the workers by pickle: what arrives there counts.
            return [type(value).__name__, hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()]
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise SpecError(
                f"cannot travel to the workers: {error}", key=("stages", stage, name), remedy="use plain data"
            ) from error

    def output(self, stage: str, dataset: str, variation: str) -> Output:
        if variation != NOMINAL and not self.varied(stage, dataset, variation):
            variation = NOMINAL
        at = (stage, dataset, variation)
        if at not in self.outputs:
            files = self.events(dataset, variation)
            steps = [self.step(stage, dataset, variation, i) for i in range(len(files))]
            names = tuple(f.file.url for f in files)
            self.outputs[at] = Output(stage, dataset, variation, tuple(s.key for s in steps), names, self.level(stage))
        return self.outputs[at]

    def reduce(self, stage: str, variation: str) -> Reduce:
        if (stage, variation) not in self.reduces:
            spec = self.c.stages[stage]
            assert spec.reduce is not None
            inputs = {d: self.output(spec.reduce, d, variation) for d in self.datasets(spec.reduce)}
            frozen = tuple((w, variation if self.reduce_varied_at(w, variation) else NOMINAL) for w in spec.with_)
            key = digest(
                [FORMAT, __version__, "reduce", stage, variation, self.code_key(stage)]
                + [[d, list(o.keys)] for d, o in inputs.items()]
                + [self.reduce(*f).key for f in frozen]
            )
            self.reduces[stage, variation] = Reduce(stage, variation, key, inputs, frozen, self.level(stage))
        return self.reduces[stage, variation]


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def group(steps: Iterable[Step], have: Mapping[str, Any] | None = None) -> Iterator[Task]:
    """Put steps that read the same thing into one task, in canonical order; leave out what is already there.

    Args:
        steps: All steps.
        have: Receipts of partials that are there, by key.
    """
    have = have or {}
    by_key = {s.key: s for s in steps}
    tasks: dict[tuple[Any, ...], dict[str, Step]] = {}
    for step in by_key.values():
        if not step.emit or step.key in have:
            continue
        chain = [step]
        while True:
            parent = by_key.get(chain[-1].parent or "")
            # An artefact of an earlier pass is read; so is one of this pass that an earlier run has left.
            if parent is None or parent.level < step.level or (parent.emit and parent.key in have):
                break
            chain.append(parent)
        artefact = chain[-1].parent
        s = step.source
        at = (step.level, s.dataset, s.file.url, s.key if artefact is None else "", artefact or "")
        wanted = tasks.setdefault(at, {})
        for needed in reversed(chain):
            wanted.setdefault(needed.key, needed)
    for at in sorted(tasks):
        # By depth: the requests of all variations are on their way before the first answer is waited for.
        ordered = sorted(
            tasks[at].values(), key=lambda s: (_depth(s, by_key), s.stage, s.variation != NOMINAL, s.variation)
        )
        yield Task(tuple(ordered), at[-1] or None)


def _depth(step: Step, by_key: Mapping[str, Step]) -> int:
    parent = by_key.get(step.parent or "")
    return 0 if parent is None else 1 + _depth(parent, by_key)


def longest_first(tasks: Iterable[Task]) -> list[Task]:
    """The order of submission; results do not depend on it."""
    return sorted(tasks, key=lambda t: -t.source.file.size)


def reasons(_plan: Plan, task: Task, have: Mapping[str, Any]) -> str:
    """Why a task would run, in words."""
    missing = [s for s in task.steps if s.emit and s.key not in have]
    what = ", ".join(sorted({f"{s.stage}/{s.variation}" for s in missing}))
    start = "its artefact" if task.artefact else f"tree {task.source.tree}"
    return f"{task.source.file.url.rpartition('/')[2]} ({task.source.dataset}): {what} from {start}"
