"""Which version of a model answers, and what becomes of the other settings of its configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import uproot
import yaml

from campaign import ServerPool, connect
from campaign.errors import InferenceError, SpecError
from campaign.pool.server_kind import make_kind
from campaign.servers import environment, settings
from campaign.servers.modelconfig import messages
from campaign.spec.models import ServerSpec
from tests.conftest import command

MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "X").as_numpy()
            answers.append(pb.InferenceResponse([pb.Tensor("Y", x + np.float32({add}))]))
        return answers
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
{extra}
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
ensemble_scheduling {{ step [
  {{ model_name: "plain" model_version: -1
     input_map {{ key: "X" value: "X" }} output_map {{ key: "Y" value: "MID" }} }},
  {{ model_name: "given" model_version: {version}
     input_map {{ key: "X" value: "MID" }} output_map {{ key: "Y" value: "Y" }} }}
] }}
"""
FOLDERS = ("1", "2", "10", "011", "0", "latest", "2.5")


def model(repository, name, extra="", folders=FOLDERS, filename="model.py"):
    (repository / name).mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(extra=extra))
    for folder in folders:
        (repository / name / folder).mkdir()
        add = folder if folder.isdigit() else "1000"
        (repository / name / folder / filename).write_text(MODEL.format(add=float(add)))


def kind(repository, models, **options):
    return make_kind(
        ServerSpec.model_validate({"model_repository": str(repository), "models": models, **options}), repository
    )


def refused(repository, models):
    with pytest.raises(SpecError) as caught:
        kind(repository, models).check()
    return str(caught.value)


POLICIES = {  # name: (what the configuration says, what the campaign says, the version that answers)
    "plain": ("", {}, 10),
    "latest": ("version_policy: { latest { num_versions: 2 } }", {}, 10),
    "empty": ("version_policy: { latest { } }", {}, 10),
    "every": ("version_policy: { all { } }", {}, 10),
    "specific": ("version_policy: { specific { versions: [ 1, 2, 7 ] } }", {}, 2),
    "given": ("version_policy: { specific { versions: [ 10 ] } }", {"version": 1}, 1),
    "older": ("", {"version": 2}, 2),
}
RATE = 'instance_group [ { count: 2 kind: KIND_CPU rate_limiter { resources [ { name: "R" count: 1 } ] } } ]'
WARM = """model_warmup [ { name: "w" batch_size: 1
  inputs { key: "X" value { data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "x" } } } ]"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """One server with a model of each policy, of each setting that is honoured, and an ensemble of two versions."""
    root = tmp_path_factory.mktemp("versions")
    for name, (extra, _, _) in POLICIES.items():
        model(root, name, extra)
    model(root, "named", 'default_model_filename: "mine.py"', ["1"], "mine.py")
    model(root, "limited", RATE, ["3"])
    model(root, "warm", WARM, ["4"])
    (root / "warm" / "warmup").mkdir()
    (root / "warm" / "warmup" / "x").write_bytes(np.float32(5).tobytes())
    (root / "both" / "1").mkdir(parents=True)
    (root / "both" / "config.pbtxt").write_text(ENSEMBLE.format(version=1))
    models = {name: given for name, (_, given, _) in POLICIES.items()}
    with ServerPool(root, models={**models, "named": {}, "limited": {}, "warm": {}, "both": {}}) as made:
        made.wait_ready()
        yield made


@pytest.mark.usefixtures("long_lived_pool")
class TestServed:
    """Against the real server, which must agree with what was planned."""

    @pytest.fixture(name="long_lived_pool", scope="class")
    @staticmethod
    def _long_lived_pool(pool):
        return pool

    @pytest.mark.parametrize("name", POLICIES)
    def test_the_version_that_answers_is_the_policys_or_the_campaigns(self, pool, name):
        """Folders that are no version (a leading zero, a word) count for nothing; the value tells who answered."""
        wanted = POLICIES[name][2]
        servers = pool.servers()
        assert servers.model(name).version == str(wanted) == str(pool.versions[name])
        assert servers.infer(name, {"X": np.zeros((3, 1), np.float32)})["Y"].ravel().tolist() == [wanted] * 3

    def test_settings_of_the_configuration_are_honoured(self, pool):
        """Another file name, a rate limiter, warm-up data, and an ensemble's own versions (10, then 1)."""
        x = np.zeros((1, 1), np.float32)
        found = {n: pool.servers().infer(n, {"X": x})["Y"].item() for n in ("named", "limited", "warm", "both")}
        assert found == {"named": 1, "limited": 3, "warm": 4, "both": 11}

    def test_an_attached_server_is_asked_for_one_version_by_number(self, pool):
        """The newest it has, or the campaign's; one that is not there is an error that names it."""
        (record,) = pool.records()
        options = {"urls": [record.url]}
        spec = ServerSpec.model_validate(
            {"kind": "attach", "models": {"plain": {}, "older": {"version": 2}}, **options}
        )
        with ServerPool(spec) as attached:
            assert attached.versions == {"plain": 10, "older": 2}
            assert attached.address.versions == {"plain": 10, "older": 2}
            assert attached.servers().infer("older", {"X": np.zeros((1, 1), np.float32)})["Y"].item() == 2
        with ServerPool(spec.model_copy(update={"models": {"plain": spec.models["older"]}})) as attached:
            address = attached.address
            with pytest.raises(InferenceError, match=r"(?s)model plain.*metadata.*version"):
                connect(address).model("plain")


