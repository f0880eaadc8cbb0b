"""Schedules merges: merges complete ranges of files, remakes corrupt partials, exports finished outputs to ROOT."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.driver.merge_trees import MergeTree
from campaign.driver.merged_outputs import receipt_of
from campaign.driver.partial_index import Places
from campaign.driver.state import State
from campaign.driver.worker_calls import WorkerCall, WorkerCalls
from campaign.errors import CampaignError, OutputError, PartialError
from campaign.outputs.histograms import HISTOGRAMS
from campaign.outputs.merge import Target
from campaign.outputs.merged import Merged
from campaign.planning.plan import InputGroup, Layer, Output, Plan
from campaign.report.progress import Progress
from campaign.storage.receipts import Receipts
from campaign.storage.rundir import RunDir
from campaign.util.lazy import LazyModule

if TYPE_CHECKING:
    from campaign.worker import merging
else:
    merging = LazyModule("campaign.worker.merging")

SLOW_S = 0.001  # a look at what can be merged that takes longer is not taken every time


class MergeScheduler:
    """The outputs of a plan on their way from partials to files.

    Args:
        plan: The plan.
        state: What is done already; grows.
        rundir: The run directory.
        receipts: Its log.
        calls: Takes what workers are to do.
        shown: Progress.
        anew: Has the partials of some files made again.
    """

    def __init__(
        self, plan: Plan, state: State, rundir: RunDir, receipts: Receipts, calls: WorkerCalls, shown: Progress,
        anew: Callable[[InputGroup, frozenset[Layer], Places], None],
    ) -> None:  # fmt: skip
        self.plan, self.state, self.rundir, self.receipts = plan, state, rundir, receipts
        self.calls, self.shown, self.anew = calls, shown, anew
        self.root, self.began = str(rundir.root), receipts.end
        self.waiting = [MergeTree(o) for o in plan.outputs if o.name not in state.merged]
        self.unexported: deque[Output] = deque()
        self.healed: set[tuple[int, int]] = set()
        self.redo: set[str] = set()  # outputs that hold a spoilt file when they arrive
        self.begun_again: set[str] = set()  # outputs whose leaves were not what they had been
        self.look_at = 0.0

    def __len__(self) -> int:
        """How many wait for partials."""
        return len(self.waiting)

    def submit_ready(self) -> None:
        """Submit which are ready; of 100,000 files that takes a while, so not more than a twentieth of the time."""
        start = time.monotonic()
        if start < self.look_at and self.calls:
            return
        self.waiting = [tree for tree in self.waiting if not self._merge(tree)]
        end = time.monotonic()
        self.look_at = end + 20 * (end - start) if end - start > SLOW_S else 0.0

    def submit_exports(self) -> None:
        """Have ROOT files of outputs written; of all that is ready this comes last, for nothing waits for it."""
        while self.unexported and self.calls.room > 0:
            output = self.unexported.popleft()
            if output.name not in self.state.failed:
                self._export(output)

    def _merge(self, tree: MergeTree) -> bool:
        """Submit what of a merge is ready; True if it is off the list."""
        output, line = tree.output, tree.output.line
        assert line is not None
        if output.name in self.state.failed:
            return True
        gaps = self.state.index.cannot(line)
        if (gaps and self.state.gaps.exceeded) or self.state.lacks_frozen(line.needs):
            self.state.failed.add(output.name)
            return True
        if not self.state.has_frozen(line.needs):  # what is there may have been made with others
            return False
        before = self.state.index.before[line]  # a file that fails there is lost here too
        if not all(map(self.state.index.settled, before)):
            return False
        if gaps and not self._decided(tree, line):
            return output.name in self.state.failed
        target = Target(output.stage, output.dataset, output.variation)
        for first in tree.ready(self.state.index, gaps):
            if self.calls.room <= 0:
                break
            end = tree.end(first)
            lost = self.state.index.gaps(line, first, end).tolist()
            there = sorted(set(range(first, end)).difference(lost))
            if not there:
                tree.leaves[first] = None
                continue
            tree.asked.add(first)
            lines = self.state.index.raw(line, first, end)
            some = replace(target, older=self.state.index.older(line, first, end, self.began))
            args = (self.root, some, first, line.keys.pick(there), lines, lost)
            if tree.small:
                self._call(output.name, merging.run_whole, args, tree, self._merged)
                return True
            self._call(
                output.name, merging.run_leaf, args, tree, lambda tree, found, at=first: self._leaf(tree, at, found)
            )
        if not tree.small and tree.whole:
            self._call(output.name, merging.run_tree, (self.root, target, tree.in_order()), tree, self._merged)
            return True
        return False

    def _decided(self, tree: MergeTree, line: Layer) -> bool:
        """True if an output can be merged without its failed files: all others are done, and the loss is known."""
        index = self.state.index
        places = index.gaps(line, 0, tree.files)
        if not index.settled(line) or not self.state.gaps.known(line.events, places):
            return False
        if len(places) == tree.files:
            self._lose(tree.output, OutputError("every file of it failed", where=tree.output.name))
            return False
        self.state.lacking[tree.output.name] = places
        return True

    def _call(
        self, what: str, function: Callable[..., Any], args: tuple[Any, ...], about: Any, then: Callable[..., None]
    ) -> None:
        def take(found: Any) -> None:
            then(about, found)

        self.calls.submit(WorkerCall(what, take, take, function, args))

    def _leaf(self, tree: MergeTree, first: int, found: Any) -> None:
        tree.asked.discard(first)
        if first in tree.spoilt:
            tree.spoilt.discard(first)
        elif isinstance(found, merging.CorruptPartials):
            self._heal(tree, found)
        elif isinstance(found, CampaignError):
            self._lose(tree.output, found)
        else:
            tree.leaves[first] = found

    def _merged(self, tree: MergeTree, found: Any) -> None:
        if tree.output.name in self.state.failed:  # withdrawn meanwhile
            if isinstance(found, Merged):
                found.remove()
            return
        if tree.output.name in self.redo:  # it may hold the spoilt file
            self.redo.discard(tree.output.name)
            self.waiting.append(MergeTree(tree.output))
            if isinstance(found, Merged):
                found.remove()
            return
        if isinstance(found, merging.CorruptPartials):
            tree.asked.clear()
            self.waiting.append(tree)
            self._heal(tree, found)
            return
        if isinstance(found, PartialError) and not tree.small and tree.output.name not in self.begun_again:
            # A worker that had merged the leaves, and so removed them, was lost before it could say so.
            self.begun_again.add(tree.output.name)
            self.waiting.append(MergeTree(tree.output))
            return
        if isinstance(found, CampaignError):
            self._lose(tree.output, found)
            return
        self.state.merged[tree.output.name] = found
        if found.kind == HISTOGRAMS:
            self.unexported.append(tree.output)
        else:
            self._remember(tree.output, found)

    def _lose(self, output: Output, error: CampaignError) -> None:
        self.state.note(error)
        self.state.failed.add(output.name)

    def _heal(self, tree: MergeTree, found: merging.CorruptPartials) -> None:
        """Make spoilt partials anew, each once."""
        line = tree.output.line
        assert line is not None
        places = [(line.number, i) for i in found.files]
        if not places or not self.healed.isdisjoint(places):
            self._lose(tree.output, found.error)
            return
        self.healed.update(places)
        files = np.array(found.files)
        self.state.index.forget(line, files)
        self.anew(line.events, frozenset([line]), files)
        self.shown.say(
            f"{tree.output.name}: {len(files)} partials have changed since they were written and are made again"
        )

    def renew(self, artefact: Layer, place: int, read: int) -> bool:
        """Make an artefact again that has changed since it was written. Its readers wait.

        Args:
            artefact: The line of the artefact.
            place: Its file.
            read: Where in the log the receipt of the one lies that was found to be spoilt.

        Returns:
            Whether whoever read it is to be tried again: it is being made, or was made after it was read.
        """
        one = np.array([place])
        if (artefact.number, place) in self.healed:
            (now,) = self.state.index.at(artefact, one).tolist()
            return now != read if now >= 0 else not self.state.index.lost(artefact, one)[0]
        self.healed.add((artefact.number, place))
        self.state.index.forget(artefact, one)
        self.anew(artefact.events, frozenset([artefact]), one)
        for output in self.plan.outputs:  # what was merged of it is the spoilt file itself, under another name
            if output.line is not artefact:
                continue
            if self.state.merged.pop(output.name, None) is not None:
                self.waiting.append(MergeTree(output))
            elif its := [tree for tree in self.waiting if tree.output is output]:
                its[0].drop(place)
            elif output.name not in self.state.failed:
                self.redo.add(output.name)  # its merge is under way
        url = artefact.events.files.url(place)
        self.shown.say(f"{artefact.name}: the artefact of {url} has changed since it was written and is made again")
        return True

    def _export(self, output: Output) -> None:
        merged = self.state.merged.get(output.name)
        if merged is not None:  # else it is merged again, and comes back
            self._call(output.name, merging.run_export, (merged,), output, self._exported)

    def _exported(self, output: Output, found: Merged | CampaignError) -> None:
        if output.name in self.state.failed:  # withdrawn meanwhile
            if isinstance(found, Merged):
                found.remove()
        elif output.name not in self.state.merged:
            return  # it is merged again
        elif isinstance(found, CampaignError):
            self._lose(output, found)
            del self.state.merged[output.name]
        else:
            self.state.merged[output.name] = found
            self._remember(output, found)

    def _remember(self, output: Output, merged: Merged) -> None:
        lacking = self.state.lacking.get(output.name)
        gaps, shaky = () if lacking is None else lacking.tolist(), bool(self.state.because(output))
        self.receipts.add(receipt_of(self.rundir, output, merged, gaps, shaky=shaky))
