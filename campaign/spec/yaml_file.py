"""Reads a Campaign from YAML and writes it. Errors name the file, the line, the key and the allowed values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from campaign.errors import SpecError
from campaign.spec import yaml_errors, yaml_scalars
from campaign.spec.models import Campaign, Key, Origin
from campaign.util.messages import meant, needed

MERGE = "tag:yaml.org,2002:merge"
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 50_000, 40
_BAD_YAML = (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError)  # ValueError: a date such as 2020-13-45


def load(path: str | Path, overrides: Iterable[str] = ()) -> Campaign:
    """Read a campaign file.

    Args:
        path: The YAML file; paths inside it are relative to it.
        overrides: ``KEY=VALUE`` with a dotted key and a YAML value, as ``--set`` takes them.

    Raises:
        SpecError: The file cannot be read, is no YAML, or is no campaign.
    """
    path = Path(path)
    data, lines = parse(path)
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"is not a mapping of keys but a {type(data).__name__}"
        raise SpecError(found, where=f"{path}:1", remedy="see the README for a campaign file")
    origin = Origin(str(path), lines, frozenset([apply(data, text) for text in overrides]))
    try:
        campaign = Campaign.model_validate(data)
    except ValidationError as error:
        raise _explain(error, origin, data) from None
    except SpecError as error:
        error.where = origin.place(error.key)
        raise
    return campaign.at(path.resolve().parent, origin)


def dump(campaign: Campaign) -> str:
    """Return the campaign as YAML text. `loads` makes an equal campaign from it. Defaults are left out.

    Raises:
        SpecError: A stage is a Python object, or an option holds a value that YAML cannot represent.
    """
    for name, stage in campaign.stages.items():
        if not isinstance(stage.use, str):
            raise SpecError("is a Python object", key=("stages", name, "use"), remedy="write it as 'file.py:Name'")
    data = _unshared(campaign.model_dump(by_alias=True, exclude_defaults=True))
    try:
        whole = {"campaign": data.pop("campaign"), **data}
        return str(yaml.dump(whole, Dumper=yaml_scalars.Dumper, sort_keys=False, allow_unicode=True))
    except yaml.YAMLError as error:
        raise SpecError(f"holds what YAML cannot: {error}", remedy="use plain data in options") from None


def loads(text: str, base: Path, where: str) -> Campaign:
    """The campaign of a text that `dump` has made, with paths relative to ``base``.

    Args:
        text: The YAML.
        base: Folder that relative paths start from.
        where: Where the text stood, for errors.

    Raises:
        SpecError: It is no campaign.
    """
    try:
        return Campaign.model_validate(yaml_scalars.load(text)).at(base)
    except (*_BAD_YAML, ValidationError) as error:
        raise SpecError(f"holds no campaign: {error}", where=where) from None


def schema() -> dict[str, Any]:
    """JSON schema of a campaign file, for editors; the options of every registered kind and stage are in it."""
    from campaign.spec.options import option_models

    published = Campaign.model_json_schema(by_alias=True)
    published["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for definition, options in (("ServerSpec", option_models("servers")), ("ProviderSpec", option_models("providers"))):
        properties = published["$defs"][definition]["properties"]
        published["$defs"][definition]["additionalProperties"] = False
        for model in options.values():
            part = model.model_json_schema(ref_template="#/$defs/{model}")
            published["$defs"].update(part.get("$defs", {}))
            for name, value in part.get("properties", {}).items():
                properties.setdefault(name, _or_one(value))
    published["properties"]["provider"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/ProviderSpec"}]}
    models = published["$defs"]["ServerSpec"]["properties"]["models"]
    published["$defs"]["ServerSpec"]["properties"]["models"] = {
        "anyOf": [models, {"type": "array", "items": {"type": "string"}}, {"type": "string"}]
    }
    published["$defs"]["StageSpec"]["additionalProperties"] = True  # a stage class brings its own keys
    for definition, key in (("Dataset", "files"), ("Variation", "files"), ("Variation", "datasets"),
                            ("StageSpec", "datasets"), ("StageSpec", "with")):  # fmt: skip
        properties = published["$defs"][definition]["properties"]
        properties[key] = {"anyOf": [properties[key], {"type": "string"}]}
    return published


def _or_one(schema: dict[str, Any]) -> dict[str, Any]:
    # Options that are lists of names take one name too, as the core's own keys do.
    if schema.get("type") == "array" and schema.get("items") == {"type": "string"}:
        return {"anyOf": [schema, {"type": "string"}]}
    return schema


def parse(path: Path) -> tuple[Any, dict[Key, int]]:
    """The data of a YAML file and the line of each key. Only plain data: no tags, no code.

    Raises:
        SpecError: Not readable, not YAML, a key twice, or too large or too deep to be a description.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"is larger than {MAX_BYTES} bytes", where=str(path), remedy="list files in a .txt file")
        text = yaml_errors.decoded(path.read_bytes(), str(path))
        root = yaml.compose(text, Loader=yaml_scalars.Loader)
    except OSError as error:
        raise SpecError(
            f"cannot be read: {error.strerror or error}", where=str(path), remedy="check the path"
        ) from None
    except _BAD_YAML as error:
        raise yaml_errors.refusal(error, text, str(path)) from None
    lines: dict[Key, int] = {}
    doubts: list[str] = []
    if root is not None:
        _walk(root, (), lines, path, [0], doubts)
    if doubts:
        raise _doubtful(doubts)
    try:
        return _unshared(yaml.load(text, Loader=yaml_scalars.Loader)), lines  # noqa: S506  a SafeLoader
    except _BAD_YAML as error:
        raise yaml_errors.refusal(error, text, str(path)) from None


