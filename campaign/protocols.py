"""Interfaces of stages, sources, server kinds and providers. The docstrings are the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from campaign.discovery.credentials import Credentials
from campaign.errors import SpecError

if TYPE_CHECKING:
    from campaign.inference.stand_in import Signature
    from campaign.spec.models import ServerSpec

WEIGHT = "variation_weight"
"""Name of the column that carries a variation's weight; stages say ``ctx.weight``."""


@dataclass(frozen=True)
class Context:
    """Everything that a stage gets besides its batch.

    Attributes:
        dataset: Name of the dataset. Empty for a reduce stage.
        metadata: ``is_mc``, and the metadata of this file from the dataset or its side file. A reduce stage gets one
            such mapping per dataset.
        variation: Name of the variation. ``nominal`` if there is none.
        weight: Name of the column with the event weight of the variation (float64, all ones in nominal).
        options: Options of the stage.
        frozen: Frozen values of the reduce stages named under ``with``.
        servers: The pool: ``infer(model, {name: array})``.
        artefacts: Folder for plots and tables (reduce stages only).
        missing: For a reduce stage: what its merged inputs lack, because files failed and the campaign tolerates it.
            ``{dataset: {files: [names], entries, sum_of_weights}}`` (None: unknown). Empty if the inputs are complete.
    """

    dataset: str
    metadata: Mapping[str, Any]
    variation: str
    weight: str
    options: Mapping[str, Any] = field(default_factory=dict)
    frozen: Mapping[str, Any] = field(default_factory=dict)
    servers: Any = None
    artefacts: Path | None = None
    missing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Stage(Protocol):
    """A per-file stage: one row range in, columns, histograms or counts out. A reduce stage is called alike."""

    def __call__(self, batch: Any, ctx: Context) -> Any:
        """Compute the result of one range.

        Args:
            batch: Awkward record array of the range: the events, or the result of the stage before. A reduce stage
                gets its merged inputs by dataset.
            ctx: Dataset, variation, options and so on.

        Returns:
            A dict of equal-length arrays, ``Histograms`` or ``Counts``. A reduce stage: a value that can be frozen.
        """


class TwoStepStage(ABC):
    """A per-file stage that waits for a server. It starts one range while other ranges are read and filled.

    Every class with these two methods is a two-step stage.
    """

    @abstractmethod
    def start(self, batch: Any, ctx: Context) -> Any:
        """Send the requests. Return at once with the value that `finish` takes."""

    @abstractmethod
    def finish(self, pending: Any) -> Any:
        """Wait for the answers. Return the result of the stage."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        # Asked for every range: this answer is remembered by class, that of a runtime-checkable Protocol is not.
        return all(any(name in vars(c) for c in other.__mro__) for name in ("start", "finish"))


class Source(Protocol):
    """An open file of a dataset, read in row ranges. The class is called with ``(url, tree, branches)``.

    A dataset without ``reader`` uses ``read`` (ROOT).

    Attributes:
        entries: Number of rows.
        touched: Optional. Names that stages have used until now. The names used in the file before are put into it.
        clusters: Optional. Rows at which a range is best begun, ascending.
    """

    entries: int

    def read(self, start: int, stop: int) -> Any:
        """The rows ``start <= i < stop`` as an awkward record array. A branch is read when a stage touches it."""

    def weight(self, expression: str, batch: Any) -> Any:
        """A per-event expression of branches, float64, shape (len(batch),)."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Launch:
    """How a pilot starts one server.

    Attributes:
        argv: Program and arguments. They hold no secret: every user of the node can read them.
        env: The whole environment of the server.
        url: The address for clients.
        shm_prefix: Names in ``/dev/shm`` that begin with it belong to this server alone.
        private_shm: True: the server gets a ``/dev/shm`` of its own. False: it does not. ``auto``: if possible.
        ca: PEM of the campaign's authority. The server then finds ``tls/key.pem``, ``tls/cert.pem`` and ``tls/ca.pem``
            in its folder, and must demand certificates of clients. Empty: the server listens on a socket in its folder.
        held: An object that stays open while the server runs, for example a socket that reserves its port.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    url: str
    shm_prefix: str
    private_shm: bool | str = "auto"
    ca: str = ""
    held: Any = None


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that its local model and its known answer need.

    Attributes:
        folder: Folder of the version that answers.
        onnx: The ONNX file that a local model loads if the campaign names none. The file may be missing.
        canary: The known answer. The file may be missing.
        new_canary: Where ``campaign canary`` writes a new known answer.
        rows_assumed: True if nothing but the ONNX file itself says that its first axis counts rows. A server then has
            to prove it.
        reshaped: Inputs that the ONNX file takes in another shape than clients send, ``(name, shape of a row)``. None:
            there are none, and no outputs either.
    """

    folder: Path
    onnx: Path
    canary: Path
    new_canary: Path
    rows_assumed: bool = False
    reshaped: tuple[tuple[str, tuple[int, ...]], ...] | None = None


