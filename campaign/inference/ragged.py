"""Ragged arrays: events of variable length in one buffer, sent as one event per request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import InferenceError
from campaign.inference.codec import Array, Part, as_bytes
from campaign.inference.kserve import ModelInfo, Tensor, check_names
from campaign.util.casting import DoesNotFit, as_dtype
from campaign.util.text import is_text

if TYPE_CHECKING:
    import awkward as ak

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ragged:
    """Events of one tensor, of which one axis differs in length.

    Attributes:
        flat: All elements, event after event, each event's in C order; one axis, contiguous.
        counts: Length of the variable axis of each event, int64 (events,).
        shape: Shape of an event, -1 for its variable axis; without one all events are of that shape.
    """

    flat: Array
    counts: Array
    shape: Shape

    def __post_init__(self) -> None:
        width = math.prod(n for n in self.shape if n != -1)
        total = int(self.counts.sum()) * width
        if self.flat.ndim != 1 or self.flat.size != total:
            raise InferenceError(
                f"{len(self.counts)} events of shape {self.shape} and {int(self.counts.sum())} rows together need "
                f"{total} elements, got shape {self.flat.shape}",
                permanent=True,
            )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def offsets(self) -> Array:
        """The start of each event in ``flat``, and the end of the last one: int64 (events + 1,)."""
        width = math.prod(n for n in self.shape if n != -1)
        return np.concatenate([[0], np.cumsum(self.counts)]) * width

    def __getitem__(self, event: int) -> Array:
        event = range(len(self))[event]
        start, stop = self.offsets[event : event + 2]
        return self.flat[start:stop].reshape(self.shape_of(int(self.counts[event])))

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def shape_of(self, count: int) -> Shape:
        """Shape of an event whose variable axis is so long."""
        return tuple(count if n == -1 else n for n in self.shape)

    def same(self, other: object) -> bool:
        """True if these are the same events, byte by byte (NaN equals NaN)."""
        if not isinstance(other, Ragged) or self.shape != other.shape or self.flat.dtype != other.flat.dtype:
            return False
        equal = np.array_equal(self.counts, other.counts)
        return equal and (self.flat is other.flat or self.flat.tobytes() == other.flat.tobytes())

    def to_awkward(self) -> ak.Array:
        """As an awkward array of one entry per event; a variable axis first is ``var * inner``."""
        import awkward as ak

        if -1 not in self.shape:
            return ak.from_numpy(self.flat.reshape(len(self), *self.shape), regulararray=True)
        axis = self.shape.index(-1)
        layout: Any = ak.contents.NumpyArray(self.flat.reshape(-1, *self.shape[axis + 1 :]))
        lead = math.prod(self.shape[:axis])
        offsets = np.concatenate([[0], np.cumsum(np.repeat(self.counts, lead))])
        layout = ak.contents.ListOffsetArray(ak.index.Index64(offsets), layout)
        for n in reversed(self.shape[:axis]):
            layout = ak.contents.RegularArray(layout, n, zeros_length=len(self))
        return ak.Array(layout)

    @classmethod
    def stack(cls, columns: Sequence[Any], dtype: np.dtype[Any], shape: Shape, *, unsafe: bool = False) -> Ragged:
        """Jagged columns, ``events * var`` each and of equal lengths, as the last or the first axis of ``shape``.

        Args:
            columns: Awkward arrays.
            dtype: Of the result.
            shape: (-1, columns) or (columns, -1).
            unsafe: See `campaign.util.casting.as_dtype`.

        Raises:
            DoesNotFit: A value does not fit the dtype.
            InferenceError: They differ in lengths, or are not the shape's number.
        """
        parts = [cls.of(c, Tensor("", "FP64", (-1,)), dtype, unsafe=unsafe) for c in columns]
        counts = parts[0].counts
        if any(not np.array_equal(p.counts, counts) for p in parts[1:]):
            raise InferenceError("the columns differ in their entries' lengths", permanent=True)
        if shape == (-1, len(parts)):
            return cls(np.stack([p.flat for p in parts], axis=1).reshape(-1), counts, shape)
        if shape != (len(parts), -1):
            raise InferenceError(f"{len(parts)} columns do not make events of shape {shape}", permanent=True)
        flat = np.empty(len(parts) * parts[0].flat.size, dtype)
        # Where the elements of one column go: behind all columns of the events before theirs.
        start = np.repeat((len(parts) - 1) * (np.cumsum(counts) - counts), counts) + np.arange(parts[0].flat.size)
        step = np.repeat(counts, counts)
        for i, part in enumerate(parts):
            flat[start + i * step] = part.flat
        return cls(flat, counts, shape)

    @classmethod
    def of(cls, given: Any, tensor: Tensor, dtype: np.dtype[Any] | None = None, *, unsafe: bool = False) -> Ragged:
        """A caller's array for one input.

        Args:
            given: A `Ragged`; an awkward array of one entry per event; a pair ``(flat, counts)``, the events'
                arrays one behind the other; or a numpy array of shape (events, ...), all events of one shape.
            tensor: The input, of which at most one axis is variable.
            dtype: To convert to; None: it must be the tensor's.
            unsafe: See `campaign.util.casting.as_dtype`.

        Raises:
            DoesNotFit: A value does not fit the dtype; the row is the event's.
            InferenceError: It does not fit the input.
        """
        if isinstance(given, Ragged):
            found = given
        elif isinstance(given, tuple):
            flat, counts = (np.asarray(g) for g in given)
            found = cls(np.ascontiguousarray(flat).reshape(-1), counts.astype(np.int64), tensor.shape)
        else:
            found = cls(*_of_awkward(given, tensor), tensor.shape)
        if dtype is not None and found.flat.dtype != dtype:
            found = cls(found._converted(dtype, unsafe), found.counts, found.shape)
        return found

    def _converted(self, dtype: np.dtype[Any], unsafe: bool) -> Array:
        try:
            return as_dtype(self.flat, dtype, unsafe=unsafe)
        except DoesNotFit as error:
            event = int(np.searchsorted(self.offsets, error.row, side="right")) - 1
            raise DoesNotFit(str(error), event) from None


def _of_awkward(given: Any, tensor: Tensor) -> tuple[Array, Array]:
    """The one buffer under an awkward (or numpy) array, and how long each event's variable axis is."""
    import awkward as ak

    array = ak.to_packed(ak.Array(given))
    layout, counts = array.layout, np.ones(len(array), np.int64)
    for i, want in enumerate(tensor.shape):
        layout = _present(layout, array.type, tensor)
        if is_text(layout):
            raise _misfit(tensor, str(array.type))  # its characters are no numbers
        layout = layout.to_RegularArray() if layout.is_numpy and layout.data.ndim > 1 else layout
        if layout.is_unknown:  # nothing in it, so nobody could say of what type
            lengths = np.empty(0, np.int64)
        elif layout.is_list and not layout.is_regular:
            lengths = np.diff(np.asarray(layout.offsets.data))
        elif layout.is_regular:
            lengths = np.full(len(layout), layout.size)
        else:
            raise _misfit(tensor, str(array.type))
        if want == -1:
            rows = lengths.reshape(len(array), math.prod(tensor.shape[:i]))
            counts = rows[:, 0].astype(np.int64)
        # Lists of one event before the variable axis are one as long as the other.
        if (rows != counts[:, None] if want == -1 else lengths != want).any():
            raise _misfit(tensor, str(array.type))
        layout = layout if layout.is_unknown else layout.content
    layout = _present(layout, array.type, tensor)
    if layout.is_unknown:
        return np.empty(0, tensor.dtype), counts
    if not layout.is_numpy or layout.data.ndim > 1:
        raise _misfit(tensor, str(array.type))
    return np.ascontiguousarray(layout.data), counts


