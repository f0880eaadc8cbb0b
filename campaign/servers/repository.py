"""Finds a campaign's models in its repositories: the version that answers and the files that are served."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from campaign.errors import SpecError
from campaign.protocols import ModelFiles
from campaign.servers import environment, onnx_backend, settings
from campaign.servers.layout import beside, tree
from campaign.servers.modelconfig import ENVIRONMENT, datatype, environment_named, messages, render, reshaped
from campaign.servers.onnx_file import NotOnnx, complete
from campaign.servers.onnx_file import read as read_onnx
from campaign.spec.models import ModelSpec, ServerSpec
from campaign.util.hashing import file_digest
from campaign.util.messages import unknown

HERE = "$$TRITON_MODEL_DIRECTORY"  # in that parameter: the model's folder
REQUEST = b"InferenceRequest"  # how a Python model asks another one (business logic scripting)
CONFIG = "embedded"  # name of the configuration for this server, beside the one for a stock container


class Repository:
    """The models of a campaign: finds and checks their files, and hashes everything that their answers depend on.

    Args:
        spec: The campaign's ``servers``.
        base: Where relative paths start.
        options: `campaign.servers.triton.Options`: folders of models and backends, and requirements.

    Attributes:
        unproved: Models without a known answer, because it is being made.
    """

    unproved: frozenset[str] = frozenset()

    def __init__(self, spec: ServerSpec, base: Path, options: Any) -> None:
        self.spec, self.base, self.options = spec, base, options
        self._known: dict[Path, str] = {}

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file when it was first read, so that the planned file is the served file."""
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
            SpecError: No repository has it. Lists the models that exist.
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

    def check_model(self, name: str, model: ModelSpec) -> None:
        """Refuse a model that cannot be served, or not as its configuration says.

        Raises:
            SpecError: Holds the key and the file.
        """
        key = ("servers", "models", name)
        folder, config = self.folder(name), self.config(name)
        self._check_backend(name, folder, config, key)
        for target, path in model.files.items():
            if not self._path(path).is_file():
                raise SpecError(f"there is no file {self._path(path)}", key=(*key, "files", target))
        if model.canary and name not in self.unproved and not self._path(model.canary).is_file():
            raise SpecError(
                f"there is no file {self._path(model.canary)}", key=(*key, "canary"),
                remedy=f"make it: campaign canary FILE {name}",
            )  # fmt: skip
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
        self._check_named_files(folder, config, key)
        if config.ensemble_scheduling.step:
            return
        self.version(name)
        backends = {"python", *self._own_backends()}
        if config.backend not in backends:
            raise SpecError(
                f"its backend '{config.backend}' is not in the embedded server (it has: {', '.join(sorted(backends))})",
                key=key,
                remedy=f'give {folder} a configs/embedded.pbtxt with backend: "python", or name backend_directories',
            )

    def _check_named_files(self, folder: Path, config: Any, key: tuple[str, ...]) -> None:
        for tensor in config.output:
            if tensor.label_filename and not (folder / tensor.label_filename).is_file():
                raise SpecError(
                    f"{folder} has no file {tensor.label_filename}, the labels of the output {tensor.name}",
                    key=key, remedy="put it there, or take label_filename out of the configuration",
                )  # fmt: skip
        given = environment_named(config)
        path = Path(given.replace(HERE, str(folder)))
        if given and not path.is_file():
            raise SpecError(
                f"{ENVIRONMENT} names {path}, which is no file",
                key=key, remedy="name an archive made by conda-pack: $$TRITON_MODEL_DIRECTORY/FILE or an absolute path",
            )  # fmt: skip

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
        """The version that answers: as the campaign says, else the newest that the model's version policy serves.

        Raises:
            SpecError: There is no such version. Lists the versions that exist.
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
        """Backends of ``backend_directories`` by name. A later directory wins, as in the server."""
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
                found = read_onnx(onnx)
                complete(config, found, onnx.name, self.spec.models[model].batch)
                for name in found.external:
                    if not (onnx.parent / name).is_file():
                        raise NotOnnx(f"its weights are in {onnx.parent / name}, and there is no such file")
            except (OSError, NotOnnx) as error:
                text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                raise SpecError(f"{onnx}: {text}", key=("servers", "models", model)) from None
        config.name = config.name or model
        config.ClearField("version_policy")  # only the version that answers is laid out
        return render(config, self.spec.models[model])

    def onnx(self, model: str) -> Path | None:
        """The ONNX file that our own ``model.py`` serves. None: the model brings its own backend or ``model.py``.

        It is the campaign's ``onnx:``, or the ``model.onnx`` (``default_model_filename``) of a folder whose
        configuration is for the onnxruntime backend, or that has no configuration.
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

    def rows_assumed(self, model: str) -> bool:
        """True if we assume that the first axis of an ONNX file counts rows. A server then has to prove it."""
        made = self.onnx(model) is not None and not self._read_config(model).input
        return made and self.config(model).max_batch_size > 1

    def config_file(self, model: str) -> Path:
        """The file that holds a model's configuration. Without one: the model itself."""
        given = self.spec.models[model].onnx
        if given is not None:
            return self._path(given)
        folder = self.folder(model)
        names = (folder / f"configs/{CONFIG}.pbtxt", folder / "config.pbtxt")
        return next((path for path in names if path.is_file()), folder)

    def _read_config(self, model: str, there: list[int] | None = None) -> Any:
        path = self.config_file(model)
        config = messages().ModelConfig()
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
        """The file of a model's known answer: the campaign's, else the version's, else the model's."""
        given = self.spec.models[model].canary
        if given:
            return self._path(given)
        onnx = self.spec.models[model].onnx
        if onnx is not None:
            return self._path(onnx).with_suffix(".canary.npz")
        own = self.folder(model) / str(self.version(model)) / "canary.npz"
        return own if own.is_file() else self.folder(model) / "canary.npz"

    def new_canary(self, model: str) -> Path:
        """The file for a new known answer: in the version's folder if the model has several versions."""
        found, several = self.canary(model), len(settings.versions(self.folder(model))) > 1
        elsewhere = self.spec.models[model].canary is not None or self.spec.models[model].onnx is not None
        return found if elsewhere or not several else self.folder(model) / str(self.version(model)) / "canary.npz"

    def files(self, model: str) -> dict[str, Path]:
        """Files of the version folder, by their names there; a known answer is not one of them."""
        spec, onnx = self.spec.models[model], self.onnx(model)
        found = dict(tree(self.folder(model) / str(self.version(model)))) if spec.onnx is None else {}
        found.pop("canary.npz", None)
        if onnx is not None:
            found |= {onnx.name: onnx, "model.py": Path(onnx_backend.__file__)}
            found |= {name: onnx.parent / name for name in read_onnx(onnx).external}
        return found | {target: self._path(path) for target, path in spec.files.items()}

    def beside(self, model: str) -> dict[str, Path]:
        """Files in the model's folder outside the versions, by name: labels, warm-up data, environments."""
        return beside(self.folder(model)) if self.spec.models[model].onnx is None else {}

    def environment_of(self, model: str) -> Path | None:
        """The archive of a Python environment that the model's configuration names. None: it names none."""
        given = environment_named(self.config(model))
        return Path(given.replace(HERE, str(self.folder(model)))) if given else None

    def signature(self, model: str) -> Mapping[str, Any]:
        """Inputs and outputs of the model, as its configuration declares them."""
        config, spec = self.config(model), self.spec.models[model]
        first, most = [-1] if config.max_batch_size else [], int(config.max_batch_size)

        def tensors(given: Any) -> list[list[Any]]:
            names = {t.name: datatype(t) for t in given}
            return [[t.name, names[t.name], [*first, *t.dims]] for t in given]

        return {
            "inputs": tensors(config.input), "outputs": tensors(config.output), "batch": min(spec.batch or most, most),
            "max_batch": most, "optional": [t.name for t in config.input if t.optional],
        }  # fmt: skip

    def model_files(self, model: str) -> ModelFiles:
        """The version folder, the ONNX file and the known answer of a model."""
        folder = self.folder(model) / str(self.version(model))
        return ModelFiles(
            folder, self.onnx(model) or folder / "model.onnx", self.canary(model), self.new_canary(model),
            self.rows_assumed(model), reshaped(self.config(model)),
        )  # fmt: skip

    def identity(self, model: str) -> Mapping[str, Any]:
        """Hashes of the served files and the configuration, and the server's build and requirements.

        The number of instances changes no answer and is left out. Models that this model calls are included.
        """
        asked: dict[str, Any] = {}
        todo = self._asks(model)
        while todo:
            name = todo.pop()
            if name != model and name not in asked:
                asked[name] = self._own_identity(name)
                todo += self._asks(name)
        server = [environment.WHEEL, *environment.BASE, *sorted(self.options.requirements)]
        return {**self._own_identity(model), "members": dict(sorted(asked.items())), "server": server}

    def _own_identity(self, model: str) -> dict[str, Any]:
        spec, config = self.spec.models[model], self.config(model)
        config.ClearField("instance_group")
        files = {name: self._digest(path) for name, path in self.files(model).items()}
        archive = self.environment_of(model)
        files |= {ENVIRONMENT: self._digest(archive)} if archive else {}
        files |= {f"../{name}": self._digest(path) for name, path in self.beside(model).items()}
        own = self._own_backends().get(config.backend)
        return {
            "batch": spec.batch or config.max_batch_size,
            "tails": sorted(spec.tails),
            "version": self.version(model),
            "config": hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
            "files": files,
            "backend": self._digests(own) if own else {},
        }

    def _asks(self, model: str) -> list[str]:
        """Models that this model calls: the steps of an ensemble, or all others if its Python code sends requests."""
        config = self.config(model)
        if config.ensemble_scheduling.step:
            return sorted({step.model_name for step in config.ensemble_scheduling.step})
        python = [path for name, path in self.files(model).items() if name.endswith(".py")] if config.backend else []
        sends = any(REQUEST in path.read_bytes() for path in python)
        return sorted(self.spec.models.keys() - {model}) if sends else []