class ServerKind(ABC):
    """A kind of model server. Every server kind inherits from this class.

    `identity` must be implemented, and `launch` by a kind whose servers are started. All other methods have a default:
    a kind implements them if it knows more. ``kind(spec, base)`` must start nothing.

    Attributes:
        Options: A frozen pydantic model of the kind's own keys under ``servers``.
        managed: True: the pool starts the servers. False: the servers run already.
        unproved: Models without a known answer, because ``campaign canary`` is making it. Servers are ready without it.
    """

    Options: type[BaseModel]
    managed: bool
    unproved: frozenset[str] = frozenset()

    def __init__(self, spec: ServerSpec, base: Path) -> None:
        """Take the description. Relative paths start at ``base``."""
        self.spec, self.base = spec, base

    def check(self) -> None:  # noqa: B027  a kind may have nothing to refuse
        """Refuse a description that cannot work, before anything is started.

        Raises:
            SpecError: Holds the wrong key.
        """

    @abstractmethod
    def identity(self, model: str) -> Mapping[str, Any]:
        """Everything that the answers of a model depend on: hashes of files, configuration, server build. JSON-able."""

    def version(self, model: str) -> int | None:
        """The version of the model that answers. None: the newest version that the servers have."""
        return self.spec.models[model].version

    def signature(self, model: str) -> Signature | None:
        """Names, datatypes and shapes of the model's inputs and outputs. None: not known before a server is asked."""
        del model
        return None

    def model_files(self, model: str) -> ModelFiles | None:
        """The files of a model. None: they are not on this machine, and the model has no local model."""
        del model
        return None

    def versions(self) -> str | None:
        """Names and versions of the server's software, for the report. None: not known. Empty: not installed yet."""
        return None

    def why_not_reproducible(self) -> str:
        """One sentence that says why a server may answer the same request differently. Empty: it does not."""
        return ""

    def prepare(self, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Prepare what the servers need, for example a software environment. Tells the user through ``say``.

        Returns:
            A JSON-able recipe from which `launch` works on another machine.
        """
        del say
        return {}

    def through_tls(self, one_node: bool) -> bool:
        """True: the servers listen on ports behind mutual TLS, and the recipe gets ``tls``. False: on Unix sockets.

        Args:
            one_node: True if the provider knows that tasks and servers run on one node.
        """
        del one_node
        return False

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """Lay out ``place`` (a private, empty folder) and say how to start the server ``name``. Runs in the pilot."""
        del recipe, place, name
        raise SpecError("servers of this kind are not started", key=("servers", "kind"))

    def addresses(self) -> list[Mapping[str, Any]]:
        """Records of servers that run already (``managed`` is False). JSON-able, without any secret."""
        return []

    def secret(self) -> Credentials | None:
        """Credentials that these servers ask of clients, read now on this machine. None: they ask for none."""
        return None


class PilotHandle(Protocol):
    """A pilot that waits for its machine, or runs."""

    def poll(self) -> int | None:
        """Exit code of a pilot that has ended (-1: not known). None: it waits or runs."""

    def cancel(self) -> None:
        """Ask the owner of the machine to end the pilot, without waiting. Cancelling an ended pilot is no error."""


class Provider(ABC):
    """Lends machines for tasks and servers. Every provider inherits from this class.

    A provider is used as a context manager. ``provider(options, folder)`` must start nothing.

    Attributes:
        Options: A frozen pydantic model of the provider's own keys.
    """

    Options: type[BaseModel]

    @abstractmethod
    def __init__(self, options: BaseModel, folder: Path) -> None:
        """Take the options. Logs and scripts go to ``folder``, which every machine sees."""

    @property
    def one_node(self) -> bool:
        """True if tasks and pilots all run on one node, so that every task reaches a server's Unix socket."""
        return False

    @property
    def walltime_s(self) -> float | None:
        """Seconds after which the machines are taken back. None: not known. Certificates are valid for this time."""
        return None

    @staticmethod
    def hint(name: str) -> str:
        """One sentence that says what to write in place of an unknown provider ``name``. Empty: no suggestion."""
        del name
        return ""

    @abstractmethod
    def __enter__(self) -> Provider:
        """Get ready. Tasks and pilots may be asked for from now on."""

    @abstractmethod
    def __exit__(self, *exc: object) -> None:
        """Give every machine back. Nothing of ours runs afterwards."""

    @abstractmethod
    def tasks(self, workers: int) -> Executor:
        """The executor of CPU tasks, with ``workers`` processes. Called again after an executor broke."""

    def why_broken(self, executor: Executor) -> str:
        """How a worker of a broken executor ended. Empty: not known."""
        del executor
        return ""

    @abstractmethod
    def carry(self, argv: Sequence[str], count: int, folder: Path) -> list[PilotHandle]:
        """Start ``count`` pilots by running ``argv``. Each pilot claims its number itself. Logs go to ``folder``."""