def test_a_request_that_another_version_answered_is_refused():
    """The answer names its version: a server that answers with another one is at fault."""
    from tritonclient.grpc import service_pb2

    from campaign.inference.codec import Codec, Part
    from campaign.inference.kserve import ModelInfo, Tensor

    tensor = Tensor("Y", "FP32", (-1, 1))
    codec = Codec(ModelInfo("m", (tensor,), (tensor,), 1, 1, False, version="2"))
    for version in ("2", "3", ""):
        answer = service_pb2.ModelInferResponse(model_name="m", model_version=version)
        answer.outputs.add(name="Y", datatype="FP32", shape=[1, 1])
        answer.raw_output_contents.append(b"\0\0\0\0")
        if version == "3":
            with pytest.raises(InferenceError, match="version 3 answered, and version 2 was asked"):
                codec.decode(answer.SerializeToString(), Part(((1, 1),), ((b"",),), 1))
        else:
            assert codec.decode(answer.SerializeToString(), Part(((1, 1),), ((b"",),), 1))["Y"].shape == (1, 1)


def test_a_version_that_is_not_there_is_refused(tmp_path):
    """Whether the campaign or the policy asks for it; the message says which there are."""
    model(tmp_path, "m", folders=["1", "3"])
    assert "has no version 2 (it has: 1, 3)" in refused(tmp_path, {"m": {"version": 2}})
    model(tmp_path, "p", "version_policy: { specific { versions: [ 7 ] } }", ["1"])
    assert "its version_policy serves no version" in refused(tmp_path, {"p": {}})
    model(tmp_path, "none", folders=["latest"])
    assert "(it has none)" in refused(tmp_path, {"none": {}})
    (tmp_path / "both" / "1").mkdir(parents=True)
    (tmp_path / "both" / "config.pbtxt").write_text(ENSEMBLE.format(version=9))
    model(tmp_path, "plain")
    model(tmp_path, "given")
    said = refused(tmp_path, {"both": {}, "plain": {}, "given": {}})
    assert "needs version 9 of 'given'; version 10 answers" in said
    assert "set servers.models.given.version: 9" in said
    assert "needs the model 'given', which servers.models does not list" in refused(tmp_path, {"both": {}, "plain": {}})


