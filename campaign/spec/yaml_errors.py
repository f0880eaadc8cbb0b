"""Explains errors in YAML in plain words: the line, the text there, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import yaml

from campaign.errors import SpecError
from campaign.spec import yaml_scalars

_SHOWN = 100  # characters of a line that a message shows
_COLON = "write 'key: value' with a colon and a space after each key; quote text that holds ': '"
_INDENT = "indent keys that belong together by the same number of spaces"


class _Told(NamedTuple):
    """An error: the number of the line (from 0), a sentence, the remedy."""

    line: int
    said: str
    remedy: str


class _Wrong(NamedTuple):
    """PyYAML's error, and the lines of the text."""

    lines: list[str]
    problem: str
    context: str
    at: tuple[int, int]
    began: tuple[int, int]

    @property
    def sign(self) -> str:
        """The character at the place."""
        line = self.lines[self.at[0]] if self.at[0] < len(self.lines) else ""
        return line[self.at[1] : self.at[1] + 1]


def decoded(data: bytes, where: str) -> str:
    """The text of a file.

    Args:
        data: The bytes of the file.
        where: Its name, for the error.

    Raises:
        SpecError: It is no UTF-8; with the line.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise SpecError("is written in UTF-16", where=f"{where}:1", remedy="save the file as UTF-8") from None
        before = data[: error.start]
        number = before.count(b"\n")
        line = data.split(b"\n")[number].decode(errors="backslashreplace")
        said = f"the byte 0x{data[error.start]:02X} is no UTF-8 text"
        raise _error(_Told(number, said, "save the file as UTF-8"), [*[""] * number, line], where) from None


def refusal(error: Exception, text: str, where: str) -> SpecError:
    """The error for a text that PyYAML has refused.

    Args:
        error: What PyYAML raised.
        text: The text.
        where: The name of the file.
    """
    lines = text.splitlines()
    if isinstance(error, yaml.reader.ReaderError):
        number = text[: error.position].count("\n")
        said = f"the character U+{ord(text[error.position]):04X} cannot stand in YAML"
        return _error(_Told(number, said, "take the character away"), text.split("\n"), where)
    if isinstance(error, RecursionError):
        return SpecError("is nested too deep for a campaign", where=where, remedy="write fewer brackets in brackets")
    context, problem = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    mark = problem or context
    if mark is None:
        return SpecError(f"is not plain YAML data: {error}", where=where, remedy="write quotes around text")
    began = context or mark
    wrong = _Wrong(
        lines, str(getattr(error, "problem", "")), str(getattr(error, "context", "") or ""),
        (mark.line, mark.column), (began.line, began.column),
    )  # fmt: skip
    told = next((found for rule in _RULES if (found := rule(wrong)) is not None), None)
    return _error(told or _anything(wrong), lines, where)


def _error(told: _Told, lines: list[str], where: str) -> SpecError:
    shown = lines[told.line].strip() if told.line < len(lines) else ""
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
    said = f"{told.said}: {shown}" if shown else told.said
    return SpecError(said, where=f"{where}:{told.line + 1}", remedy=told.remedy)


def _above(wrong: _Wrong, number: int) -> Iterator[int]:
    """The numbers of the lines above that are not blank and no comment, the nearest first."""
    for i in range(min(number, len(wrong.lines)) - 1, -1, -1):
        if wrong.lines[i].strip() and not wrong.lines[i].lstrip().startswith("#"):
            yield i


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _has_key(line: str) -> bool:
    return re.search(r":(\s|$)", line) is not None


def _odd_characters(wrong: _Wrong) -> _Told | None:
    for number in dict.fromkeys((wrong.at[0], wrong.began[0])):
        line = wrong.lines[number] if number < len(wrong.lines) else ""
        if re.match(r"(<{7}|={7}|>{7})( |$)", line):
            return _Told(number, "this line is the mark of a merge conflict", "resolve the conflict")
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return _Told(number, "a tab stands in this line", "indent with spaces")
        if found := re.search(yaml_scalars.ODD_SPACE, line):
            name = yaml_scalars.ODD_NAMES.get(found[0], "an odd space")
            said = f"{name} (U+{ord(found[0]):04X}) stands in column {found.start() + 1} of this line"
            return _Told(number, said, "write plain spaces")
        if "\N{FULLWIDTH COLON}" in line and not _has_key(line):
            return _Told(number, "a full-width colon (U+FF1A) stands in this line", "write a plain colon and a space")
    if "'\\t'" in wrong.problem:
        return _Told(wrong.at[0], "a tab stands in this line", "write spaces in place of the tab")
    return None


def _quote(wrong: _Wrong) -> _Told | None:
    if "quoted scalar" in wrong.context and "end of stream" in wrong.problem:
        return _open_quote(*wrong.began)
    if "escape" in wrong.problem or "hexadecimal" in wrong.problem:
        said = f"the pair \\{wrong.sign} in double quotes means nothing to YAML"
        return _Told(wrong.at[0], said, "write single quotes in place of the double quotes, or two backslashes")
    if "quoted scalar" in wrong.context:
        return _open_quote(*wrong.began)
    if "found '<scalar>'" in wrong.problem or "got '<scalar>'" in wrong.problem or ": " in wrong.problem:
        for number in range(wrong.at[0] + 1):
            if number < len(wrong.lines) and (found := _OPEN.match(wrong.lines[number])):
                return _open_quote(number, found.end() - 1)
    return None


def _open_quote(number: int, column: int) -> _Told:
    said = f"the quote in column {column + 1} of this line is not closed"
    return _Told(number, said, "close the quote with the same sign at the end of the text")


_CLOSED = r"""[^"'#]|"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?<=\w)'|(?<=\S)#"""  # an apostrophe inside a word is no quote
_OPEN = re.compile(rf"""(?:{_CLOSED})*?(?<![\w])(?:"(?=(?:[^"\\]|\\.)*$)|'(?=(?:[^']|'')*$))""")


