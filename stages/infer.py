"""The stage ``infer``: columns in, a model's outputs as new columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np

from campaign.errors import CampaignError, InferenceError, MissingColumn, OutputError
from campaign.outputs.columns import Columns
from campaign.protocols import WEIGHT, Context
from campaign.util.casting import DoesNotFit, as_dtype
from campaign.util.messages import listed, unknown
from campaign.util.text import decoded, is_text, of_awkward

if TYPE_CHECKING:
    from campaign.inference.kserve import ModelInfo, Tensor
    from campaign.inference.ragged import Ragged

SAFE, UNSAFE = "safe", "unsafe"


@dataclass(frozen=True)
class Infer:
    """Send columns to a model and add what it answers; every other column is carried on.

    A model that batches rows gets one request per ``batch`` rows. A model that does not (``max_batch_size: 0``) gets
    the columns of a row range in one request; or, where one of its columns is jagged (entries of different lengths),
    **one request per event**: the event's part of a jagged column lies along the variable axis of its input, that of
    a flat column is one row of an input of fixed shape. An output with a variable axis (-1 in ``dims``) becomes a
    jagged column, an output of text a column of text.

    Args:
        model: Name of the model, one of ``servers.models``.
        inputs: Columns of each input, ``{input: column}`` or ``{input: [column, ...]}`` (stacked to shape
            (rows, columns); jagged ones of equal lengths to the shape of an event, (-1, columns) or (columns, -1)),
            converted to the input's dtype. Inputs that the model calls optional may be left out.
        outputs: New columns, ``{column: output}``; an output of shape (rows, 1) becomes a flat column.
        cast: ``safe``: a value that the input's dtype cannot hold is refused (see `campaign.util.casting`); ``unsafe``:
            converted as numpy's ``astype`` does, without a word.
    """

    model: str
    inputs: Mapping[str, str | Sequence[str]]
    outputs: Mapping[str, str]
    cast: str = SAFE

    def __post_init__(self) -> None:
        if self.cast not in (SAFE, UNSAFE):
            raise ValueError(f"cast is {self.cast!r}; give safe or unsafe")
        if WEIGHT in self.outputs:
            raise ValueError(f"the column '{WEIGHT}' is ctx.weight's; give the output another name")

    def start(self, batch: Any, ctx: Context) -> Any:
        """Send the batch's rows."""
        with self._explained(f"the columns {', '.join(self._columns())} cannot be sent"):
            info = ctx.servers.model(self.model)
            known = {t.name: t for t in info.inputs}
            self._check_names(info)
            events = not info.batch and any(jagged(batch, c) for c in self._columns())
            arrays = {n: self._input(batch, c, known[n], events) for n, c in self.inputs.items()}
            return batch, info, ctx.servers.start(self.model, arrays)

    def finish(self, pending: Any) -> Columns:
        """Wait for the answers."""
        batch, info, request = pending
        with self._explained(f"the outputs {', '.join(self.outputs.values())} cannot be made columns"):
            answer = request.result()
            known = {t.name: t for t in info.outputs}
            columns = {name: batch[name] for name in ak.fields(batch)}
            for column, output in self.outputs.items():
                columns[column] = self._column(answer[output], known[output], bool(info.batch))
            return Columns(columns)

    def __call__(self, batch: Any, ctx: Context) -> Columns:
        """Both steps in one."""
        return self.finish(self.start(batch, ctx))

    def _columns(self) -> list[str]:
        return [c for names in self.inputs.values() for c in ([names] if isinstance(names, str) else names)]

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except CampaignError:
            raise
        except Exception as error:
            # Library boundary: numpy, awkward and gRPC may raise anything, and a traceback of ours helps nobody.
            text = (str(error).strip().splitlines() or [""])[0]
            raise OutputError(
                f"model {self.model}: {what}: {type(error).__name__}: {text}",
                remedy="compare the columns with the model's inputs and outputs in its configuration",
            ) from error

    def _check_names(self, info: ModelInfo) -> None:
        for kind, names, tensors in (
            ("input", self.inputs, info.inputs),
            ("output", self.outputs.values(), info.outputs),
        ):
            known = [t.name for t in tensors]
            for name in names:
                if name not in known:
                    text = f"has no {kind} '{name}' (it has: {listed(known, name)})"
                    raise InferenceError(text, where=f"model {self.model}", permanent=True)

    def _input(self, batch: Any, columns: str | Sequence[str], tensor: Tensor, events: bool) -> Any:
        if events:
            return self._events(batch, columns, tensor)
        return self._stack(batch, columns, tensor, len(tensor.shape))

    def _stack(self, batch: Any, columns: str | Sequence[str], tensor: Tensor, ndim: int) -> np.ndarray[Any, Any]:
        if isinstance(columns, str):
            array = self._converted(batch, columns, tensor)
            return array[:, None] if array.ndim == 1 and ndim == 2 else array
        stacked = np.empty((len(batch), len(columns)), dtype=tensor.dtype)
        for i, column in enumerate(columns):
            self._converted(batch, column, tensor, stacked[:, i])
        return stacked

    def _converted(
        self, batch: Any, column: str, tensor: Tensor, out: np.ndarray[Any, Any] | None = None
    ) -> np.ndarray[Any, Any]:
        try:
            if tensor.datatype == "BYTES":
                array = text_of(batch, column)
                if out is None:
                    return array
                out[...] = array
                return out
            array = flat(batch, column)
            if out is not None and array.shape != out.shape:
                raise OutputError(
                    f"the column '{column}' has shape {array.shape}; one value per row is needed to stack columns",
                    remedy=f"give it to the input {tensor.name} alone, or flatten it in the stage before",
                )
            return as_dtype(array, tensor.dtype, unsafe=self.cast == UNSAFE, out=out)
        except DoesNotFit as error:
            raise self._unfit(column, tensor, error) from None

    def _unfit(self, column: str, tensor: Tensor, error: DoesNotFit) -> OutputError:
        return OutputError(
            f"the column '{column}' cannot be sent to the input {tensor.name} ({tensor.datatype}) of the model "
            f"{self.model}: row {error.row} of the batch: {error}",
            remedy="correct the value in the stage before, or set cast: unsafe",
        )

    def _events(self, batch: Any, columns: str | Sequence[str], tensor: Tensor) -> Ragged:
        """An input of a model that takes one event per request."""
        from campaign.inference.ragged import Ragged  # the client, which the driver need not load to check options

        names, unsafe = [columns] if isinstance(columns, str) else list(columns), self.cast == UNSAFE
        if not any(jagged(batch, c) for c in names):
            return Ragged.of(self._stack(batch, columns, tensor, 2), tensor)
        try:
            if isinstance(columns, str):
                return Ragged.of(batch[columns], tensor, tensor.dtype, unsafe=unsafe)
            return Ragged.stack([batch[c] for c in names], tensor.dtype, tensor.shape, unsafe=unsafe)
        except DoesNotFit as error:
            raise self._unfit(listed(names), tensor, error) from None
        except InferenceError as error:
            text = f"the column{'s' * (len(names) > 1)} {listed(names)} cannot be sent as {tensor.name}"
            raise OutputError(f"{text}: {error.message}", remedy="fill, drop or convert such entries") from error

    def _column(self, array: Any, tensor: Tensor, batches: bool) -> Any:
        if not isinstance(array, np.ndarray):  # events or rows of which one axis differs in length
            return array.to_awkward()
        if tensor.datatype == "BYTES":
            flat_one = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
            return self._text(flat_one, tensor)
        if batches and -1 in tensor.shape[1:]:
            # The type of a column is a function of the model, not of the widths that this file happens to have.
            return ak.from_regular(ak.from_numpy(array, regulararray=True), axis=tensor.shape.index(-1, 1))
        return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array

    def _text(self, array: np.ndarray[Any, Any], tensor: Tensor) -> Any:
        try:
            values = decoded(array)
        except DoesNotFit as error:
            raise OutputError(
                f"the output {tensor.name} of the model {self.model} cannot be a column: row {error.row}: {error}",
                remedy="let the model answer UTF-8, or call ctx.servers.infer in a stage of your own",
            ) from None
        if not values:
            return ak.from_iter([""])[:0]
        return ak.to_regular(ak.from_iter(values), axis=1) if array.ndim > 1 else ak.from_iter(values)


