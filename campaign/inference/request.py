"""One request: its rows, the servers that it was sent to, and the errors it met."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.utils import InferenceServerException

from campaign.errors import CampaignError, InferenceError
from campaign.inference.codec import Codec, Part
from campaign.inference.connections import Connection
from campaign.inference.kserve import is_model_error, permanent

DEADLY = 2  # servers that a request may see die alone before it is held to be the cause


@dataclass(eq=False)
class Request:
    """One request and its history.

    Attributes:
        tried: Servers that have failed it, in order; one that did so twice stands twice.
        saw_die: Those of them that died with it, or the process behind whose model did: it is suspect from then on.
        alone: Those of them that had nothing else to do (see `campaign.inference.quarantine`).
        trial: The server that it was last sent to alone.
        stranded: Since when nobody is there to take it; 0: somebody is.
        homeless: Whether it has ever waited because no server was left.
        only: The server that it is to be sent to once more.
        together: Those it was given with.
        said: By the last server that failed.
    """

    codec: Codec
    part: Part
    done: threading.Event = field(default_factory=threading.Event)
    connection: Connection | None = None
    turn: int = 0
    tried: list[str] = field(default_factory=list)
    saw_die: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    trial: str = ""
    stranded: float = 0.0
    homeless: bool = False
    only: str | None = None
    since: float = 0.0
    not_before: float = 0.0
    answer: bytes = b""
    said: InferenceError | None = None
    error: CampaignError | None = None
    taken: dict[str, Any] | None = None
    together: Sequence[Request] = ()

    def __post_init__(self) -> None:
        self.size = self.part.size

    def failed(self, connection: Connection, error: InferenceServerException) -> bool:
        """Record that a server failed this request. Return True if another try may help.

        Another try cannot help in three cases. The server refused the request for good. The model failed on it, and at
        least two servers have failed it. Or `DEADLY` servers died while they worked on this request alone: it would
        kill the next server too.
        """
        self.said = _failure(self, connection, error)
        self.tried.append(connection.name)
        if died(error):
            self.saw_die.add(connection.name)
            self.alone |= {connection.name} if self.trial == connection.name else set()
        if self.deadly:
            self.said = InferenceError(
                f"{len(self.alone)} servers died while they worked on this request alone ({self.said.message})",
                permanent=True,
                where=self.said.where,
                remedy="do these inputs crash the model?",
            )
            return False
        return not (permanent(error) or (is_model_error(error) and len(set(self.tried)) > 1))

    def same_again(self, connection: Connection, error: InferenceServerException) -> bool:
        """True if the same server should get the request again: its channel may have been reset.

        Only the first one that fails, and not one that hangs, goes, or has lost the process behind the model.
        """
        hopeless = any(x in str(error.status()) for x in ("DEADLINE", "NOT_FOUND")) or unhealthy(error)
        return self.tried == [connection.name] and not hopeless

    @property
    def deadly(self) -> bool:
        """True if the request has been condemned."""
        return len(self.alone) >= DEADLY

    @property
    def refused(self) -> bool:
        """True if the last server that failed the request is healthy: no other server needs to be waited for."""
        return self.said is not None and self.said.permanent

    @property
    def rung(self) -> str:
        """How high it climbed on the ladder (see `campaign.report.rungs.RUNGS`) before it was answered."""
        if self.connection is None or not (self.tried or self.homeless):
            return "first"
        if self.tried and self.tried[-1] == self.connection.name:
            return "same_server"
        if self.connection.generation:
            return "restarted_server"
        return "other_server" if self.tried else "first"

    def end(self, error: CampaignError | None = None) -> None:
        """It is answered, or will not be."""
        self.error = error
        self.done.set()


def unhealthy(error: InferenceServerException) -> bool:
    """True if the server says that the process behind the model has died."""
    return "INTERNAL" in str(error.status()) and "is not healthy" in str(error.message())


def died(error: InferenceServerException) -> bool:
    """True if the server, or the process behind the model, died while it had the request.

    One that could not be reached any more has died of something else.
    """
    broken, text = ("Socket closed", "Connection reset", "Broken pipe", "recvmsg", "End of TCP stream"), error.message()
    cut = any(said in str(text) for said in broken) and "failed to connect" not in str(text)
    return unhealthy(error) or ("UNAVAILABLE" in str(error.status()) and cut)


def _failure(request: Request, connection: Connection, error: InferenceServerException) -> InferenceError:
    return InferenceError(
        f"{error.status()}: {error.message()}",
        permanent=permanent(error) or is_model_error(error),
        where=f"model {request.codec.info.name} on {connection.name}",
        remedy="see the server's log",
    )
