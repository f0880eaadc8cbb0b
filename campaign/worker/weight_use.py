"""Watches whether a stage reads the weight of a variation, and whether it passes the weight on.

A stage that makes histograms without looking at ``ctx.weight`` makes nominal's in every variation of the weight. So the
column is given to it as a virtual array, which tells when its numbers are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import awkward as ak
import numpy as np

from campaign.errors import OutputError
from campaign.histogram.histogram import Histogram
from campaign.outputs.columns import Columns
from campaign.outputs.histograms import Histograms, HistogramsPartial
from campaign.outputs.kinds import Output
from campaign.planning.task import Step
from campaign.protocols import WEIGHT

# Remarks in receipts, for the report to judge when all files are there: short, because there is one per partial.
WEIGHED = "weights not 1"
UNUSED = "ctx.weight unused"
ROUNDED = "ctx.weight rounded"


class WeightUses:
    """Of the steps of one task.

    Args:
        steps: The steps.
        code: Of the stages, by name (`campaign.planning.stage_code.StageCode`).
    """

    def __init__(self, steps: Iterable[Step], code: Mapping[str, Any]) -> None:
        self._of = {s.key: WeightUse(s, code[s.stage].where, code[s.stage].may_weigh) for s in steps if s.weighs}

    def shown(self, step: Step, batch: Any) -> Any:
        """See `WeightUse.shown`; as they are to a stage that need not look."""
        here = self._of.get(step.key)
        return batch if here is None else here.shown(batch, self._of.get(step.parent or ""))

    def looking(self, step: Step) -> AbstractContextManager[None]:
        """See `WeightUse.looking`."""
        here = self._of.get(step.key)
        return nullcontext() if here is None else here.looking()

    def returned(self, step: Step, value: Output) -> None:
        """See `WeightUse.returned`."""
        if step.key in self._of:
            self._of[step.key].returned(value)

    def notes(self, step: Step, made: Any) -> tuple[str, ...]:
        """See `WeightUse.notes`."""
        return self._of[step.key].notes(made) if step.key in self._of else ()


class WeightUse:
    """What one step of a task has done with its weight until now.

    Args:
        step: The step; its variation has a weight.
        where: Its code, for messages.
        may: Whether that may ask for the weight, perhaps of other events than those of this task.

    Attributes:
        differs: Whether a weight other than 1 was among those of its rows.
    """

    def __init__(self, step: Step, where: str, may: bool) -> None:
        self._may = may
        self._where = f"stage {step.stage} ({where})"
        self._stage, self._variation, self._followed = step.stage, step.variation, step.followed
        self.differs = self._used = self._filled = self._rounded = self._looking = False

    def shown(self, batch: Any, before: WeightUse | None) -> Any:
        """The batch for the stage; until the stage has looked at the weight, with a column that tells.

        Args:
            batch: What it takes.
            before: Of the step that has made it, if that is of this task.
        """
        if WEIGHT not in ak.fields(batch):  # a stage before has multiplied it into a column of its own
            self.differs, self._used = before is None or before.differs, True
            return batch
        if (self._used and self.differs) or not batch.layout.is_record:
            return batch
        column = ak.materialize(batch[WEIGHT])
        self.differs = self.differs or _differs(column)
        return batch if self._used else _with_column(batch, self._telling(column))

    def _telling(self, column: Any) -> Any:
        form, length, buffers = ak.to_buffers(column)

        def telling(buffer: Any) -> Callable[[], Any]:
            def take() -> Any:
                self._used = self._used or self._looking
                return buffer

            return take

        return ak.from_buffers(form, length, {name: telling(buffer) for name, buffer in buffers.items()})

    @contextmanager
    def looking(self) -> Iterator[None]:
        """While the stage runs: who asks for the weight later is not the stage."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def returned(self, value: Output) -> None:
        """Take note of what the stage has made of one batch.

        Raises:
            OutputError: Columns for other stages, without the weight.
        """
        if isinstance(value, Columns):
            self._carried(value)
        elif not self._used and not self._filled:
            self._filled = any(map(_holds, value.values()))

    def _carried(self, value: Columns) -> None:
        column = value.get(WEIGHT)
        self._rounded = self._rounded or (column is not None and _is_short(column))
        if self._used or not self.differs or not value.rows:
            return
        if column is not None and isinstance(column, ak.Array) and not column.layout.is_all_materialized:
            self._used = True  # the rows it was given, handed on as they are
        elif self._followed:
            how = "drops the column ctx.weight" if column is None else "makes up the column ctx.weight"
            raise self._error(
                f"{how}, so variation '{self._variation}' could not differ from nominal",
                "add batch[ctx.weight] to the columns that it returns, row by row",
            )

    def notes(self, made: Any) -> tuple[str, ...]:
        """Remarks for the receipt, once all of the file's rows were there.

        Args:
            made: What the stage has returned, or all of it together.

        Raises:
            OutputError: Histograms were filled by code that does not look at the weight.
        """
        if not self.differs:
            return ()
        unused = self._filled and not self._used
        if unused and not self._may and isinstance(made, (Histograms, HistogramsPartial)):
            raise self._error(
                f"fills histograms without ctx.weight, so those of variation '{self._variation}' are nominal's",
                f"multiply the event's weight by batch[ctx.weight]; or, if it counts entries on purpose, write "
                f"'weighted: false' under stages.{self._stage}",
            )
        found = {WEIGHED: True, UNUSED: unused and not self._may, ROUNDED: self._rounded}
        return tuple(note for note, true in found.items() if true)

    def _error(self, message: str, remedy: str) -> OutputError:
        error = OutputError(message, where=self._where, remedy=remedy)
        error.stage = self._stage
        return error


def _differs(column: Any) -> bool:
    if column.layout.is_numpy:  # a tenth of the time
        return bool(np.any(column.layout.data != 1))
    return bool(ak.any(column != 1, axis=None))


def _with_column(batch: Any, column: Any) -> Any:
    layout = batch.layout
    contents = [column.layout if n == WEIGHT else c for n, c in zip(layout.fields, layout.contents, strict=True)]
    record = ak.contents.RecordArray(contents, layout.fields, length=len(batch), parameters=layout.parameters)
    return ak.Array(record, behavior=batch.behavior, attrs=batch.attrs)


def _is_short(column: Any) -> bool:
    """Whether it holds fewer digits than the float64 it was made from."""
    dtype = column.dtype if isinstance(column, np.ndarray) else _dtype(column)
    return dtype is not None and dtype != np.float64


def _dtype(column: Any) -> np.dtype[Any] | None:
    form = getattr(getattr(column, "layout", None), "form", None)
    while form is not None and not hasattr(form, "primitive"):
        form = getattr(form, "content", None)
    return None if form is None else np.dtype(form.primitive)


def _holds(value: Any) -> bool:
    """Whether anything was filled, or counted."""
    if isinstance(value, Histogram):
        return value.summary().holds
    if hasattr(value, "values"):
        squares = value.variances(flow=True)
        return bool(np.any(value.values(flow=True) != 0) or (squares is not None and np.any(squares != 0)))
    return bool(np.any(value != 0))
