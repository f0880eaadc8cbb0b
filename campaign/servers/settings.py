"""Reads the settings of a model's configuration: the version policy, and settings that a campaign refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_VERSION = re.compile("[1-9][0-9]{0,17}")  # Triton counts in 64 bits


def versions(folder: Path) -> list[int]:
    """Versions of a model, ascending: folders with a number for a name and no leading zero, as Triton counts them.

    Args:
        folder: The model's folder in the repository.
    """
    names = (p.name for p in folder.iterdir() if p.is_dir() and _VERSION.fullmatch(p.name))
    return sorted(int(name) for name in names)


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
_TOO_NEW = "is newer than the embedded server (Triton 2.51), which would not read the configuration"
_NO_PYTHON = "the Python backend does not look at it, so it would have no effect"


def _named(field: str) -> Callable[[Any], bool]:
    return lambda config: bool(config.HasField(field))


def _listed(field: str) -> Callable[[Any], bool]:
    return lambda config: len(getattr(config, field)) > 0


def _python(wrong: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda config: config.backend == "python" and wrong(config)


def _group(field: str) -> Callable[[Any], bool]:
    return lambda config: any(bool(getattr(group, field)) for group in config.instance_group)


def _tensor(field: str) -> Callable[[Any], bool]:
    return lambda config: any(getattr(t, field, False) for t in (*config.input, *config.output))


def _known(field: str) -> Callable[[Any], bool]:
    """True if a message sets a field that older tritonclients do not know."""
    return lambda message: any(f.name == field for f, _ in message.ListFields())


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
        "runtime", _python(lambda config: bool(config.runtime)),
        "the embedded server runs its own Python backend, and would not load another library", _OUT,
    ),
    (
        "instance_group.passive", _group("passive"),
        "Triton gives a passive instance no requests, and it fails at the first one where there is no other", _OUT,
    ),
    ("instance_group.profile", _python(_group("profile")), "profiles are TensorRT's, and Triton refuses them", _OUT),
    (
        "instance_group.secondary_devices", _python(_group("secondary_devices")), _NO_PYTHON, _OUT,
    ),
    (
        "instance_group.host_policy", _group("host_policy"),
        "Triton is started without host policies, so the name would have no effect", _OUT,
    ),
    (
        "ensemble_scheduling.step.model_namespace",
        lambda config: any(step.model_namespace for step in config.ensemble_scheduling.step),
        "Triton is started without namespaces, so it would have no effect", "take it out",
    ),
    ("is_shape_tensor", _tensor("is_shape_tensor"), "Triton knows shape tensors of TensorRT alone", _OUT),
    (
        "is_non_linear_format_io", _tensor("is_non_linear_format_io"),
        "Triton knows formats that are not linear of TensorRT alone", _OUT,
    ),
    ("model_metrics", _known("model_metrics"), _TOO_NEW, _OUT),
    (
        "ensemble_scheduling.max_inflight_requests",
        lambda config: _known("max_inflight_requests")(config.ensemble_scheduling), _TOO_NEW, _OUT,
    ),
    (
        "input.allow_ragged_batch", lambda config: any(t.allow_ragged_batch for t in config.input),
        "requests of a campaign are not ragged: their rows have one shape",
        "for events of different lengths use max_batch_size: 0 and dims with -1",
    ),
]  # fmt: skip
