"""All errors of campaign. Each error can be pickled. Each names the failure, its place and a remedy."""

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
    "MissingColumn",
    "ModelError",
    "OutputError",
    "PartialError",
    "ProviderError",
    "RunDirBusy",
    "ServerError",
    "SpecError",
    "StageError",
    "TaskTimeout",
    "WeightError",
]


class CampaignError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What failed, in one sentence.
        where: The file, server, stage or key at fault.
        remedy: What the reader can do now.
        log: The last lines of the log that explains the failure, if there is a log.

    Attributes:
        permanent: True if another try cannot succeed.
        stage: The stage whose entry in the campaign file is wrong; the message then names its line. Empty: no stage.
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
        # The __reduce__ of Exception loses keyword arguments. The driver needs all of a worker's error.
        return _rebuild, (type(self), self.message, self.where, self.remedy, self.log, dict(self.__dict__))


def _rebuild(
    cls: type[CampaignError], message: str, where: str, remedy: str, log: str, state: dict[str, Any]
) -> CampaignError:
    error = cls.__new__(cls)
    CampaignError.__init__(error, message, where=where, remedy=remedy, log=log)
    error.__dict__.update(state)
    return error


class SpecError(CampaignError):
    """The campaign file or an option is wrong. Nothing was started.

    Args:
        message: What is wrong: the value that was found, and the values that are allowed.
        key: Path of the wrong key inside the campaign, e.g. ``("stages", "predict", "model")``.
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
    """A machine, a pilot or a worker did not start, or was lost."""


class ServerError(CampaignError):
    """A server did not start, did not become ready, or was lost."""

    permanent = False


class ModelError(ServerError):
    """A model does not load, or its answer to the known input is wrong."""


class InferenceError(CampaignError):
    """A server refused a request, or no server answered it.

    Args:
        message: The message of the server, or of the check before the request is sent.
        permanent: True if another try cannot succeed (wrong shape, unknown model, refused by TLS).
    """

    def __init__(
        self, message: str, *, permanent: bool = False, where: str = "", remedy: str = "", log: str = ""
    ) -> None:
        super().__init__(message, where=where, remedy=remedy, log=log)
        self.permanent = permanent


class InputError(CampaignError):
    """An input file cannot be read as the campaign describes it.

    The error is ``permanent``, unless the reader's exception has a cause that can go away (`passing`).

    Attributes:
        key: The wrong key of the dataset or variation. Empty: the campaign is right, and the file is at fault.
    """

    key: tuple[str, ...] = ()

    @classmethod
    def described(cls, message: str, url: str, key: tuple[str, ...]) -> InputError:
        """The error for an intact file that lacks a tree or branch which the campaign names."""
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
    """One branch that a stage uses cannot be read from this file. Other branches can. Another try cannot succeed."""


class WeightError(InputError):
    """The weight expression of a variation is wrong, or does not give one number per event."""


_PASSING = frozenset(
    getattr(errno, name) for name in (
        "EAGAIN", "EINTR", "EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN",
        "EHOSTUNREACH", "EREMOTEIO", "EMFILE", "ENFILE",
    )
)  # fmt: skip


def passing(error: BaseException) -> bool:
    """True if the fault behind a reader's exception can go away by itself, as of a network or a file system.

    False for a broken file. Readers raise exceptions of their own around the first one, so the causes of the exception
    are examined too.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        status = getattr(cause, "status", None)  # the HTTP status: aiohttp and requests name it so
        if isinstance(status, int):
            return status >= 500 or status in (408, 429)
        if isinstance(cause, (TimeoutError, ConnectionError)) or getattr(cause, "errno", None) in _PASSING:
            return True
        if type(cause).__module__.startswith("aiohttp") or type(cause).__name__ in ("FSTimeoutError", "TimeoutError"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class StageError(CampaignError):
    """A stage raised an exception. The log is the stage's traceback.

    Attributes:
        line: ``FILE:LINE`` of the user's code that raised. Empty: unknown.
        independent_of_input: True if the stage fails on every input: its code uses an unknown name, imports a missing
            module, or calls a function with a wrong number of arguments.
    """

    line = ""
    independent_of_input = False


class TaskTimeout(StageError):
    """A task ran longer than its deadline.

    The error is permanent: each try takes as long as the deadline, and may hang again. If the machine was at fault, the
    next run repeats the task.
    """


class PartialError(CampaignError):
    """A task's partial result is missing, incomplete, or of another campaign; or it cannot be written."""

    permanent = False


class ArtefactError(PartialError):
    """A partial result of columns has changed since it was written. The task that reads it needs a new one."""


class OutputError(CampaignError):
    """The value that a stage returned cannot be stored or merged."""


class MissingColumn(OutputError):
    """A stage takes a column that its input does not have."""


class AxesMismatch(OutputError):
    """Two histograms cannot be added because their axes differ. The message names the axis and the edge."""


class FrozenChanged(CampaignError):
    """The file of a frozen value has changed since its hash was computed."""


class RunDirBusy(CampaignError):
    """Another campaign run uses this run directory."""

    exit_code = 2


class Interrupted(CampaignError):
    """The run was stopped by INT, TERM or HUP. All its processes have ended, and the run can be resumed."""

    exit_code = 130


class CampaignFailed(CampaignError):
    """The campaign ended, and some outputs are missing.

    Args:
        message: What is missing.
        report: The `campaign.report.report.Report`.
    """

    def __init__(self, message: str, *, report: Any = None, where: str = "", remedy: str = "", log: str = "") -> None:
        super().__init__(message, where=where, remedy=remedy, log=log)
        self.report = report
