"""Every error of campaign: one small tree, each picklable, each saying what failed, where, and what to do now."""

from __future__ import annotations

import errno
from typing import Any

__all__ = [
    "ArtefactError",
    "AxesMismatch",
    "BranchError",
    "CampaignError",
    "CampaignFailed",
    "FrozenChanged",
    "InferenceError",
    "InputError",
    "Interrupted",
    "ModelError",
    "OutputError",
    "PartialError",
    "ProviderError",
    "RunDirBusy",
    "ServerError",
    "SpecError",
    "StageError",
]


class CampaignError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What failed, in one sentence.
        where: The file, server, stage or key at fault.
        remedy: What the reader can do now.
        log: The tail of the log that explains it, if there is one.

    Attributes:
        permanent: Trying again cannot help.
        stage: The stage whose description in the campaign is at fault, so that its line can be named; empty: none.
    """

    exit_code = 1
    permanent = True
    stage = ""

    def __init__(self, message: str, *, where: str = "", remedy: str = "", log: str = "") -> None:
        super().__init__(message)
        self.message, self.where, self.remedy, self.log = message, where, remedy, log

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.remedy:
            text += f"\n  remedy: {self.remedy}"
        if self.log:
            text += "\n  log:\n" + "\n".join("    | " + line for line in self.log.rstrip().splitlines())
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ forgets keyword arguments; a worker's error must arrive whole.
        return _rebuild, (type(self), self.message, self.where, self.remedy, self.log, dict(self.__dict__))


def _rebuild(
    cls: type[CampaignError], message: str, where: str, remedy: str, log: str, state: dict[str, Any]
) -> CampaignError:
    error = cls.__new__(cls)
    CampaignError.__init__(error, message, where=where, remedy=remedy, log=log)
    error.__dict__.update(state)
    return error


class SpecError(CampaignError):
    """The request is wrong: nothing was started.

    Args:
        message: What is wrong, with what was found and what is allowed.
        key: Path of the key at fault inside the campaign, e.g. ``("stages", "predict", "model")``.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, key: tuple[str | int, ...] = (), where: str = "", remedy: str = "", log: str = ""
    ) -> None:
        super().__init__(message, where=where, remedy=remedy, log=log)
        self.key = key

    def __str__(self) -> str:
        dotted = ".".join(str(part) for part in self.key)
        text = super().__str__()
        return f"{dotted}: {text}" if dotted and not self.where else text


class ProviderError(CampaignError):
    """A machine, a pilot or a worker could not be had or was lost."""


class ServerError(CampaignError):
    """A server did not start, did not prove itself ready, or was lost."""

    permanent = False


class ModelError(ServerError):
    """A model does not load, or does not give its known answer."""


class InferenceError(CampaignError):
    """A request was refused or could not be answered.

    Args:
        message: What the server (or the check before sending) said.
        permanent: Trying again cannot help (wrong shape, unknown model, refused by TLS).
    """

    def __init__(
        self, message: str, *, permanent: bool = False, where: str = "", remedy: str = "", log: str = ""
    ) -> None:
        super().__init__(message, where=where, remedy=remedy, log=log)
        self.permanent = permanent


class InputError(CampaignError):
    """An input file cannot be read as the campaign asks.

    ``permanent`` unless the reader's exception says otherwise (`passing`).

    Attributes:
        key: Of the dataset's or variation's description, if that is wrong and not the file.
    """

    key: tuple[str, ...] = ()

    @classmethod
    def described(cls, message: str, url: str, key: tuple[str, ...]) -> InputError:
        """The error for a file that is whole, and in which what the campaign names is not there."""
        made = cls(message, where=url, remedy=f"correct '{key[0]}'")
        made.key = key
        return made

    @classmethod
    def unreadable(cls, url: str, error: BaseException) -> InputError:
        """The error for a file whose reader raised ``error``."""
        text = " ".join(str(error).split())[:300]
        made = cls(f"cannot be read: {type(error).__name__}: {text}", where=url, remedy="check or replace the file")
        made.permanent = not passing(error)
        return made


class BranchError(InputError):
    """A stage uses a branch that cannot be read from this file, however often it is tried; others can."""


_PASSING = frozenset(
    getattr(errno, name) for name in (
        "EAGAIN", "EINTR", "EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN",
        "EHOSTUNREACH", "EREMOTEIO", "EMFILE", "ENFILE",
    )
)  # fmt: skip


def passing(error: BaseException) -> bool:
    """Whether what a reader raised may pass: a network or a file system that falters, not a file that is broken.

    Readers wrap what they were told, so the causes behind an exception are looked at too.
    """
    seen: set[int] = set()
    told: BaseException | None = error
    while told is not None and id(told) not in seen:
        seen.add(id(told))
        status = getattr(told, "status", None)  # of HTTP, as aiohttp and requests say it
        if isinstance(status, int):
            return status >= 500 or status in (408, 429)
        if isinstance(told, (TimeoutError, ConnectionError)) or getattr(told, "errno", None) in _PASSING:
            return True
        if type(told).__module__.startswith("aiohttp") or type(told).__name__ in ("FSTimeoutError", "TimeoutError"):
            return True
        told = told.__cause__ or told.__context__
    return False


class StageError(CampaignError):
    """A stage raised; carries the stage's traceback as its log.

    Attributes:
        line: ``FILE:LINE`` of the user's code where it did; empty: not known.
    """

    line = ""


class PartialError(CampaignError):
    """A task's partial result is missing, torn or foreign."""

    permanent = False


class ArtefactError(PartialError):
    """A partial result of columns has changed since it was written: whoever reads it needs another one."""


class OutputError(CampaignError):
    """What a stage returned cannot be kept or merged."""


class AxesMismatch(OutputError):
    """Two histograms that should be added have different axes; the message names the axis and the edge."""


class FrozenChanged(CampaignError):
    """A frozen value is not the one that was frozen: it was altered after its hash was taken."""


class RunDirBusy(CampaignError):
    """Another campaign owns this run directory."""

    exit_code = 2


class Interrupted(CampaignError):
    """Asked to stop by INT, TERM or HUP: everything was stopped, the run can be resumed."""

    exit_code = 130


class CampaignFailed(CampaignError):
    """The campaign ended without all it was asked for; carries the report.

    Args:
        message: What is missing.
        report: The `campaign.report.report.Report`.
    """

    def __init__(self, message: str, *, report: Any = None, where: str = "", remedy: str = "", log: str = "") -> None:
        super().__init__(message, where=where, remedy=remedy, log=log)
        self.report = report