REFUSED = {
    'name: "other"': "name: is 'other', and its folder is 'm'",
    "sequence_batching { }": "sequence_batching: requests of a campaign belong to no sequence",
    "model_transaction_policy { decoupled: true }": "decoupled: a decoupled model gives any number of answers",
    "response_cache { enable: true }": "response_cache: servers of a campaign keep no cache",
    'model_repository_agents { agents [ { name: "checksum" } ] }': "model_repository_agents: no agent is loaded",
    'model_operations { op_library_filename: "x.so" }': "model_operations: no library of operations is loaded",
    'cc_model_filenames [ { key: "9.0" value: "x.py" } ]': "cc_model_filenames: the Python backend does not look at it",
    'batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "N" source_input: "X" } ]': "batch_input:",
    'batch_output [ { target_name: "Y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" } ]': "batch_output: the",
    'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }': "accelerators:",
    'runtime: "libtriton_other.so"': "runtime: the embedded server runs its own Python backend",
    "instance_group [ { kind: KIND_CPU }, { kind: KIND_CPU passive: true } ]": "passive: Triton gives a passive",
    'instance_group [ { kind: KIND_CPU profile: "1" } ]': "instance_group.profile: profiles are TensorRT's",
    "instance_group [ { secondary_devices [ { kind: KIND_NVDLA } ] } ]": "instance_group.secondary_devices: the Python",
    'instance_group [ { host_policy: "p" } ]': "instance_group.host_policy: Triton is started without host policies",
    "model_metrics { }": "model_metrics: is newer than the embedded server (Triton 2.51)",
    'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/no/env.tar.gz" } }': "/no/env.tar.gz, which is no",
}  # fmt: skip


@pytest.mark.parametrize("extra", REFUSED)
def test_a_setting_without_effect_is_refused(tmp_path, extra):
    """One sentence names the file and the setting, and says what to do; nothing is started."""
    model(tmp_path, "m", extra, ["1"])
    said = refused(tmp_path, {"m": {}})
    assert f"{tmp_path}/m/config.pbtxt: " in said or "EXECUTION_ENV_PATH" in extra
    assert REFUSED[extra] in said


def test_instances_of_several_groups_are_refused(tmp_path):
    """``instances`` sets the count of one group: with two it could not say of which."""
    model(tmp_path, "m", "instance_group [ { count: 1 kind: KIND_CPU }, { count: 2 kind: KIND_CPU } ]", ["1"])
    assert "has 2 instance groups, and 'instances' sets one" in refused(tmp_path, {"m": {"instances": 3}})
    kind(tmp_path, {"m": {}}).check()


def test_every_setting_there_is_has_been_thought_of():
    """A field that a newer tritonclient knows is looked at before it is let through: honoured, refused or harmless."""
    looked_at = {
        "name", "platform", "backend", "runtime", "version_policy", "max_batch_size", "input", "output", "batch_input",
        "batch_output", "optimization", "dynamic_batching", "sequence_batching", "ensemble_scheduling",
        "instance_group", "default_model_filename", "cc_model_filenames", "metric_tags", "parameters",
        "model_warmup", "model_operations", "model_transaction_policy", "model_repository_agents", "response_cache",
        "model_metrics",
    }  # fmt: skip
    assert {f.name for f in messages().ModelConfig.DESCRIPTOR.fields} <= looked_at


def test_the_version_is_part_of_the_keys_and_of_the_known_answer(tmp_path):
    """A new version folder makes other keys; a version may bring a known answer of its own."""
    model(tmp_path, "m", folders=["1"])
    before = kind(tmp_path, {"m": {}}).identity("m")
    assert before["version"] == 1
    shutil.copytree(tmp_path / "m" / "1", tmp_path / "m" / "2")
    after = kind(tmp_path, {"m": {}})
    assert after.identity("m") != before
    assert kind(tmp_path, {"m": {"version": 1}}).identity("m") == before
    assert after.canary("m") == tmp_path / "m" / "canary.npz"
    (tmp_path / "m" / "2" / "canary.npz").touch()
    assert after.canary("m") == tmp_path / "m" / "2" / "canary.npz"
    assert settings.versions(tmp_path / "m") == [1, 2]


def test_what_is_beside_the_versions_is_part_of_the_keys(tmp_path):
    """Weights beside a version change the keys; known answers and texts for readers change none."""
    environment = f'value {{ string_value: "{tmp_path}/env" }}'
    model(tmp_path, "m", f'parameters {{ key: "EXECUTION_ENV_PATH" {environment} }}', ["1"])

    def key():
        return kind(tmp_path, {"m": {}}).identity("m")

    (tmp_path / "env").write_text("a")
    kind(tmp_path, {"m": {}}).check()
    before = key()
    for name in ("canary.npz", "1/canary.npz", "README.md"):
        (tmp_path / "m" / name).write_text("x")
        assert key() == before, name
    (tmp_path / "m" / "weights.npz").write_text("x")
    beside = key()
    assert beside != before
    (tmp_path / "env").write_text("b")
    assert key() != beside


