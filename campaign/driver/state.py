"""Holds what is done and what cannot be done: partials, merged outputs and frozen values that are in force."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from campaign.driver.failed_files import FailedFiles, missing
from campaign.driver.merged_outputs import of_receipt, restored
from campaign.driver.partial_index import PartialIndex, Places
from campaign.driver.task_times import TaskTimes
from campaign.errors import CampaignError, InputError, ProviderError
from campaign.outputs.merged import Merged
from campaign.planning.plan import InputGroup, Layer, Output, Plan, Reduce
from campaign.report.timing import Timing
from campaign.storage.frozen_values import thaw
from campaign.storage.receipts import Receipt
from campaign.storage.rundir import RunDir
from campaign.util.hashing import digest, file_digest

if TYPE_CHECKING:
    from campaign.worker.reducing import Reduced
    from campaign.worker.tasks import Answer


def artefacts_there(rundir: RunDir, frozen: Receipt) -> bool:
    """True if the plots and tables that came with a frozen value are unchanged."""
    folder, told = rundir.artefacts(frozen.stage, frozen.variation), frozen.about.get("artefacts", {})
    try:
        return all(file_digest(folder / name) == sha256 for name, sha256 in told.items())
    except (OSError, AttributeError):
        return False


MARK = 32  # characters of a digest that tells what something was made with


@dataclass
class State:
    """The work that is done, and the work that cannot be done.

    Attributes:
        index: Partials that are there, and those that will not be.
        frozen: ``(path, sha256)`` of frozen values, by (stage, variation).
        merged: Merged outputs by name.
        failed: Outputs and ``stage/variation`` that will not be there.
        gaps: Files that failed for good.
        lacking: Places of the files that a merged output was made without, by its name.
        shaky: Frozen values made from outputs that are not complete.
        errors: Texts of what went wrong; alike ones together.
        counts: Tasks done and failed in this run, and those done anew because what they had left was spoilt.
        rungs: Rows by how they were answered.
        refused: Servers that workers did not believe, and why.
        spent: Where the workers' seconds went.
        tasks_s: Seconds in batches of tasks, summed over workers.
        answered: When the first prediction was there, seconds since the epoch; 0: none yet.
        peak_mb: The most memory a worker has had.
        times: When workers were in tasks.
    """

    index: PartialIndex
    gaps: FailedFiles
    frozen: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    lacking: dict[str, Places] = field(default_factory=dict)
    shaky: set[tuple[str, str]] = field(default_factory=set)
    errors: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    spent: Timing = field(default_factory=Timing)
    tasks_s: float = 0.0
    answered: float = 0.0
    peak_mb: float = 0.0
    times: TaskTimes = field(default_factory=TaskTimes)
    _unsettled: set[Layer] = field(init=False)

    def __post_init__(self) -> None:
        self._unsettled = {line for line in self.index.emits if line.needs}

    def remember(self, plan: Plan, rundir: RunDir) -> None:
        """Take over the results of earlier runs in this directory that this plan still needs.

        A frozen value counts if it was made from just these merged outputs, a partial if it was made with just these
        frozen values: their keys alone do not hold that some files were missing then, or that a stage draws lots.

        Raises:
            FrozenChanged: One was altered.
        """
        for reduce in plan.reduces:
            old = self.index.frozen.get((reduce.stage, reduce.variation))
            path = rundir.frozen(reduce.stage, reduce.variation)
            if old is not None and old.key == reduce.key and path.exists():
                thaw(path, old.sha256)  # an altered one is refused now, not when half the work is done
        for level in sorted({o.level for o in plan.outputs} | {r.level for r in plan.reduces}):
            for output in plan.outputs:
                if output.level == level:
                    self._restore(rundir, output)
            for reduce in plan.reduces:
                if reduce.level == level and self.has_inputs(reduce):
                    self.reuse(rundir, reduce)
            self.settle()

    def _restore(self, rundir: RunDir, output: Output) -> None:
        line = output.line
        at, receipt = self.index.merged.get(output.name, (0, None))
        # A partial that was made again after the merge has its receipt behind it.
        if receipt is None or line is None or not self.has_frozen(line.needs):
            return
        before = all(map(self.index.whole, self.index.before[line]))  # a file that fails there is lost here too
        if before and self.index.whole(line) and self.index.newest(line) <= at:
            merged = restored(rundir, output, receipt)
            if merged is not None:
                self.merged[output.name] = merged

    def withdraw(self, plan: Plan, rundir: RunDir) -> None:
        """Remove outputs that an earlier run made without some files: this run may tolerate fewer."""
        for output in plan.outputs:
            _, receipt = self.index.merged.get(output.name, (0, None))
            if receipt is None or output.name in self.merged:
                continue
            with suppress(KeyError, TypeError):  # a receipt of something else
                made = of_receipt(rundir, output, receipt)
                beside = made.root is None or made.root.parent == made.path.parent
                if beside and (receipt.about.get("gaps") or receipt.about.get("shaky")):
                    made.remove()

    def reuse(self, rundir: RunDir, reduce: Reduce) -> bool:
        """Put a frozen value of an earlier run into force if it was made from what there is now; whether it was."""
        at, path = (reduce.stage, reduce.variation), rundir.frozen(reduce.stage, reduce.variation)
        old = self.index.frozen.get(at)
        if old is None or old.key != reduce.key or not path.exists():
            return False
        if old.about.get("made_from") != self.made_from(reduce) or not artefacts_there(rundir, old):
            return False
        self.frozen[at] = (str(path), old.sha256)
        return True

    def made_from(self, reduce: Reduce) -> str:
        """Digest of all that a reduce stage is called with and that its key does not hold."""
        inputs = {d: self.merged[o.name].sha256 for d, o in reduce.inputs.items()}
        return digest([inputs, [self.frozen[at][1] for at in reduce.frozen], self.missing(reduce)])[:MARK]

    def missing(self, reduce: Reduce) -> dict[str, Any]:
        """The failed files that the inputs of a reduce stage lack, by dataset; see `campaign.protocols.Context`."""
        return {d: self.lost(o) for d, o in reduce.inputs.items() if o.name in self.lacking}

    def lost(self, output: Output) -> dict[str, Any]:
        """The failed files that an output lacks: names, entries, sum of weights."""
        places = self.lacking.get(output.name)
        return missing(self.gaps.of(output.line.events, places) if output.line and places is not None else ())

    def made_with(self, line: Layer) -> str:
        """Digest of the frozen values that a line's partials are made with; empty without any."""
        return digest([[*at, self.frozen[at][1]] for at in sorted(line.needs)])[:MARK] if line.needs else ""

    @property
    def open(self) -> bool:
        """True if a future frozen value decides whether some partials are valid."""
        return any(not self.has_frozen(line.needs) and self.index.some(line) for line in self._unsettled)

    def settle(self) -> list[tuple[InputGroup, frozenset[Layer], Places]]:
        """Forget partials made with other frozen values than those that have come into force since; which."""
        ready = {line for line in self._unsettled if self.has_frozen(line.needs)}
        self._unsettled -= ready
        return self.index.stale({line: self.made_with(line) for line in sorted(ready, key=lambda x: x.number)})

    def because(self, output: Output) -> list[str]:
        """Frozen values that it depends on and that were made from incomplete outputs."""
        needs = output.line.needs if output.line else frozenset()
        return [f"{stage}/all/{variation}" for stage, variation in sorted(needs & self.shaky)]

    def incomplete(self, output: Output) -> bool:
        """True if a merged output, or the inputs of its frozen values, lack files."""
        return output.name in self.lacking or bool(self.because(output))

    def asked(self, told: Answer | Reduced) -> None:
        """Add up how the rows of a batch, or of a reduce stage, were answered."""
        self.rungs.update(told.rungs)
        self.refused |= told.refused

    def account(self, answer: Answer) -> None:
        """Add up what a batch says of itself."""
        self.asked(answer)
        self.spent.update(answer.spent)
        self.tasks_s += answer.wall_s
        self.peak_mb = max(self.peak_mb, answer.peak_mb)
        if answer.answered:
            self.answered = min(self.answered or answer.answered, answer.answered)

    def note(self, error: CampaignError) -> bool:
        """Keep an error for the report. Returns True for the first error of its kind."""
        if isinstance(error, (InputError, ProviderError)):  # one file, one error, however many variations read it
            new = error.where not in self.errors
            self.errors.setdefault(error.where, [str(error)])
            return new
        # A wrong shape fails on every file alike: one error, and how many more there are.
        alike = re.sub(r"[0-9]+", "N", error.message)  # rows and values differ from file to file
        told = self.errors.setdefault(f"{type(error).__name__} {error.stage} {alike}", [])
        told.append("" if told else str(error))
        return len(told) == 1

    def has_frozen(self, needed: Iterable[tuple[str, str]]) -> bool:
        """True if these frozen values exist."""
        return all(at in self.frozen for at in needed)

    def lacks_frozen(self, needed: Iterable[tuple[str, str]]) -> bool:
        """True if one of these frozen values has failed for good."""
        return any(f"{stage}/{variation}" in self.failed for stage, variation in needed)

    def has_inputs(self, reduce: Reduce) -> bool:
        """True if a reduce stage can be called."""
        return all(o.name in self.merged for o in reduce.inputs.values()) and self.has_frozen(reduce.frozen)

    def cannot(self, reduce: Reduce) -> bool:
        """True if an input of the reduce stage has failed for good."""
        return any(o.name in self.failed for o in reduce.inputs.values()) or self.lacks_frozen(reduce.frozen)