def jagged(batch: Any, column: str) -> bool:
    """True if the type of a column allows entries of different lengths. The length of text does not count.

    Raises:
        OutputError: There is no such column.
    """
    layout = _named(batch, column).layout
    return not (layout.purelist_isregular or (is_text(layout) and layout.purelist_depth <= 2 and _one_text(layout)))


def _one_text(layout: Any) -> bool:
    while layout.is_option or layout.is_indexed:
        layout = layout.content
    return layout.parameter("__array__") in ("string", "bytestring")


def _named(batch: Any, column: str) -> Any:
    if column not in ak.fields(batch):
        raise MissingColumn(unknown(column, ak.fields(batch), "columns of the batch"))
    return batch[column]


def flat(batch: Any, column: str) -> np.ndarray[Any, Any]:
    """A column as a numpy array; entries that are missing are refused rather than made up.

    Raises:
        MissingColumn: There is no such column.
        OutputError: It has missing or jagged entries.
    """
    values = _named(batch, column)
    if jagged(batch, column):
        raise OutputError(
            f"the column '{column}' of type {values.type} cannot be sent: its entries differ in length, and the model "
            "takes one shape per row",
            remedy="take one value per row in the stage before (a maximum, the first entry); or send whole events to a "
            "model with max_batch_size: 0",
        )
    try:
        array: np.ndarray[Any, Any] = ak.to_numpy(values, allow_missing=False)
    except (ValueError, TypeError) as error:
        text = str(error).strip().splitlines()[0]
        text = "some of its entries are missing" if "allow_missing" in text else text
        raise OutputError(
            f"the column '{column}' cannot be sent: {text} (its type is {values.type})",
            remedy="fill or drop such entries",
        ) from error
    return array


def text_of(batch: Any, column: str) -> np.ndarray[Any, Any]:
    """A column of text as an array of objects of type bytes, every byte kept.

    Raises:
        MissingColumn: There is no such column.
        OutputError: It has missing or jagged entries.
        DoesNotFit: It is no text.
    """
    values = _named(batch, column)
    if not is_text(values.layout):
        raise DoesNotFit(f"its type is {values.type.content}, and the input takes text", 0)
    try:
        return of_awkward(values)
    except ValueError as error:
        if isinstance(error, DoesNotFit):
            raise
        raise OutputError(
            f"the column '{column}' cannot be sent: {error}", remedy="fill or drop such entries"
        ) from None