@pytest.mark.slow
def test_a_python_environment_of_its_own_goes_with_the_server(tmp_path):
    """EXECUTION_ENV_PATH is honoured; what is unpacked lies in the server's private folder, not for ever in /tmp."""
    server = environment.environment()
    made = tmp_path / "env"
    subprocess.run([server.path / "bin" / "python", "-m", "venv", "--copies", "--without-pip", made], check=True)
    site = made / "lib" / f"python{server.version}" / "site-packages"
    for package in server.site.glob("numpy*"):
        shutil.copytree(package, site / package.name)
    (site / "only_here.py").write_text("N = 7\n")
    parameter = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }'
    model(tmp_path / "models", "m", parameter, ["1"])
    path = tmp_path / "models" / "m" / "1" / "model.py"
    path.write_text(path.read_text().replace("import os", "import only_here").replace("1.0", "only_here.N"))
    with tarfile.open(tmp_path / "models" / "m" / "env.tar.gz", "w:gz", compresslevel=1) as archive:
        for entry in made.iterdir():
            archive.add(entry, entry.name)
    with ServerPool(tmp_path / "models", models=["m"]) as pool:
        pool.wait_ready()
        assert pool.servers().infer("m", {"X": np.zeros((1, 1), np.float32)})["Y"].item() == 7


def test_models_that_a_model_asks_are_part_of_its_keys(tmp_path):
    """A step of an ensemble, and any other model where Python sends requests itself: a change there is one here."""
    for name in ("plain", "given", "caller"):
        model(tmp_path, name, folders=["1"])
    (tmp_path / "both" / "1").mkdir(parents=True)
    (tmp_path / "both" / "config.pbtxt").write_text(ENSEMBLE.format(version=-1))
    path = tmp_path / "caller" / "1" / "model.py"
    path.write_text(path.read_text() + "\n# pb.InferenceRequest(model_name='plain')\n")
    models = {"both": {}, "plain": {}, "given": {}, "caller": {}}

    def keys():
        made = kind(tmp_path, models)
        return {name: made.identity(name) for name in models}

    before = keys()
    (tmp_path / "plain" / "1" / "more").touch()
    assert {name for name, key in keys().items() if key != before[name]} == {"both", "plain", "caller"}


def test_labels_that_are_not_there_are_refused(tmp_path):
    """Triton would not load the model; the sentence names file and output before anything is started."""
    model(tmp_path, "m", folders=["1"])
    path = tmp_path / "m" / "config.pbtxt"
    path.write_text(path.read_text().replace('name: "Y"', 'name: "Y" label_filename: "l.txt"'))
    assert "has no file l.txt, the labels of the output Y" in refused(tmp_path, {"m": {}})
    (tmp_path / "m" / "l.txt").touch()
    kind(tmp_path, {"m": {}}).check()


def test_a_campaign_takes_the_newest_version_and_says_so(tmp_path):
    """Histogram, ``plan`` and report name version 2, as Triton would serve it."""
    model(tmp_path / "models", "plus", folders=["1", "2"])
    with uproot.recreate(tmp_path / "in.root") as file:
        file.mktree("t", {"x": "float32"}).extend({"x": np.zeros(200, np.float32)})
    campaign = {
        "campaign": "case", "datasets": {"d": {"files": "in.root", "tree": "t"}},
        "servers": {"model_repository": "models", "models": {"plus": {}}},
        "stages": {
            "inf": {"use": "infer", "model": "plus", "inputs": {"X": ["x"]}, "outputs": {"y": "Y"}},
            "fil": {"use": "fill", "from": "inf", "histograms": {"h": {"y": {"edges": [0.5, 1.5, 2.5]}}}},
        },
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(campaign))
    planned = command("plan", "c.yaml", cwd=tmp_path)
    assert "servers.models.plus: version 2" in planned.stdout, planned.stderr
    done = command("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "case" / "report.json").read_text())
    assert report["models"] == {"plus": {"version": 2}}
    with uproot.open(report["outputs"]["fil/d/nominal"]["root"]) as file:
        assert file["h"].values().tolist() == [0, 200]
