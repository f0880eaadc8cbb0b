"""Writes named arrays behind a text header in one run of bytes: the format of histogram partials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from campaign.util.hashing import canonical_json

_MAGIC = b"campaign-frame-2\n"
_SPARSE = 0.5  # of a table's columns may hold something: of emptier ones only those are written


def pack(text: str, arrays: Mapping[str, Any]) -> bytes:
    """Bytes from which `unpack` makes the same again; equal contents give equal bytes."""
    described: list[list[Any]] = []
    pieces: list[bytes] = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        filled = _filled(array)
        described.append([name, array.dtype.str, list(array.shape), -1 if filled is None else len(filled)])
        if filled is not None:
            pieces.append(filled.astype("<i4").tobytes())
            array = array[:, filled]
        pieces.append(array.tobytes())
    told = canonical_json([text, described]).encode()
    return b"".join([_MAGIC, b"%d\n" % len(told), told, *pieces])


def _filled(array: NDArray[Any]) -> NDArray[np.intp] | None:
    """Columns of a table that are not zero everywhere, if they are few; else None."""
    if array.ndim != 2 or not array.size or array.shape[1] >= 2**31:
        return None
    filled = np.flatnonzero(array.any(axis=0))
    return filled if len(filled) <= _SPARSE * array.shape[1] else None


def unpack(content: bytes) -> tuple[str, dict[str, Any]]:
    """The text and the arrays.

    Raises:
        ValueError: These are no such bytes.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("no frame of arrays")
    try:
        return _unpack(content)
    except (TypeError, OverflowError, MemoryError, RecursionError, LookupError, SyntaxError) as error:
        raise ValueError(f"no frame of arrays: {type(error).__name__}") from error


def _unpack(content: bytes) -> tuple[str, dict[str, Any]]:
    length, _, _ = content[len(_MAGIC) : len(_MAGIC) + 20].partition(b"\n")
    at = len(_MAGIC) + len(length) + 1
    text, described = json.loads(content[at : at + int(length)])
    at += int(length)
    arrays = {}
    for name, dtype, shape, filled in described:
        if filled < 0:
            array = np.frombuffer(content, np.dtype(dtype), math.prod(shape), at)
            arrays[name] = array.reshape(shape).copy()  # its own: what is read is added to
        else:
            columns = np.frombuffer(content, "<i4", filled, at)
            at += columns.nbytes
            array = np.frombuffer(content, np.dtype(dtype), shape[0] * filled, at)
            arrays[name] = np.zeros(shape, np.dtype(dtype))
            arrays[name][:, columns] = array.reshape(shape[0], filled)
        at += array.nbytes
    if at != len(content):
        raise ValueError("a frame of another length")
    return text, arrays
