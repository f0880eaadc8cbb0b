"""Chooses the local models of a campaign and compares each with the known answer of its served model."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError, SpecError
from campaign.inference.local_model import LocalModel, Tensors, reshaped
from campaign.spec.models import ModelSpec

DEADLINE_S = 300.0  # of the check: a large model takes a while to load


def twin_of(kind: Any, base: Path, model: str, spec: ModelSpec) -> LocalModel | None:
    """The twin that a campaign allows for a model, None if it allows none.

    Args:
        kind: The server kind; one that knows a model's folder and configuration has ``folder`` and ``config``.
        base: Where relative paths start.
        model: Its name.
        spec: How it is used.

    Raises:
        SpecError: A file is missing, or the kind does not know its models.
    """
    given, key = spec.local_twin, ("servers", "models", model, "local_twin")
    if given is None:
        return None
    if not hasattr(kind, "folder") or not hasattr(kind, "config"):
        raise SpecError("only servers started for the campaign know what a twin must be", key=key, remedy="take it out")

    def path(name: str) -> Path:
        return (base / Path(name).expanduser()).resolve()

    folder = kind.folder(model)
    version = folder / str(kind.version(model))
    own = kind.onnx(model) if hasattr(kind, "onnx") else None
    usual = path(spec.files["model.onnx"]) if "model.onnx" in spec.files else own or version / "model.onnx"
    if given.use != "onnx" and given.file is None:
        usual = version
    file = path(given.file) if given.file else usual
    canary = kind.canary(model)
    if not file.exists():
        raise SpecError(f"there is no {file}", key=key, remedy="name the model's file: local_twin: {file: ...}")
    if not canary.is_file():
        raise SpecError(
            f"needs a known answer to be held to, and there is no {canary}",
            key=key,
            remedy=f"make it: campaign canary FILE {model}",
        )
    config = kind.config(model)
    first = (-1,) if config.max_batch_size else ()

    def tensors(given: Iterable[Any]) -> Tensors:
        names = {t.name: type(t).DESCRIPTOR.fields_by_name["data_type"].enum_type for t in given}
        return tuple(
            (t.name, _datatype(names[t.name].values_by_number[t.data_type].name), (*first, *t.dims)) for t in given
        )

    use = given.use
    if use != "onnx" and use.partition(":")[0].endswith(".py"):
        use = f"{path(use.rpartition(':')[0])}:{use.rpartition(':')[2]}"
    most = int(config.max_batch_size)
    return LocalModel(
        model, use, str(file), str(canary), given.rtol, given.atol, tensors(config.input), tensors(config.output),
        min(spec.batch or most, most), most, tuple(sorted(spec.tails)),
        reshaped(config), str(kind.version(model)), tuple(t.name for t in config.input if t.optional),
    )  # fmt: skip


def _datatype(name: str) -> str:
    """KServe's name of a datatype of Triton's configuration."""
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


# Before anything is started.
def agree(twins: Iterable[LocalModel]) -> CampaignError | None:
    """Hold twins to the known answers of their models.

    Returns:
        What is wrong with the first that does not give it.
    """
    from campaign.inference.canary import known_answer

    for twin in twins:
        key = ("servers", "models", twin.model, "local_twin")
        try:
            known = known_answer(Path(twin.canary))
            known.hold(twin.model, dict(twin.load()(known.inputs)), twin.rtol, twin.atol)
        except CampaignError as error:
            return SpecError(f"{error.message} (its canary is {twin.canary})", key=key, remedy="see local_twin.rtol")
        except Exception as error:  # noqa: BLE001  a model may raise anything
            remedy = "pip install onnxruntime" if isinstance(error, ImportError) else "see local_twin.file"
            return SpecError(f"cannot be asked: {type(error).__name__}: {error}", key=key, remedy=remedy)
    return None


def agree_and_tell(pipe: Connection, twins: tuple[LocalModel, ...]) -> None:
    """`agree`, in a process of its own: a model's runtime does not belong into the driver."""
    pipe.send(agree(twins))
