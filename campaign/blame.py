"""Whose fault an exception in foreign code is: the file's, or the stage's."""

from __future__ import annotations

import traceback
from pathlib import Path

import uproot

from campaign.errors import CampaignError, InputError, StageError, passing

_READER = Path(uproot.__file__).parent
_OURS = Path(__file__).parent


class MissingBranch(StageError):
    """A stage asks for a branch or a column that is not there."""


def explain(error: Exception, stage: str, where: str, url: str) -> CampaignError:
    """Whose fault an exception inside a stage is: the file's, or the stage's; with the user's part of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    text = (str(error).strip().splitlines() or [""])[0]
    if any(Path(f.filename).is_relative_to(_READER) for f in frames):
        # Branches are read when they are touched, so a torn basket shows inside the stage.
        return InputError.unreadable(url, error)
    user = [f for f in frames if "/awkward/" not in f.filename and not Path(f.filename).is_relative_to(_OURS)]
    log = "".join(traceback.format_list(user[-4:])) + f"{type(error).__name__}: {text}"
    if isinstance(error, (AttributeError, KeyError, IndexError, ValueError)) and "no field" in text:
        name = text.split("no field", 1)[1].split("'")[1:2]
        return MissingBranch(
            f"asks for '{(name or ['?'])[0]}', which is not there", where=f"stage {stage} ({where})", log=log,
            remedy="correct the name, or the tree, or map it under 'branches'",
        )  # fmt: skip
    made = StageError(f"raised {type(error).__name__}: {text}", where=f"stage {stage} ({where})", log=log)
    made.permanent = not passing(error)
    return made
