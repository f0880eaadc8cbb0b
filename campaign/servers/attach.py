"""Server kind ``attach``: servers that already run, by URL (a SuperSONIC, a colleague's Triton)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from campaign.discovery.credentials import Credentials
from campaign.errors import SpecError
from campaign.protocols import Launch
from campaign.spec.models import ServerSpec


class Tls(BaseModel):
    """PEM files: of the authority that signed the server, and, for mutual TLS, of this client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: str
    cert: str | None = None
    key: str | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Options(BaseModel):
    """Keys of ``servers`` for ``kind: attach``.

    Args:
        urls: gRPC addresses, ``host:port`` or ``unix:/path``.
        headers: Sent with every request, ``{name: value}``; a value ``$NAME`` is taken from the environment, and then
            stands in no file at all.
        tls: PEM files; None: no TLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(min_length=1)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    tls: Tls | None = None

    @field_validator("headers")
    @classmethod
    def _no_line_breaks(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _BREAK.search(name + value):
                raise ValueError(f"header {name!r} holds a line break")
        return headers


_STARTED = ("parameters", "files", "onnx", "canary", "instances")  # keys of a model for servers that are started
_BREAK = re.compile(r"[\r\n\0]")


class Attach:
    """See `campaign.protocols.ServerKind`. It starts nothing and stops nothing."""

    Options = Options
    managed = False

    def __init__(self, spec: ServerSpec, base: Path) -> None:
        self.spec, self.base = spec, base
        self.options = Options.model_validate(spec.given)

    def check(self) -> None:
        """The TLS files must be there, and so must the headers' environment variables."""
        for name, value in self.options.headers.items():
            given, key = os.environ.get(value[1:], "") if value.startswith("$") else value, ("servers", "headers", name)
            if not given and value.startswith("$"):
                raise SpecError(f"the environment variable {value[1:]} is not set", key=key)
            if _BREAK.search(given):
                raise SpecError(f"the environment variable {value[1:]} holds a line break", key=key)
        for name, path in (self.options.tls.model_dump() if self.options.tls else {}).items():
            if path is not None and not (self.base / path).is_file():
                raise SpecError(f"there is no file {self.base / path}", key=("servers", "tls", name))
        for model, spec in self.spec.models.items():
            for name in _STARTED:
                if getattr(spec, name):
                    raise SpecError(
                        "would have no effect: servers of kind 'attach' run already, with their own settings",
                        key=("servers", "models", model, name), remedy="take it out",
                    )  # fmt: skip

    def identity(self, model: str) -> Mapping[str, Any]:
        """What is known without asking: where it is served. A changed model there cannot be seen."""
        spec = self.spec.models[model]
        urls = sorted(self.options.urls)
        return {"model": model, "batch": spec.batch, "tails": sorted(spec.tails), "urls": urls, "version": spec.version}

    def version(self, model: str) -> int | None:
        """The campaign's; None: the newest that the servers have, which the pool asks for."""
        return self.spec.models[model].version

    def prepare(self, say: Callable[[str], None]) -> Mapping[str, Any]:
        """Nothing to make."""
        say(f"servers: using {', '.join(self.options.urls)}")
        return {}

    def addresses(self) -> list[Mapping[str, Any]]:
        """One record per URL."""
        return [{"name": url, "url": url, "state": "ready", "tls": self._files()} for url in self.options.urls]

    def _files(self) -> dict[str, str]:
        given = self.options.tls.model_dump() if self.options.tls else {}
        return {name: str(self.base / path) for name, path in given.items() if path}

    def secret(self) -> Credentials | None:
        """The headers, and what stands in the PEM files."""
        given = self.options.headers.items()
        headers = tuple((k, os.environ.get(v[1:], "") if v.startswith("$") else v) for k, v in given)
        pem = {name: Path(path).read_bytes() for name, path in self._files().items()}
        return (
            Credentials(pem.get("ca", b""), pem.get("cert", b""), pem.get("key", b""), headers)
            if pem or headers
            else None
        )

    def through_tls(self, one_node: bool) -> bool:
        """Whether they do is theirs to say."""
        del one_node
        return self.options.tls is not None

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """Never called: no pilot is started for servers that already run."""
        del recipe, place, name
        raise SpecError("servers of kind 'attach' are not started", key=("servers", "kind"))
