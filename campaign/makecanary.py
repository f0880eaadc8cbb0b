"""``campaign canary``: the known answer of a model, from rows of the user's own data and a freshly started server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from campaign.canary import ask
from campaign.engine import Checked, try_out
from campaign.errors import SpecError
from campaign.pool import ServerPool
from campaign.ragged import Ragged
from campaign.rundir import write_aside

ROWS = 32


def make(checked: Checked, model: str, force: bool, say: Callable[[str], None]) -> tuple[Path, str]:
    """Ask a server for its answer to the first rows that the campaign would send, and write it down.

    Args:
        checked: The campaign.
        model: One of its models.
        force: Replace a known answer that is there.
        say: Called with progress lines.

    Returns:
        The file, and what it holds (``32 rows``, ``1 event``).

    Raises:
        SpecError: There is no such model, no stage sends it rows, or the file is there already.
    """
    campaign, kind = checked.campaign, checked.kind
    key = ("servers", "models", model)
    if campaign.servers is None or model not in campaign.servers.models:
        known = ", ".join(sorted(campaign.servers.models)) if campaign.servers else "none"
        raise SpecError(f"the campaign has no model '{model}' (it has: {known})", key=("servers", "models"))
    if not hasattr(kind, "canary"):
        raise SpecError("only servers started for the campaign are held to known answers", key=("servers", "kind"))
    path: Path = kind.canary(model)
    if path.exists() and not force:
        raise SpecError(f"{path} is there already", key=key, remedy="give --force to replace it")
    given = try_out(checked).taken.get(model)
    if given is None:
        raise SpecError(f"no stage sends rows to '{model}' before frozen values are needed", key=key)
    inputs, what = _first(given, bool(kind.signature(model)["max_batch"]))
    spec = campaign.servers.model_copy(update={"count": 1})
    with _away(path), ServerPool(spec, base=campaign.base, say=say, kind=kind) as pool:
        pool.wait_ready()
        record = next(r for r in pool.address.servers() if r["state"] == "ready")
        answer = ask(record, model, inputs, campaign.servers.request_deadline_s)
    arrays = {f"input.{n}": _plain(a) for n, a in inputs.items()} | {
        f"output.{n}": _plain(a) for n, a in answer.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return path, what


@contextmanager
def _away(path: Path) -> Iterator[None]:
    """Without the answer that is there: a server would be held to it. It comes back if anything fails."""
    before = path.with_name(f".{path.name}.before")
    if not path.exists():
        yield
        return
    path.rename(before)
    try:
        yield
    except BaseException:
        before.rename(path)
        raise
    before.unlink()


def _first(given: dict[str, Any], batches: bool) -> tuple[dict[str, Any], str]:
    if any(isinstance(array, Ragged) for array in given.values()):
        return {name: np.asarray(array[0]) for name, array in given.items()}, "1 event"
    if not batches:
        return given, "1 request"
    rows = min(ROWS, *(len(array) for array in given.values()))
    return {name: array[:rows] for name, array in given.items()}, f"{rows} row{'s' * (rows != 1)}"


def _plain(array: Any) -> Any:
    if array.dtype == object:
        return np.array([v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1)]).reshape(
            array.shape
        )
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
