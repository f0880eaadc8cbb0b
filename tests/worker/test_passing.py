"""What may pass and what stays: only a file system or a network that falters is worth another try."""

from __future__ import annotations

import asyncio
import errno
import pickle

import aiohttp
import pytest
from yarl import URL

from campaign.errors import InferenceError, InputError, PartialError, ServerError, SpecError, StageError, passing
from campaign.worker.stage_errors import explain


def wrapped(error: BaseException, *by: type[Exception]) -> BaseException:
    """The error as a reader tells of it that caught another one that caught it."""
    for kind in by:
        try:
            try:
                raise error
            except BaseException as why:
                raise kind("while reading") from why
        except kind as outer:
            error = outer
    return error


def http(status: int) -> aiohttp.ClientResponseError:
    info = aiohttp.RequestInfo(URL("http://x/f.root"), "GET", None, URL("http://x/f.root"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status)


PASSES = [
    ConnectionResetError("reset"), TimeoutError("slow"), asyncio.TimeoutError(), OSError(errno.ESTALE, "stale handle"),
    OSError(errno.EIO, "input/output error"), http(503), http(429), aiohttp.ServerDisconnectedError(),
]  # fmt: skip
STAYS = [
    OSError(errno.ENOENT, "none"), PermissionError(errno.EACCES, "denied"), ValueError("not a ROOT file"),
    OSError("expected Chunk of length 3, received 1"), http(404), http(403), OSError(errno.EISDIR, "a folder"),
]  # fmt: skip


@pytest.mark.parametrize("by", [(), (OSError,), (RuntimeError, ValueError)])
@pytest.mark.parametrize("error", [*PASSES, *STAYS], ids=repr)
def test_what_a_reader_wraps_is_still_known(error: BaseException, by: tuple[type[Exception], ...]) -> None:
    """However many exceptions a reader puts around what it was told, and across the border of a process."""
    told = wrapped(error, *by)
    assert passing(told) == (error in PASSES)
    made = pickle.loads(pickle.dumps(InputError.unreadable("/f.root", told)))
    assert made.permanent == (error in STAYS)
    stage = pickle.loads(pickle.dumps(explain(told, "s", "s.py:s", "/f.root")))  # type: ignore[arg-type]
    assert stage.permanent == (error in STAYS)


def test_errors_know_whether_they_are_permanent() -> None:
    """A server or a partial can be had again; a stage, a file or a wrong request cannot, unless it says so."""
    assert not ServerError("gone").permanent
    assert not PartialError("torn").permanent
    assert not InferenceError("late").permanent
    assert InferenceError("wrong shape", permanent=True).permanent
    assert all(kind("x").permanent for kind in (StageError, InputError, SpecError))
