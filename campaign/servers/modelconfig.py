"""Reads and completes Triton's model configuration (protobuf), without importing all of tritonclient."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from campaign.spec.models import ModelSpec

ENVIRONMENT = "EXECUTION_ENV_PATH"  # parameter of the Python backend: an archive of a Python environment


@cache
def messages() -> Any:
    """Triton's model configuration as tritonclient has compiled it, without importing all of tritonclient for it.

    That would take as long as half of what the driver does before it starts servers. Under its own name, so that
    tritonclient, when it is imported, uses the same module.
    """
    name = "tritonclient.grpc.model_config_pb2"
    if name not in sys.modules:
        package = find_spec("tritonclient")
        assert package is not None
        assert package.submodule_search_locations is not None
        path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def datatype(tensor: Any) -> str:
    """KServe's name of a tensor's datatype."""
    kind = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
    return "BYTES" if kind == "TYPE_STRING" else str(kind).removeprefix("TYPE_")


def reshaped(config: Any) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    """Shapes inside the model of inputs that Triton reshapes, by name. None: the configuration reshapes no tensor."""
    if not any(t.HasField("reshape") for t in (*config.input, *config.output)):
        return None
    return tuple((t.name, tuple(t.reshape.shape)) for t in config.input if t.HasField("reshape"))


def environment_named(config: Any) -> str:
    """The archive of a Python environment that a configuration names; empty: none."""
    # Looking at a key of a protobuf map would make it.
    return str(config.parameters[ENVIRONMENT].string_value) if ENVIRONMENT in config.parameters else ""


def with_environment(text: str, folder: Path) -> str:
    """A configuration whose Python environment is a folder."""
    config = text_format.Parse(text, messages().ModelConfig())
    config.parameters[ENVIRONMENT].string_value = str(folder)
    return text_format.MessageToString(config)  # type: ignore[no-any-return,unused-ignore]


def render(config: Any, model: ModelSpec) -> Any:
    """Put the campaign's parameters and number of instances into a configuration."""
    for key, value in model.parameters.items():
        config.parameters[key].string_value = str(value).lower() if isinstance(value, bool) else str(value)
    if model.instances:
        if not config.instance_group:
            config.instance_group.add()
        config.instance_group[0].count = model.instances
    return config
