"""Merges partials inside a worker: leaves of a merge tree, whole trees, and the export to ROOT."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError, OutputError, PartialError
from campaign.outputs.merge import (
    Leaf,
    Merged,
    Target,
    between,
    export,
    merge_leaf,
    merge_leaves,
    merge_whole,
    spoilt,
)
from campaign.planning.task import Keys
from campaign.storage.receipts import parse
from campaign.storage.rundir import RunDir


@dataclass(frozen=True)
class CorruptPartials:
    """Partials that are not what their receipts say, so that a merge could not be made.

    Attributes:
        error: The first of them.
        files: Which, by their place in the output.
    """

    error: CampaignError
    files: tuple[int, ...]


def run_leaf(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Leaf | CorruptPartials | CampaignError:
    """Merge some consecutive files of an output.

    Args:
        root: The run directory.
        target: The output.
        first: Place of the first file in the output.
        keys: Of their partials.
        lines: Their receipts, as they stand in the log.
        gaps: Places of files among them that are lost.
    """
    made: Leaf | CorruptPartials | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_leaf)
    return made


def run_whole(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Merged | CorruptPartials | CampaignError:
    """Merge all files of an output; arguments as for `run_leaf`."""
    made: Merged | CorruptPartials | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_whole)
    return made


def _merging(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int],
    call: Callable[..., Any],
) -> Any:  # fmt: skip
    rundir = RunDir(Path(root))
    got = [r for r in map(parse, lines) if r is not None]
    try:
        if [r.key for r in got] != list(keys):
            raise PartialError("the log of receipts has changed", where=target.name, remedy="run again")
        return call(rundir, target, first, got, gaps)
    except PartialError as error:
        places = between(first, len(got), gaps)
        return CorruptPartials(error, tuple(places[i] for i in spoilt(rundir, got)))
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return PartialError(f"{type(error).__name__}: {error}", where=target.name, log=traceback.format_exc())


def run_tree(root: str, target: Target, leaves: Sequence[Leaf]) -> Merged | CampaignError:
    """Merge an output's leaves; an error is returned, not raised, so that it arrives whole."""
    try:
        return merge_leaves(RunDir(Path(root)), target, leaves)
    except CampaignError as error:
        return error
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return PartialError(f"{type(error).__name__}: {error}", where=target.name, log=traceback.format_exc())


def run_export(merged: Merged) -> Merged | CampaignError:
    """Write the ROOT file of a merged output; an error is returned."""
    try:
        return export(merged)
    except Exception as error:  # noqa: BLE001  process boundary: it arrives with its traceback
        return OutputError(f"{type(error).__name__}: {error}", where=merged.name, log=traceback.format_exc())
