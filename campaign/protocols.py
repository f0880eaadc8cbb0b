"""What others implement: stages, sources, server kinds, providers. The docstrings are the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from campaign.discovery.credentials import Credentials

if TYPE_CHECKING:
    from campaign.spec.models import ServerSpec

WEIGHT = "variation_weight"
"""Name of the column that carries a variation's weight; stages say ``ctx.weight``."""


@dataclass(frozen=True)
class Context:
    """What a stage may know besides its batch.

    Attributes:
        dataset: Name of the dataset; of a reduce stage: empty.
        metadata: ``is_mc`` and what the dataset or its side file says of this file; of a reduce stage: one such
            mapping per dataset.
        variation: Name of the variation, ``nominal`` without one.
        weight: Name of the column with the variation's event weight (float64, all ones in nominal).
        options: The stage's options.
        frozen: Frozen values of the reduce stages named under ``with``.
        servers: The pool: ``infer(model, {name: array})``.
        artefacts: Folder for plots and tables (reduce stages only).
        missing: Of a reduce stage: what its merged inputs lack because files failed within what the campaign tolerates,
            ``{dataset: {files: [names], entries, sum_of_weights}}`` (None: unknown); empty where they are complete.
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
    """A per-file stage: one row range in, columns, histograms or counts out. A reduce stage looks alike."""

    def __call__(self, batch: Any, ctx: Context) -> Any:
        """Do it.

        Args:
            batch: Awkward record array of the range: the events, or what the stage before returned. For a reduce
                stage: merged output by dataset.
            ctx: What else there is to know.

        Returns:
            A dict of equal-length arrays, ``Histograms`` or ``Counts``. A reduce stage: a value that can be frozen.
        """


class TwoStepStage(ABC):
    """A per-file stage that waits for a server: begun for one range while others are being read and filled.

    Any class with these two methods is one.
    """

    @abstractmethod
    def start(self, batch: Any, ctx: Context) -> Any:
        """Send what is needed; return at once with what `finish` will ask for."""

    @abstractmethod
    def finish(self, pending: Any) -> Any:
        """Wait for the answers; return what a stage returns."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        # Asked for every range: this answer is remembered by class, that of a runtime-checkable Protocol is not.
        return all(any(name in vars(c) for c in other.__mro__) for name in ("start", "finish"))


class Source(Protocol):
    """An open file of a dataset, read in row ranges; called with ``(url, tree, branches)``.

    ``read`` (ROOT) where a dataset names no ``reader`` of its own.

    Attributes:
        entries: Rows there are.
        touched: Where there is one: names that stages have used until now; those of a file before are put into it.
        clusters: Where there is one: rows at which a range is best begun, ascending.
    """

    entries: int

    def read(self, start: int, stop: int) -> Any:
        """The rows ``start <= i < stop`` as an awkward record array; branches are read when a stage touches them."""

    def weight(self, expression: str, batch: Any) -> Any:
        """A per-event expression of branches, float64, shape (len(batch),)."""

    def close(self) -> None:
        """Give the file back."""


@dataclass(frozen=True)
class Launch:
    """How a pilot starts one server.

    Attributes:
        argv: Program and arguments. No secret stands here: every user of the node can read it.
        env: Its whole environment.
        url: Where clients find it.
        shm_prefix: Names in ``/dev/shm`` that begin with it belong to this server alone.
        private_shm: Whether it gets a ``/dev/shm`` of its own: True, False, or ``auto``: where the kernel lets it.
        ca: PEM of the campaign's authority. The server then finds ``tls/key.pem``, ``tls/cert.pem`` and ``tls/ca.pem``
            in its place, and must demand clients' certificates; empty: it listens on a socket in its place.
        held: What must stay open as long as it runs (a socket that keeps its port, say).
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    url: str
    shm_prefix: str
    private_shm: bool | str = "auto"
    ca: str = ""
    held: Any = None


class ServerKind(Protocol):
    """A kind of model server. ``kind(spec, base)`` must start nothing.

    ``Options`` is a frozen pydantic model of the kind's own keys under ``servers``.
    """

    Options: type[BaseModel]
    managed: bool

    def __init__(self, spec: ServerSpec, base: Path) -> None:
        """Take the description; ``base`` is where relative paths start."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is started.

        Raises:
            SpecError: With the key at fault.
        """

    def identity(self, model: str) -> Mapping[str, Any]:
        """What the model's answers depend on (file hashes, configuration, server build); JSON-able."""

    def version(self, model: str) -> int | None:
        """The version of the model that answers; None: the newest that the servers have."""

    def prepare(self, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Make ready what servers need (an environment, say), telling the user through ``say``.

        Returns:
            A JSON-able recipe from which `launch` can work on another machine.
        """

    def through_tls(self, one_node: bool) -> bool:
        """Whether its servers listen on ports, behind mutual TLS (the recipe then gets ``tls``), or on Unix sockets.

        Args:
            one_node: Whether tasks and servers run on one node, as far as the provider knows.
        """

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """Runs in the pilot: lay out ``place`` (private, empty) and say how to start the server called ``name``."""

    def addresses(self) -> list[Mapping[str, Any]]:
        """Records of servers that already run (``managed`` is False); JSON-able, and no secret in them."""

    def secret(self) -> Credentials | None:
        """What these servers ask of clients, read now and here; None: nothing."""


class PilotHandle(Protocol):
    """A pilot on its way or running."""

    def poll(self) -> int | None:
        """Exit code once it is known to have ended (-1 where only the fact is known), else None."""

    def cancel(self) -> None:
        """Ask the machine's owner to end it, without waiting for that. Ending one that has ended is no error."""


class Provider(Protocol):
    """Who lends machines, used as a context manager. ``provider(options, campaign_dir)`` must start nothing.

    ``Options`` is a frozen pydantic model of the provider's own keys. A static method ``hint(name)``, if there is one,
    says what to write in place of a provider's name that is not known, or an empty text.

    Attributes:
        one_node: Whether tasks and pilots all run on one node, so that Unix sockets reach everybody.
        walltime_s: After how long its machines are taken back, None: not known. Certificates are good for so long.
    """

    Options: type[BaseModel]
    one_node: bool
    walltime_s: float | None

    def __init__(self, options: BaseModel, folder: Path) -> None:
        """Take the options; ``folder`` takes logs and scripts, and is seen by every machine."""

    def __enter__(self) -> Provider:
        """Get ready; machines may be asked for."""

    def __exit__(self, *exc: object) -> None:
        """Give every machine back; nothing of ours runs afterwards."""

    def tasks(self, workers: int) -> Executor:
        """The executor of CPU tasks, with as many worker processes. Called again after it broke, it gives a new one."""

    def carry(self, argv: Sequence[str], count: int, folder: Path) -> list[PilotHandle]:
        """Start ``count`` pilots by running ``argv`` (each claims its number itself); logs go to ``folder``."""
