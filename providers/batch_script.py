"""Refuses options of a Parsl provider that would write lines of their own into a batch script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SHELL = ("worker_init",)  # options that are lines of a shell script on purpose
ASSIGNMENT = "NAME ="  # HTCondor: each line of its submit file is an assignment


def check_script(name: str, value: Any, directive: str = "") -> None:
    """Refuse an option whose text would add lines to the script that the batch system gets.

    Args:
        name: Name of the option. An option in `SHELL` may have several lines. ``scheduler_options`` may have several
            lines if each line is a directive.
        value: Value of the option. Texts inside lists and mappings are checked too.
        directive: Beginning of each line of ``scheduler_options``, for example ``#SBATCH``. For HTCondor: `ASSIGNMENT`.

    Raises:
        ValueError: Names the option and the wrong line.
    """
    if isinstance(value, Mapping):
        for inner in [*value, *value.values()]:
            check_script(name, inner, directive)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_script(name, inner, directive)
    elif isinstance(value, str):
        _check_text(name, value, directive)


def _check_text(name: str, text: str, directive: str) -> None:
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL")
    lines = text.splitlines()
    if name == "scheduler_options":
        wrong = next((x for x in lines if x.strip() and not _is_directive(x, directive)), None)
        if wrong is not None:
            raise ValueError(f"every line of {name} begins with {directive or 'a directive'}; found {wrong!r}")
    elif name not in SHELL and (len(lines) > 1 or text != "".join(lines)):
        raise ValueError(f"{name} holds a line break; found {text!r}")


def _is_directive(line: str, directive: str) -> bool:
    if directive == ASSIGNMENT:
        return re.match(r"\+?[A-Za-z_][\w.]*\s*=", line) is not None
    return bool(directive) and re.match(re.escape(directive) + r"(\s|$)", line) is not None
