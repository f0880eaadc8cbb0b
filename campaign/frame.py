"""Named arrays behind a text, in one run of bytes: the partials of histograms, read and written without a container."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from campaign.rundir import canonical_json

_MAGIC = b"campaign-frame-1\n"


def pack(text: str, arrays: Mapping[str, Any]) -> bytes:
    """Bytes from which `unpack` makes the same again; equal contents give equal bytes."""
    ordered = [(name, np.ascontiguousarray(arrays[name])) for name in sorted(arrays)]
    told = canonical_json([text, [[name, a.dtype.str, list(arrays[name].shape)] for name, a in ordered]]).encode()
    return b"".join([_MAGIC, b"%d\n" % len(told), told, *(a.tobytes() for _, a in ordered)])


def unpack(content: bytes) -> tuple[str, dict[str, Any]]:
    """The text and the arrays.

    Raises:
        ValueError: These are no such bytes.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("no frame of arrays")
    length, _, _ = content[len(_MAGIC) : len(_MAGIC) + 20].partition(b"\n")
    at = len(_MAGIC) + len(length) + 1
    text, described = json.loads(content[at : at + int(length)])
    at += int(length)
    arrays = {}
    for name, dtype, shape in described:
        count = math.prod(shape)
        array = np.frombuffer(content, np.dtype(dtype), count, at)
        arrays[name] = array.reshape(shape).copy()  # its own: what is read is added to
        at += array.nbytes
    if at != len(content):
        raise ValueError("a frame of another length")
    return text, arrays
