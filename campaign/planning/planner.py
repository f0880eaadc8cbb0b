"""Makes the plan of a campaign. A step's key is a hash of its input, code, options, model and variation."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from campaign._version import __version__
from campaign.errors import SpecError
from campaign.planning.datasets import Files, expand
from campaign.planning.plan import InputGroup, Layer, Output, Plan, Reduce, Urls
from campaign.planning.stage_code import StageCode, resolve, resolve_reader
from campaign.planning.task import KEY, Keys
from campaign.protocols import WEIGHT
from campaign.spec.models import NOMINAL, Campaign, Variation
from campaign.util.hashing import canonical_json, digest

FORMAT = 2  # of keys; raised when the same key would name another result


def plan(campaign: Campaign, models: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Make the plan. Reads file sizes and dates, and the stages' source; starts nothing.

    Args:
        campaign: The campaign.
        models: What each model's answers depend on (`ServerKind.identity`).

    Raises:
        SpecError: A stage, a file, or a side file is missing or wrong.
    """
    try:
        _refuse_reserved(campaign)
        code = {name: resolve(campaign, name) for name in campaign.stages}
        readers = {name: resolve_reader(campaign, name) for name in campaign.datasets}
    except SpecError as error:
        raise campaign.locate(error) from error.__cause__
    return _Planner(campaign, code, readers, models).build()


def _refuse_reserved(c: Campaign) -> None:
    """No name for a branch may be that of the weight's column."""
    for what, named in (("datasets", c.datasets), ("variations", c.variations)):
        for name, spec in named.items():
            if WEIGHT in spec.branches:
                raise SpecError(
                    f"'{WEIGHT}' is the name of the column ctx.weight", key=(what, name, "branches", WEIGHT),
                    remedy="give the branch another name; a variation's weight stands under variations.NAME.weight",
                )  # fmt: skip

    for name in c.variations:
        stem = name.removesuffix(".exact")
        if stem != name and (stem == NOMINAL or stem in c.variations):
            raise SpecError(
                f"the counts of '{stem}' have a file {stem}.exact.json, which would be this variation's too",
                key=("variations", name), remedy="give it another name",
            )  # fmt: skip


