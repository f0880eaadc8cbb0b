"""Merges partials inside a worker, and exports merged outputs to ROOT.

Each function returns its error, because a returned error reaches the driver with all its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError, OutputError, PartialError
from campaign.outputs.merge import Leaf, Target, between, export, merge_leaf, merge_leaves, merge_whole, spoilt
from campaign.outputs.merged import Merged
from campaign.planning.task import Keys
from campaign.storage.receipts import Receipt, parse
from campaign.storage.rundir import RunDir
from campaign.worker.stage_errors import own_errors, unexpected


@dataclass(frozen=True)
class CorruptPartials:
    """Partials that differ from their receipts. The merge was not made.

    Attributes:
        error: The error of the first one.
        files: Their places in the output.
    """

    error: CampaignError
    files: tuple[int, ...]


def run_leaf(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Leaf | CorruptPartials | CampaignError:
    """Merge the partials of some consecutive files of an output.

    Args:
        root: The run directory.
        target: The output.
        first: Place of the first file in the output.
        keys: Keys of the partials.
        lines: Receipts of the partials, as lines of the log.
        gaps: Places of files among them that failed and have no partial.
    """
    made: Leaf | CorruptPartials | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_leaf)
    return made


def run_whole(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int] = ()
) -> Merged | CorruptPartials | CampaignError:
    """Merge the partials of all files of an output. The arguments are those of `run_leaf`."""
    made: Merged | CorruptPartials | CampaignError = _merging(root, target, first, keys, lines, gaps, merge_whole)
    return made


def _merging(
    root: str, target: Target, first: int, keys: Keys, lines: Sequence[bytes], gaps: Sequence[int],
    call: Callable[..., Any],
) -> Any:  # fmt: skip
    rundir = RunDir(Path(root))
    got = [r for r in map(parse, lines) if r is not None]
    try:
        with own_errors(unexpected(PartialError, target.name)):
            return _checked(rundir, target, first, keys, got, gaps, call)
    except CampaignError as error:
        return error


def _checked(
    rundir: RunDir, target: Target, first: int, keys: Keys, got: Sequence[Receipt], gaps: Sequence[int],
    call: Callable[..., Any],
) -> Any:  # fmt: skip
    try:
        if [r.key for r in got] != list(keys):
            raise PartialError("the log of receipts has changed", where=target.name, remedy="run again")
        return call(rundir, target, first, got, gaps)
    except PartialError as error:
        places = between(first, len(got), gaps)
        return CorruptPartials(error, tuple(places[i] for i in spoilt(rundir, got)))


def run_tree(root: str, target: Target, leaves: Sequence[Leaf]) -> Merged | CampaignError:
    """Merge the leaves of an output."""
    try:
        with own_errors(unexpected(PartialError, target.name)):
            return merge_leaves(RunDir(Path(root)), target, leaves)
    except CampaignError as error:
        return error


def run_export(merged: Merged) -> Merged | CampaignError:
    """Write the ROOT file of a merged output."""
    try:
        with own_errors(unexpected(OutputError, merged.name)):
            return export(merged)
    except CampaignError as error:
        return error
