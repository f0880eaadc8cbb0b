"""YAML <-> Campaign. Errors name the file, the line, the key, what was found and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from campaign.errors import SpecError
from campaign.spec import Campaign

MAX_BYTES, MAX_NODES, MAX_DEPTH = 4_000_000, 200_000, 40
Key = tuple[str, ...]


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
        raise SpecError("is not a mapping of keys", where=str(path), remedy="see the README for a campaign file")
    changed = {apply(data, text) for text in overrides}
    try:
        campaign = Campaign.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, lines, changed, data) from None
    except SpecError as error:
        error.where = _place(path, lines, tuple(str(k) for k in error.key), changed)
        raise
    return campaign.at(path.resolve().parent, file=str(path), lines=lines)


def dump(campaign: Campaign) -> str:
    """The campaign as YAML; ``load`` gives an equal one back.

    Raises:
        SpecError: A stage is a Python object, which a file cannot hold.
    """
    for name, stage in campaign.stages.items():
        if not isinstance(stage.use, str):
            raise SpecError("is a Python object", key=("stages", name, "use"), remedy="write it as 'file.py:Name'")
    data = campaign.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump({"campaign": data.pop("campaign"), **data}, sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """JSON schema of a campaign file, for editors; the options of every registered kind and stage are in it."""
    from campaign.checks import option_models

    published = Campaign.model_json_schema(by_alias=True)
    published["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for definition, options in (("ServerSpec", option_models("servers")), ("ProviderSpec", option_models("providers"))):
        properties = published["$defs"][definition]["properties"]
        published["$defs"][definition]["additionalProperties"] = False
        for model in options.values():
            part = model.model_json_schema(ref_template="#/$defs/{model}")
            published["$defs"].update(part.get("$defs", {}))
            for name, value in part.get("properties", {}).items():
                properties.setdefault(name, value)
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


def parse(path: Path) -> tuple[Any, dict[Key, int]]:
    """The data of a YAML file and the line of each key. Only plain data: no tags, no code.

    Raises:
        SpecError: Not readable, not YAML, a key twice, or too large or too deep to be a description.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"is larger than {MAX_BYTES} bytes", where=str(path), remedy="list files in a .txt file")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise SpecError(
            f"cannot be read: {error.strerror or error}", where=str(path), remedy="check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or type(error).__name__
        raise SpecError(f"is not valid YAML: {what}", where=where, remedy="check indentation and quotes") from None
    lines: dict[Key, int] = {}
    if root is not None:
        _walk(root, (), lines, path, [0])
    try:
        return yaml.safe_load(text), lines
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = getattr(error, "problem", None) or str(error)
        raise SpecError(f"is not plain YAML data: {what}", where=str(path), remedy="use no tags") from None


def _walk(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path, seen: list[int]) -> None:
    seen[0] += 1
    # Aliases are walked once per use, so that a few lines that unfold into millions of nodes are counted as such.
    if seen[0] > MAX_NODES or len(key) > MAX_DEPTH:
        raise SpecError("is too large or too deep for a campaign", where=f"{path}:{node.start_mark.line + 1}")
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, str(name.value))
            if child in lines and name.value != "<<":
                raise SpecError("stands twice", where=f"{path}:{name.start_mark.line + 1}: {'.'.join(child)}")
            lines[child] = name.start_mark.line + 1
            _walk(value, child, lines, path, seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*key, str(i)), lines, path, seen)


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
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError("the value is no YAML", where=where, remedy="quote it") from None
    here: Any = data
    for part in key[:-1]:
        here = _step(here, part, where)
    if isinstance(here, list):
        here[_index(here, key[-1], where)] = value
    elif isinstance(here, dict):
        here[key[-1]] = value
    else:
        raise SpecError(f"'{key[-2]}' has no keys", where=where)
    return key


def _step(here: Any, part: str, where: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, where)]
    if not isinstance(here, dict):
        raise SpecError(f"there is no '{part}' to go into", where=where)
    if not isinstance(here.get(part), (dict, list)):
        # `provider: local` and `tracker:` (no value) both may be given keys.
        here[part] = {"kind": here[part]} if part == "provider" and isinstance(here.get(part), str) else {}
    return here[part]


def _index(here: list[Any], part: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(here):
        raise SpecError(f"the list has {len(here)} entries, '{part}' is none of them", where=where)
    return int(part)


def _place(path: Path, lines: Mapping[Key, int], key: Key, changed: set[Key]) -> str:
    dotted = ".".join(key)
    if any(key[: len(c)] == c for c in changed):
        return f"--set {dotted}"
    while key and key not in lines:
        key = key[:-1]
    return f"{path}:{lines.get(key, 1)}: {dotted}"


def _explain(error: ValidationError, path: Path, lines: dict[Key, int], changed: set[Key], data: Any) -> SpecError:
    problems = []
    for item in error.errors():
        key = _real(tuple(str(part) for part in item["loc"]), data)
        problems.append((key, f"{_place(path, lines, key, changed)}: {_sentence(item, key)}"))
    texts = list(dict.fromkeys(text for _, text in problems))
    wrong = SpecError("\n".join(texts), remedy="see 'campaign schema' for every key")
    wrong.key = problems[0][0]
    wrong.where = "the campaign is wrong" if len(texts) > 1 else ""
    wrong.message = ("\n" if len(texts) > 1 else "") + "\n".join(texts)
    wrong.key = ()
    return wrong


def _real(loc: Key, data: Any) -> Key:
    # pydantic puts the names of union members into the location; keep only what is in the file.
    key: list[str] = []
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(data, Mapping) and (part in data or last):
            key.append(part)
            data = data.get(part)
        elif isinstance(data, (list, tuple)) and part.isdigit() and int(part) < len(data):
            key.append(part)
            data = data[int(part)]
    return tuple(key)


def _sentence(item: Any, key: Key) -> str:
    if item["type"] == "extra_forbidden":
        known = known_keys(Campaign, key[:-1])
        near = difflib.get_close_matches(key[-1], known, 1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown key{guess} (allowed: {', '.join(known)})"
    if item["type"] == "missing":
        return "this key is needed"
    found = repr(item.get("input"))
    return f"{item['msg'].removeprefix('Value error, ')}; found {found[:80]}"


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
