"""Values of YAML: numbers are numbers, text is text, and a value that may be both is refused where it stands."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from campaign.errors import SpecError
from campaign.planning import free_values
from campaign.planning.datasets import expand
from campaign.spec import yaml_file, yaml_scalars
from tests.conftest import command

TAKEN = {
    "1e-3": 0.001, "1e3": 1000.0, "+1E3": 1000.0, "1.5e3": 1500.0, "2.e-1": 0.2, ".5": 0.5, "-.5": -0.5, "5.": 5.0,
    "0": 0, "-7": -7, "+5": 5, "0x1F": 31, "0o17": 15, "0.50": 0.5, ".inf": math.inf, "-.INF": -math.inf,
    "true": True, "False": False, "~": None, "null": None, "": None,
    "y": "y", "n": "n", "=": "=", "period_A": "period_A", "1.2.3": "1.2.3", "2018-01": "2018-01",
    "00:30:00": "00:30:00",
    "'0123'": "0123", '"1e-3"': "1e-3", "'NO'": "NO", "!!str 1e-3": "1e-3", "1,000": "1,000", "123abc": "123abc",
}  # fmt: skip
REFUSED = {
    "0123": "an octal number, a decimal number or text; write quotes ('0123') if it is text, or the number without",
    "00": "an octal number", "09": "an octal number", "-010": "an octal number", "012e3": "an octal number",
    "2018_01": "a number or text; write quotes ('2018_01') if it is text, or the number without '_'",
    "1_000.5": "a number or text", "0x_1F": "a number or text", "-0x1F": "a number or text", "0b11": "a binary number",
    "1:30:00": "a time, a number to the base 60 or text; write quotes ('1:30:00')", "12:30.5": "a time",
    "-1:30": "a time",
    "NO": "false or text; write quotes ('NO') if it is text, or false", "off": "false or text", "No": "false or text",
    "yes": "true or text; write quotes ('yes') if it is text, or true", "On": "true or text",
    "2018-01-01": "a date or text; write quotes ('2018-01-01')", "2018-1-1T10:00:00Z": "a date", "2020-13-45": "a date",
    "1e999": "too large for a number", "!!int 1:30": "is no int", "!!float x": "is no float", "!!bool on": "is no bool",
    "!!timestamp 2018-01-01": "has the tag !!timestamp", "!!binary aGk=": "has the tag !!binary",
    "!mine x": "has the tag",
}  # fmt: skip


@pytest.mark.parametrize("text", TAKEN)
def test_a_value_that_means_one_thing_is_taken(text):
    """A value is what YAML 1.2 says, of the same type."""
    found = yaml_scalars.load(f"a: {text}")["a"]
    assert found == TAKEN[text]
    assert type(found) is type(TAKEN[text])


def test_not_a_number_is_a_float():
    """``.nan`` is the only word for it."""
    assert math.isnan(yaml_scalars.load("a: .nan")["a"])
    assert yaml_scalars.load("a: nan")["a"] == "nan"


@pytest.mark.parametrize("place", ["a: {}", "a: [1, {}]", "a: {{b: {}}}", "{}: 1", "a: &x {}", "? {}\n: 1"])
@pytest.mark.parametrize("text", REFUSED)
def test_a_value_that_may_mean_two_things_is_refused(text, place):
    """As a value, in a list, in a mapping and as a key; the message says what to write."""
    with pytest.raises(yaml_scalars.Doubtful) as caught:
        yaml_scalars.load(place.format(text))
    assert REFUSED[text] in str(caught.value)


PLAIN = st.text("0123456789_:.eE+-xobyYnNsTZft~", max_size=12) | st.from_regex(
    r"\A[-+]?[0-9_]{0,4}[.:_eE]?[-+]?[0-9_]{0,3}([.:][0-9_]{1,3})?\Z"
)


@given(text=PLAIN)
@example(text="1e-3")
@example(text="1_0")
def test_no_plain_value_changes_its_meaning_silently(text):
    """What PyYAML's 1.1 reads otherwise is either refused or a number of 1.2 that 1.1 took for text."""
    try:
        old = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError):
        return
    try:
        new = yaml_scalars.load(f"[{text}]")
    except yaml_scalars.Doubtful:
        return
    if new != old and not any(isinstance(v, float) and math.isnan(v) for v in new if not isinstance(v, dict)):
        assert [type(v) for v in old] == [str]
        assert isinstance(new[0], (int, float))
        assert float(new[0]) == (float(old[0]) if "0o" not in old[0] else int(old[0], 8))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | PLAIN
    | st.sampled_from([*REFUSED, *TAKEN]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | PLAIN, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(value=VALUES)
def test_what_is_dumped_is_read_back(value):
    """Text that looks like a number, a date or a word of YAML is quoted when it is written."""
    assert yaml_scalars.load(yaml.dump({"a": value}, Dumper=yaml_scalars.Dumper, allow_unicode=True)) == {"a": value}


CAMPAIGN = """\
campaign: c
datasets:
  d: {files: x.root, tree: t, metadata: {xsec: 1e-3, run: 0123, period: 2018_01, blind: NO}}
provider:
  kind: parsl
  provider: {class: SlurmProvider, account: m1, walltime: 1:30:00}
stages:
  s: {use: "s.py:S", options: {on: 1}}
"""


def test_check_names_every_doubtful_value_at_its_key(tmp_path):
    """In metadata, options, provider arguments and keys: all of them in one message, and nothing is started."""
    path = tmp_path / "c.yaml"
    path.write_text(CAMPAIGN)
    done = command("check", str(path), cwd=tmp_path)
    assert done.returncode == 2
    places = ["3: datasets.d.metadata.run", "3: datasets.d.metadata.period", "3: datasets.d.metadata.blind"]
    for place in (*places, "6: provider.provider.walltime", "8: stages.s.options.on"):
        assert f"{path}:{place}: " in done.stderr, done.stderr
    assert "xsec" not in done.stderr
    with pytest.raises(SpecError, match=r"provider.walltime.*: 1:30:00 may be a time.*write quotes \('1:30:00'\)"):
        yaml_file.apply({}, "provider.walltime=1:30:00")


def test_two_keys_that_are_one_are_refused(tmp_path):
    """1 and 1.0 are the same key of a mapping: the later value would replace the other."""
    path = tmp_path / "c.yaml"
    path.write_text("campaign: c\nmetadata: {1: a, 1.0: b}\n")
    with pytest.raises(SpecError, match=r"c.yaml:2: metadata.1.0: is the same key as 1"):
        yaml_file.parse(path)


PLACES = """\
campaign: %s
datasets: {d: {files: x.root, tree: t, metadata: {%s}}}
stages: {s: {use: "s.py:s", options: {%s}}}
variations: {%s: {weight: %s}}
"""
GIVEN = ("c", "", "", "v", "w")
WRONG = {  # name, metadata, options, variation, weight: line and key, what is said
    ("2018", *GIVEN[1:]): "1: campaign: text is needed, and 2018 is a number; write quotes around it",
    (*GIVEN[:4], "1e-3"): "4: variations.v.weight: text is needed, and 0.001 is a number; write quotes around it",
    (*GIVEN[:3], "2018", "w"): "4: variations.2018: a key is text, and 2018 is a number; write quotes around it",
    ("c", "5: 1", *GIVEN[2:]): "2: datasets.d.metadata.5: a key is text, and 5 is a number",
    ("c", "1e-3: 1", *GIVEN[2:]): "2: datasets.d.metadata.1e-3: 1e-3 may be the key 0.001 or text; write quotes",
    ("c", "", "a: {0x10: 1}", *GIVEN[3:]): "3: stages.s.options.a.0x10: 0x10 may be the key 16 or text",
    ("c", "", "a: {1.50: 1}", *GIVEN[3:]): "3: stages.s.options.a.1.50: 1.50 may be the key 1.5 or text",
    ("c", "", "a: {True: 1}", *GIVEN[3:]): "3: stages.s.options.a.True: True may be the key true or text",
    ("c", "xsec: 1,5", *GIVEN[2:]): "2: datasets.d.metadata.5: 5 stands behind a comma and has no value; in a number",
    ("c", "", "cut: {pt: 0,25}", *GIVEN[3:]): "3: stages.s.options.cut.25: 25 stands behind a comma and has no value",
    ("c", "a: <<", *GIVEN[2:]): "2: datasets.d.metadata.a: << merges mappings; write quotes if it is text",
}  # fmt: skip


@pytest.mark.parametrize("given", WRONG)
def test_keys_and_typed_places_follow_the_same_rules(tmp_path, given):
    """A number is no name, a key is taken as it is written, and a decimal comma makes no second key."""
    path = tmp_path / "c.yaml"
    path.write_text(PLACES % given)
    with pytest.raises(SpecError) as caught:
        yaml_file.load(path)
    assert f"{path}:{WRONG[given]}" in str(caught.value)


def test_keys_of_options_that_are_numbers_stay_numbers(tmp_path):
    """Whole and decimal numbers as they are written, also after they were dumped."""
    path = tmp_path / "c.yaml"
    path.write_text(PLACES % ("c", "", "a: {2018: 1, 0.5: 2, '7': 3}", "v", "w"))
    campaign = yaml_file.load(path)
    assert campaign.stages["s"].given == {"a": {2018: 1, 0.5: 2, "7": 3}}
    path.write_text(yaml_file.dump(campaign))
    assert yaml_file.load(path).stages["s"].given == campaign.stages["s"].given


METADATA = {  # side file: what is said of it
    "410470: {a: 1}": "side.yaml: the pattern 410470 is no text",
    "'*': 5": "side.yaml: '*' is not a mapping but 5",
    "'*': {by_year: {2018: 1}}": "side.yaml: *.by_year.2018 is a key that is no text: 2018",
    "'*': {a: [1, .nan]}": "side.yaml: *.a.1 is nan, which metadata cannot hold",
    "'*': {a: 1, a: 2}": "side.yaml:1: *.a: stands twice",
    "'*': {a: 0123}": "side.yaml:1: *.a: 0123 may be an octal number",
}


@pytest.mark.parametrize("text", METADATA)
def test_metadata_reaches_stages_as_it_stands_or_is_refused(tmp_path, text):
    """A key that would become text, a number that JSON has not, a file's pattern that is no text."""
    (tmp_path / "side.yaml").write_text(text + "\n")
    (tmp_path / "x.root").touch()
    path = tmp_path / "c.yaml"
    path.write_text((PLACES % GIVEN).replace("metadata: {}", "metadata: side.yaml"))
    campaign = yaml_file.load(path)
    with pytest.raises(SpecError) as caught:
        expand(campaign, ["x.root"], "side.yaml", ("datasets", "d", "files"))
    assert METADATA[text] in str(caught.value)


@pytest.mark.parametrize("text", ["{x: 1, x: 2}", "{1: 1, 1.0: 2}", "{a: {1e-3: 1}}", "{a: 1,5}"])
def test_a_value_of_set_loses_nothing(text):
    """What a file would be refused for, ``--set`` is refused for."""
    with pytest.raises(SpecError, match=r"--set a={"):
        yaml_file.apply({}, f"a={text}")


def test_a_plan_shows_values_with_their_types():
    """Text stands in quotes, numbers do not, as keys too."""
    shown = free_values._short({"a": 0.001, "b": "1e-3", 2018: [True, None, "NO"], "2018": {0.5: 1}})
    assert shown == '{"a": 0.001, "b": "1e-3", 2018: [true, null, "NO"], "2018": {0.5: 1}}'
