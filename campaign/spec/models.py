"""The models (pydantic) of a campaign's description. They are frozen, and unknown keys are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from campaign.errors import SpecError
from campaign.util.card import Card, Shown
from campaign.util.messages import unknown

if TYPE_CHECKING:
    from typing_extensions import Self

    from campaign.notebook.handle import RunHandle
    from campaign.report.report import Report

NOMINAL = "nominal"
Key = tuple[str, ...]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _name(value: str) -> str:
    # Names become file and folder names of the run directory: no separators, no leading dot, no line breaks.
    if not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits, '_', '-' and '.', and starts with a letter or digit")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list)]
Datasets = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(min_length=1)]
Files = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Open(BaseModel):
    """Keys that are not its own are options of what ``kind`` or ``use`` names, and are checked by that."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    options: dict[str, Any] = Field(default_factory=dict, description="options of the implementation that is named")

    @model_validator(mode="after")
    def _once(self) -> Self:
        twice = sorted(set(self.options) & set(self.inline))
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice, beside 'options' and in it")
        return self

    @property
    def inline(self) -> dict[str, Any]:
        """The keys beside its own."""
        return dict(self.model_extra or {})

    @property
    def given(self) -> dict[str, Any]:
        """All options: those under ``options`` and those given inline."""
        return {**self.options, **self.inline}


class Dataset(_Frozen):
    """Files that are read alike.

    Args:
        files: A path, a glob, a directory (its ``*.root``), a ``.txt`` file of names, a URL, or a list of these.
        tree: Name of the TTree or RNTuple.
        is_mc: Simulation or data; reaches the stages as ``ctx.metadata["is_mc"]``.
        metadata: A mapping for all files, or the path of a YAML side file ``{file pattern: mapping}``.
        branches: Branch to read in place of a name, ``{name the stage uses: branch in the file}``.
        reader: What opens a file: ``read`` (ROOT), ``package.module:Class``, ``file.py:Class`` (relative to the
            campaign file), or in Python the class itself; see `campaign.protocols.Source`.
    """

    files: Files
    tree: str = Field(min_length=1)
    is_mc: bool = False
    metadata: dict[str, Any] | str | None = None
    branches: dict[str, str] = Field(default_factory=dict)
    reader: str | Callable[..., Any] = "read"


class TwinSpec(_Frozen):
    """The same model in the task's own process, asked when no server is left to ask.

    Args:
        use: ``onnx`` (onnxruntime, one thread), or a class of one's own, ``package.module:Name`` or ``file.py:Name``:
            called with ``file``, gives what is called with ``{input: array}`` and returns ``{output: array}``.
        file: What it is loaded from; None: the model's ``model.onnx``.
        rtol, atol: How far its answer to the model's canary may be from the known one; None: the canary's own.
    """

    use: str = "onnx"
    file: str | None = None
    rtol: float | None = Field(default=None, ge=0)
    atol: float | None = Field(default=None, ge=0)


