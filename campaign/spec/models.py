"""The models (pydantic) of a campaign's description. They are frozen, and unknown keys are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from campaign.errors import SpecError
from campaign.spec.fields import Datasets, Files, FrozenModel, Name, Names, OpenModel, Seconds
from campaign.spec.references import check_known, check_stages, refuse_circles
from campaign.util.card import Card, Shown

if TYPE_CHECKING:
    from campaign.notebook.handle import RunHandle
    from campaign.report.report import Report

NOMINAL = "nominal"
Key = tuple[str, ...]


class Dataset(FrozenModel):
    """Files that are read in the same way.

    Args:
        files: A path, a glob, a directory (its ``*.root``), a ``.txt`` file of names, a URL, or a list of these.
        tree: Name of the TTree or RNTuple.
        is_mc: True for simulation, False for data. Stages read it as ``ctx.metadata["is_mc"]``.
        metadata: A mapping for all files, or the path of a YAML side file ``{file pattern: mapping}``.
        branches: Other names of branches, ``{name that the stage uses: branch in the file}``.
        reader: Opens a file: ``read`` (ROOT), ``package.module:Class``, ``file.py:Class`` (relative to the
            campaign file), or in Python the class itself. See `campaign.protocols.Source`.
    """

    files: Files
    tree: str = Field(min_length=1)
    is_mc: bool = False
    metadata: dict[str, Any] | str | None = None
    branches: dict[str, str] = Field(default_factory=dict)
    reader: str | Callable[..., Any] = "read"


class TwinSpec(FrozenModel):
    """The same model in the task's own process. It answers when no server is left.

    Args:
        use: ``onnx`` (onnxruntime, one thread), or your own class, ``package.module:Name`` or ``file.py:Name``. The
            class is called with ``file``. Its instance is called with ``{input: array}`` and returns ``{output:
            array}``.
        file: The file that it is loaded from. None: the model's ``model.onnx``.
        rtol, atol: Tolerances between its answer and the known answer. None: the tolerances of the canary.
    """

    use: str = "onnx"
    file: str | None = None
    rtol: float | None = Field(default=None, ge=0)
    atol: float | None = Field(default=None, ge=0)


def _twin(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    return {"use": value} if isinstance(value, str) else value


class ModelSpec(FrozenModel):
    """How the campaign uses one model of the repository.

    Args:
        batch: Rows per request. Every request is padded to it. None: the model's ``max_batch_size``.
        tails: Sizes that the last request of a file may have instead of ``batch``. The smallest size that holds its
            rows is used, so that short files need less padding. Part of the results' identity, as ``batch`` is: each
            size is another shape to the model. Empty: the last request is padded to ``batch``.
        version: The version that answers. None: the newest version that the configuration's ``version_policy`` serves.
        parameters: Entries for ``parameters`` of the model configuration.
        files: Files that are put into the version folder, ``{name there: path here}``, for example weights.
        onnx: An ONNX file instead of a folder in a model repository. Inputs and outputs are read from the file.
            Configuration and ``model.py`` are made.
        canary: An ``.npz`` file with the known answer, instead of the model folder's ``canary.npz``.
        instances: Copies of the model per server (count of Triton's instance group). None: as its configuration says.
        local_twin: The same model in the task's own process, for requests that no server answers: ``true`` or ``onnx``,
            a class (``file.py:Name``), or a `TwinSpec`. It must give the canary's known answer before anything is
            started. If it was used, the report says ``reproducible: false``. None: such a request is parked.
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


class ServerSpec(OpenModel):
    """The pool of model servers. All other keys are options of the server kind.

    Args:
        kind: A registered server kind: ``triton`` (started for the campaign) or ``attach`` (already running).
        models: ``{name: ModelSpec}``, or a list of names.
        count: Servers in the pool.
        window: Requests in flight per server and client process. ``auto``: as many as keep the server busy, which is
            measured. No result depends on it.
        start_deadline_s: Seconds that a server has to give its known answers. After that it is stopped and reported.
        request_deadline_s: Seconds that a request may take.
        lease_s: Seconds without a sign of the driver after which a pilot stops its server.
        restarts: How often each server of the pool is replaced. Servers that were ended by a request that was found to
            end servers are not counted, up to twice as many.
        canary_s: Seconds after which a model that has answered no request is asked for its known answer again.
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
        """Seconds without an answer after which a server counts as dead."""
        return max(3.0, min(10.0, self.request_deadline_s))


class ProviderSpec(OpenModel):
    """The provider of machines: its registered name and its options."""

    kind: str = "local"


def _provider(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class StageSpec(OpenModel):
    """One step. All other keys are options of a stage class. The options of a function stand under ``options``.

    Args:
        use: A registered name, ``package.module:Name``, ``file.py:Name`` (relative to the campaign file), or in
            Python the function or class itself.
        from_: The per-file stage whose output this stage takes (in YAML: ``from``). None: the dataset's events.
        reduce: Name of a per-file stage. Makes this a reduce stage, which is called once per variation with the merged
            output of that stage.
        with_: Reduce stages whose frozen values this stage needs (in YAML: ``with``).
        datasets: Datasets of this stage. None: those of the stage before it.
        keep: Keep the output of each file as an artefact that later passes read.
        weighted: True: the stage uses the weight of a variation (``ctx.weight``) or passes it on. A stage that does
            neither gives the nominal output in every variation of the weight, and is refused. False: this is intended.
    """

    use: str | Callable[..., Any]
    from_: Name | None = Field(default=None, alias="from")
    reduce: Name | None = None
    with_: Names = Field(default=(), alias="with")
    datasets: Datasets | None = None
    keep: bool = False
    weighted: bool = True


class Variation(FrozenModel):
    """A systematic variation: what it changes in its datasets.

    Args:
        datasets: Datasets whose inputs change. None: all.
        tree: Another tree.
        branches: Other branches, ``{name that the stage uses: branch in the file}``.
        weight: Expression of branches that is evaluated per event, for example ``pdf_weight[7]``.
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
        """True if every model gets the nominal inputs."""
        return self.tree is None and not self.branches and self.files is None and self.metadata is None


_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%")


def _tolerance(value: Any) -> Any:
    if isinstance(value, str) and (found := _PERCENT.fullmatch(value.strip())) and Fraction(found[1]) <= 100:
        return f"{found[1]} %"
    if type(value) is int and value >= 0:
        return value
    raise ValueError("is a number of files, or a percentage of them such as '0.5 %'")


class ErrorSpec(FrozenModel):
    """The errors that a campaign tolerates.

    Args:
        max_failed_files: Number of input files that may fail for good, or a percentage of all files (rounded down) such
            as ``0.5 %``. Up to this number the campaign ends ``incomplete``: outputs are made without these files, and
            their notes say so. With more failed files the campaign fails.
        weight: Expression of branches, for example ``pu_weight``. The report gives its sum over each failed file that
            can still be read. None: ``sum_of_weights`` of the metadata, if they are for that file alone.
    """

    max_failed_files: Annotated[int | str, BeforeValidator(_tolerance)] = 0
    weight: str | None = None

    def limit(self, files: int) -> int:
        """Number of files that may fail, of ``files`` in all."""
        given = self.max_failed_files
        return given if isinstance(given, int) else int(Fraction(given[:-2]) * files / 100)


@dataclass(frozen=True)
class Origin:
    """The file and lines of a campaign, to name the place of an error.

    Attributes:
        file: The campaign file.
        lines: Line of each key.
        changed: Keys that ``--set`` has set.
    """

    file: str
    lines: Mapping[Key, int]
    changed: frozenset[Key] = frozenset()

    def place(self, key: tuple[str | int, ...]) -> str:
        """``file:line: dotted.key``, or the ``--set`` that has set the key."""
        parts = tuple(str(part) for part in key)
        dotted = ".".join(parts)
        made = any(parts[: len(c)] == c or (parts not in self.lines and c[: len(parts)] == parts) for c in self.changed)
        if parts and made:
            return f"--set {dotted}"
        known = next((parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in self.lines), ())
        return f"{self.file}:{self.lines.get(known, 1)}: {dotted}"


class Campaign(Shown, FrozenModel):
    """The description of a campaign: datasets, servers, stages, variations and the provider of machines.

    Paths are relative to the campaign file. For a campaign made in Python they are relative to the current folder, or
    to the folder of ``Campaign(...).at(folder)``.

    Args:
        campaign: Its name.
        datasets: ``{name: Dataset}``.
        stages: ``{name: StageSpec}`` in any order.
        servers: The pool. None: no stage calls a model.
        provider: A registered provider's name, or ``{kind: name, option: ...}``.
        variations: ``{name: Variation}``.
        workers: Number of worker processes. None: one per core that this process may use, or two if there are servers,
            because one reads while the other waits for answers.
        limit: Number of rows of each file, from its start, for a quick try. None: all. The results have their own keys.
        read_rows: Rows that a task reads and passes to the stages at once. Part of the task keys, because stages see
            these ranges. Requests to models do not depend on them.
        task_deadline_s: Seconds that a task may take.
        retries: How often a task is tried again after an error that may not come again.
        errors: The errors that it tolerates. By default no file may fail.
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
        """Folder at which relative paths start."""
        return self._base

    def __eq__(self, other: object) -> bool:
        # Where it was written down is no part of what it is.
        return isinstance(other, Campaign) and all(getattr(self, n) == getattr(other, n) for n in Campaign.model_fields)

    __hash__ = None  # type: ignore[assignment]  # its mappings cannot be hashed either

    def at(self, base: Path | str, origin: Origin | None = None) -> Campaign:
        """The same campaign with relative paths that start at ``base``."""
        copy = self.model_copy()
        copy._base, copy._origin = Path(base).resolve(), origin
        return copy

    def path(self, name: str) -> Path:
        """``name`` as an absolute path."""
        return (self._base / Path(name).expanduser()).resolve()

    def locate(self, error: SpecError) -> SpecError:
        """Add file and line to an error that holds its key."""
        if self._origin is not None and error.key and not error.where:
            error.where = self._origin.place(error.key)
        return error

    def run(self, **settings: Any) -> Report:
        """Run the campaign. See `campaign.driver.run.run` for the settings."""
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
        SpecError: Holds the wrong key.
    """
    check_stages(c)
    for name, variation in c.variations.items():
        if name == NOMINAL:
            raise SpecError("'nominal' is the campaign without variations", key=("variations", name), remedy="rename")
        for dataset in variation.datasets or ():
            check_known(dataset, list(c.datasets), ("variations", name, "datasets"), "datasets")
        if variation == Variation(datasets=variation.datasets):
            raise SpecError(
                "changes nothing", key=("variations", name), remedy="name a tree, branches, weight or files"
            )
    refuse_circles(c)


def campaign_workers(campaign: Campaign) -> int:
    """Number of worker processes: as the campaign says, else one per core, or two per core if there are servers.

    With servers, one worker reads while another waits for answers.
    """
    return campaign.workers or len(os.sched_getaffinity(0)) * (1 if campaign.servers is None else 2)
