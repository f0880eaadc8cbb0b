"""Writes and reads frozen values: what a reduce stage returned, as canonical JSON, hashed and read-only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from campaign.errors import FrozenChanged, OutputError
from campaign.util.files import write_aside

Frozen = Mapping[tuple[str, str], tuple[str, str]]
"""Frozen values in force: path and SHA-256 of each, by reduce stage and variation."""

_ARRAY, _FLOAT = "__array__", "__float__"


def freeze(value: Any, path: Path) -> str:
    """Write a value and make the file read-only.

    Args:
        value: Mappings with string keys, lists, tuples, strings, numbers, booleans, None, numpy arrays of
            booleans, integers, floats or text. Floats keep every bit (``repr`` round trip; NaN and infinity too).
        path: Where it goes.

    Returns:
        SHA-256 (hex) of the file's bytes.

    Raises:
        OutputError: Something in it cannot be frozen; its place is named.
    """
    text = json.dumps(_encode(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    with write_aside(path, durable=True) as stream:
        stream.write(text)
    path.chmod(0o444)
    return hashlib.sha256(text).hexdigest()


def thaw(path: Path, sha256: str) -> Any:
    """Read a frozen value back.

    Raises:
        FrozenChanged: The file is missing or is not the one that was frozen.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FrozenChanged(f"cannot be read: {error.strerror}", where=str(path), remedy=_REMEDY) from None
    if hashlib.sha256(text).hexdigest() != sha256:
        raise FrozenChanged("was altered after it was frozen", where=str(path), remedy=_REMEDY)
    try:
        return _decode(json.loads(text))
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError, SyntaxError) as error:
        raise FrozenChanged(f"is no frozen value: {error}", where=str(path), remedy=_REMEDY) from error


_REMEDY = "delete the file and run again: it is derived again from the merged outputs"


def _encode(value: Any, at: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        return _encode_array(value, at)
    if isinstance(value, dict):
        for key in value:
            if key in (_ARRAY, _FLOAT):
                raise OutputError(f"{at}: the key {key!r} is reserved", remedy="take another key")
            if not isinstance(key, str):
                raise OutputError(f"{at}: the key {key!r} is no string", remedy="freeze mappings with string keys")
        return {key: _encode(inner, f"{at}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(inner, f"{at}[{i}]") for i, inner in enumerate(value)]
    raise OutputError(
        f"{at} is a {type(value).__name__}, which cannot be frozen",
        remedy="return mappings, lists, numbers, strings or numpy arrays",
    )


def _encode_array(value: np.ndarray[Any, Any], at: str) -> dict[str, Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise OutputError(f"{at} is a masked array, which cannot be frozen", remedy="fill it, or freeze the mask too")
    if value.dtype.kind not in "biufU" or (value.dtype.kind == "f" and value.dtype.itemsize > 8):
        raise OutputError(f"{at} is an array of {value.dtype}, which cannot be frozen", remedy="use numbers or text")
    dtype = "str" if value.dtype.kind == "U" else value.dtype.newbyteorder("<").str
    data = value.ravel().tolist()
    if value.dtype.kind == "f":  # a list a person can read; repr gives every bit back
        data = [x if math.isfinite(x) else repr(x) for x in data]
    return {_ARRAY: {"dtype": dtype, "shape": list(value.shape), "data": data}}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_FLOAT}:
        return float(value[_FLOAT])
    if set(value) == {_ARRAY}:
        found = value[_ARRAY]
        data = found["data"]
        if np.dtype(found["dtype"]).kind == "f":
            data = [float(x) for x in data]
        array = np.array(data, dtype=found["dtype"]).reshape(found["shape"])
        array.setflags(write=False)  # frozen in memory too: a worker hands the same array to many tasks
        return array
    return {key: _decode(inner) for key, inner in value.items()}


_THAWED: dict[tuple[str, str, int, int], Any] = {}


def thawed(path: str, sha256: str) -> Any:
    """A frozen value, read once per process as long as its file does not change."""
    try:
        stat = Path(path).stat()
    except OSError:
        return thaw(Path(path), sha256)  # says what is wrong
    at = (path, sha256, stat.st_mtime_ns, stat.st_size)
    if at not in _THAWED:
        _THAWED[at] = thaw(Path(path), sha256)
    return fresh(_THAWED[at])


def fresh(value: Any) -> Any:
    """New containers around the same values, so that what one task does to them no other task sees."""
    if isinstance(value, Mapping):
        return {key: fresh(inner) for key, inner in value.items()}
    return [fresh(inner) for inner in value] if isinstance(value, list) else value
