"""How the package lies: every file alone, no circle, a light front door, no second name for anything."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
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
        loaded = {n for n in sys.modules if n.startswith("campaign.")} - {"campaign._version"}
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


def tree(folder: Path) -> Path:
    """The package as a wheel lays it out, with providers/ and stages/ inside: import-linter reads one tree."""
    for name, package in FOLDERS.items():
        shutil.copytree(ROOT / name, folder.joinpath(*package.split(".")), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``lint-imports`` says of a tree."""
    argv = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_imports_go_only_downward(tmp_path):
    """The contracts of pyproject.toml hold: floors, a core without implementations, a histogram without servers."""
    done = linted(tree(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("file", "line", "rule"), [
    ("campaign/planning/task.py", "import campaign.driver.run", "Imports go down from floor to floor"),
    ("campaign/inference/client.py", "import campaign.outputs.merge", "Imports go down from floor to floor"),
    ("campaign/driver/run.py", "import campaign.providers.local", "The core imports no provider, stage or server"),
    ("campaign/histogram/axes.py", "import tritonclient.grpc", "Histograms, storage and helpers know no servers"),
    ("campaign/providers/local.py", "import campaign.stages.fill", "Imports go down from floor to floor"),
])  # fmt: skip
def test_a_wrong_import_fails_with_the_rules_own_sentence(tmp_path, file, line, rule):
    """One import upward, or sideways, breaks the contract that forbids it, and the contract is named."""
    path = tree(tmp_path) / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = linted(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert len(broken) == 1, done.stdout
    assert broken[0].startswith(rule)


def test_the_core_names_no_implementation():
    """No text in the core holds the module path of a provider or of a stage."""
    for name, path in modules().items():
        if path.is_relative_to(ROOT / "campaign"):
            texts = [n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant)]
            named = [t for t in texts if str(t).startswith(("campaign.providers.", "campaign.stages."))]
            assert not named, f"{name} names {named}"