def _sign(wrong: _Wrong) -> _Told | None:
    """A value that begins with a sign that YAML keeps for itself."""
    line, column = wrong.at
    if "alias" in wrong.context or "alias" in wrong.problem:
        said = "a value that begins with '*' is the name of another value to YAML"
        return _Told(line, said, "write quotes around the text, '*.root' for example")
    if "anchor" in wrong.context or wrong.problem == "second occurrence":
        said = "a value that begins with '&' gives a name to YAML"
        return _Told(line, said, "write quotes around the text, or another name")
    if "directive" in wrong.context:
        return _Told(line, "a line that begins with '%' is an order to YAML", "write quotes around the text")
    if "cannot start any token" in wrong.problem:
        said = f"text cannot begin with '{wrong.sign}', in column {column + 1}"
        return _Told(line, said, "write quotes around the text")
    if "block scalar" in wrong.context:
        said = "a value that begins with '|' or '>' is a text of the lines below to YAML"
        return _Told(line, said, "write quotes around the text")
    if "tag" in wrong.context:
        return _Told(line, "a value that begins with '!' is a tag to YAML", "write quotes around the text")
    if re.search(r"(mapping keys|sequence entries) are not allowed here", wrong.problem):
        said = f"a value cannot begin with '{wrong.sign} ', in column {column + 1}"
        return _Told(line, said, "write the entries on lines of their own, or quotes around the text")
    if "expected the node content" in wrong.problem:
        said = f"a value cannot begin with '{wrong.sign}', in column {column + 1}"
        return _Told(line, said, "write a value before it, or quotes around the text")
    return None


