"""Server kind ``triton``: starts tritonserver for the campaign, on a private Unix socket or behind mutual TLS."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from google.protobuf import text_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from campaign.errors import SpecError
from campaign.protocols import Launch, ServerKind
from campaign.servers import environment
from campaign.servers.layout import hold, lay_out, unpack
from campaign.servers.listen import on_port, on_socket
from campaign.servers.modelconfig import with_environment
from campaign.servers.repository import CONFIG, Repository
from campaign.spec.models import ServerSpec
from campaign.util import telemetry


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class Options(BaseModel):
    """Keys of ``servers`` for ``kind: triton``.

    Args:
        launcher: ``embedded``: the server of the nvidia-pytriton wheel, in its own environment.
        model_repository: Folder of models, or a list of folders. Not needed if each model is an ONNX file (``onnx:``).
        requirements: Python packages that models of the Python backend import, besides numpy and onnxruntime.
        backend_directories: Folders of more backends (C++ or Python). They are used unchanged.
        python: The Python of the server environment. None: this Python, or the first on PATH that fits.
        listen: ``socket``: on a Unix socket that only this user reaches. ``tls``: on a port, behind mutual TLS with
            certificates made for this campaign. ``auto``: on a socket if the provider keeps everything on one node.
        address: Address or name by which other nodes reach the servers' node (``tls``). None: the node's own.
        private_shm: Give each server a ``/dev/shm`` of its own. ``auto``: if the kernel allows it. With false (CUDA MPS
            needs the node's ``/dev/shm``) other users may see a region for an instant when it is made.
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


class Triton(Repository, ServerKind):
    """See `campaign.protocols.ServerKind`."""

    Options = Options
    managed = True

    def __init__(self, spec: ServerSpec, base: Path) -> None:
        super().__init__(spec, base, Options.model_validate(spec.given))

    def through_tls(self, one_node: bool) -> bool:
        """As ``listen`` says. ``auto``: behind TLS unless the provider keeps everything on one node."""
        return not one_node if self.options.listen == "auto" else self.options.listen == "tls"

    def check(self) -> None:
        """Refuse folders that do not exist and models that cannot be served."""
        for i, name in enumerate(self.options.backend_directories):
            if not self._path(name).is_dir():
                raise SpecError(f"there is no folder {self._path(name)}", key=("servers", "backend_directories", i))
        for name, model in self.spec.models.items():
            self.check_model(name, model)
        environment.find_python(self.options.python)

    def prepare(self, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Make the server environment if it does not exist, and describe every model for the pilots."""
        env = environment.prepare(self.options.requirements, self.options.python, say)
        models = {}
        for name in self.spec.models:
            canary, version = self.canary(name), self.version(name)
            archive = self.environment_of(name)
            proved = canary.is_file() and name not in self.unproved
            files = self.beside(name) | {f"{version}/{target}": path for target, path in self.files(name).items()}
            models[name] = {
                "version": version,
                "config": text_format.MessageToString(self.config(name)),
                "files": {relative: [str(path), self._digest(path)] for relative, path in files.items()},
                "python": [str(archive), self._digest(archive)] if archive else None,
                "rows_assumed": self.rows_assumed(name),
                "canary": str(canary) if proved else None,
                "canary_file": [str(canary), self._digest(canary)] if proved else None,
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
        """Packages of the server environment with their versions. Empty before the environment is made."""
        path = environment.environment(self.options.requirements, self.options.python).path / "versions.txt"
        return ", ".join(path.read_text().split()) if path.is_file() else ""

    def why_not_reproducible(self) -> str:
        """Dynamic batching: Triton joins requests, and a model may give a row another value in another batch."""
        dynamic = ", ".join(name for name in self.spec.models if self.config(name).HasField("dynamic_batching"))
        why = f"the server batches requests of {dynamic} dynamically: predictions depend on their neighbours"
        return why if dynamic else ""

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """Prepare the folder ``place`` for a server, and return how to start it. Nothing is started here.

        Models and backends are laid out in ``place``. The server will listen on a Unix socket there.
        It will listen on a TCP port if the recipe has TLS.

        Raises:
            ModelError: A file of a model or backend has changed since the campaign was planned.
        """
        path, version, libdir = recipe["environment"]
        env = environment.Environment(Path(path), version, libdir)
        repository, backends = place / "models", place / "backends"
        repository.mkdir()
        for model, what in recipe["models"].items():
            own = place / "environments" / model
            archive = what.get("python")
            if archive and unpack(archive[0], archive[1], own, model):
                what = {**what, "config": with_environment(what["config"], own)}
            lay_out(repository / model, model, what, CONFIG)
        backends.mkdir()
        (backends / "python").symlink_to(env.backends / "python")
        for backend, (directory, files) in recipe["backends"].items():
            for relative, sha256 in files.items():
                hold(f"backend {backend}", f"{directory}/{relative}", sha256)
            (backends / backend).symlink_to(directory)
        tls = recipe.get("tls")
        held, url, listen = on_port(recipe["address"], place) if tls else on_socket(place)
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
            # No client needs these protocols, so they are closed with a random word that no client gets. Other users of
            # the node can read the word here, but socket or certificate keep them out.
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
            telemetry.VARIABLE: os.environ.get(telemetry.VARIABLE, "1"),
        }
        return Launch(
            argv, {**keep, **threads, **env.variables()}, url, shm,
            private_shm=recipe["private_shm"], ca=tls["ca"] if tls else "", held=held,
        )  # fmt: skip


_KEEP = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER")