def _twin(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    return {"use": value} if isinstance(value, str) else value


class ModelSpec(_Frozen):
    """How one model of the repository is used.

    Args:
        batch: Rows per request; every request is padded to it. None: the model's ``max_batch_size``.
        tails: Sizes the last request of a file may have in place of ``batch``: the smallest that holds its rows. Where
            files are short, fewer rows are padding. Part of the results' identity, as ``batch`` is: each size is a
            shape of its own to the model. Empty: the last request is padded to ``batch``.
        version: The version that answers. None: what the configuration's ``version_policy`` says; of several versions
            that it serves, the newest.
        parameters: Entries put into the model configuration's ``parameters``.
        files: Files placed into the version folder, ``{name there: path here}`` (weights, for example).
        onnx: An ONNX file, in place of a folder in a model repository. Its inputs and outputs are read from it; the
            configuration and the ``model.py`` are made.
        canary: An ``.npz`` known answer, in place of the model folder's ``canary.npz``.
        instances: Copies of the model per server (Triton's instance group count); None: as its configuration says.
        local_twin: The same model in the task's own process, the last rung of the ladder: ``true`` or ``onnx``, a class
            (``file.py:Name``), or a `TwinSpec`. It must give the canary's known answer before anything is started;
            where it was used the report says ``reproducible: false``. None: a request nobody answers is parked.
    """

    batch: int | None = Field(default=None, ge=1)
    tails: tuple[Annotated[int, Field(ge=1)], ...] = ()
    version: int | None = Field(default=None, ge=1)
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    files: dict[Name, str] = Field(default_factory=dict)
    onnx: str | None = None
    canary: str | None = None
    instances: int | None = Field(default=None, ge=1, le=1024)
    local_twin: Annotated[TwinSpec | None, BeforeValidator(_twin)] = None


def _models(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        odd = next((name for name in value if not isinstance(name, str)), None)
        if odd is not None:
            raise ValueError(f"a list of models holds names, and {odd!r} is none")
        return {name: {} for name in value}
    return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, Mapping) else value


class ServerSpec(_Open):
    """The pool of model servers. Keys beside these are options of the server kind (``campaign check`` lists them).

    Args:
        kind: A registered server kind: ``triton`` (started for the campaign) or ``attach`` (already running).
        models: ``{name: ModelSpec}``, or a list of names.
        count: Servers in the pool.
        window: Requests in flight per server and client process; ``auto``: as many as keep the server busy, found by
            measuring. No result depends on it.
        start_deadline_s: A server that has not proved itself ready by then is stopped and reported.
        request_deadline_s: Deadline of one request.
        lease_s: A pilot whose submitter has been silent for so long stops its server.
        restarts: How often each server of the pool is replaced when it is lost; those that a condemned request has
            ended alone are not counted, up to twice as many.
        canary_s: A model that has answered nothing for so long is asked for its known answer again.
    """

    kind: str = "triton"
    models: Annotated[dict[Name, ModelSpec], BeforeValidator(_models)] = Field(min_length=1)
    count: int = Field(default=1, ge=1, le=4096)
    window: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    start_deadline_s: Seconds = 120.0
    request_deadline_s: Seconds = 60.0
    lease_s: Seconds = 10.0
    restarts: int = Field(default=3, ge=0, le=1000)
    canary_s: Seconds = 5.0

    @property
    def silent_s(self) -> float:
        """A server that has said nothing for so long is taken for dead."""
        return max(3.0, min(10.0, self.request_deadline_s))


class ProviderSpec(_Open):
    """A registered provider's name and its options."""

    kind: str = "local"


def _provider(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class StageSpec(_Open):
    """One step. Keys beside these are options of a stage class; a plain function's stand under ``options``.

    Args:
        use: A registered name, ``package.module:Name``, ``file.py:Name`` (relative to the campaign file), or in
            Python the function or class itself.
        from_: The per-file stage whose output this one takes (in YAML: ``from``); None: the dataset's events.
        reduce: Makes it a reduce stage: called once per variation with that stage's merged output.
        with_: Reduce stages whose frozen values it needs (in YAML: ``with``).
        datasets: Datasets it applies to; None: those of the stage before it.
        keep: Leave its output per file as an artefact that later passes read.
        weighted: Whether it uses the weight of a variation (``ctx.weight``), or hands it on; a stage that neither does
            makes nominal's output in every variation of the weight, and is refused. False: it means to.
    """

    use: str | Callable[..., Any]
    from_: Name | None = Field(default=None, alias="from")
    reduce: Name | None = None
    with_: Names = Field(default=(), alias="with")
    datasets: Datasets | None = None
    keep: bool = False
    weighted: bool = True


class Variation(_Frozen):
    """The changes that a systematic variation makes in the datasets it names (None: in all).

    Args:
        datasets: Datasets whose inputs change.
        tree: Another tree.
        branches: Other branches, ``{name the stage uses: branch in the file}``.
        weight: Expression of branches evaluated per event, e.g. ``pdf_weight[7]``.
        files: Other files (another sample).
        metadata: Other metadata, with ``files``.
    """

    datasets: Datasets | None = None
    tree: str | None = Field(default=None, min_length=1)
    branches: dict[str, str] = Field(default_factory=dict)
    weight: str | None = None
    files: Files | None = None
    metadata: dict[str, Any] | str | None = None

    @property
    def weight_only(self) -> bool:
        """True if the inputs of every model are the nominal ones."""
        return self.tree is None and not self.branches and self.files is None and self.metadata is None


_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%")


def _tolerance(value: Any) -> Any:
    if isinstance(value, str) and (found := _PERCENT.fullmatch(value.strip())) and Fraction(found[1]) <= 100:
        return f"{found[1]} %"
    if type(value) is int and value >= 0:
        return value
    raise ValueError("is a number of files, or a percentage of them such as '0.5 %'")


class ErrorSpec(_Frozen):
    """The failures that a campaign tolerates.

    Args:
        max_failed_files: Input files that may fail for good, as a number or a percentage of all (rounded down) such as
            ``0.5 %``. With no more than that the campaign ends ``incomplete``: outputs are made without these files and
            say so. With more it fails.
        weight: Expression of branches, e.g. ``pu_weight``, whose sum over a failed file is put into the report if the
            file can still be read; None: ``sum_of_weights`` of the metadata where they are for that file alone.
    """

    max_failed_files: Annotated[int | str, BeforeValidator(_tolerance)] = 0
    weight: str | None = None

    def limit(self, files: int) -> int:
        """How many of so many files may fail."""
        given = self.max_failed_files
        return given if isinstance(given, int) else int(Fraction(given[:-2]) * files / 100)


@dataclass(frozen=True)
class Origin:
    """The file and the lines of a campaign, for error messages.

    Attributes:
        file: The campaign file.
        lines: Line of each key.
        changed: Keys that ``--set`` gave.
    """

    file: str
    lines: Mapping[Key, int]
    changed: frozenset[Key] = frozenset()

    def place(self, key: tuple[str | int, ...]) -> str:
        """``file:line: dotted.key``, or the ``--set`` that gave it."""
        parts = tuple(str(part) for part in key)
        dotted = ".".join(parts)
        made = any(parts[: len(c)] == c or (parts not in self.lines and c[: len(parts)] == parts) for c in self.changed)
        if parts and made:
            return f"--set {dotted}"
        known = next((parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in self.lines), ())
        return f"{self.file}:{self.lines.get(known, 1)}: {dotted}"


class Campaign(Shown, _Frozen):
    """One description: datasets, servers, stages, variations, and who lends the machines.

    Paths are relative to the campaign file; for a campaign made in Python, to the current folder or to what
    ``Campaign(...).at(folder)`` says.

    Args:
        campaign: Its name.
        datasets: ``{name: Dataset}``.
        stages: ``{name: StageSpec}`` in any order.
        servers: The pool; None where no stage infers.
        provider: A registered provider's name, or ``{kind: name, option: ...}``.
        variations: ``{name: Variation}``.
        workers: Worker processes; None: one per core this process may use, two where there are servers: while one waits
            for answers the other reads.
        limit: Rows of each file, from its start, for a quick try; None: all. Results are kept apart from a whole run's.
        read_rows: Rows that a task reads and hands to the stages at once. Part of the task keys, since stages see these
            ranges; requests to models do not depend on them.
        task_deadline_s: A task that runs longer is given up.
        retries: How often a task is tried again after an error that can heal.
        errors: What it puts up with; by default no file may fail.
    """

    campaign: Name
    datasets: dict[Name, Dataset] = Field(min_length=1)
    stages: dict[Name, StageSpec] = Field(min_length=1)
    servers: ServerSpec | None = None
    provider: Annotated[ProviderSpec, BeforeValidator(_provider)] = ProviderSpec()
    variations: dict[Name, Variation] = Field(default_factory=dict)
    workers: int | None = Field(default=None, ge=1, le=100_000)
    limit: int | None = Field(default=None, ge=1)
    read_rows: int = Field(default=100_000, ge=1, le=2**31)
    task_deadline_s: Seconds = 6 * 3600.0
    retries: int = Field(default=1, ge=0, le=20)
    errors: ErrorSpec = ErrorSpec()

    _base: Path = PrivateAttr(default_factory=Path.cwd)
    _origin: Origin | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _references(self) -> Campaign:
        check_references(self)
        return self

    @property
    def base(self) -> Path:
        """Folder that relative paths start from."""
        return self._base

    def __eq__(self, other: object) -> bool:
        # Where it was written down is no part of what it is.
        return isinstance(other, Campaign) and all(getattr(self, n) == getattr(other, n) for n in Campaign.model_fields)

    __hash__ = None  # type: ignore[assignment]  # its mappings cannot be hashed either

    def at(self, base: Path | str, origin: Origin | None = None) -> Campaign:
        """The same campaign with relative paths starting from ``base``."""
        copy = self.model_copy()
        copy._base, copy._origin = Path(base).resolve(), origin
        return copy

    def path(self, name: str) -> Path:
        """``name`` as an absolute path."""
        return (self._base / Path(name).expanduser()).resolve()

    def locate(self, error: SpecError) -> SpecError:
        """Add file and line to an error that knows its key."""
        if self._origin is not None and error.key and not error.where:
            error.where = self._origin.place(error.key)
        return error

    def run(self, **settings: Any) -> Report:
        """Run it; see `campaign.driver.run.run` for the settings."""
        import campaign  # its front door: a value knows no machinery

        report: Report = campaign.run(self, **settings)
        return report

    def start(self, **settings: Any) -> RunHandle:
        """Run it in a background thread; see `campaign.notebook.handle.start`."""
        from campaign.notebook.handle import start

        return start(self, **settings)

    @staticmethod
    def attach(run_dir: Path | str) -> RunHandle:
        """The run of a run directory, running or over; see `campaign.notebook.handle.attach`."""
        from campaign.notebook.handle import attach

        return attach(run_dir)

    def _card(self) -> Card:
        from campaign.spec.card import card

        return card(self)


def check_references(c: Campaign) -> None:
    """Refuse a campaign whose parts do not fit together.

    Raises:
        SpecError: with the key at fault.
    """
    per_file = [n for n, s in c.stages.items() if s.reduce is None]
    reducers = [n for n, s in c.stages.items() if s.reduce is not None]
    for name, stage in c.stages.items():
        at = ("stages", name)
        if stage.reduce is not None:
            _known(stage.reduce, per_file, (*at, "reduce"), "per-file stages")
            unweighted = not stage.weighted
            for key, given in (
                ("from", stage.from_), ("keep", stage.keep), ("datasets", stage.datasets), ("weighted", unweighted),
            ):  # fmt: skip
                if given:
                    raise SpecError(f"a reduce stage takes no '{key}'", key=(*at, key), remedy="take it out")
        elif stage.from_ is not None:
            _known(stage.from_, [n for n in per_file if n != name], (*at, "from"), "per-file stages")
        for other in stage.with_:
            _known(other, [n for n in reducers if n != name], (*at, "with"), "reduce stages")
        for dataset in stage.datasets or ():
            _known(dataset, list(c.datasets), (*at, "datasets"), "datasets")
    for name, variation in c.variations.items():
        if name == NOMINAL:
            raise SpecError("'nominal' is the campaign without variations", key=("variations", name), remedy="rename")
        for dataset in variation.datasets or ():
            _known(dataset, list(c.datasets), ("variations", name, "datasets"), "datasets")
        if variation == Variation(datasets=variation.datasets):
            raise SpecError(
                "changes nothing", key=("variations", name), remedy="name a tree, branches, weight or files"
            )
    _refuse_circles(c)


def _known(name: str, known: list[str], key: tuple[str, ...], what: str) -> None:
    if name not in known:
        raise SpecError(unknown(name, known, what), key=key)


def _refuse_circles(c: Campaign) -> None:
    def needs(name: str) -> list[str]:
        s = c.stages[name]
        return [n for n in (s.from_, s.reduce, *s.with_) if n is not None]

    done: set[str] = set()
    for start in c.stages:
        trail: list[tuple[str, list[str]]] = [(start, needs(start))]
        while trail:
            name, left = trail[-1]
            if name in done or not left:
                done.add(name)
                trail.pop()
                continue
            step = left.pop()
            if step in [n for n, _ in trail]:
                raise SpecError(
                    f"stages wait for each other: {' -> '.join([n for n, _ in trail] + [step])}", key=("stages", start)
                )
            trail.append((step, needs(step)))


def campaign_workers(campaign: Campaign) -> int:
    """Worker processes asked for; else one per core this process may use, two where there are servers.

    While one waits for answers, the other reads.
    """
    return campaign.workers or len(os.sched_getaffinity(0)) * (1 if campaign.servers is None else 2)
