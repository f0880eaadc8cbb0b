"""Mistakes in a campaign file: the line, the mistake and the remedy in plain words; PyYAML's and pydantic's never."""

from __future__ import annotations

import copy

import pytest
import yaml

from campaign.errors import SpecError
from campaign.spec.yaml_file import load

GOOD = """\
campaign: mine
datasets:
  d:
    files: "data/*.root"
    tree: Events
stages:
  select:
    use: s.py:select
  fil: {use: "s.py:fill", from: select}
"""
COLON = "write 'key: value' with a colon and a space after each key; quote text that holds ': '"
INDENT = "indent keys that belong together by the same number of spaces"
QUOTES = "write quotes around the text"
FILES, TREE = '"data/*.root"', "tree: Events"
MISTAKES = {  # what is put in place of what: line, sentence, remedy
    "tab": ("  d:\n", "\td:\n", 3, "a tab stands in this line: d:", "indent with spaces"),
    "no colon": (TREE, "tree Events", 5, "there is no colon after the key in this line: tree Events", COLON),
    "no space": (TREE, "tree:Events", 5, "there is no space after the colon in this line: tree:Events", COLON),
    "no colon before keys": ("  d:\n", "  d\n", 3, "there is no colon after the key in this line: d", COLON),
    "two colons": (
        TREE, "tree: Events: x", 5, "a second colon stands in column 17 of this line: tree: Events: x", COLON,
    ),
    "deeper": (
        f"    {TREE}", f"      {TREE}", 5,
        "this line is indented by 6 spaces, the lines above it by 4, 2 or 0: tree: Events", INDENT,
    ),
    "between": (
        f"    {TREE}", f"   {TREE}", 5,
        "this line is indented by 3 spaces, the lines above it by 4, 2 or 0: tree: Events", INDENT,
    ),
    "open quote": (
        FILES, '"data/*.root', 4, 'the quote in column 12 of this line is not closed: files: "data/*.root',
        "close the quote with the same sign at the end of the text",
    ),
    "open bracket": (
        FILES, '["a.root", "b.root"', 4,
        'the bracket \'[\' in column 12 of this line is not closed: files: ["a.root", "b.root"',
        "write ']' after the last entry",
    ),
    "open brace": (
        "from: select}", "from: select", 9,
        "the bracket '{' in column 8 of this line is not closed: fil: {use: \"s.py:fill\", from: select",
        "write '}' after the last entry",
    ),
    "no comma": (
        '"s.py:fill",', '"s.py:fill"', 9,
        "a comma is missing before column 26 of this line: fil: {use: \"s.py:fill\" from: select}",
        "write a comma between entries, and quotes around text that holds ': ' or brackets",
    ),
    "star": (
        FILES, "*.root", 4, "a value that begins with '*' is the name of another value to YAML: files: *.root",
        "write quotes around the text, '*.root' for example",
    ),
    "percent": (TREE, "tree: %Events", 5, "text cannot begin with '%', in column 11: tree: %Events", QUOTES),
    "at": (TREE, "tree: @Events", 5, "text cannot begin with '@', in column 11: tree: @Events", QUOTES),
    "backtick": (TREE, "tree: `InputGroup`", 5, "text cannot begin with '`', in column 11: tree: `InputGroup`", QUOTES),
    "bar": (
        TREE, "tree: |Events", 5,
        "a value that begins with '|' or '>' is a text of the lines below to YAML: tree: |Events", QUOTES,
    ),
    "no-break space": (
        TREE, "tree:\u00a0Events", 5,
        "a no-break space (U+00A0) stands in column 10 of this line: tree:\u00a0Events", "write plain spaces",
    ),
    "list among keys": (
        f"    {TREE}", "    - tree", 5, "an entry of a list stands among keys, in this line: - tree",
        "put the entries of a list under a key of their own",
    ),
    "second document": (
        "stages:\n", "---\nstages:\n", 6, "a second document begins here: ---",
        "write one campaign in one file; take '---' away",
    ),
    "backslash": (
        FILES, '"data\\*.root"', 4,
        'the pair \\* in double quotes means nothing to YAML: files: "data\\*.root"',
        "write single quotes in place of the double quotes, or two backslashes",
    ),
    "conflict": (
        "stages:\n", "<<<<<<< HEAD\nstages:\n", 6,
        "this line is the mark of a merge conflict: <<<<<<< HEAD", "resolve the conflict",
    ),
}  # fmt: skip