def _present(layout: Any, kind: Any, tensor: Tensor) -> Any:
    """A level of an awkward array without its mask. Missing values are refused, not invented."""
    if layout.is_option:
        if layout.mask_as_bool(valid_when=False).any():
            raise _misfit(tensor, f"{kind} with missing entries")
        layout = layout.project()
    return layout


def _misfit(tensor: Tensor, got: str) -> InferenceError:
    want = ", ".join("var" if n == -1 else str(n) for n in tensor.shape)
    return InferenceError(f"expected (events, {want}), got {got}", where=f"input {tensor.name}", permanent=True)


def events(info: ModelInfo, inputs: Mapping[str, Any]) -> dict[str, Ragged]:
    """A caller's arrays for all inputs of a model; see `Ragged.of`.

    Raises:
        InferenceError: A name is not the model's, or an array does not fit its input.
    """
    check_names(info, inputs)
    for tensor in (*info.inputs, *info.outputs):
        if tensor.shape.count(-1) > 1:
            text = f"{tensor.name} has more than one variable axis, {tensor.shape}"
            raise InferenceError(text, where=f"model {info.name}", permanent=True, remedy="use infer_events")
    try:
        return {t.name: Ragged.of(inputs[t.name], t) for t in info.inputs if t.name in inputs}
    except InferenceError as error:
        error.where = f"model {info.name}, {error.where}".rstrip(", ")
        raise