def _bracket(wrong: _Wrong) -> _Told | None:
    if "flow" not in wrong.context:
        if wrong.sign and wrong.sign in "]}" and "but found" in wrong.problem:
            said = f"the bracket '{wrong.sign}' in column {wrong.at[1] + 1} of this line closes nothing"
            return _Told(wrong.at[0], said, "take the bracket away")
        return None
    (line, column), (last, _) = wrong.began, wrong.at
    opened = wrong.lines[line][column]
    closing = {"[": "]", "{": "}"}.get(opened, "}")
    if last == line and wrong.sign not in "]}" and closing in wrong.lines[line][column:]:
        said = f"a comma is missing before column {wrong.at[1] + 1} of this line"
        return _Told(line, said, "write a comma between entries, and quotes around text that holds ': ' or brackets")
    said = f"the bracket '{opened}' in column {column + 1} of this line is not closed"
    return _Told(line, said, f"write '{closing}' after the last entry")


def _colon(wrong: _Wrong) -> _Told | None:
    if "could not find expected ':'" in wrong.problem:
        line = wrong.lines[wrong.began[0]]
        missing = "space after the colon" if re.search(r"\w:\S", line) else "colon after the key"
        return _Told(wrong.began[0], f"there is no {missing} in this line", _COLON)
    if "mapping values are not allowed here" not in wrong.problem:
        return None
    number, column = wrong.at
    line, above = wrong.lines[number], next(_above(wrong, number), None)
    if _has_key(line[:column]) or above is None:
        return _Told(number, f"a second colon stands in column {column + 1} of this line", _COLON)
    if not _has_key(wrong.lines[above]) and not wrong.lines[above].lstrip().startswith("- "):
        missing = "space after the colon" if re.search(r"\w:\S", wrong.lines[above]) else "colon after the key"
        return _Told(above, f"there is no {missing} in this line", _COLON)
    said = "this line is indented deeper than the line above it, which has a value already"
    return _Told(number, said, _INDENT)


def _indentation(wrong: _Wrong) -> _Told | None:
    if "block" not in wrong.context or wrong.at[0] >= len(wrong.lines):
        return None
    number, line = wrong.at[0], wrong.lines[wrong.at[0]]
    if wrong.at[1] > _indent(line):
        said = f"more text stands behind the end of a value, in column {wrong.at[1] + 1}"
        return _Told(number, said, "write quotes around the whole value")
    known: list[int] = []
    for other in _above(wrong, number):
        if not known or _indent(wrong.lines[other]) < known[-1]:
            known.append(_indent(wrong.lines[other]))
    mine = _indent(line)
    if mine in known:
        begins = line.lstrip().startswith("- ")
        said = "an entry of a list stands among keys" if begins else "a key stands among the entries of a list"
        return _Told(number, f"{said}, in this line", "put the entries of a list under a key of their own")
    could = " or ".join([", ".join(map(str, known[:-1])), str(known[-1])] if len(known) > 1 else map(str, known))
    spaces = f"{mine} space{'s' * (mine != 1)}"
    return _Told(number, f"this line is indented by {spaces}, the lines above it by {could}", _INDENT)


def _document(wrong: _Wrong) -> _Told | None:
    if "another document" in wrong.problem or "<document start>" in wrong.problem:
        return _Told(wrong.at[0], "a second document begins here", "write one campaign in one file; take '---' away")
    if "unhashable" in wrong.problem:
        said = "a list or a mapping stands in brackets where a key is expected"
        return _Told(wrong.at[0], said, "write quotes around text that holds brackets")
    if "merging" in wrong.problem:
        return _Told(wrong.at[0], "'<<' stands before something that is no mapping", "write quotes around text")
    return None


def _anything(wrong: _Wrong) -> _Told:
    said = f"this is not valid YAML, near column {wrong.at[1] + 1} of this line"
    return _Told(wrong.at[0], said, "check the indentation, quotes, brackets and colons here and in the line above")


_RULES: tuple[Callable[[_Wrong], _Told | None], ...] = (
    _odd_characters, _document, _quote, _sign, _bracket, _colon, _indentation,
)  # fmt: skip
