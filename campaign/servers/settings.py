"""What a model's configuration asks of the server: which version answers, and settings that a campaign refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def versions(folder: Path) -> list[int]:
    """Versions of a model, ascending: folders with a number for a name and no leading zero, as Triton counts them.

    Args:
        folder: The model's folder in the repository.
    """
    names = (p.name for p in folder.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))


def served(config: Any, there: list[int]) -> list[int]:
    """The versions that Triton would serve, ascending.

    Source: Triton's model configuration, "Version Policy": ``latest`` serves the ``num_versions`` newest (1 where it
    says nothing, which is also the default), ``all`` serves all, ``specific`` those of its list that are there.

    Args:
        config: The model's configuration (ModelConfig).
        there: Versions there are, ascending.
    """
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return list(there)
    if choice == "specific":
        return [v for v in there if v in set(policy.specific.versions)]
    return there[-max(1, policy.latest.num_versions if choice == "latest" else 1) :]


def refused(config: Any, model: str) -> Iterator[tuple[str, str]]:
    """Settings that would have no effect here, or another one than their author meant: ``(what is wrong, remedy)``.

    Args:
        config: The model's configuration (ModelConfig).
        model: Name of its folder.
    """
    if config.name and config.name != model:
        yield f"name: is '{config.name}', and its folder is '{model}'", "give both one name, or take 'name' out"
    for field, wrong, why, remedy in _REFUSED:
        if wrong(config):
            yield f"{field}: {why}", remedy


_OUT = "take it out of the configuration for the embedded server (configs/embedded.pbtxt)"
_NO_PYTHON = "the Python backend does not look at it, so it would have no effect"


def _named(field: str) -> Callable[[Any], bool]:
    return lambda config: bool(config.HasField(field))


def _listed(field: str) -> Callable[[Any], bool]:
    return lambda config: len(getattr(config, field)) > 0


def _python(wrong: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda config: config.backend == "python" and wrong(config)


def _no_tensors(config: Any) -> bool:
    return not config.input or not config.output


_REFUSED: list[tuple[str, Callable[[Any], bool], str, str]] = [
    (
        "input, output", _no_tensors,
        "are not both given, and the embedded server does not complete configurations",
        "list every input and output with data_type and dims",
    ),
    (
        "sequence_batching", _named("sequence_batching"),
        "requests of a campaign belong to no sequence: a state would mix rows of different files",
        "serve a model without state, or send whole events: dims with -1 and max_batch_size: 0",
    ),
    (
        "model_transaction_policy.decoupled", lambda config: config.model_transaction_policy.decoupled,
        "a decoupled model gives any number of answers, and a campaign takes one for each request",
        "serve the model with decoupled: false",
    ),
    (
        "response_cache", lambda config: config.response_cache.enable,
        "servers of a campaign keep no cache: each row is sent once", _OUT,
    ),
    (
        "model_repository_agents", _named("model_repository_agents"),
        "no agent is loaded: a campaign holds each file to its hash by itself", _OUT,
    ),
    ("model_operations", _named("model_operations"), "no library of operations is loaded", _OUT),
    ("cc_model_filenames", _python(_listed("cc_model_filenames")), _NO_PYTHON, _OUT),
    ("batch_input", _python(_listed("batch_input")), _NO_PYTHON, _OUT),
    ("batch_output", _python(_listed("batch_output")), _NO_PYTHON, _OUT),
    (
        "optimization.execution_accelerators",
        _python(lambda config: config.optimization.HasField("execution_accelerators")), _NO_PYTHON,
        "choose the accelerator in model.py, and take it out of configs/embedded.pbtxt",
    ),
    (
        "input.allow_ragged_batch", lambda config: any(t.allow_ragged_batch for t in config.input),
        "requests of a campaign are not ragged: their rows have one shape",
        "for events of different lengths use max_batch_size: 0 and dims with -1",
    ),
]  # fmt: skip
