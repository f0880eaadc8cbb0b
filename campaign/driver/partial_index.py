"""Indexes which partials of a plan exist: per partial its place in the log of receipts, 8 bytes each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from campaign.planning.plan import InputGroup, Layer, Plan
from campaign.planning.task import KEY
from campaign.spec.models import NOMINAL
from campaign.storage.receipts import FROZEN, MERGED, Receipt, Receipts
from campaign.storage.rundir import RunDir


class Missing(IntEnum):
    """Stands in place of the position of a partial's receipt (0, 1, 2, ...) if no partial counts, and says why."""

    NOT_YET = -1
    """The partial is not made yet."""
    LOST = -2
    """The partial will not be made: its file has failed for good."""
    GONE = -3
    """There is a receipt, but the partial that it describes is missing or has another size."""
    STALE = -4
    """The partial was made with another frozen value than is in force."""


NOT_YET, LOST, GONE, STALE = Missing.NOT_YET, Missing.LOST, Missing.GONE, Missing.STALE
CHUNK = 4096  # receipts that are matched with the plan at once

Places = NDArray[np.int64]


class PartialIndex:
    """Kept by the driver alone.

    Args:
        plan: The plan.
        receipts: The log.

    Attributes:
        before: Of each line, those of earlier passes over the same events.
        events: Entries of the nominal trees by dataset, one per file, int64.
        merged: Receipts of merged outputs by name, with their place in the log.
        frozen: Receipts of frozen values by (stage, variation).
        packs: Packs that any receipt names.
    """

    def __init__(self, plan: Plan, receipts: Receipts) -> None:
        self.plan, self.receipts = plan, receipts
        self.emits = [line for line in plan.lines if line.emit]
        self.before = {x: [e for e in self.emits if e.events is x.events and e.level < x.level] for x in self.emits}
        self._at = {line: np.full(len(line.keys), NOT_YET, np.int64) for line in self.emits}
        self._done = dict.fromkeys(self.emits, 0)
        self._lost = dict.fromkeys(self.emits, 0)
        # Which frozen values partials were made with: numbers of the marks in their receipts.
        self._made_with = {line: np.full(len(line.keys), NOT_YET, np.int32) for line in self.emits if line.needs}
        self._marks: dict[str, int] = {}
        self.events = {name: np.zeros(len(files), np.int64) for name, files in plan.files.items()}
        self.merged: dict[str, tuple[int, Receipt]] = {}
        self.frozen: dict[tuple[str, str], Receipt] = {}
        self.packs: set[str] = set()

    # What earlier runs have left.
    def read(self, rundir: RunDir) -> None:
        """Read the log; what the plan wants and what lies there still counts."""
        find: _Finder | None = None
        there, rest = _There(rundir), self.receipts.scan()
        while chunk := list(islice(rest, CHUNK)):
            partials, find = [], find or _Finder(self.emits)
            for at, receipt in chunk:
                if receipt.kind == FROZEN:
                    self.frozen[receipt.stage, receipt.variation] = receipt
                elif receipt.kind == MERGED:
                    self.merged[f"{receipt.stage}/{receipt.dataset}/{receipt.variation}"] = (at, receipt)
                else:
                    self.packs.add(receipt.pack)
                    partials.append((at, receipt))
            found = find([r.key for _, r in partials])
            for (at, receipt), (line, i) in zip(partials, found, strict=True):
                if line is None:
                    continue
                has = there.has(receipt)
                self._at[line][i] = at if has else GONE
                if line.needs:
                    self._made_with[line][i] = self._marks.setdefault(receipt.more, len(self._marks))
                if has and receipt.events and line.variation == NOMINAL:
                    counted = self.events[line.events.dataset]
                    counted[i] = max(int(counted[i]), receipt.events)
        for line, places in self._at.items():
            self._done[line] = int(np.count_nonzero(places >= 0))

    # What comes.
    def record(self, lines: Sequence[Layer], places: Places, at: NDArray[np.int64], events: Places) -> None:
        """Tasks are done.

        Args:
            lines: Those they left partials of.
            places: Their files, shape (n,).
            at: Places of their receipts in the log, shape (n, number of lines).
            events: Entries read for each, shape (n,).
        """
        for i, line in enumerate(lines):
            before = self._at[line][places]
            self._done[line] += int(np.count_nonzero(before < 0))
            self._lost[line] -= int(np.count_nonzero(before == LOST))
            self._at[line][places] = at[:, i]
            if line.variation == NOMINAL:
                counted = self.events[line.events.dataset]
                counted[places] = np.maximum(counted[places], events)

    def lose(self, lines: Iterable[Layer], places: Places) -> None:
        """These partials will not be there."""
        self._set(lines, places, LOST)

    def forget(self, line: Layer, places: Places) -> None:
        """These partials were found to be spoilt."""
        self._set([line], places, NOT_YET)

    def stale(self, marks: Mapping[Layer, str]) -> list[tuple[InputGroup, frozenset[Layer], Places]]:
        """Forget partials that earlier runs have made with other frozen values; which, alike ones together.

        Args:
            marks: Of the frozen values that each of these lines is to be made with.
        """
        found: dict[tuple[InputGroup, int], set[Layer]] = {}
        for line, mark in marks.items():
            other = (self._at[line] >= 0) & (self._made_with[line] != self._marks.get(mark, NOT_YET))
            for i in np.flatnonzero(other).tolist():
                found.setdefault((line.events, i), set()).add(line)
        alike: dict[tuple[InputGroup, frozenset[Layer]], list[int]] = {}
        for (events, i), lines in found.items():
            alike.setdefault((events, frozenset(lines)), []).append(i)
        told = [(events, lines, np.array(sorted(places))) for (events, lines), places in alike.items()]
        for _, forgotten, places in told:
            self._set(forgotten, places, STALE)
        return told

    def _set(self, lines: Iterable[Layer], places: Places, value: int) -> None:
        for line in lines:
            before = self._at[line][places]
            self._done[line] -= int(np.count_nonzero(before >= 0))
            self._lost[line] += len(places) * (value == LOST) - int(np.count_nonzero(before == LOST))
            self._at[line][places] = value

    # What is asked.
    def there(self, line: Layer, places: Places) -> NDArray[np.bool_]:
        """True for each partial that exists."""
        return np.greater_equal(self._at[line][places], 0)

    def whole(self, line: Layer) -> bool:
        """True if every file of the layer has a partial."""
        return self._done[line] == len(line.keys)

    def some(self, line: Layer) -> bool:
        """True if at least one file of the layer has a partial."""
        return self._done[line] > 0

    def settled(self, line: Layer) -> bool:
        """True if each partial of the layer exists or has failed for good."""
        return self._done[line] + self._lost[line] == len(line.keys)

    def gaps(self, line: Layer, start: int, stop: int) -> Places:
        """The consecutive files whose partial has failed for good."""
        return start + np.flatnonzero(self._at[line][start:stop] == LOST)

    def cannot(self, line: Layer) -> bool:
        """True if at least one partial of the layer has failed for good."""
        return self._lost[line] > 0

    def lost(self, line: Layer, places: Places) -> NDArray[np.bool_]:
        """Mask of the files whose partial has failed for good."""
        return np.equal(self._at[line][places], LOST)

    def gone(self, line: Layer, places: Places) -> NDArray[np.bool_]:
        """Of which there is a receipt, but not what it says."""
        return np.equal(self._at[line][places], GONE)

    def made_otherwise(self, line: Layer, places: Places) -> NDArray[np.bool_]:
        """Mask of the partials that were made with outdated frozen values."""
        return np.equal(self._at[line][places], STALE)

    def newest(self, line: Layer) -> int:
        """Place in the log of the last receipt."""
        return int(self._at[line].max(initial=NOT_YET))

    def raw(self, line: Layer, start: int, stop: int) -> list[bytes]:
        """Receipts of those of consecutive files that will have one, as they stand in the log."""
        at = self._at[line][start:stop]
        return self.receipts.lines(at[at != LOST].tolist())

    def older(self, line: Layer, start: int, stop: int, than: int) -> list[int]:
        """The consecutive files whose receipt is before a place in the log."""
        at = self._at[line][start:stop]
        return (start + np.flatnonzero((at >= 0) & (at < than))).tolist()  # type: ignore[no-any-return]

    def at(self, line: Layer, places: Places) -> Places:
        """The places in the log of the receipts of some files; below 0: no valid receipt."""
        return self._at[line][places]

    def missing(self) -> dict[InputGroup, dict[frozenset[Layer], Places]]:
        """For each events, its files by the lines whose partials are there."""
        return {events: self._groups(events) for events in self.plan.events}

    def _groups(self, events: InputGroup) -> dict[frozenset[Layer], Places]:
        lines = [line for line in self.emits if line.events is events]
        there = np.array([self._at[line] >= 0 for line in lines], bool).reshape(len(lines), -1)
        if not there.any() or there.all():
            return {frozenset(lines if there.any() else ()): np.arange(len(events.files))}
        kinds, which = np.unique(there, axis=1, return_inverse=True)
        which = which.reshape(-1)
        return {
            frozenset(line for line, has in zip(lines, kinds[:, k], strict=True) if has): np.flatnonzero(which == k)
            for k in range(kinds.shape[1])
        }