def parts(info: ModelInfo, events: Mapping[str, Ragged]) -> list[Part]:
    """One request per event, cut out of the buffers: no array is made for an event.

    Raises:
        InferenceError: The inputs are not of the model's dtypes and shapes, or not of one number of events.
    """
    shapes, pieces = [], []
    given = [t for t in info.inputs if t.name in events]
    for tensor in given:
        ragged = events[tensor.name]
        _check(info, tensor, ragged)
        data = as_bytes(tensor, ragged.flat)
        ends = (ragged.offsets * ragged.flat.itemsize).tolist()
        shapes.append([ragged.shape_of(n) for n in ragged.counts.tolist()])
        pieces.append([(data[start:stop],) for start, stop in pairwise(ends)])
    if len({len(s) for s in shapes}) > 1:
        counts = {t.name: len(s) for t, s in zip(given, shapes, strict=True)}
        raise InferenceError(f"inputs differ in events: {counts}", where=f"model {info.name}", permanent=True)
    names = tuple(t.name for t in given)
    return [
        Part(s, p, 1, names=names) for s, p in zip(zip(*shapes, strict=True), zip(*pieces, strict=True), strict=True)
    ]


def _check(info: ModelInfo, tensor: Tensor, ragged: Ragged) -> None:
    where = f"model {info.name}, input {tensor.name}"
    if tensor.datatype == "BYTES":
        raise InferenceError("text is not sent ragged", where=where, permanent=True, remedy="use infer_events")
    if ragged.flat.dtype != tensor.dtype:
        text = f"expected {tensor.dtype}, got {ragged.flat.dtype}"
        raise InferenceError(text, where=where, permanent=True, remedy=f"convert with .astype('{tensor.dtype}')")
    fits = len(ragged.shape) == len(tensor.shape) and all(
        w in (-1, n) for w, n in zip(tensor.shape, ragged.shape, strict=True)
    )
    if not fits:
        raise InferenceError(f"expected shape {tensor.shape}, got {ragged.shape}", where=where, permanent=True)


def joined(tensor: Tensor, answers: Sequence[Array]) -> Ragged | Array:
    """One output of all events: `Ragged` where an axis is variable, else an array of shape (events, ...)."""
    if -1 not in tensor.shape:
        return np.stack(answers) if answers else np.empty((0, *tensor.shape), tensor.answer_dtype)
    axis = tensor.shape.index(-1)
    counts = np.fromiter((a.shape[axis] for a in answers), np.int64, len(answers))
    flat = np.concatenate([a.reshape(-1) for a in answers]) if answers else np.empty(0, tensor.answer_dtype)
    shape = tuple(-1 if i == axis else n for i, n in enumerate(tensor.shape))
    return Ragged(flat, counts, shape)


def rows_of(tensor: Tensor, chunks: Sequence[Array]) -> Ragged | Array:
    """Consecutive answers of rows put together: `Ragged` where one axis differs in length between them.

    Args:
        tensor: The output; its first axis counts rows.
        chunks: Arrays of shape (rows, ...), of one answer each.

    Raises:
        InferenceError: They differ in more than one axis.
    """
    if len({chunk.shape[1:] for chunk in chunks}) == 1:
        return np.concatenate(chunks)
    differ = [i for i in range(1, chunks[0].ndim) if len({chunk.shape[i] for chunk in chunks}) > 1]
    if len(differ) > 1 or tensor.datatype == "BYTES":
        shapes = sorted({chunk.shape[1:] for chunk in chunks})
        raise InferenceError(
            f"answers rows of shape {shapes[0]} and of shape {shapes[-1]} in one file; its dims are {tensor.shape[1:]}",
            where=f"output {tensor.name}",
            permanent=True,
            remedy="let the model give every row one shape: pad in the model",
        )
    (axis,) = differ
    counts = np.concatenate([np.full(len(chunk), chunk.shape[axis], np.int64) for chunk in chunks])
    shape = tuple(-1 if i == axis else n for i, n in enumerate(chunks[0].shape[1:], 1))
    return Ragged(np.concatenate([chunk.reshape(-1) for chunk in chunks]), counts, shape)
