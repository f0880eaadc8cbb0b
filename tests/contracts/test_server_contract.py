"""One contract for every registered server kind; a new one is tested by being registered and told how to be used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from campaign import ServerPool, ServerSpec, SpecError
from campaign.pool.server_kind import make_kind
from campaign.protocols import ServerKind
from campaign.util import plugins
from tests.conftest import PROJECT, left, lying_about, ours, wait_until

KINDS = plugins.names(plugins.SERVERS)
REPOSITORY = PROJECT / "tests" / "models"
MODELS = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}

# What each kind needs beside the models: given the URLs of servers that run, and wrong, with the key at fault.
Key = tuple[str | int, ...]
USABLE: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "triton": lambda _urls: {"model_repository": str(REPOSITORY)},
    "attach": lambda urls: {"urls": urls, "models": {"slow": {"batch": 8}}},
}
WRONG: dict[str, list[tuple[dict[str, Any], Key]]] = {
    "triton": [
        ({"model_repository": "no/folder"}, ("servers", "model_repository", 0)),
        ({"backend_directories": "no/folder"}, ("servers", "backend_directories", 0)),
        ({"models": {"slwo": {}}}, ("servers", "models", "slwo")),
        ({"models": {"slow": {"version": 7}}}, ("servers", "models", "slow", "version")),
        ({"models": {"slow": {"files": {"w": "no.npz"}}}}, ("servers", "models", "slow", "files", "w")),
        ({"models": {"slow": {"canary": "no.npz"}}}, ("servers", "models", "slow", "canary")),
        ({"models": {"slow": {"batch": 1025}}}, ("servers", "models", "slow", "batch")),
        ({"python": "/no/python"}, ("servers", "python")),
    ],
    "attach": [
        ({"tls": {"ca": "no.pem"}}, ("servers", "tls", "ca")),
        ({"models": {"slow": {"parameters": {"delay_s": 1}}}}, ("servers", "models", "slow", "parameters")),
        ({"models": {"slow": {"files": {"w": "w.npz"}}}}, ("servers", "models", "slow", "files")),
        ({"models": {"slow": {"onnx": "m.onnx"}}}, ("servers", "models", "slow", "onnx")),
        ({"models": {"slow": {"canary": "c.npz"}}}, ("servers", "models", "slow", "canary")),
        ({"models": {"slow": {"instances": 2}}}, ("servers", "models", "slow", "instances")),
    ],
}


def spec(kind: str, running: list[str], **changes: Any) -> ServerSpec:
    """A usable description of servers of a kind, with changes."""
    return ServerSpec(**{"kind": kind, "models": MODELS, **USABLE[kind](running), **changes})


def make(kind: str, base: Path = PROJECT, **changes: Any) -> ServerKind:
    """A kind that is not used to serve: any address will do."""
    return make_kind(spec(kind, ["localhost:1"], **changes), base)


def children() -> set[int]:
    """Our child processes, zombies left out."""
    return {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture(scope="module")
def long_lived_pool() -> Iterator[ServerPool]:
    """Servers that somebody else started, for kinds that start none."""
    before = (set(ours()), lying_about())
    with ServerPool(REPOSITORY, models=MODELS) as pool:
        pool.wait_ready()
        yield pool
    assert wait_until(lambda: not left(before), 5), left(before)


def test_every_registered_kind_is_held_to_the_contract() -> None:
    """A kind that is registered has an entry in the tables of this file."""
    assert set(USABLE) == set(WRONG) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_making_and_checking_one_starts_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its pool is entered a kind has no process and no file, and knows no folder by itself."""
    monkeypatch.chdir(tmp_path)
    before = children()
    make(kind).check()
    pool = ServerPool(spec(kind, ["localhost:1"]), folder=tmp_path / "pool")
    assert pool.kind.managed is bool(type(pool.kind).managed)
    assert children() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "wrong", "key"), [(k, w, key) for k in KINDS for w, key in WRONG[k]])