def _doubtful(doubts: list[str]) -> SpecError:
    if len(doubts) == 1:
        where, _, said = doubts[0].partition(": ")
        return SpecError(said, where=where)
    return SpecError("".join(f"\n{doubt}" for doubt in doubts), where="values that may mean two things")


def _unshared(value: Any) -> Any:
    # An anchor and its aliases load as one object; --set on one must leave the others alone.
    if isinstance(value, dict):
        return {k: _unshared(v) for k, v in value.items()}
    return [_unshared(v) for v in value] if isinstance(value, (list, tuple)) else value


def _walk(
    node: yaml.Node, key: Key, lines: dict[Key, int], path: Path | str, seen: list[int], doubts: list[str]
) -> None:
    seen[0] += 1
    # Aliases are walked once per use, so that a few lines that unfold into millions of nodes are counted as such.
    if seen[0] > MAX_NODES or len(key) > MAX_DEPTH:
        raise SpecError("is too large or too deep for a campaign", where=f"{path}:{node.start_mark.line + 1}")
    lines.setdefault(key, node.start_mark.line + 1)
    _note(node, key, path, doubts)
    if isinstance(node, yaml.MappingNode):
        _no_equal_keys(node, key, path)
        for name, value in node.value:
            child = (*key, str(name.value))
            _note(name, child, path, doubts, yaml_scalars.key_doubt(name, value, bool(node.flow_style)))
            if value.tag == MERGE:
                _note(value, child, path, doubts, f"{value.value} merges mappings; write quotes if it is text")
            if child in lines and name.value != "<<":
                raise SpecError("stands twice", where=f"{path}:{name.start_mark.line + 1}: {'.'.join(child)}")
            lines[child] = name.start_mark.line + 1
            _walk(value, child, lines, path, seen, doubts)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*key, str(i)), lines, path, seen, doubts)


def _no_equal_keys(node: yaml.MappingNode, key: Key, path: Path | str) -> None:
    # 1 and 1.0 are written differently and are one key of a dict: the later one would replace the other.
    seen: dict[Any, str] = {}
    for name, _ in node.value:
        if isinstance(name, yaml.ScalarNode) and name.value != "<<" and not yaml_scalars.doubt(name):
            other = seen.setdefault(yaml_scalars.value(name), name.value)
            if other != name.value:
                where = f"{path}:{name.start_mark.line + 1}: {'.'.join((*key, name.value))}"
                raise SpecError(f"is the same key as {other}", where=where, remedy="write quotes around text")


def _note(node: yaml.Node, key: Key, path: Path | str, doubts: list[str], more: str = "") -> None:
    found = yaml_scalars.doubt(node) or more
    if found:
        doubts.append(f"{path}:{node.start_mark.line + 1}: {'.'.join(key)}: {found}")


