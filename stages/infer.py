"""The stage ``infer``: columns in, a model's outputs as new columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np

from campaign.errors import InferenceError, OutputError
from campaign.outputs import Columns
from campaign.protocols import Context
from campaign.registry import unknown

if TYPE_CHECKING:
    from campaign.kserve import Tensor
    from campaign.ragged import Ragged


@dataclass(frozen=True)
class Infer:
    """Send columns to a model and add what it answers; every other column is carried on.

    A model that batches rows gets one request per ``batch`` rows. A model that does not (``max_batch_size: 0``) gets
    the columns of a row range in one request; or, where one of its columns is jagged (entries of different lengths),
    **one request per event**: the event's part of a jagged column lies along the variable axis of its input, that of
    a flat column is one row of an input of fixed shape. An output with a variable axis becomes a jagged column.

    Args:
        model: Name of the model, one of ``servers.models``.
        inputs: Columns of each input, ``{input: column}`` or ``{input: [column, ...]}`` (stacked to shape
            (rows, columns); jagged ones of equal lengths to the shape of an event, (-1, columns) or (columns, -1)),
            converted to the input's dtype.
        outputs: New columns, ``{column: output}``; an output of shape (rows, 1) becomes a flat column.
    """

    model: str
    inputs: Mapping[str, str | Sequence[str]]
    outputs: Mapping[str, str]

    def start(self, batch: Any, ctx: Context) -> Any:
        """Send the batch's rows."""
        info = ctx.servers.model(self.model)
        dtypes = {t.name: t for t in info.inputs}
        for name in self.inputs:
            if name not in dtypes:
                raise InferenceError(
                    f"has no input '{name}' (it has: {', '.join(dtypes)})", where=f"model {self.model}", permanent=True
                )
        known = [t.name for t in info.outputs]
        for name in self.outputs.values():
            if name not in known:
                raise InferenceError(
                    f"has no output '{name}' (it has: {', '.join(known)})", where=f"model {self.model}", permanent=True
                )
        named = [c for names in self.inputs.values() for c in ([names] if isinstance(names, str) else names)]
        if not info.batch and any(jagged(batch, c) for c in named):
            return batch, ctx.servers.start(
                self.model, {n: _events(batch, c, dtypes[n]) for n, c in self.inputs.items()}
            )
        arrays = {n: _stack(batch, c, dtypes[n].dtype, len(dtypes[n].shape)) for n, c in self.inputs.items()}
        return batch, ctx.servers.start(self.model, arrays)

    def finish(self, pending: Any) -> Columns:
        """Wait for the answers."""
        batch, request = pending
        answer = request.result()
        columns = {name: batch[name] for name in ak.fields(batch)}
        for column, output in self.outputs.items():
            array = answer[output]
            if not isinstance(array, np.ndarray):  # events of which one axis differs in length
                columns[column] = array.to_awkward()
                continue
            columns[column] = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        return Columns(columns)

    def __call__(self, batch: Any, ctx: Context) -> Columns:
        """Both steps in one."""
        return self.finish(self.start(batch, ctx))


def _stack(batch: Any, columns: str | Sequence[str], dtype: np.dtype[Any], ndim: int) -> np.ndarray[Any, Any]:
    if isinstance(columns, str):
        array = flat(batch, columns).astype(dtype, copy=False)
        return array[:, None] if array.ndim == 1 and ndim == 2 else array
    stacked = np.empty((len(batch), len(columns)), dtype=dtype)
    for i, column in enumerate(columns):
        stacked[:, i] = flat(batch, column)
    return stacked


def _events(batch: Any, columns: str | Sequence[str], tensor: Tensor) -> Ragged:
    """An input of a model that takes one event per request."""
    from campaign.ragged import Ragged  # the client, which the driver need not load to check options

    names = [columns] if isinstance(columns, str) else list(columns)
    if not any(jagged(batch, c) for c in names):
        return Ragged.of(_stack(batch, columns, tensor.dtype, 2), tensor)
    try:
        if isinstance(columns, str):
            return Ragged.of(batch[columns], tensor, tensor.dtype)
        return Ragged.stack([batch[c] for c in names], tensor.dtype, tensor.shape)
    except InferenceError as error:
        text = f"the column{'s' * (len(names) > 1)} {', '.join(names)} cannot be sent as {tensor.name}: {error.message}"
        raise OutputError(text, remedy="fill, drop or convert such entries") from error


def jagged(batch: Any, column: str) -> bool:
    """Whether the entries of a column may differ in length, by its type.

    Raises:
        OutputError: There is no such column.
    """
    if column not in ak.fields(batch):
        raise OutputError(unknown(column, ak.fields(batch), "columns of the batch"))
    return not batch[column].layout.purelist_isregular


def flat(batch: Any, column: str) -> np.ndarray[Any, Any]:
    """A column as a numpy array; entries that are missing are refused rather than made up.

    Raises:
        OutputError: There is no such column, or it has missing or jagged entries.
    """
    if column not in ak.fields(batch):
        raise OutputError(unknown(column, ak.fields(batch), "columns of the batch"))
    try:
        array: np.ndarray[Any, Any] = ak.to_numpy(batch[column], allow_missing=False)
    except ValueError as error:
        text = str(error).strip().splitlines()[0]
        raise OutputError(
            f"the column '{column}' cannot be sent: {text}", remedy="fill or drop such entries"
        ) from error
    return array