class _Finder:
    """Finds keys among those of lines: by their first 8 bytes in one sorted array, then by all of them."""

    def __init__(self, lines: Sequence[Layer]) -> None:
        self._lines = lines
        self._ends = np.cumsum([len(line.keys) for line in lines])
        packed = b"".join(line.keys.packed for line in lines)
        self._keys = np.frombuffer(packed, np.uint8).reshape(-1, KEY)
        short = np.ascontiguousarray(self._keys[:, :8]).view(np.uint64).ravel()
        self._order = np.argsort(short, kind="stable")
        self._short = short[self._order]

    def __call__(self, keys: Sequence[str]) -> Iterator[tuple[Layer | None, int]]:
        asked = np.frombuffer(_packed(keys), np.uint8).reshape(-1, KEY)
        if not len(self._order):
            yield from [(None, 0)] * len(asked)
            return
        short = np.ascontiguousarray(asked[:, :8]).view(np.uint64).ravel()
        slots = self._order[np.minimum(np.searchsorted(self._short, short), len(self._order) - 1)]
        same = (self._keys[slots] == asked).all(axis=1)
        numbers = np.searchsorted(self._ends, slots, side="right")
        for slot, is_it, number in zip(slots.tolist(), same.tolist(), numbers.tolist(), strict=True):
            line = self._lines[number]
            yield (line, slot - (int(self._ends[number]) - len(line.keys))) if is_it else (None, 0)


_NONE = bytes(KEY)


def _packed(keys: Sequence[str]) -> bytes:
    """Keys as bytes; one of another version, or none at all, as what is found nowhere."""
    with suppress(ValueError):
        packed = bytes.fromhex("".join([key if len(key) == 2 * KEY else _NONE.hex() for key in keys]))
        if len(packed) == KEY * len(keys):
            return packed
    return b"".join([bytes.fromhex(key) if _KEY.fullmatch(key) else _NONE for key in keys])


_KEY = re.compile(f"[0-9a-f]{{{2 * KEY}}}", re.ASCII)


class _There:
    """Checks by size that partials are where their receipts say, once per pack."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._sizes: dict[str, int] = {}

    def has(self, receipt: Receipt) -> bool:
        if not receipt.pack:
            return self._rundir.has_columns(receipt.key, receipt.size)
        if receipt.pack not in self._sizes:
            try:
                self._sizes[receipt.pack] = self._rundir.pack(receipt.pack).stat().st_size
            except OSError:
                self._sizes[receipt.pack] = -1
        return receipt.offset + receipt.size <= self._sizes[receipt.pack]
