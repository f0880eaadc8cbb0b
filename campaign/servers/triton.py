"""Server kind ``triton``: the real tritonserver, started for the campaign: on a Unix socket of ours, or behind TLS."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any, Literal

from google.protobuf import text_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from campaign.errors import SpecError
from campaign.protocols import Launch
from campaign.registry import unknown
from campaign.rundir import file_digest
from campaign.servers import environment, onnx_backend, settings
from campaign.servers.layout import files_of, hold, lay_out, tree
from campaign.servers.onnx_file import NotOnnx, complete
from campaign.servers.onnx_file import read as read_onnx
from campaign.spec import ModelSpec, ServerSpec

CONFIG = "embedded"  # name of the configuration for this server, beside the one for a stock container
SOCKET_LIMIT = 107  # bytes of a Unix socket's path; Triton says "already in use" for a longer one


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class Options(BaseModel):
    """Keys of ``servers`` for ``kind: triton``.

    Args:
        launcher: ``embedded``: the server of the nvidia-pytriton wheel, in an environment of its own.
        model_repository: Folder of models, or a list of them. Not needed where each model is an ONNX file (``onnx:``).
        requirements: Python packages that models of the Python backend import, beside numpy and onnxruntime.
        backend_directories: Folders of further backends (C++ or Python), served as they are.
        python: The Python of the server environment; None: this one, or the first fit one on PATH.
        listen: ``socket``: on a Unix socket that only this user reaches; ``tls``: on a port, behind mutual TLS with
            certificates made for this campaign; ``auto``: on a socket where the provider keeps everything on one node.
        address: Address or name by which other nodes reach the servers' node (``tls``); None: the node's own.
        private_shm: Give each server a ``/dev/shm`` of its own; ``auto``: where the kernel lets this user. With false
            (CUDA MPS needs the node's) other users may see a region for an instant when it is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    launcher: Literal["embedded"] = "embedded"
    model_repository: Strings = ()
    requirements: Strings = ()
    backend_directories: Strings = ()
    python: str | None = None
    listen: Literal["auto", "socket", "tls"] = "auto"
    address: str | None = Field(default=None, min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:_-]+$")
    private_shm: Literal["auto"] | bool = "auto"


class Triton:
    """See `campaign.protocols.ServerKind`."""

    Options = Options
    managed = True

    def __init__(self, spec: ServerSpec, base: Path) -> None:
        self.spec, self.base = spec, base
        self.options = Options.model_validate(spec.given)
        self._known: dict[Path, str] = {}

    def through_tls(self, one_node: bool) -> bool:
        """As ``listen`` says."""
        return not one_node if self.options.listen == "auto" else self.options.listen == "tls"

    def secret(self) -> None:
        """None beside what the pool makes itself."""

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file as it was when it was first looked at: what is planned is what is served."""
        if path not in self._known:
            self._known[path] = file_digest(path)
        return self._known[path]

    def _digests(self, folder: Path) -> dict[str, str]:
        return {name: self._digest(path) for name, path in tree(folder)}

    def _path(self, name: str) -> Path:
        return (self.base / Path(name).expanduser()).resolve()

    @property
    def repositories(self) -> list[Path]:
        """Model repositories, in the order they are searched."""
        return [self._path(r) for r in self.options.model_repository]

    def folder(self, model: str) -> Path:
        """Folder of a model.

        Raises:
            SpecError: No repository has it; lists the models there are.
        """
        given = self.spec.models[model].onnx if model in self.spec.models else None
        if given is not None:
            return self._path(given).parent
        if not self.repositories:
            raise SpecError(
                f"where is the model '{model}'?", key=("servers", "model_repository"),
                remedy=f"write model_repository: FOLDER, or models: {{{model}: {{onnx: FILE}}}}",
            )  # fmt: skip
        have: set[str] = set()
        for i, repository in enumerate(self.repositories):
            if not repository.is_dir():
                raise SpecError(
                    f"there is no folder {repository}",
                    key=("servers", "model_repository", i),
                    remedy="paths are relative to the campaign file",
                )
            if (repository / model).is_dir():
                return repository / model
            have |= {p.name for p in repository.iterdir() if p.is_dir() and not p.name.startswith(".")}
        raise SpecError(unknown(model, sorted(have), "models of the repository"), key=("servers", "models", model))

    def check(self) -> None:
        """Refuse what cannot be served."""
        for i, name in enumerate(self.options.backend_directories):
            if not self._path(name).is_dir():
                raise SpecError(f"there is no folder {self._path(name)}", key=("servers", "backend_directories", i))
        for name, model in self.spec.models.items():
            self._check_model(name, model)
        environment.find_python(self.options.python)

    def _check_model(self, name: str, model: ModelSpec) -> None:
        key = ("servers", "models", name)
        folder, config = self.folder(name), self.config(name)
        self._check_backend(name, folder, config, key)
        for target, path in model.files.items():
            if not self._path(path).is_file():
                raise SpecError(f"there is no file {self._path(path)}", key=(*key, "files", target))
        if model.canary and not self._path(model.canary).is_file():
            raise SpecError(f"there is no file {self._path(model.canary)}", key=(*key, "canary"))
        if model.batch and not config.max_batch_size:
            raise SpecError(
                "the model does not batch (max_batch_size: 0)", key=(*key, "batch"), remedy="take 'batch' out"
            )
        size = model.batch or config.max_batch_size
        if any(tail >= size for tail in model.tails):
            raise SpecError(
                f"{max(model.tails)} is not less than the rows of a full request, {size}",
                key=(*key, "tails"),
                remedy=f"name sizes below {size}" if size else "take it out: the model does not batch",
            )
        if model.batch and model.batch > config.max_batch_size:
            raise SpecError(
                f"{model.batch} is more than the model's max_batch_size {config.max_batch_size}",
                key=(*key, "batch"),
                remedy=f"use at most {config.max_batch_size}",
            )

        if model.instances and len(config.instance_group) > 1:
            raise SpecError(
                f"{self.config_file(name)} has {len(config.instance_group)} instance groups, and 'instances' sets one",
                key=(*key, "instances"),
                remedy="take 'instances' out, and set the counts in the configuration",
            )

    def _check_backend(self, name: str, folder: Path, config: Any, key: tuple[str, ...]) -> None:
        self._check_members(name, config, key)
        for wrong, remedy in settings.refused(config, name):
            raise SpecError(f"{self.config_file(name)}: {wrong}", key=key, remedy=remedy)
        if _members(config):
            return
        self.version(name)
        backends = {"python", *self._own_backends()}
        if config.backend not in backends:
            raise SpecError(
                f"its backend '{config.backend}' is not in the embedded server (it has: {', '.join(sorted(backends))})",
                key=key,
                remedy=f'give {folder} a configs/embedded.pbtxt with backend: "python", or name backend_directories',
            )

    def _check_members(self, name: str, config: Any, key: tuple[str, ...]) -> None:
        for step in config.ensemble_scheduling.step:
            member, wanted = step.model_name, step.model_version
            if member not in self.spec.models:
                raise SpecError(
                    f"the ensemble {name} needs the model '{member}', which servers.models does not list",
                    key=key,
                    remedy=f"write models: {{{name}: {{}}, {member}: {{}}}}",
                )
            if wanted > 0 and wanted != self.version(member):
                raise SpecError(
                    f"the ensemble {name} needs version {wanted} of '{member}'; version {self.version(member)} answers",
                    key=key,
                    remedy=f"set servers.models.{member}.version: {wanted}",
                )

    def version(self, model: str) -> int:
        """The version that answers: the campaign's, else the newest that the model's version policy serves.

        Raises:
            SpecError: There is no such version; says which there are.
        """
        folder, wanted = self.folder(model), self.spec.models[model].version
        if self.spec.models[model].onnx is not None:
            return wanted or 1
        there = settings.versions(folder)
        key = ("servers", "models", model, "version")
        have = f"it has: {', '.join(map(str, there))}" if there else "it has none"
        if wanted is not None:
            if wanted not in there:
                raise SpecError(f"{folder} has no version {wanted} ({have})", key=key, remedy="name one that is there")
            return wanted
        answering = settings.served(self._read_config(model, there), there)
        if not answering:
            raise SpecError(
                f"{self.config_file(model)}: its version_policy serves no version of {folder} ({have})",
                key=key[:-1],
                remedy="correct the policy, or set 'version'" if there else "a version is a folder such as 1",
            )
        return answering[-1]

    def _own_backends(self) -> dict[str, Path]:
        """Backends of ``backend_directories`` by name; a later directory wins, as the server sees it."""
        return {
            p.name: p for d in self.options.backend_directories for p in sorted(self._path(d).iterdir()) if p.is_dir()
        }

    def config(self, model: str) -> Any:
        """The model's configuration as the embedded server gets it.

        Raises:
            SpecError: There is none, or it does not parse.
        """
        config = self._read_config(model)
        onnx = self.onnx(model)
        if onnx is not None:
            try:
                complete(config, read_onnx(onnx), onnx.name, self.spec.models[model].batch)
            except (OSError, NotOnnx) as error:
                text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                raise SpecError(f"{onnx}: {text}", key=("servers", "models", model)) from None
        config.name = config.name or model
        config.ClearField("version_policy")  # only the version that answers is laid out
        return render(config, self.spec.models[model])

    def onnx(self, model: str) -> Path | None:
        """The ONNX file that the product itself serves; None where a configuration or a ``model.py`` says how.

        The campaign's ``onnx:``; or ``model.onnx`` (``default_model_filename``) of a folder whose configuration is for
        the onnxruntime backend, or that has none.
        """
        given = self.spec.models[model].onnx
        if given is not None:
            return self._path(given)
        folder, config = self.folder(model), self._read_config(model)
        kind = config.backend or config.platform.partition("_")[0]
        if kind not in ("", "onnxruntime") or kind in self._own_backends() or config.ensemble_scheduling.step:
            return None
        path = folder / str(self.version(model)) / (config.default_model_filename or "model.onnx")
        return path if path.is_file() and not path.with_name("model.py").is_file() else None

    def config_file(self, model: str) -> Path:
        """The file that holds a model's configuration; the model itself where there is none."""
        given = self.spec.models[model].onnx
        if given is not None:
            return self._path(given)
        folder = self.folder(model)
        names = (folder / f"configs/{CONFIG}.pbtxt", folder / "config.pbtxt")
        return next((path for path in names if path.is_file()), folder)

    def _read_config(self, model: str, there: list[int] | None = None) -> Any:
        path = self.config_file(model)
        config = _messages().ModelConfig()
        if self.spec.models[model].onnx is not None:
            return config
        if path.is_dir():
            newest = (settings.versions(path) if there is None else there)[-1:]
            if not newest or not (path / str(newest[0]) / "model.onnx").is_file():
                raise SpecError(
                    f"{path} has neither configs/embedded.pbtxt nor config.pbtxt, and no model.onnx to make one from",
                    key=("servers", "models", model),
                )
            return config
        try:
            text_format.Parse(path.read_text(), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}:{error}", key=("servers", "models", model)) from None
        return config

    def canary(self, model: str) -> Path:
        """Where a model's known answer is, or would be: the campaign's, else the version's own, else the model's."""
        given = self.spec.models[model].canary
        if given:
            return self._path(given)
        onnx = self.spec.models[model].onnx
        if onnx is not None:
            return self._path(onnx).with_suffix(".canary.npz")
        own = self.folder(model) / str(self.version(model)) / "canary.npz"
        return own if own.is_file() else self.folder(model) / "canary.npz"

    def _files(self, model: str) -> dict[str, Path]:
        """Files of the version folder, by their names there."""
        spec, onnx = self.spec.models[model], self.onnx(model)
        found = dict(tree(self.folder(model) / str(self.version(model)))) if spec.onnx is None else {}
        if onnx is not None:
            found |= {onnx.name: onnx, "model.py": Path(onnx_backend.__file__)}
            found |= {name: onnx.with_name(name) for name in read_onnx(onnx).external}
        return found | {target: self._path(path) for target, path in spec.files.items()}

    def signature(self, model: str) -> Mapping[str, Any]:
        """What the model takes and gives, for a try without a server (`campaign.standin`)."""
        config, spec = self.config(model), self.spec.models[model]
        first, most = [-1] if config.max_batch_size else [], int(config.max_batch_size)

        def tensors(given: Any) -> list[list[Any]]:
            names = {t.name: _datatype(t) for t in given}
            return [[t.name, names[t.name], [*first, *t.dims]] for t in given]

        return {
            "inputs": tensors(config.input), "outputs": tensors(config.output), "batch": min(spec.batch or most, most),
            "max_batch": most, "optional": [t.name for t in config.input if t.optional],
        }  # fmt: skip

    def tensors(self, model: str) -> tuple[list[str], list[str]]:
        """Names of a model's inputs and outputs."""
        config = self.config(model)
        return [t.name for t in config.input], [t.name for t in config.output]

    def identity(self, model: str) -> Mapping[str, Any]:
        """Hashes of what is served, its configuration, the server's build and requirements.

        How many instances there are changes no answer, and is left out.
        """
        spec = self.spec.models[model]
        version = self.version(model)
        files = {name: self._digest(path) for name, path in self._files(model).items()}
        config = self.config(model)
        config.ClearField("instance_group")
        labels = [self.folder(model) / o.label_filename for o in config.output if o.label_filename]
        files |= {f"../{p.name}": self._digest(p) for p in labels if p.is_file()}
        own = self._own_backends().get(config.backend)
        return {
            "batch": spec.batch or config.max_batch_size,
            "tails": sorted(spec.tails),
            "version": version,
            "config": hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
            "files": files,
            "backend": self._digests(own) if own else {},
            "members": {member: self.identity(member) for member in _members(config)},
            "server": [environment.WHEEL, *environment.BASE, *sorted(self.options.requirements)],
        }

    def prepare(self, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Make the server environment if need be."""
        env = environment.prepare(self.options.requirements, self.options.python, say)
        models = {}
        for name, spec in self.spec.models.items():
            folder = self.folder(name)
            canary, version = self.canary(name), self.version(name)
            files = files_of(folder, version, {}) if spec.onnx is None else {}
            files |= {f"{version}/{target}": path for target, path in self._files(name).items()}
            models[name] = {
                "version": version,
                "config": text_format.MessageToString(self.config(name)),
                "files": {relative: [str(path), self._digest(path)] for relative, path in files.items()},
                "canary": str(canary) if canary.is_file() else None,
                "canary_file": [str(canary), self._digest(canary)] if canary.is_file() else None,
            }
        backends = {name: path for name, path in self._own_backends().items() if name != "python"}
        return {
            "environment": [str(env.path), env.version, env.libdir],
            "models": models,
            "backends": {name: [str(path), self._digests(path)] for name, path in backends.items()},
            "address": self.options.address,
            "private_shm": self.options.private_shm,
            # Without the flag Triton reads rate_limiter and does not follow it.
            "rate_limit": any(g.HasField("rate_limiter") for name in models for g in self.config(name).instance_group),
        }

    def versions(self) -> str:
        """What is installed in the server environment, to the last digit; empty before it is made."""
        path = environment.environment(self.options.requirements, self.options.python).path / "versions.txt"
        return ", ".join(path.read_text().split()) if path.is_file() else ""

    def addresses(self) -> list[Mapping[str, Any]]:
        """None: its servers are started."""
        return []

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """Lay out repository and backends in ``place``; the server listens on a socket there, or on a port behind TLS.

        Raises:
            ModelError: A file of a model or backend is not what it was when the campaign was planned.
        """
        path, version, libdir = recipe["environment"]
        env = environment.Environment(Path(path), version, libdir)
        repository, backends = place / "models", place / "backends"
        repository.mkdir()
        for model, what in recipe["models"].items():
            lay_out(repository / model, model, what, CONFIG)
        backends.mkdir()
        (backends / "python").symlink_to(env.backends / "python")
        for backend, (directory, files) in recipe["backends"].items():
            for relative, sha256 in files.items():
                hold(f"backend {backend}", f"{directory}/{relative}", sha256)
            (backends / backend).symlink_to(directory)
        tls = recipe.get("tls")
        held, url, listen = _port(recipe["address"], place) if tls else _socket(place)
        shm = f"campaign_{place.name.rsplit('-', 1)[-1]}_"
        argv = [
            str(env.server),
            f"--id={name}",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--model-config-name={CONFIG}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in recipe["models"]),
            *listen,
            *(["--rate-limit=execution_count"] if recipe["rate_limit"] else []),
            # Nobody has any business with these, not even whom the socket or the certificate lets in. The word is said
            # to nobody; that every user of the node can read it here does not help those who are not let in.
            f"--grpc-restricted-protocol=shared-memory,model-repository,trace,logging:campaign={secrets.token_hex(16)}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={shm}",
        ]
        keep = {
            k: v
            for k, v in os.environ.items()
            if k in _KEEP or k.startswith(("CAMPAIGN_", "CUDA_", "NVIDIA_", "SLURM_", "ROCR_"))
        }
        # One thread per library unless the model says otherwise: servers share the node with the tasks.
        threads = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return Launch(
            argv, {**keep, **threads, **env.variables()}, url, shm,
            private_shm=recipe["private_shm"], ca=tls["ca"] if tls else "", held=held,
        )  # fmt: skip


_KEEP = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER")


def _socket(place: Path) -> tuple[None, str, list[str]]:
    path = place / "t.sock"
    if len(f"{path}:0") > SOCKET_LIMIT:
        raise SpecError(f"{path} is too long for a Unix socket", remedy="set TMPDIR to a shorter folder")
    return None, f"unix:{path}:0", [f"--grpc-address=unix://{path}", "--grpc-port=0"]


def _port(address: str | None, place: Path) -> tuple[socket.socket, str, list[str]]:
    """A port that is ours from now on: the socket returned holds it, and only this user's server can share it."""
    family, host = _own_address(address)
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, 0))
    except OSError as error:
        held.close()
        raise SpecError(
            f"{host} is no address of {socket.gethostname()}: {error.strerror}", key=("servers", "address")
        ) from error
    port, tls = held.getsockname()[1], place / "tls"
    shown, scheme = (f"[{host}]", "ipv6") if family == socket.AF_INET6 else (host, "ipv4")
    listen = [
        f"--grpc-address={shown}", f"--grpc-port={port}", "--reuse-grpc-port=true", "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true", f"--grpc-server-cert={tls}/cert.pem", f"--grpc-server-key={tls}/key.pem",
        f"--grpc-root-cert={tls}/ca.pem",
    ]  # fmt: skip
    return held, f"{scheme}:{shown}:{port}", listen


def _own_address(given: str | None) -> tuple[socket.AddressFamily, str]:
    """This node's address as other nodes see it: the first of its name that is not for itself alone."""
    name = given or socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SpecError(f"{name} has no address: {error}", key=("servers", "address")) from error
    found.sort(key=lambda one: (str(one[4][0]).startswith("127.") or one[4][0] == "::1", one[0] != socket.AF_INET))
    return found[0][0], str(found[0][4][0])


@cache
def _messages() -> Any:
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


def _datatype(tensor: Any) -> str:
    """KServe's name of a tensor's datatype."""
    kind = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
    return "BYTES" if kind == "TYPE_STRING" else str(kind).removeprefix("TYPE_")


def _members(config: Any) -> list[str]:
    """Models an ensemble is made of; none for any other model."""
    return sorted({step.model_name for step in config.ensemble_scheduling.step})


def render(config: Any, model: ModelSpec) -> Any:
    """Put the campaign's parameters and number of instances into a configuration."""
    for key, value in model.parameters.items():
        config.parameters[key].string_value = str(value).lower() if isinstance(value, bool) else str(value)
    if model.instances:
        if not config.instance_group:
            config.instance_group.add()
        config.instance_group[0].count = model.instances
    return config
