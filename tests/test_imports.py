"""How the package lies: every file alone, no circle, a light front door, no second name for anything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"campaign": "campaign", "providers": "campaign.providers", "stages": "campaign.stages"}
HEAVY = (
    "parsl",
    "globus_compute_sdk",
    "tritonclient",
    "grpc",
    "uproot",
    "awkward",
    "hist",
    "pydantic",
    "numpy",
    "pyarrow",
)

# Each room imports only from rooms on floors below its own, or a neighbour that comes before it on its line.
FLOORS = [
    [
        "errors",
        "messages",
        "grpcfork",
        "later",
        "aside",
        "casting",
        "text",
        "private",
        "identity",
        "incarnation",
        "lease",
        "serverlog",
        "family",
        "envfolders",
        "address",
    ],
    ["hardship", "limbs", "slices", "exact", "spent", "userfile", "stagelog", "watch"],
    ["registry", "axes", "binning", "histogram", "spec", "rundir", "yamlscalars", "yamlwords"],
    ["tls", "enclose"],
    ["frame", "counts", "receipts", "pack", "frozenvalue", "protocols"],
    ["codehash", "weighwords", "stagecode", "checks", "specfile"],
    ["schemas", "outputs", "datasets", "task"],
    ["kserve", "canary", "wire", "window", "roster", "request", "suspects", "flight"],
    ["ragged", "standin", "twin", "client", "stepservers"],
    ["health", "roothist", "rootfile"],
    ["servers", "plan", "planner"],
    [
        "ledger",
        "intent",
        "merge",
        "gaps",
        "state",
        "reasons",
        "manifest",
        "integrity",
        "profile",
        "report",
        "progress",
    ],
    ["apart", "guardian", "runs", "jobs", "reap", "keeper"],
    ["berth", "pilot", "processes", "blame", "weighing", "chain", "work", "facts", "tryout", "preflight"],
    ["replacer", "pool", "batches", "lost", "trees", "failures", "merges", "scheduler"],
    ["unmoved", "account", "engine", "makecanary", "tune", "verification", "values"],
    ["cli"],
]


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def python(code: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )


ALONE = """
import importlib, os, sys
import awkward, cryptography.x509, hist, numpy, pyarrow.parquet, pydantic, tritonclient.grpc, uproot  # once, for speed
import campaign
failed = 0
for name in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        loaded = {n for n in sys.modules if n.startswith("campaign.")}
        assert not loaded, loaded
        module = importlib.import_module(name)
        assert module.__name__ == name
        files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("campaign", "providers", "stages")]
        assert len(files) == len(set(files)), "a file is loaded under two names"
        sys.stdout.flush()
        os._exit(0)
    failed |= os.waitpid(pid, 0)[1]
    if failed:
        sys.exit(f"{name} does not import alone")
"""


@pytest.mark.slow
def test_every_file_imports_alone_under_its_one_true_name():
    """Every module imports first of all in a fresh interpreter, and no file is loaded under two names."""
    names = list(modules())
    with ThreadPoolExecutor(2) as two:
        for done in two.map(lambda part: python(ALONE, *part), (names[::2], names[1::2])):
            assert done.returncode == 0, done.stderr


def test_every_package_folder_is_listed():
    """A folder with Python files in it is a package that pyproject.toml lists, so that wheels hold it."""
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    there = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in modules().items()}
    assert listed == there
    assert project["tool"]["setuptools"]["package-dir"] == {v: k for k, v in FOLDERS.items()}
    for group, entries in project["project"]["entry-points"].items():
        assert {(e.name, e.value) for e in entry_points(group=group)} >= set(entries.items()), f"{group}: install again"


@pytest.mark.parametrize("group", ["campaign.providers", "campaign.servers", "campaign.stages"])
def test_every_entry_point_loads(group):
    """Every registered name leads to a class of this package."""
    found = [e for e in entry_points(group=group) if e.value.startswith("campaign.")]
    assert found
    for entry in found:
        assert isinstance(entry.load(), type), entry


def test_there_is_no_second_campaign():
    """``campaign.campaign`` cannot be imported, although the checkout lies on the package's path."""
    done = python("import campaign.campaign")
    assert done.returncode != 0
    assert "import campaign, not campaign.campaign" in done.stderr


@pytest.mark.parametrize("name", ["providers", "stages"])
def test_a_users_own_module_of_that_name_is_the_users(tmp_path, name):
    """A user's own ``stages.py`` or ``providers/`` is found under its name, and ours under ours, side by side."""
    (tmp_path / f"{name}.py").write_text("MINE = True\n")
    done = python(
        f"import {name}, campaign.{name} as ours; assert {name}.MINE and not hasattr(ours, 'MINE')", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["providers", "stages"])
def test_the_folders_are_no_top_level_packages_elsewhere(tmp_path, name):
    """Installed, the package brings no module called ``providers`` or ``stages``."""
    assert "ModuleNotFoundError" in python(f"import {name}", cwd=tmp_path).stderr


def test_the_front_door_is_light():
    """``import campaign`` pulls in nothing heavy; its names come when they are asked for."""
    code = f"import campaign, sys; heavy = [m for m in {HEAVY} if m in sys.modules]; assert not heavy, heavy"
    done = python(code + "; campaign.Campaign; assert 'pydantic' in sys.modules and 'numpy' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    """Each name in ``__all__`` resolves; another one is an AttributeError."""
    import campaign

    for name in campaign.__all__:
        assert getattr(campaign, name) is not None
    assert set(campaign.__all__) <= set(dir(campaign))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        campaign.nothing_of_ours  # noqa: B018


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """Rooms of ``campaign`` that a file imports: when it is imported itself, or inside functions (``lazy``)."""
    tree = parsed(path)
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    typing = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if id(node) in typing or (id(node) in inside) != lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("campaign."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or path.parts[-2] in ("providers", "stages", "servers"), f"{path}: relative import"
            if node.module == "campaign":
                yield from (f"campaign.{a.name}" for a in node.names if a.name[0].islower())
            elif (node.module or "").startswith("campaign."):
                yield str(node.module)


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_of_the_core_go_only_downward():
    """No room of the core imports from a floor above it, so there is no circle."""
    place = {name: (i, j) for i, floor in enumerate(FLOORS) for j, name in enumerate(floor)}
    core = {n: p for n, p in modules().items() if n.startswith("campaign.") and p.is_relative_to(ROOT / "campaign")}
    assert {room(n) for n in core} == set(place), "a new room stands on no floor yet"
    for name, path in core.items():
        for lazy in (False, True):
            for imported in imports(path, lazy=lazy):
                if room(imported) != room(name):
                    assert place[room(imported)] < place[room(name)], f"{name} imports {imported}"


def test_the_core_names_no_implementation():
    """The core imports no provider and no stage; those import the core, and never each other."""
    for name, path in modules().items():
        found = [*imports(path, lazy=False), *imports(path, lazy=True)]
        for imported in found:
            if room(imported) in ("providers", "stages"):
                assert name.startswith(("campaign.providers", "campaign.stages")), f"{name} imports {imported}"
                assert room(imported) == room(name), f"{name} imports {imported}"
        if path.is_relative_to(ROOT / "campaign"):
            texts = [n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant)]
            named = [t for t in texts if str(t).startswith(("campaign.providers.", "campaign.stages."))]
            assert not named, f"{name} names {named}"