class _Planner:
    def __init__(
        self, campaign: Campaign, code: dict[str, StageCode], readers: dict[str, StageCode],
        models: Mapping[str, Mapping[str, Any]],
    ) -> None:  # fmt: skip
        self.c, self.code, self.readers, self.models = campaign, code, readers, models
        self.variations: dict[str, Variation | None] = {NOMINAL: None, **campaign.variations}
        self.lines: dict[tuple[str, str, str], Layer] = {}  # (stage, dataset, variation)
        self.sources: dict[tuple[str, str], tuple[InputGroup, bytes]] = {}
        self.reduces: dict[tuple[str, str], Reduce] = {}
        self.outputs: dict[tuple[str, str, str], Output] = {}
        # Asked again and again; the answers depend on names alone.
        self.datasets: Callable[[str], list[str]] = cache(self._datasets)
        self.level: Callable[[str], int] = cache(self._level)
        self.varied: Callable[[str, str, str], bool] = cache(self._varied)
        self.reduce_varied: Callable[[str, str], bool] = cache(self._reduce_varied)
        self.code_key: Callable[[str], str] = cache(self._code_key)

    def build(self) -> Plan:
        made = Plan(self.c, self.code, self.readers)
        made.ingredients = {stage: self.ingredients(stage) for stage in sorted(self.c.stages)}
        made.files = {d: self.events(d, NOMINAL)[0].files for d in sorted(self.c.datasets)}
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
        made.lines = list(self.lines.values())
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
        merged = any(s.reduce == stage for s in self.c.stages.values())
        return self.c.stages[stage].keep or merged or not self.followed(stage)

    def followed(self, stage: str) -> bool:
        return any(s.from_ == stage for s in self.c.stages.values())

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
    def events(self, dataset: str, variation: str) -> tuple[InputGroup, bytes]:
        """The input group, and the packed hashes of its files, 32 bytes each."""
        v = self.variations[variation]
        if v is None or not self.affects(variation, dataset) or v.weight_only:
            variation, v = NOMINAL, None
        if (dataset, variation) not in self.sources:
            d, v = self.c.datasets[dataset], v or Variation()
            branches = tuple(sorted({**d.branches, **v.branches}.items()))
            made = InputGroup(
                dataset, variation, self.files(dataset, variation, v), v.tree or d.tree, branches, d.is_mc
            )
            self.sources[dataset, variation] = made, self.source_keys(made)
        return self.sources[dataset, variation]

    def files(self, dataset: str, variation: str, v: Variation) -> Files:
        d = self.c.datasets[dataset]
        if v.files is not None:
            metadata = v.metadata if v.metadata is not None else d.metadata
            return expand(self.c, v.files, metadata, ("variations", variation, "files"))
        if v.metadata is not None:
            return expand(self.c, d.files, v.metadata, ("variations", variation, "metadata"))
        if variation != NOMINAL:
            return self.events(dataset, NOMINAL)[0].files
        return expand(self.c, d.files, d.metadata, ("datasets", dataset, "files"))

    def source_keys(self, e: InputGroup) -> bytes:
        reader = self.readers[e.dataset].digest
        common = _started([FORMAT, e.dataset, e.tree, list(map(list, e.branches)), e.is_mc, reader])
        keys = bytearray()
        for identity in e.files.identities():
            one = common.copy()
            one.update(identity)
            keys += one.digest()
        return bytes(keys)

    # Lines, outputs and reduces.
    def line(self, stage: str, dataset: str, variation: str) -> Layer:
        if variation != NOMINAL and not self.varied(stage, dataset, variation):
            variation = NOMINAL
        at = (stage, dataset, variation)
        if at not in self.lines:
            from_ = self.c.stages[stage].from_
            parent = self.line(from_, dataset, variation) if from_ else None  # before it, so that numbers follow
            self.lines[at] = self._line(stage, dataset, variation, parent)
        return self.lines[at]

    def _line(self, stage: str, dataset: str, variation: str, parent: Layer | None) -> Layer:
        weight = None
        if parent is None and self.affects(variation, dataset):
            v = self.variations[variation]
            weight = v.weight if v else None
        frozen = tuple(
            (w, variation if self.reduce_varied_at(w, variation) else NOMINAL) for w in self.c.stages[stage].with_
        )
        code, needs = self.code_key(stage), [self.reduce(*f).key for f in frozen]
        limit = [] if self.c.limit is None else [{"limit": self.c.limit}]
        common = _started([FORMAT, __version__, self.c.read_rows, weight, stage, variation, code, needs, *limit])
        events, sources = self.events(dataset, variation)
        before = parent.keys.packed if parent else sources
        keys = bytearray()
        for i in range(0, len(before), KEY):  # the same for all files but for what is read
            one = common.copy()
            one.update(before[i : i + KEY])
            keys += one.digest()
        return Layer(
            len(self.lines), stage, variation, events, parent, weight, frozen, self.emits(stage), self.level(stage),
            Keys(bytes(keys)), self.weighs(stage, dataset, variation), self.followed(stage),
        )  # fmt: skip

    def weighs(self, stage: str, dataset: str, variation: str) -> bool:
        """True if a stage must use a variation's weight or pass it on."""
        v = self.variations[variation]
        has_one = v is not None and v.weight is not None and self.affects(variation, dataset)
        return has_one and self.c.stages[stage].weighted

    def reduce_varied_at(self, stage: str, variation: str) -> bool:
        return variation != NOMINAL and self.reduce_varied(stage, variation)

    def _code_key(self, stage: str) -> str:
        parts = self.ingredients(stage)
        return digest([parts["code"], parts["options"], [[m, what] for m, what in parts["models"].items()]])

    def ingredients(self, stage: str) -> dict[str, Any]:
        """The properties of a stage on which its results depend, besides its input."""
        code = self.code[stage]
        model = code.options.get("model")
        used = [model] if isinstance(model, str) and model in self.models else []
        if code.uses_servers:
            used = sorted(self.models)
        options = {k: self.option_key(stage, k, v) for k, v in code.options.items()}
        if not self.c.stages[stage].weighted:
            options["weighted" if "weighted" not in options else "weighted of the stage"] = False
        return {"code": code.digest, "options": options, "models": {m: self.models[m] for m in used}}

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
            line = self.line(stage, dataset, variation)
            urls = Urls(line.events.files)
            self.outputs[at] = Output(stage, dataset, variation, line.keys, urls, self.level(stage), line)
        return self.outputs[at]

    def reduce(self, stage: str, variation: str) -> Reduce:
        if (stage, variation) not in self.reduces:
            spec = self.c.stages[stage]
            assert spec.reduce is not None
            inputs = {d: self.output(spec.reduce, d, variation) for d in self.datasets(spec.reduce)}
            frozen = tuple((w, variation if self.reduce_varied_at(w, variation) else NOMINAL) for w in spec.with_)
            key = digest(
                [FORMAT, __version__, "reduce", stage, variation, self.code_key(stage)]
                + [[d, self.line(spec.reduce, d, o.variation).keys.digest] for d, o in inputs.items()]
                + [self.reduce(*f).key for f in frozen]
            )
            self.reduces[stage, variation] = Reduce(stage, variation, key, inputs, frozen, self.level(stage))
        return self.reduces[stage, variation]


def _started(common: list[Any]) -> Any:
    """A hash of what many keys have in common; the rest is added to its copies."""
    return hashlib.sha256(canonical_json(common).encode() + b"\n")


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