def apply(data: dict[str, Any], override: str) -> Key:
    """Put ``dotted.key=YAML value`` into ``data``; returns the key.

    Raises:
        SpecError: It has no ``=``, or the value is no YAML, or the key leads through something that has no keys.
    """
    dotted, equals, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    where = f"--set {override}"
    if not equals or not all(key):
        raise SpecError("is not KEY=VALUE", where=where, remedy="for example --set servers.count=2")
    doubts: list[str] = []
    try:
        value = yaml_scalars.load(text)
        root = yaml.compose(text, Loader=yaml_scalars.Loader)
        if root is not None:
            _walk(root, (), {}, where, [0], doubts)
        if doubts:
            raise _doubtful(doubts)
    except yaml_scalars.Doubtful as error:
        raise SpecError(str(error), where=where) from None
    except _BAD_YAML:
        raise SpecError("the value is no YAML", where=where, remedy="quote it") from None
    here: Any = data
    for part in key[:-1]:
        here = _step(here, part, where)
    if isinstance(here, list):
        here[_index(here, key[-1], where)] = value
    else:
        here[key[-1]] = value
    return key


def _step(here: dict[str, Any] | list[Any], part: str, where: str) -> dict[str, Any] | list[Any]:
    at: Any = _index(here, part, where) if isinstance(here, list) else part
    inner = here[at] if isinstance(here, list) else here.get(at)
    # `provider: local` and `tracker:` (no value) both may be given keys; any other value would be lost.
    if inner is None or (part == "provider" and isinstance(inner, str)):
        inner = here[at] = {} if inner is None else {"kind": inner}
    if not isinstance(inner, (dict, list)):
        raise SpecError(f"'{part}' is {inner!r} and has no keys", where=where)
    return inner


def _index(here: list[Any], part: str, where: str) -> int:
    if not (part.isascii() and part.isdigit()) or len(part) > 9 or int(part) >= len(here):
        raise SpecError(f"the list has {len(here)} entries, '{part}' is not one of them", where=where)
    return int(part)


def _explain(error: ValidationError, origin: Origin, data: Any) -> SpecError:
    problems: dict[tuple[str, str], Key] = {}
    items = [(item, _real(item, data)) for item in error.errors()]
    for item, key in items:
        # Where a text or a mapping may stand and the mapping is wrong, that it is no text is no news. A function can
        # stand in Python only.
        inside = any(len(other) > len(key) and other[: len(key)] == key for _, other in items)
        if not (inside and item["type"] == "string_type") and item["type"] != "callable_type":
            problems.setdefault((origin.place(key), _sentence(item, key)), key)
    (where, message), key = next(iter(problems.items()))
    if len(problems) > 1:
        where, message = "the campaign is wrong", "".join(f"\n{place}: {text}" for place, text in problems)
    return SpecError(message, where=where, key=key, remedy="see 'campaign schema' for every key")


def _real(item: Any, data: Any) -> Key:
    # pydantic puts the names of union members and '[key]' into the location; keep only what is in the file.
    loc = [str(part) for part in item["loc"]]
    key: list[str] = []
    for part in loc:
        if isinstance(data, Mapping) and part in map(str, data):
            data = next(v for k, v in data.items() if str(k) == part)
        elif isinstance(data, (list, tuple)) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        else:
            continue
        key.append(part)
    return (*key, loc[-1]) if item["type"] == "missing" else tuple(key)


def _sentence(item: Any, key: Key) -> str:
    if item["type"] == "extra_forbidden":
        known = known_keys(Campaign, key[:-1])
        return f"unknown key{meant(key[-1], known)} (allowed: {', '.join(known)})"
    if item["type"] == "missing":
        return "this key is needed"
    given = item["input"]
    if item["type"] == "string_type" and isinstance(given, (bool, int, float)):
        kind = "true or false" if isinstance(given, bool) else "a number"
        want = "a key is text" if item["loc"][-1] == "[key]" else "text is needed"
        return f"{want}, and {given!r} is {kind}; write quotes around it, as it stands in the file"
    return needed(item)


def known_keys(model: type[BaseModel], key: Key) -> list[str]:
    """Keys allowed at a place of the campaign."""
    if not key:
        return [f.alias or name for name, f in model.model_fields.items()]
    field = next((f for n, f in model.model_fields.items() if key[0] in (n, f.alias)), None)
    if field is None:
        return []
    inner = _models_in(field.annotation)
    skip = 2 if "dict" in str(field.annotation) and len(key) > 1 else 1
    return known_keys(inner[0], key[skip:]) if inner else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in getattr(annotation, "__args__", ()):
        found += _models_in(part)
    return found
