"""Chooses the local models of a campaign and compares each with the known answer of its served model."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

from campaign.errors import CampaignError, SpecError
from campaign.inference.local_model import LocalModel, Tensors
from campaign.protocols import ServerKind
from campaign.spec.models import ModelSpec

DEADLINE_S = 300.0  # of the check: a large model takes a while to load


def twin_of(kind: ServerKind, base: Path, model: str, spec: ModelSpec) -> LocalModel | None:
    """The local model that a campaign allows for a model. None: it allows none.

    Args:
        kind: The server kind.
        base: Where relative paths start.
        model: Name of the model.
        spec: How the campaign uses the model.

    Raises:
        SpecError: A file is missing, or the kind does not know the files of its models.
    """
    given, key = spec.local_twin, ("servers", "models", model, "local_twin")
    if given is None:
        return None
    files, signature = kind.model_files(model), kind.signature(model)
    if files is None or signature is None:
        raise SpecError("only servers started for the campaign know what a twin must be", key=key, remedy="take it out")

    def path(name: str) -> Path:
        return (base / Path(name).expanduser()).resolve()

    usual = path(spec.files["model.onnx"]) if "model.onnx" in spec.files else files.onnx
    if given.use != "onnx" and given.file is None:
        usual = files.folder
    file = path(given.file) if given.file else usual
    if not file.exists():
        raise SpecError(f"there is no {file}", key=key, remedy="name the model's file: local_twin: {file: ...}")
    if not files.canary.is_file():
        raise SpecError(
            f"needs a known answer to be held to, and there is no {files.canary}",
            key=key,
            remedy=f"make it: campaign canary FILE {model}",
        )
    use = given.use
    if use != "onnx" and use.partition(":")[0].endswith(".py"):
        use = f"{path(use.rpartition(':')[0])}:{use.rpartition(':')[2]}"
    return LocalModel(
        model, use, str(file), str(files.canary), given.rtol, given.atol,
        _tensors(signature["inputs"]), _tensors(signature["outputs"]), signature["batch"], signature["max_batch"],
        tuple(sorted(spec.tails)), files.reshaped, str(kind.version(model)), tuple(signature["optional"]),
    )  # fmt: skip


def _tensors(given: Iterable[tuple[str, str, Iterable[int]]]) -> Tensors:
    return tuple((name, datatype, tuple(shape)) for name, datatype, shape in given)


# Before anything is started.
def agree(twins: Iterable[LocalModel]) -> CampaignError | None:
    """Compare local models with the known answers of their models.

    Returns:
        The error of the first local model that does not give the known answer. None: all give it.
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
    """Call `agree` in a process of its own, so that the driver does not load a model's runtime."""
    pipe.send(agree(twins))
