"""Turns any exception of a stage, a reader or a merge into a `CampaignError` that names the file or stage at fault.

Code that calls user code or a library wraps the call in `own_errors`. The caller then handles a `CampaignError` only.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import uproot

from campaign.errors import CampaignError, InputError, StageError, passing
from campaign.util.messages import meant

_READER = Path(uproot.__file__).parent
_OURS = Path(__file__).parent
LINE = 500  # characters of an exception's first line that the message shows
TEXT = 4000  # characters of the whole exception that the log shows


class MissingBranch(StageError):
    """A stage uses a branch of the file, or a column of another stage, that does not exist.

    The attribute ``stage`` is set for a column of another stage. It is empty for a branch.
    """


class own_errors:  # noqa: N801  a context manager, used like a function
    """Raises every exception of the block as a `CampaignError`. A `CampaignError` passes unchanged.

    ``SystemExit`` counts too: a stage that calls ``sys.exit`` must not end its worker. ``KeyboardInterrupt`` passes.

    Args:
        convert: Makes a `CampaignError` of another exception.
    """

    def __init__(self, convert: Callable[[Exception | SystemExit], CampaignError]) -> None:
        self._convert = convert

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, CampaignError):
            raise self._convert(error) from error


@contextmanager
def at_stage(stage: str) -> Iterator[None]:
    """Write the name of the stage into a `CampaignError` of the block, if the error names no place yet."""
    try:
        yield
    except CampaignError as error:
        error.where = error.where or f"stage {stage}"
        if not isinstance(error, InputError):  # the file is at fault, not a line of the campaign
            error.stage = error.stage or stage
        raise


def unexpected(kind: type[CampaignError], where: str) -> Callable[[Exception | SystemExit], CampaignError]:
    """For `own_errors`: makes an error of this kind with the exception's name, its text and its traceback.

    Args:
        kind: The class of the error.
        where: The output that the block works on.
    """

    def convert(error: Exception | SystemExit) -> CampaignError:
        log = "".join(traceback.format_exception(error))
        return kind(f"{type(error).__name__}: {error}", where=where, log=log)

    return convert


def reader_error(error: Exception | SystemExit) -> InputError:
    """For `own_errors`, when a file is only tried: the error for a reader that raised.

    The error is not permanent: the run opens the file again, and reports the file if that fails too.
    """
    made = InputError(f"{type(error).__name__}: {error}")
    made.permanent = False
    return made


def explain(
    error: Exception | SystemExit, stage: str, code: str, url: str, before: str = "", *, place: str = ""
) -> CampaignError:
    """The error for an exception inside a stage: an `InputError` if the file is at fault, else a `StageError`.

    The log of a `StageError` is the user's part of the traceback.

    Args:
        error: The exception.
        stage: The stage.
        code: The place of the stage's code.
        url: The file that the stage was given.
        before: The stage whose columns this stage takes. Empty: it takes the branches of the file.
        place: The place that the error names. Empty: ``stage STAGE (CODE)``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, Exception) and any(Path(f.filename).is_relative_to(_READER) for f in frames):
        # Branches are read when a stage touches them, so a broken basket raises inside the stage.
        return InputError.unreadable(url, error)
    user = [f for f in frames if "/awkward/" not in f.filename and not Path(f.filename).is_relative_to(_OURS)]
    log = "".join(traceback.format_list(user[-4:])) + f"{type(error).__name__}: {_cut(str(error).strip(), TEXT)}"
    place = place or f"stage {stage} ({code})"
    if isinstance(error, (AttributeError, KeyError, IndexError, ValueError)) and "no field" in text:  # text of awkward
        name = (text.split("no field", 1)[1].split("'")[1:2] or ["?"])[0]
        other = f"return this column in stage {before}" if before else "the tree, or map it under 'branches'"
        missing = MissingBranch(
            f"asks for '{name}', which is not there{_near(error, name)}", where=place, log=log,
            remedy=f"correct the name, or {other}",
        )  # fmt: skip
        missing.stage = stage if before else ""  # for a branch, the dataset's entry may be at fault
        return missing
    if isinstance(error, SystemExit):
        made = StageError(
            f"called sys.exit({error.code!r})", where=place, log=log,
            remedy="a stage returns its value or raises an exception; it does not end the process",
        )  # fmt: skip
        made.permanent = True
        return made
    if not text and user and user[-1].line:  # assert x > 0
        text = f"at '{user[-1].line}'"
    made = StageError(f"raised {type(error).__name__}: {_cut(text, LINE)}", where=place, log=log)
    mine = next((f for f in reversed(user) if "/site-packages/" not in f.filename), None)
    made.line = f"{mine.filename}:{mine.lineno}" if mine else ""
    made.permanent = not passing(error)
    made.independent_of_input = _independent_of_input(error)
    return made


def _independent_of_input(error: Exception) -> bool:
    """True if the exception shows that the code fails on every input."""
    # Not UnboundLocalError, a subclass of NameError: it may depend on the branch that the code took.
    if type(error) in (NameError, ImportError, ModuleNotFoundError):
        return True
    return type(error) is TypeError and "positional argument" in str(error)  # Python has no class for a wrong call


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text) - most:,} characters more]"


def _near(error: BaseException, name: str) -> str:
    """The question for the column that was perhaps meant, for the end of a message.

    It is a column with a similar name, or one of a collection: NanoAOD's ``Muon.pt`` is ``Muon_pt``.
    """
    known = _columns(error)
    inside = [n for n in known if n.startswith(f"{name}_")]
    if inside:
        return f"; did you mean '{inside[0]}'? {len(inside):,} columns begin with '{name}_'"
    return meant(name, known)


def _columns(error: BaseException) -> list[str]:
    """The columns of the array that lacks the name: the array is in the first frame of an attribute or item access."""
    at = error.__traceback__
    while at is not None:
        array = at.tb_frame.f_locals.get("self")
        if at.tb_frame.f_code.co_name in ("__getattr__", "__getitem__"):
            fields = getattr(array, "fields", None)
            if fields is not None:
                return list(fields)
        at = at.tb_next
    return []
