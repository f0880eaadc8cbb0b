"""Converts columns to a model's dtype. A value that does not fit is refused, with its row.

Float to float and integer to float round to the nearest number of the model's dtype, ties to even (IEEE 754), as numpy
does; BF16 too. Everything else must be exact: 3.0 fits INT8, and 3.5, 300, NaN or -1 for an unsigned type do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class DoesNotFit(ValueError):
    """A value does not fit a dtype.

    Attributes:
        row: Index of the first entry that holds such a value, along the array's first axis.
    """

    def __init__(self, text: str, row: int) -> None:
        super().__init__(text)
        self.row = row


def as_dtype(array: Array, dtype: np.dtype[Any], *, unsafe: bool = False, out: Array | None = None) -> Array:
    """An array as another dtype.

    Args:
        array: Numbers or booleans, any shape.
        dtype: What the model takes.
        unsafe: Convert as ``astype`` of numpy does: integers wrap around, fractions are cut, too large floats are inf.
        out: Where to put the result, of ``array``'s shape and of ``dtype``; None: a new array, or ``array`` itself
            where it is of that dtype already.

    Raises:
        DoesNotFit: A value cannot be converted.
    """
    if array.dtype == dtype and out is None:
        return array
    if array.dtype.kind not in "biuf" and not (array.dtype.kind == "V" and array.dtype == dtype):
        raise DoesNotFit(f"values of type {_kind(array)} are no numbers", 0)
    if out is None:
        out = np.empty(array.shape, dtype)
    if unsafe:
        with np.errstate(all="ignore"):
            np.copyto(out, array, casting="unsafe")
        return out
    if np.can_cast(array.dtype, dtype, "safe"):
        np.copyto(out, array)
    elif _is_float(dtype):
        _to_float(array, out)
    else:
        _exactly(array, out)
    return out


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"  # which numpy does not know: its kind is V


def _to_float(array: Array, out: Array) -> None:
    # The processor's own flag says whether any value became inf; so the check costs nothing where none did.
    try:
        with np.errstate(over="raise", invalid="ignore"):
            np.copyto(out, array, casting="unsafe")
        if out.dtype.kind == "f" and out.dtype.itemsize > 2:
            return
    except FloatingPointError:
        pass
    _refuse(array, out, lambda: np.isinf(out.astype(np.float32)) & ~np.isinf(_as_float(array)))


def _as_float(array: Array) -> Array:
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _exactly(array: Array, out: Array) -> None:
    """To an integer or a boolean: every value must come back as it was."""
    kind = out.dtype.kind
    if kind == "b":
        _refuse(array, out, lambda: (array != 0) & (array != 1))
        np.not_equal(array, 0, out=out)
        return
    limits = np.iinfo(out.dtype)
    if array.dtype.kind == "f":
        # The largest integer itself may be no float: compare with the power of two behind it.
        array = array.astype(np.float32) if array.dtype.itemsize < 4 else array  # FP16 has no number as large
        low, high = float(limits.min), 2.0 ** (limits.bits - (kind == "i"))
        with np.errstate(invalid="ignore"):
            _refuse(array, out, lambda: ~((array >= low) & (array < high) & (np.rint(array) == array)))
    elif array.size:
        small, large = int(array.min()), int(array.max())
        if small < limits.min or large > limits.max:
            _refuse(array, out, lambda: _outside(array, limits))
    np.copyto(out, array, casting="unsafe")


def _outside(array: Array, limits: Any) -> Array:
    low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    wrong = np.zeros(array.shape, bool)
    if limits.min > low:
        wrong |= array < array.dtype.type(limits.min)
    if limits.max < high:
        wrong |= array > array.dtype.type(limits.max)
    return wrong


def _refuse(array: Array, out: Array, wrong: Callable[[], Array]) -> None:
    found = wrong()
    if found.any():
        first = int(np.argmax(found.reshape(-1)))
        value = array.reshape(-1)[first]
        shape = array.shape[1:]
        row = first // max(1, int(np.prod(shape))) if array.ndim else 0
        raise DoesNotFit(f"{value.item()!r} {_why(value, out.dtype)}", row)


def _why(value: Any, dtype: np.dtype[Any]) -> str:
    name = {"bfloat16": "BF16", "bool": "BOOL"}.get(dtype.name, dtype.name)
    if dtype.kind == "b":
        return f"is neither 0 nor 1, the values of {name}"
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if np.isfinite(value) and limits.min <= int(value) <= limits.max:
            return f"is not a whole number, and {name} holds whole numbers only"
        return f"does not fit {name} ({limits.min} to {limits.max})"
    return f"is too large for {name} and would become inf"


def _kind(array: Array) -> str:
    return {"U": "text", "S": "bytes", "O": "object", "c": "complex", "M": "date", "m": "time"}.get(
        array.dtype.kind, str(array.dtype)
    )
