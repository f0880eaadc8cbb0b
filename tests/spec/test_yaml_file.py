"""YAML <-> Campaign: every error names file, line and key, what was found and what is allowed."""

from __future__ import annotations

import json
import re
import string
import warnings

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign import Campaign, StageSpec
from campaign.errors import SpecError
from campaign.spec import yaml_file, yaml_scalars

GOOD = """\
campaign: demo
datasets:
  mc: {files: "mc/*.root", tree: nominal, is_mc: true}
  data:
    files: [a.root, b.root]
    tree: nominal
servers:
  models: {tagger: {batch: 64}}
  count: 1
provider: local
stages:
  select: {use: "qg.py:select"}
  predict: {use: infer, from: select, model: tagger, inputs: {X: [pt]}, outputs: {score: S}, keep: true}
  first: {use: "qg.py:first", from: predict}
  factors: {use: "qg.py:factors", reduce: first}
variations:
  jes_up: {datasets: [mc], tree: JES}
"""


@pytest.fixture
def write(tmp_path):
    def put(text, name="c.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return put


def refused(path, *overrides):
    with pytest.raises(SpecError) as caught:
        yaml_file.load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


WRONG = {
    # what is put in place of what: (line, key, what the message says)
    "server for servers": (
        "servers:", "server:", 7, "server", "unknown key; did you mean 'servers'? (allowed: campaign,"
    ),
    "unknown key of a dataset": (
        "is_mc: true", "is_mv: true", 3, "datasets.mc.is_mv", "did you mean 'is_mc'? (allowed: files, tree, is_mc,"
    ),
    "unknown key of a model": (
        "batch: 64", "batsh: 64", 8, "servers.models.tagger.batsh", "did you mean 'batch'? (allowed: batch, tails,"
    ),
    "a range for the count": ("count: 1", "count: {min: 1, max: 4}", 9, "servers.count", "a whole number is needed"),
    "unknown key of a variation": (
        "tree: JES", "three: JES", 17, "variations.jes_up.three", "did you mean 'tree'? (allowed: datasets, tree,"
    ),
    "nothing near": ("provider: local", "zzz: 1", 10, "zzz", "unknown key (allowed: campaign, datasets, stages,"),
    "wrong type": ("count: 1", "count: many", 9, "servers.count", "a whole number is needed; found 'many'"),
    "wrong value": ("batch: 64", "batch: -1", 8, "servers.models.tagger.batch", "at least 1 is needed; found -1"),
    "list for a mapping": ("{batch: 64}", "[64]", 8, "servers.models.tagger", "a mapping of keys is needed"),
    "number for a name": ("provider: local", "provider: 7", 10, "provider", "found 7"),
    "nothing for a stage": ('{use: "qg.py:select"}', "", 12, "stages.select", "nothing stands behind this key"),
    "missing key": ("    tree: nominal\n", "", 4, "datasets.data.tree", "this key is needed"),
    "missing use": ('use: "qg.py:factors", ', "", 15, "stages.factors.use", "this key is needed"),
    "missing stages": ("stages:", "variations_:", 1, "stages", "this key is needed"),
    "bad name": ("jes_up:", "jes/up:", 17, "variations.jes/up", "a name is made of letters"),
    "number as a name": ("jes_up:", "7:", 17, "variations.7", "a key is text, and 7 is a number"),
    "unknown stage": ("from: predict}", "from: predikt}", 14, "stages.first.from", "'predikt' is none of"),
    "duplicate key": ("provider: local", "campaign: again", 10, "campaign", "stands twice"),
    "duplicate inner key": ("tree: JES", "tree: A, tree: B", 17, "variations.jes_up.tree", "stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_file_line_and_key(write, case):
    """Whatever is wrong with a key, the message names file, line and key, what was found and what is allowed."""
    old, new, line, key, said = WRONG[case]
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    text = refused(path)
    place = f"{path}:{line}: {key}: "
    assert place in text
    assert said in text.split(place, 1)[1].splitlines()[0]


NOT_YAML = {
    "tab": ("campaign: x\n\tdatasets: {}\n", 2, "a tab stands in this line"),
    "indentation": ("campaign: x\n  datasets: {}\n", 2, "indented deeper than the line above it"),
    "unclosed": ("campaign: [x\n", 1, "the bracket .* is not closed"),
    "two documents": ("campaign: x\n---\ncampaign: y\n", 2, "a second document begins here"),
    "python object": ("campaign: !!python/object/apply:os.system ['touch /tmp/never']\n", 1, "has the tag !!python"),
    "python name": ("campaign: x\nstages: !!python/name:os.system\n", 2, "has the tag !!python"),
    "key that is a list": ("campaign: x\n? [a, b]\n: c\n", 2, "where a key is expected"),
    "impossible date": ("campaign: 2020-13-45\n", 1, "may be a date or text"),
    "control character": ("campaign: \x01\n", 1, "U.0001 cannot stand in YAML"),
    "list": ("- a\n- b\n", 1, "not a mapping of keys but a list"),
    "text": ("hello\n", 1, "not a mapping of keys but a str"),
    "empty": ("", 1, "is empty"),
    "comments alone": ("# nothing\n", 1, "is empty"),
}


@pytest.mark.parametrize("case", NOT_YAML)
def test_what_is_no_plain_yaml_mapping_is_refused_where_it_ends_to_be_one(write, case):
    """A file that is no YAML, more than plain data, or no mapping is refused with file and line; nothing in it runs."""
    text, line, said = NOT_YAML[case]
    path = write(text)
    told = refused(path)
    assert told.startswith(f"{path}:{line}: " if line else str(path))
    assert re.search(said, told)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A missing file, a directory and bytes that are no text each give one sentence with the path."""
    assert "No such file" in refused(tmp_path / "nope.yaml")
    assert "directory" in refused(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"campaign: \xff\xfe")
    assert "b.yaml" in refused(tmp_path / "b.yaml")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB, "[" * 5000, "a: " + "{b: " * 60 + "1" + "}" * 60, "a: &a [*a]\n", "x: " + "y" * 1_100_000,
        "k: [" + "1, " * 60_000 + "]",
    ],
    ids=["alias bomb", "deep brackets", "deep keys", "alias of itself", "huge", "many nodes"],
)  # fmt: skip
def test_a_file_made_to_exhaust_is_refused(write, text):
    """Aliases that unfold without end, endless depth and size are refused instead of followed."""
    assert "c.yaml" in refused(write(text))


def test_several_errors_are_told_at_once(write):
    """Two wrong keys give one error that names both places."""
    text = refused(write(GOOD.replace("is_mc: true", "is_mv: true").replace("tree: JES", "three: JES")))
    assert "c.yaml:3: datasets.mc.is_mv" in text
    assert "c.yaml:17: variations.jes_up.three" in text


def test_errors_after_loading_know_the_line_too(write):
    """What is found out later about a key is placed at its line, or at the ``--set`` that gave it."""
    path = write(GOOD)
    error = SpecError("no", key=("stages", "predict", "model"))
    assert yaml_file.load(path).locate(error).where == f"{path}:13: stages.predict.model"
    error = SpecError("no", key=("stages", "predict", "model"))
    assert yaml_file.load(path, ["stages.predict.model=x"]).locate(error).where == "--set stages.predict.model"


# --set ----------------------------------------------------------------------------------------------------------------


def test_set_changes_what_it_names(write):
    """``--set`` takes a dotted key and a YAML value, into mappings, lists, and places that are not there yet."""
    made = yaml_file.load(
        write(GOOD),
        ["servers.count=3", "servers.models.tagger.batch=8", "datasets.data.files.1=z.root", "retries=0",
         "variations.w.weight=pdf[7]", "provider.options={a: 1}", "workers=", "datasets.mc.metadata.lumi=3.5"],
    )  # fmt: skip
    assert made.servers.count == 3
    assert made.servers.models["tagger"].batch == 8
    assert made.datasets["data"].files == ("a.root", "z.root")
    assert made.variations["w"].weight == "pdf[7]"
    assert (made.provider.kind, made.provider.given) == ("local", {"a": 1})
    assert (made.retries, made.workers) == (0, None)
    assert made.datasets["mc"].metadata == {"lumi": 3.5}


WRONG_SETS = {
    "servers.count": "is not KEY=VALUE",
    "=3": "is not KEY=VALUE",
    "a..b=3": "is not KEY=VALUE",
    "servers.count=[1": "the value is no YAML",
    "servers.count=2020-13-45": "may be a date or text; write quotes",
    "datasets.data.files.7=x": "the list has 2 entries, '7' is not one of them",
    "datasets.data.files.x=x": "the list has 2 entries, 'x' is not one of them",
    "datasets.mc.files.0=x": "'files' is 'mc/*.root' and has no keys",
    "campaign.name=x": "'campaign' is 'demo' and has no keys",
    "server.count=2": "did you mean 'servers'?",
    "servers.count=many": "a whole number is needed",
    "stages.first.from=nope": "'nope' is none of",
}


@pytest.mark.parametrize("override", WRONG_SETS)
def test_a_wrong_set_is_blamed_itself(write, override):
    """An override that makes no sense is named as such, not as a line of the file."""
    text = refused(write(GOOD), override)
    assert WRONG_SETS[override] in text
    assert "--set" in text
    assert "c.yaml:" not in text


def test_set_on_an_anchor_leaves_its_aliases_alone(write):
    """A value that several keys share by alias is changed for the one key that is named."""
    text = GOOD.replace('mc: {files: "mc/*.root"', 'mc: &d {files: "mc/*.root"') + "  jes_down: &v {tree: D}\n  x: *v\n"
    made = yaml_file.load(write(text), ["variations.x.tree=E"])
    assert (made.variations["x"].tree, made.variations["jes_down"].tree) == ("E", "D")


def test_set_gives_the_campaign_the_file_would_give(write):
    """A campaign changed by ``--set`` equals the one whose file says so."""
    changed = write(GOOD.replace("count: 1", "count: 4"), "d.yaml")
    assert yaml_file.load(write(GOOD), ["servers.count=4"]) == yaml_file.load(changed)


# There and back -------------------------------------------------------------------------------------------------------

names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=8).filter(
    lambda s: s[0] in string.ascii_letters + string.digits
)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
datasets = st.fixed_dictionaries(
    {"files": texts | st.lists(texts, min_size=1, max_size=3), "tree": texts},
    optional={
        "is_mc": st.booleans(), "metadata": texts | st.dictionaries(texts, values, max_size=3),
        "branches": st.dictionaries(texts, texts, max_size=2),
    },
)  # fmt: skip
variations = st.fixed_dictionaries({"weight": texts}, optional={"tree": texts, "files": texts})
servers = st.fixed_dictionaries(
    {"models": st.dictionaries(names, st.fixed_dictionaries({}, optional={"batch": st.integers(1, 9)}), min_size=1)},
    optional={
        "count": st.integers(1, 9),
        "lease_s": st.floats(0.5, 60),
        "urls": values,
    },
)


@st.composite
def campaigns(draw):
    stages = {
        "first": {"use": draw(texts), "keep": draw(st.booleans()), "options": draw(st.dictionaries(texts, values))}
    }
    if draw(st.booleans()):
        stages["again"] = {"use": draw(texts), "from": "first", "extra": draw(values)}
        stages["factors"] = {"use": draw(texts), "reduce": "again"}
    made = {"campaign": draw(names), "datasets": draw(st.dictionaries(names, datasets, min_size=1, max_size=3))}
    made["stages"] = stages
    made["variations"] = draw(st.dictionaries(names.filter(lambda n: n != "nominal"), variations, max_size=2))
    if draw(st.booleans()):
        made["servers"] = draw(servers)
    if draw(st.booleans()):
        made["provider"] = {"kind": draw(names), "options": draw(st.dictionaries(texts, values, max_size=2))}
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=campaigns())
def test_yaml_to_campaign_to_yaml_gives_an_equal_campaign(tmp_path_factory, data):
    """A campaign dumped as YAML and loaded again is equal, and dumps to the same text."""
    path = tmp_path_factory.getbasetemp() / "roundtrip.yaml"
    path.write_text(yaml.dump(data, Dumper=yaml_scalars.Dumper, allow_unicode=True))
    made = yaml_file.load(path)
    assert made == Campaign.model_validate(data)
    text = yaml_file.dump(made)
    path.write_text(text)
    assert yaml_file.load(path) == made
    assert yaml_file.dump(yaml_file.load(path)) == text


def test_a_python_object_cannot_be_dumped():
    """A stage that is a Python function has no name a file could hold; the error says which and what to write."""
    made = Campaign(campaign="c", datasets={"d": {"files": "f", "tree": "t"}}, stages={"s": StageSpec(use=len)})
    with pytest.raises(SpecError, match="Python object"):
        yaml_file.dump(made)


# The schema -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = json.loads(json.dumps(yaml_file.schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def shipped(root):
    return [
        p for p in sorted((root / "examples").glob("*/*.yaml")) if "campaign" in (yaml.safe_load(p.read_text()) or {})
    ]


def test_the_schema_accepts_every_shipped_campaign(validator, request):
    """Each campaign file of the examples loads, and is right by the published schema."""
    validator.validate(yaml.safe_load(GOOD))
    for path in shipped(request.config.rootpath):
        validator.validate(yaml.safe_load(path.read_text()))
        yaml_file.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("servers:", "server:"), ("is_mc: true", "is_mv: true"), ("batch: 64", "batsh: 64"),
        ("tree: JES", "three: JES"),
        ("count: 1", "cuont: 1"), ("count: 1", "count: many"), ("    tree: nominal\n", ""), ("campaign: demo", "x: 1"),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_check_refuses(validator, old, new):
    """A wrong key, type or gap is an error by the schema too, so an editor marks it."""
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(GOOD.replace(old, new, 1)))


def test_the_schema_knows_the_options_of_registered_kinds(validator):
    """Keys of the registered server kinds and providers stand in the schema."""
    assert "model_repository" in validator.schema["$defs"]["ServerSpec"]["properties"]
    assert "urls" in validator.schema["$defs"]["ServerSpec"]["properties"]
