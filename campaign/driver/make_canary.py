"""``campaign canary``: makes a model's known answer from rows of the user's data and a freshly started server."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from campaign.discovery.address import Endpoint
from campaign.discovery.records import ServerState
from campaign.driver.check import check, try_out
from campaign.errors import ModelError, SpecError
from campaign.inference.canary import ask, hold_rows, known_answer
from campaign.inference.kserve import open_client
from campaign.inference.ragged import Ragged
from campaign.pool.pool import ServerPool
from campaign.spec.models import Campaign, ServerSpec
from campaign.util.messages import unknown

ROWS = 32


def make(campaign: Campaign, model: str, force: bool, say: Callable[[str], None]) -> tuple[Path, str]:
    """Ask a server for its answer to the first rows that the campaign would send, and save it.

    The stages before the model run on 100 rows of a file of each dataset. Other models answer as in a run.

    Args:
        campaign: The campaign.
        model: One of its models.
        force: Replace an existing known answer.
        say: Called with progress lines.

    Returns:
        The file, and a description of its content (``32 rows``, ``1 event``).

    Raises:
        SpecError: There is no such model, no stage sends it rows, or the file exists already.
        ModelError: The model answers the same rows in two different ways.
    """
    servers, key = campaign.servers, ("servers", "models", model)
    if servers is None or model not in servers.models:
        known = sorted(servers.models) if servers else []
        raise SpecError(unknown(model, known, "models of the campaign"), key=("servers", "models"))
    checked = check(_unproved(campaign, servers, model))
    kind, given = checked.kind, servers.models[model].canary
    assert kind is not None
    files, signature = kind.model_files(model), kind.signature(model)
    if files is None or signature is None:
        raise SpecError("only servers started for the campaign are held to known answers", key=("servers", "kind"))
    path = campaign.path(given) if given else files.new_canary
    if path.exists() and not force:
        raise campaign.locate(SpecError(f"{path} is there already", key=key, remedy="give --force to replace it"))
    tried = try_out(checked)  # what is wrong with a stage shows before a server is started
    if model not in tried.taken and not tried.notes:
        raise campaign.locate(SpecError(f"no stage sends rows to '{model}'", key=key))
    kind.unproved = frozenset({model})
    assert checked.campaign.servers is not None
    spec = checked.campaign.servers.model_copy(update={"count": 1})
    with ServerPool(spec, base=campaign.base, say=say, kind=kind) as pool:
        pool.wait_ready()
        tried = try_out(checked, pool.address)
        if model not in tried.taken:
            why = "; ".join(tried.notes) or "before frozen values are needed"
            raise campaign.locate(SpecError(f"no stage sends rows to '{model}': {why}", key=key))
        inputs, what = _first(tried.taken[model], int(signature["max_batch"]))
        record = next(r for r in pool.address.servers() if r.state is ServerState.READY)
        endpoint = pool.address.endpoint(record)
        _write(path, endpoint, model, inputs, servers.request_deadline_s, files.rows_assumed, say)
    return path, what


def _unproved(campaign: Campaign, servers: ServerSpec, model: str) -> Campaign:
    """The campaign without the model's known answer, and without local models, which would be compared with it."""
    models = {name: spec.model_copy(update={"local_twin": None}) for name, spec in servers.models.items()}
    models[model] = models[model].model_copy(update={"canary": None})
    return campaign.model_copy(update={"servers": servers.model_copy(update={"models": models})})


def _write(
    path: Path, server: Endpoint, model: str, inputs: dict[str, Any], deadline_s: float, assumed: bool,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Save the answer to these inputs if the server gives it twice. If anything fails, no file is left."""
    answer = ask(server, model, inputs, deadline_s)
    arrays = {f"input.{name}": _plain(array) for name, array in inputs.items()}
    arrays |= {f"output.{name}": _plain(array) for name, array in answer.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        _hold(aside, server, model, deadline_s, assumed, say)
        aside.replace(path)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be written: {error.strerror}", key=("servers", "models", model),
            remedy=f"name another place: servers: {{models: {{{model}: {{canary: FILE.npz}}}}}}",
        ) from error  # fmt: skip
    finally:
        aside.unlink(missing_ok=True)


def _hold(
    path: Path, server: Endpoint, model: str, deadline_s: float, assumed: bool, say: Callable[[str], None]
) -> None:
    """Check that the server that gave the answer gives it again, and that rows do not depend on their neighbours."""
    known = known_answer(path)
    try:
        known.hold(model, ask(server, model, known.inputs, deadline_s))
    except ModelError as error:
        raise ModelError(
            f"answers the same rows in two ways: {error.message}",
            where=error.where,
            remedy="a model that draws random numbers, or remembers requests, has no known answer",
        ) from error
    with closing(open_client(server)) as client:
        try:
            hold_rows(client, model, str(path), deadline_s)
        except ModelError as error:
            if assumed:
                raise
            say(f"note: {error.message}; results depend on 'batch'")


def _first(given: dict[str, Any], most: int) -> tuple[dict[str, Any], str]:
    """The first rows, or the first event that is not empty."""
    ragged = [array for array in given.values() if isinstance(array, Ragged)]
    if ragged:
        filled = (i for i in range(len(ragged[0])) if all(len(array[i]) for array in ragged))
        event = next(filled, 0)
        return {name: np.asarray(array[event]) for name, array in given.items()}, "1 event"
    if not most:
        return {name: np.asarray(array) for name, array in given.items()}, "1 request"
    rows = min(ROWS, most, *(len(array) for array in given.values()))
    return {name: np.asarray(array)[:rows] for name, array in given.items()}, f"{rows} row{'s' * (rows != 1)}"


def _plain(array: Any) -> Any:
    if array.dtype == object:
        return np.array([v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1)]).reshape(
            array.shape
        )
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