def test_what_cannot_work_is_refused_with_its_key(kind: str, wrong: dict[str, Any], key: Key, tmp_path: Path) -> None:
    """``check`` raises a `SpecError` that names the key; a pool of it cannot even be made."""
    with pytest.raises(SpecError) as caught:
        make(kind, **wrong).check()
    assert caught.value.key == key
    with pytest.raises(SpecError):
        ServerPool(spec(kind, ["localhost:1"], **wrong), base=PROJECT, folder=tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_refused(kind: str) -> None:
    """A misspelt key is an error that lists those there are; the published schema says so too."""
    known = next(iter(USABLE[kind](["localhost:1"])))
    with pytest.raises(SpecError, match=f"did you mean '{known}'") as caught:
        make(kind, **{known[:-1] + "_": 1})
    assert caught.value.key[0] == "servers"
    options = plugins.get(plugins.SERVERS, kind).Options
    with pytest.raises(ValueError, match="extra"):
        options(**USABLE[kind](["localhost:1"]), no_such_option=1)
    schema = json.loads(json.dumps(options.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert known in schema["properties"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_of_it_infers_and_leaving_ends_what_it_started(kind: str, long_lived_pool: ServerPool) -> None:
    """The known answer comes from its servers; afterwards those it started are gone, all others run on."""
    running, lying = set(ours()), lying_about()
    urls = [str(r.url) for r in long_lived_pool.records()]
    x = np.arange(100, dtype=np.float32).reshape(-1, 1)
    with ServerPool(spec(kind, urls), base=PROJECT) as pool:
        pool.wait_ready()
        assert pool.servers().infer("slow", {"X": x})["Y"].tobytes() == x.tobytes()
        assert [r.state for r in pool.records()] == ["ready"]
        own = {str(r.url) for r in pool.records()}
        assert (own == set(urls)) is not pool.kind.managed
    assert wait_until(lambda: not left((running, lying)), 5), left((running, lying))
    assert set(ours()) >= running
    assert lying_about() >= lying
    assert long_lived_pool.servers().infer("slow", {"X": x})["Y"].tobytes() == x.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_travels(kind: str) -> None:
    """What ``prepare`` gives and the records of servers that run survive JSON unchanged."""
    made = make(kind)
    recipe = made.prepare(lambda _text: None)
    assert json.loads(json.dumps(recipe)) == recipe
    addresses = made.addresses()
    assert json.loads(json.dumps(addresses)) == addresses
    assert bool(addresses) is not made.managed


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_the_same_for_the_same_and_differs_for_another_batch(kind: str) -> None:
    """It survives JSON, two kinds made alike agree, and the batch, which the model sees, belongs to it."""
    identity = make(kind).identity("slow")
    assert json.loads(json.dumps(identity)) == identity
    assert make(kind).identity("slow") == identity
    assert make(kind, count=5).identity("slow") == identity
    assert make(kind, models={"slow": {**MODELS["slow"], "batch": 4}}).identity("slow") != identity


def test_attached_servers_elsewhere_are_other_servers() -> None:
    """Kind ``attach``: where a model is served is all that is known of it; the order of the URLs says nothing."""
    two = make("attach", urls=["a:1", "b:1"]).identity("slow")
    assert make("attach", urls=["b:1", "a:1"]).identity("slow") == two
    assert make("attach", urls=["a:1", "c:1"]).identity("slow") != two


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_stands_where_it_could_be_read(kind: str) -> None:
    """What is written down of a kind, recipe and records, is apart from what lets clients in, which shows nothing."""
    made = make(kind)
    assert isinstance(made.through_tls(one_node=True), bool)
    assert made.secret() is None, "nothing was asked for"
    if made.managed:
        assert (made.through_tls(one_node=True), made.through_tls(one_node=False)) == (False, True)
        assert make(kind, listen="tls").through_tls(one_node=True)
        assert not make(kind, listen="socket").through_tls(one_node=False)


LEAST = """
from pydantic import BaseModel, ConfigDict

from campaign.protocols import ServerKind


class Least(ServerKind):
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        url: str

    managed = False

    def identity(self, model):
        return {"url": self.spec.given["url"]}

    def addresses(self):
        return [{"name": "theirs", "url": self.spec.given["url"], "state": "ready", "tls": {}}]


class Loose:
    Options, managed = Least.Options, False
"""


def test_a_kind_that_implements_only_what_it_must_serves(tmp_path: Path, long_lived_pool: ServerPool) -> None:
    """All that the core asks of a kind has a default: identity and addresses are enough for servers that run."""
    (tmp_path / "own.py").write_text(LEAST)
    (record,) = long_lived_pool.records()
    given = ServerSpec(kind="own.py:Least", models={"slow": {"batch": 8}}, url=record.url)
    made = make_kind(given, tmp_path)
    assert (made.signature("slow"), made.model_files("slow"), made.versions(), made.secret()) == (None,) * 4
    assert made.why_not_reproducible() == ""
    x = np.arange(20, dtype=np.float32).reshape(-1, 1)
    with ServerPool(given, base=tmp_path) as pool:
        assert pool.servers().infer("slow", {"X": x})["Y"].tobytes() == x.tobytes()
    with pytest.raises(SpecError, match="are not started"):
        made.launch({}, tmp_path, "server-0")


def test_a_class_that_is_no_server_kind_is_refused(tmp_path: Path) -> None:
    """A class that does not inherit from ServerKind is refused with the line to write."""
    (tmp_path / "own.py").write_text(LEAST)
    with pytest.raises(SpecError, match=r"from campaign.protocols.ServerKind\n.*write class Loose\(ServerKind\)"):
        make_kind(ServerSpec(kind="own.py:Loose", models={"slow": {}}, url="localhost:1"), tmp_path)


def test_started_servers_know_the_signature_and_the_files_of_their_models(tmp_path: Path) -> None:
    """Kind ``triton`` describes its models without protobuf: tensors, folder, known answer, dynamic batching."""
    made = make("triton")
    signature, files = made.signature("slow"), made.model_files("slow")
    assert signature is not None
    assert json.loads(json.dumps(signature)) == signature
    assert ([t[:2] for t in signature["inputs"]], signature["batch"]) == ([["X", "FP32"]], 8)
    assert files is not None
    assert files.folder == REPOSITORY / "slow" / "1"
    assert files.canary.parent in (files.folder, files.folder.parent)
    assert made.why_not_reproducible() == ""
    shutil.copytree(REPOSITORY / "slow", tmp_path / "slow")
    with (tmp_path / "slow" / "configs" / "embedded.pbtxt").open("a") as config:
        config.write("dynamic_batching {}\n")
    assert "of slow dynamically" in make("triton", model_repository=str(tmp_path)).why_not_reproducible()


SLOW_TO_LAY_OUT = """
import time

from campaign.servers.triton import Triton


class Served(Triton):
    @staticmethod
    def launch(recipe, place, name):
        time.sleep(DELAY)
        return Triton.launch(recipe, place, name)
"""


@pytest.mark.slow
def test_models_that_take_long_to_be_looked_at_are_waited_for(tmp_path: Path) -> None:
    """A pilot that lays out gigabytes is not taken for lost; and it is stopped at once, leaving nothing, if asked."""
    (tmp_path / "own.py").write_text(SLOW_TO_LAY_OUT.replace("DELAY", "10"))
    given = ServerSpec(kind="own.py:Served", models=MODELS, lease_s=4, **USABLE["triton"]([]))
    with ServerPool(given, base=tmp_path) as pool:
        pool.wait_ready()
        assert [r.name for r in pool.records()] == ["server-0"]
    (tmp_path / "own.py").write_text(SLOW_TO_LAY_OUT.replace("DELAY", "60"))
    with ServerPool(given, base=tmp_path) as pool:
        assert wait_until(lambda: any(r.private_dir for r in pool.records()), 30)
        (record,) = pool.records()
    assert not Path(record.private_dir).exists()
    assert not psutil.pid_exists(record.pid)


def touch_model(folder: Path) -> dict[str, Any]:
    """One more byte in the model's program."""
    path = folder / "repository" / "slow" / "1" / "model.py"
    path.write_text(path.read_text() + "\n")
    return {}


def touch_config(folder: Path) -> dict[str, Any]:
    """Another limit in its configuration."""
    path = folder / "repository" / "slow" / "configs" / "embedded.pbtxt"
    path.write_text(path.read_text().replace("1024", "512"))
    return {}


def touch_file(folder: Path) -> dict[str, Any]:
    """The file that the campaign puts into the model's folder, with other content."""
    (folder / "weights").write_text("other")
    return {}


def new_parameter(_folder: Path) -> dict[str, Any]:
    """Another value of a parameter."""
    return {"parameters": {"delay_s": 0.002}}


def no_file(_folder: Path) -> dict[str, Any]:
    """The model's own file in place of the campaign's."""
    return {"files": {}}


@pytest.mark.parametrize("change", [touch_model, touch_config, touch_file, new_parameter, no_file])
def test_a_served_model_is_known_by_its_content(tmp_path: Path, change: Callable[[Path], Mapping[str, Any]]) -> None:
    """Kind ``triton``: a copy elsewhere, compiled meanwhile, is the same model; one with anything else in it is not."""
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "slow", tmp_path / "repository" / "slow", ignore=compiled)
    (tmp_path / "weights").write_text("some")
    model: dict[str, Any] = {**MODELS["slow"], "files": {"weights": "weights"}}

    def identity() -> Mapping[str, Any]:
        return make("triton", tmp_path, model_repository="repository", models={"slow": model}).identity("slow")

    before = identity()
    (tmp_path / "repository" / "slow" / "1" / "__pycache__").mkdir()
    (tmp_path / "repository" / "slow" / "1" / "__pycache__" / "model.pyc").write_bytes(b"compiled")
    os.utime(tmp_path / "repository" / "slow" / "1" / "model.py", (0, 0))
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    assert identity() == before
    elsewhere = make("triton", tmp_path / "elsewhere", model_repository="repository", models={"slow": model})
    assert elsewhere.identity("slow") == before
    model.update(change(tmp_path))
    assert identity() != before