def refused(path) -> str:
    """The message, without the folder."""
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_yaml_is_told_in_plain_words(tmp_path, mistake):
    """File and line, what stands there, what to write."""
    before, after, line, said, remedy = MISTAKES[mistake]
    assert before in GOOD
    (tmp_path / "c.yaml").write_text(GOOD.replace(before, after, 1))
    assert refused(tmp_path / "c.yaml") == f"c.yaml:{line}: {said}\n  remedy: {remedy}"


SCALARS = {
    "no-break space at the end": (
        "tree: Events\u00a0", "Events ends with a no-break space (U+00A0); write plain spaces",
    ),
    "curly quotes": (
        "tree: \u201cEvents\u201d",
        "\u201cEvents\u201d begins with a curly quote (U+201C); write straight quotes around the text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SCALARS)
def test_characters_that_look_like_others_are_refused(tmp_path, mistake):
    """An editor or a web page has put them there, and no eye sees them."""
    after, said = SCALARS[mistake]
    (tmp_path / "c.yaml").write_text(GOOD.replace(TREE, after))
    assert refused(tmp_path / "c.yaml") == f"c.yaml:5: datasets.d.tree: {said}"


def test_a_file_in_another_encoding_is_told_with_its_line(tmp_path):
    """Latin-1 and UTF-16."""
    path = tmp_path / "c.yaml"
    path.write_bytes(GOOD.replace("Events", "Ev\xe9nts").encode("latin-1"))
    assert refused(path) == (
        "c.yaml:5: the byte 0xE9 is no UTF-8 text: tree: Ev\\xe9nts\n  remedy: save the file as UTF-8"
    )
    path.write_bytes(GOOD.encode("utf-16"))
    assert refused(path) == "c.yaml:1: is written in UTF-16\n  remedy: save the file as UTF-8"


WHOLE = {
    "campaign": "mine", "read_rows": 100, "task_deadline_s": 60, "errors": {"max_failed_files": 1},
    "datasets": {"d": {"files": ["a.root"], "tree": "Events", "is_mc": True, "branches": {"a": "b"},
                       "metadata": {"xsec": 1.5}}},
    "servers": {"models": {"m": {"batch": 64, "tails": [8], "version": 1}}, "count": 1, "restarts": 1},
    "provider": "local",
    "stages": {
        "select": {"use": "s.py:select", "options": {"cut": 1}, "datasets": ["d"]},
        "inf": {"use": "infer", "from": "select", "model": "m", "inputs": {"X": ["a"]}, "outputs": {"y": "Y"},
                "keep": True},
        "fil": {"use": "s.py:fill", "from": "inf", "weighted": False},
        "factors": {"use": "s.py:f", "reduce": "fil"},
    },
    "variations": {"up": {"datasets": ["d"], "weight": "w", "tree": "Up"}},
}  # fmt: skip
KINDS = {"nothing": None, "a list": [], "a list of lists": [[1]], "a mapping": {}, "another mapping": {"q": {"r": 1}},
         "text": "nonsense", "a number": -1.5, "true": True}  # fmt: skip
FOREIGN = ("Input should", "valid dictionary", "pydantic", "Field required", "type=", "Value error", "instance of",
           "NoneType", "expected '<", "mapping values", "scanner")  # fmt: skip


def places(value, path=()):
    """Every place in the campaign."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_a_wrong_kind_is_told_in_words_of_a_library(tmp_path, kind):
    """Each place of a whole campaign in turn: accepted, or refused at its line with the key and a sentence of ours."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    load(path)
    told = 0
    for place in places(WHOLE):
        campaign = copy.deepcopy(WHOLE)
        here = campaign
        for part in place[:-1]:
            here = here[part]
        here[place[-1]] = KINDS[kind]
        path.write_text(yaml.safe_dump(campaign))
        try:
            load(path)
        except SpecError as error:
            told += 1
            text = str(error)
            assert not [words for words in FOREIGN if words in text], text
            assert f"{path}:" in text, text
            assert len(text.replace(str(path), "")) < 800, text
    assert told >= 8
