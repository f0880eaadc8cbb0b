"""How functions and files are cut: few parameters, files that can be read in one go."""

from __future__ import annotations

import ast

import pytest

from tests.test_imports import modules, parsed

MOST_PARAMETERS = 8
MOST_LINES = 400
MANY_PARAMETERS = {
    "campaign.pool.pool.ServerPool.__init__",  # named arguments of a script; all but the first have defaults
}
LONG_FILES = {
    "campaign.inference.client",
    "campaign.inference.dispatcher",
    "campaign.pool.pilot",
    "campaign.pool.pool",
}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    named += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
    return len([name for name in named if name not in ("self", "cls")])


def functions(tree: ast.AST, inside: str):
    """The functions of a module by their full names, those inside classes and functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{inside}.{node.name}", node
            yield from functions(node, f"{inside}.{node.name}")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{inside}.{node.name}")
        else:
            yield from functions(node, inside)


def test_no_function_takes_many_parameters():
    """A function takes eight parameters at most, ``self`` not counted. Fields of a dataclass are free."""
    found = {
        name: parameters(function)
        for module, path in modules().items()
        for name, function in functions(parsed(path), module)
    }
    many = {name: n for name, n in found.items() if n > MOST_PARAMETERS}
    assert set(many) <= MANY_PARAMETERS, many


def test_no_file_is_long():
    """A file has 400 lines at most."""
    lengths = {name: path.read_text().count("\n") for name, path in modules().items()}
    long = {name: n for name, n in lengths.items() if n > MOST_LINES}
    assert set(long) <= LONG_FILES, long


@pytest.mark.parametrize(("text", "count"), [
    ("def f(self, a, b): ...", 2),
    ("def f(a, /, b, *, c, **d): ...", 4),
    ("class A:\n    def f(self, *a): ...", 1),
    ("if True:\n    def f(cls, a): ...", 1),
])  # fmt: skip
def test_parameters_are_counted(text, count):
    """Every kind of parameter counts, in functions at any depth."""
    assert [parameters(function) for _, function in functions(ast.parse(text), "m")] == [count]
