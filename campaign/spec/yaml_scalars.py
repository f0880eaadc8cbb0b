"""Reads plain YAML values by the YAML 1.2 core schema; refuses values that YAML 1.1 reads otherwise.

PyYAML reads YAML 1.1: ``1e-3`` is text, ``0123`` is 83, ``2018_01`` is 201801, ``NO`` is false, ``1:30:00`` is 5400.
YAML 1.2 (https://yaml.org/spec/1.2.2/, section 10.3) reads most of these in another way. Where both versions agree, the
value is taken. Where only 1.2 knows a number (``1e-3``), the number is taken. Where a reader cannot be sure, the value
is refused, and the message says what to write.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_NULL, _BOOL = r"~|null|Null|NULL|", r"true|True|TRUE|false|False|FALSE"
_INT = r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_DOUBTFUL: tuple[tuple[str, str, str], ...] = (
    # pattern, what the value might be, what to write for the other meaning
    (r"[yY]es|YES|[oO]n|ON", "true or text", "true"),
    (r"[nN]o|NO|[oO]ff|OFF", "false or text", "false"),
    (
        r"[-+]?0[0-9]+(?:[eE][-+]?[0-9]+)?",
        "an octal number, a decimal number or text",
        "the number without leading zeros",
    ),
    (r"[-+]?0b[01_]+", "a binary number or text", "the decimal number"),
    (r"[-+](?:0x[0-9a-fA-F_]+|0o[0-7_]+)", "a number or text", "the decimal number"),
    (
        r"(?=[^_]*_)[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|(?=[^_]*_)\.[0-9][0-9_]*|0[xob][0-9a-fA-F_]*_[0-9a-fA-F_]*",
        "a number or text",
        "the number without '_'",
    ),
    (
        r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*",
        "a time, a number to the base 60 or text",
        "the number of seconds",
    ),
    (r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt\s].*)?", "a date or text", ""),
)
ODD_NAMES = {"\u00a0": "a no-break space", "\u200b": "a zero-width space", "\ufeff": "a byte order mark"}
ODD_SPACE = "[\u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]"  # spaces to the eye, letters to YAML
_CURLY = "[\u2018-\u201f]"
_ODD = rf"(?s:{ODD_SPACE}.*|.*{ODD_SPACE}|{_CURLY}.*)"
_DOUBT = [(re.compile(pattern), might, write) for pattern, might, write in _DOUBTFUL]
_PREFIX = "tag:yaml.org,2002:"
_TAGS = ((_NULL, "null"), (_BOOL, "bool"), (_INT, "int"), (_FLOAT, "float"))
_ALLOWED = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def _resolvers(rules: tuple[tuple[str, str], ...]) -> dict[str | None, list[tuple[str, re.Pattern[str]]]]:
    merge = [(_PREFIX + "merge", re.compile("<<"))]
    return {None: [(_PREFIX + tag, re.compile(rf"(?:{pattern})\Z")) for pattern, tag in rules] + merge}


class Doubtful(ValueError):
    """A value may mean two things; the text says which, and what to write."""


class Loader(yaml.SafeLoader):
    """Reads plain values as `resolved` says."""

    yaml_implicit_resolvers = _resolvers(_TAGS)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: text that would be another value, or be refused, is quoted."""

    yaml_implicit_resolvers = _resolvers((*_TAGS, (_ODD, "odd"), *((pattern, "doubt") for pattern, _, _ in _DOUBTFUL)))


def doubt(node: yaml.Node) -> str:
    """The ambiguity in a plain value, with the remedy; empty if there is none.

    Args:
        node: Any node of a composed document.
    """
    if node.tag not in _ALLOWED:
        return f"has the tag {node.tag.replace(_PREFIX, '!!')}, which a campaign does not use; take the tag away"
    if not isinstance(node, yaml.ScalarNode):
        return ""
    text = node.value
    if node.style is None and node.tag == _PREFIX + "str":
        if odd := _odd(text):
            return odd
        for pattern, might, write in _DOUBT:
            if pattern.fullmatch(text):
                other = f", or {write}" if write else ""
                return f"{text} may be {might}; write quotes ('{text}') if it is text{other}"
    try:
        found = value(node)
    except ValueError:
        return f"{text} is no {node.tag.replace(_PREFIX, '')}; take the tag away"
    if isinstance(found, float) and math.isinf(found) and "inf" not in text.lower():
        return f"{text} is too large for a number; write a smaller one, or quotes if it is text"
    return ""


