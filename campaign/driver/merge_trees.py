"""Divides the merge of an output into ranges of files: a small output has one range, a large one a tree of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from campaign.driver.partial_index import PartialIndex
from campaign.outputs.merge import Leaf
from campaign.planning.plan import Output

LEAF = 1000  # partials that one worker merges at once; so many receipts travel with the call


@dataclass(eq=False)
class MergeTree:
    """An output on its way.

    Attributes:
        output: The output.
        leaves: What ranges of its files gave, by the first file; None: all of the range is lost.
        asked: Ranges that are being merged.
        spoilt: Those of them whose answer is to be thrown away: a partial was found to be spoilt meanwhile.
    """

    output: Output
    leaves: dict[int, Leaf | None] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    spoilt: set[int] = field(default_factory=set)

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self.output.keys)

    @property
    def small(self) -> bool:
        """True if the output is merged in one call."""
        return self.files <= LEAF

    def end(self, first: int) -> int:
        """The end of a range."""
        return min(first + LEAF, self.files)

    def drop(self, place: int) -> None:
        """A file's partial is made again: the range it is in is merged again."""
        first = place // LEAF * LEAF
        self.leaves.pop(first, None)
        if first in self.asked:
            self.spoilt.add(first)

    def ready(self, index: PartialIndex, with_gaps: bool = False) -> Iterator[int]:
        """First files of ranges that can be merged now and have not been.

        Args:
            index: What is there.
            with_gaps: What is not there is not waited for.
        """
        line = self.output.line
        assert line is not None
        whole = with_gaps or index.whole(line)
        if self.small and not whole:
            return
        for first in range(0, self.files, LEAF):
            if first in self.asked or first in self.leaves:
                continue
            if whole or index.there(line, np.arange(first, self.end(first))).all():
                yield first

    @property
    def whole(self) -> bool:
        """True if all ranges are merged."""
        return len(self.leaves) == -(-self.files // LEAF)

    def in_order(self) -> list[Leaf]:
        """The leaves; none if all files are lost."""
        return [leaf for _, leaf in sorted(self.leaves.items(), key=lambda item: item[0]) if leaf is not None]
