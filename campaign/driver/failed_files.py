"""Holds the files that failed for good, what is lost with them, and whether they are more than the campaign allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from campaign.driver.partial_index import Places
from campaign.errors import CampaignError
from campaign.planning.plan import InputGroup, Plan
from campaign.planning.task import SourceSpec
from campaign.spec.models import NOMINAL


@dataclass
class FailedFile:
    """A file that failed for good.

    Attributes:
        file, dataset: Which.
        error: Why, its first line.
        entries: Of the nominal tree; None: unknown.
        sum_of_weights: What the campaign's ``errors`` say; None: unknown.
        known: Whether all has been learned of it that can be.
    """

    file: str
    dataset: str
    error: str
    entries: int | None = None
    sum_of_weights: float | None = None
    known: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        names = ("file", "dataset", "error", "entries", "sum_of_weights")
        return {name: getattr(self, name) for name in names}


class FailedFiles:
    """The failed files of a run.

    Args:
        plan: Its plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lost: dict[tuple[str, str], FailedFile] = {}
        self._urls: set[str] = set()
        self._hopeless = False
        self._shared: dict[str, Counter[str]] = {}  # by dataset: how many files have the same metadata

    @cached_property
    def limit(self) -> int:
        """How many files may fail."""
        spec = self._plan.campaign.errors
        if isinstance(spec.max_failed_files, int):
            return spec.max_failed_files
        each = {id(events.files): events.files for events in self._plan.events}
        return spec.limit(len({url for files in each.values() for url in files.urls()}))

    @property
    def exceeded(self) -> bool:
        """True if more files have failed than the campaign tolerates, or for a reason that it does not tolerate."""
        return self._hopeless or len(self._urls) > self.limit

    def __len__(self) -> int:
        return len(self._urls)

    def add(self, source: SourceSpec, error: CampaignError, *, tolerable: bool = True) -> FailedFile | None:
        """A task on this file failed for good; None if the file had failed before.

        Args:
            source: The file.
            error: Why.
            tolerable: Whether the campaign may put up with it: not where the machine is to blame.
        """
        self._hopeless |= not tolerable
        at = (source.dataset, source.file.url)
        if at in self._lost:
            return None
        self._urls.add(source.file.url)
        self._lost[at] = lost = FailedFile(source.file.url, source.dataset, str(error).splitlines()[0])
        if not self.exceeded and self._plan.campaign.errors.weight is None:  # else it is another quantity
            lost.sum_of_weights = self._of_metadata(source)
        return lost

    def _of_metadata(self, source: SourceSpec) -> float | None:
        """A sum of weights that is this file's alone: one of a whole sample says nothing of one of its files."""
        said = source.metadata.get("sum_of_weights")
        if isinstance(said, bool) or not isinstance(said, (int, float)):
            return None
        if source.dataset not in self._shared:
            each = {id(e.files): e.files for e in self._plan.events if e.dataset == source.dataset}
            found = {(f.url, f.metadata_json) for files in each.values() for f in files}
            self._shared[source.dataset] = Counter(metadata for _, metadata in found)
        return float(said) if self._shared[source.dataset][source.file.metadata_json] == 1 else None

    def of(self, events: InputGroup, places: Places) -> list[FailedFile]:
        """The failed files among some files."""
        found = (self._lost.get((events.dataset, events.files.url(i))) for i in places.tolist())
        return [lost for lost in found if lost is not None]

    def known(self, events: InputGroup, places: Places) -> bool:
        """True if nothing more will be learned of the failed files."""
        return all(lost.known for lost in self.of(events, places))

    def nominal(self, events: InputGroup) -> InputGroup | None:
        """The nominal events of the same files, by which entries are counted; None if it has other files."""
        same = (e for e in self._plan.events if e.dataset == events.dataset and e.files is events.files)
        return next((e for e in same if e.variation == NOMINAL), None)

    def unweighed(self) -> Iterator[str]:
        """A remark if an expression of the campaign could not be evaluated in files that can be opened."""
        weight = self._plan.campaign.errors.weight
        files = [x for x in self._lost.values() if x.known and x.entries is not None and x.sum_of_weights is None]
        if weight is not None and files:
            yield f"errors.weight: '{weight}' could not be evaluated in {len(files)} lost files, first {files[0].file}"

    def to_json(self, most: int) -> list[dict[str, Any]]:
        """All, in order; not more than so many."""
        return [self._lost[at].to_json() for at in sorted(self._lost)[:most]]


def missing(lost: Iterable[FailedFile]) -> dict[str, Any]:
    """The names, entries and sum of weights of failed files; None where one of them is unknown."""
    files = list(lost)
    entries, weights = [f.entries for f in files], [f.sum_of_weights for f in files]
    return {
        "files": [f.file for f in files],
        "entries": None if None in entries else sum(filter(None, entries)),
        "sum_of_weights": None if None in weights else math.fsum(filter(None, weights)),
    }
