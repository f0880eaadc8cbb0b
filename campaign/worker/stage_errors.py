"""Turns an exception of a stage or a reader into an error that names the file or the stage as its cause."""

from __future__ import annotations

import traceback
from pathlib import Path

import uproot

from campaign.errors import CampaignError, InputError, StageError, passing
from campaign.util.messages import meant

_READER = Path(uproot.__file__).parent
_OURS = Path(__file__).parent
LINE = 500  # characters of an exception's first line in a message
TEXT = 4000  # characters of the whole, in the log below it


class MissingBranch(StageError):
    """A stage asks for a branch or a column that is not there."""


def explain(error: Exception | SystemExit, stage: str, where: str, url: str, before: str = "") -> CampaignError:
    """Whose fault an exception inside a stage is: the file's, or the stage's; with the user's part of the traceback.

    Args:
        error: The exception.
        stage: The stage.
        where: Its code.
        url: The file, or what else it was given.
        before: The stage whose columns it was given; empty: it was given the file's branches.
    """
    frames = traceback.extract_tb(error.__traceback__)
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, Exception) and any(Path(f.filename).is_relative_to(_READER) for f in frames):
        # Branches are read when they are touched, so a torn basket shows inside the stage.
        return InputError.unreadable(url, error)
    user = [f for f in frames if "/awkward/" not in f.filename and not Path(f.filename).is_relative_to(_OURS)]
    log = "".join(traceback.format_list(user[-4:])) + f"{type(error).__name__}: {_cut(str(error).strip(), TEXT)}"
    place = f"stage {stage} ({where})"
    if isinstance(error, (AttributeError, KeyError, IndexError, ValueError)) and "no field" in text:
        name = (text.split("no field", 1)[1].split("'")[1:2] or ["?"])[0]
        other = f"return this column in stage {before}" if before else "the tree, or map it under 'branches'"
        missing = MissingBranch(
            f"asks for '{name}', which is not there{_near(error, name)}", where=place, log=log,
            remedy=f"correct the name, or {other}",
        )  # fmt: skip
        missing.stage = stage if before else ""  # what a file has not may be the dataset's fault
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
    return made


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text) - most:,} characters more]"


def _near(error: BaseException, name: str) -> str:
    """The column that was perhaps meant: a near name, or one of a collection (NanoAOD's ``Muon.pt`` is ``Muon_pt``)."""
    known = _columns(error)
    inside = [n for n in known if n.startswith(f"{name}_")]
    if inside:
        return f"; did you mean '{inside[0]}'? {len(inside):,} columns begin with '{name}_'"
    return meant(name, known)


def _columns(error: BaseException) -> list[str]:
    """The columns of the array that was asked: the first frame of an attribute or item that was asked for has it."""
    at = error.__traceback__
    while at is not None:
        asked = at.tb_frame.f_locals.get("self")
        if at.tb_frame.f_code.co_name in ("__getattr__", "__getitem__"):
            fields = getattr(asked, "fields", None)
            if fields is not None:
                return list(fields)
        at = at.tb_next
    return []