def _odd(text: str) -> str:
    """The invisible or misleading characters at the edges of a text without quotes: odd spaces, curly quotes."""
    if re.match(_CURLY, text):
        return f"{text} begins with a curly quote (U+{ord(text[0]):04X}); write straight quotes around the text"
    found = re.match(ODD_SPACE, text) or re.search(rf"{ODD_SPACE}\Z", text)
    if not found:
        return ""
    name, place = ODD_NAMES.get(found[0], "an odd space"), "ends" if found.start() else "begins"
    shown = re.sub(rf"^{ODD_SPACE}+|{ODD_SPACE}+$", "", text)
    return f"{shown} {place} with {name} (U+{ord(found[0]):04X}); write plain spaces"


def key_doubt(name: yaml.Node, given: yaml.Node, flow: bool) -> str:
    """The ambiguity in a key; empty if there is none.

    Args:
        name: The node of the key.
        given: The node of its value.
        flow: Whether the mapping is written in braces.
    """
    if not isinstance(name, yaml.ScalarNode) or name.tag == _PREFIX + "merge" or doubt(name):
        return ""
    alone = flow and isinstance(given, yaml.ScalarNode) and given.tag == _PREFIX + "null" and not given.value
    if name.tag == _PREFIX + "str":
        parts = re.fullmatch(r"(\w+)(?::| +)(\S.*)", name.value) if alone and name.style is None else None
        return f"{name.value} has no value; write '{parts[1]}: {parts[2]}' with a colon and a space" if parts else ""
    if alone:
        return f"{name.value} stands behind a comma and has no value; in a number write a decimal point"
    written = str(yaml.dump(value(name), Dumper=Dumper)).partition("\n")[0]
    if name.style is None and written != name.value:
        return (
            f"{name.value} may be the key {written} or text; write quotes ('{name.value}') if it is text, or {written}"
        )
    return ""


def value(node: yaml.ScalarNode) -> Any:
    """The value of a scalar node; ValueError if its tag does not fit its text."""
    text, kind = str(node.value), node.tag.removeprefix(_PREFIX)
    if kind == "null":
        return None
    if kind == "bool":
        if not re.fullmatch(_BOOL, text):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        if not re.fullmatch(_INT, text):
            raise ValueError(text)
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if kind == "float":
        word = text.lower().replace(".inf", "inf").replace(".nan", "nan")
        if not re.fullmatch(rf"{_FLOAT}|{_INT}", text) or text[:2] in ("0x", "0o"):
            raise ValueError(text)
        return float(word)
    return text


def _construct(_loader: Loader, node: yaml.ScalarNode) -> Any:
    return value(node)


for _tag in ("null", "bool", "int", "float"):
    Loader.add_constructor(_PREFIX + _tag, _construct)


def load(text: str) -> Any:
    """The data of a YAML text, for text that no person has written or that has been looked at already.

    Raises:
        yaml.YAMLError: It is no YAML.
        Doubtful: A value stands in it that `doubt` refuses.
    """
    root = yaml.compose(text, Loader=Loader)
    for node in nodes(root):
        if found := doubt(node):
            raise Doubtful(found)
    return yaml.load(text, Loader=Loader)  # noqa: S506  a SafeLoader


def nodes(root: yaml.Node | None) -> list[yaml.Node]:
    """Every node of a document once, keys too, in the order of the text."""
    found: dict[int, yaml.Node] = {}
    waiting = [root] if root is not None else []
    while waiting:
        node = waiting.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
    return list(found.values())
