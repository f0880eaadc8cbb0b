"""Converts text between numpy, awkward and Triton's BYTES: each value keeps its own bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from campaign.util.casting import DoesNotFit

Array = np.ndarray[Any, Any]


def as_bytes_objects(array: Array) -> Array:
    """An array of numpy's text (``U``), bytes (``S``) or objects as objects of type bytes; text as UTF-8.

    Numpy's ``S`` and ``U`` cannot hold NUL characters at the end of a value; objects can.

    Raises:
        DoesNotFit: An object is neither text nor bytes, or the array holds something else.
    """
    if array.dtype.kind not in "OSU":
        raise DoesNotFit(f"values of type {array.dtype} are no text", 0)
    found = np.empty(array.shape, object)
    flat, source = found.reshape(-1), array.reshape(-1)
    for i, value in enumerate(source.tolist()):
        if isinstance(value, str):
            flat[i] = value.encode()
        elif isinstance(value, (bytes, bytearray)):
            flat[i] = bytes(value)
        else:
            row = i // max(1, array.size // len(array)) if array.ndim else 0
            raise DoesNotFit(f"{value!r} is neither text nor bytes", row)
    return found


def of_awkward(column: Any) -> Array:
    """An awkward array of text or bytes, of one value or equally many per row, as objects of type bytes.

    Raises:
        DoesNotFit: Values are missing, or are no text.
        ValueError: Rows differ in their number of values.
    """
    values = column.to_list()
    shape: tuple[int, ...] = (len(values),)
    here: Any = values
    while here and isinstance(here[0], list):
        size = len(here[0])
        if any(not isinstance(row, list) or len(row) != size for row in here):
            raise ValueError("its rows differ in their number of values")
        shape, here = (*shape, size), [value for row in here for value in row]
    found = np.empty(len(here), object)
    found[:] = here
    return as_bytes_objects(found.reshape(shape))


def is_text(layout: Any) -> bool:
    """True if the innermost values of an awkward layout are text or bytes."""
    if layout.parameter("__array__") in ("string", "bytestring"):
        return True
    if layout.is_list or layout.is_option or layout.is_indexed:
        return is_text(layout.content)
    return False


def decoded(array: Array) -> list[Any]:
    """Objects of type bytes (or text) as nested lists of text, shape kept.

    Raises:
        DoesNotFit: A value is no UTF-8.
    """
    found = np.empty(array.shape, object)
    flat = found.reshape(-1)
    for i, value in enumerate(array.reshape(-1).tolist()):
        try:
            flat[i] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            row = i // max(1, array.size // len(array))
            raise DoesNotFit(f"{value[:40]!r} is no UTF-8 text", row) from None
        if not isinstance(flat[i], str):
            raise DoesNotFit(f"{value!r} is neither text nor bytes", i // max(1, array.size // len(array)))
    nested: list[Any] = found.tolist()
    return nested
