"""Installed in every way there is, the package is the same: one import name, its entry points, nobody's names taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # builds and installs download

WAYS = ("wheel of the sdist", "folder", "editable", "strict editable")
NOT_OURS = (".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "data")


class Installed(NamedTuple):
    """An environment into which the package was installed, and the checkout it came from."""

    root: Path
    checkout: Path
    editable: bool

    def run(self, *argv: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, as a user does who has activated it."""
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [str(self.root / "bin" / argv[0]), *argv[1:]],
            cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env={**kept, "PATH": path, **variables},
        )  # fmt: skip

    def python(self, code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a line of Python."""
        return self.run("python", "-c", code, cwd=cwd)

    @property
    def home(self) -> Path:
        """Where the package's files must come from."""
        return self.checkout if self.editable else self.root


def done(argv: list[str], cwd: Path) -> None:
    """Run a program that must succeed."""
    ended = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]


def copy_of_the_project(folder: Path) -> Path:
    """As a clone is: without what is built, run or cached. Building writes beside the sources."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*NOT_OURS))
    return folder


def empty_environment(root: Path) -> Path:
    """A virtual environment without pip, which sees what the tests' environment has installed behind its own."""
    done([sys.executable, "-m", "venv", "--without-pip", str(root)], root.parent)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # A .pth file in a folder named by a .pth file is not read: the tests' own editable install stays out of it.
    (root / "lib" / version / "site-packages" / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root


def pip(root: Path, *arguments: str, cwd: Path) -> None:
    """Install into an environment that has no pip of its own."""
    own = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "install", "--quiet"]
    done([*own, "--disable-pip-version-check", *arguments], cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist that is built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = copy_of_the_project(folder / "checkout")
    tools = folder / "tools"
    done([sys.executable, "-m", "venv", "--without-pip", str(tools)], folder)
    pip(tools, "build", cwd=folder)
    done([str(tools / "bin" / "python"), "-m", "build", "--outdir", str(folder / "dist"), str(checkout)], folder)
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module", params=WAYS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The package, installed in one of the ways, into an environment that had it not."""
    folder = tmp_path_factory.mktemp("installed")
    root = empty_environment(folder / "environment")
    checkout = copy_of_the_project(folder / "checkout")
    if request.param == "wheel of the sdist":
        what = [str(request.getfixturevalue("wheel"))]
    elif request.param == "folder":
        what = ["."]
    elif request.param == "editable":
        what = ["-e", "."]
    else:
        what = ["-e", ".", "--config-settings", "editable_mode=strict"]
    # Replacing nothing: behind the environment lies another install, which is not pip's to uninstall.
    pip(root, "--no-deps", "--ignore-installed", *what, cwd=checkout)
    return Installed(root, checkout, "editable" in request.param)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The mapped folders lie inside ``campaign/``; models, examples and tests stay in the checkout."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        licenses = [n for n in names if n.endswith("licenses/LICENSE")]
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"campaign"}
    assert len(tops) == 2
    assert len(licenses) == 1
    assert "campaign/py.typed" in names
    there = {f"campaign/{p.relative_to(PROJECT / 'campaign')}" for p in (PROJECT / "campaign").rglob("*.py")}
    for folder in ("providers", "stages"):
        there |= {f"campaign/{folder}/{p.relative_to(PROJECT / folder)}" for p in (PROJECT / folder).rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == there


def test_the_package_comes_from_where_it_was_installed(installed: Installed, tmp_path: Path) -> None:
    """Every module of it, those of the mapped folders too, is a file of this install and of no other."""
    code = (
        "import json, sys, campaign.driver.run, campaign.providers.local;"
        "import campaign.stages.fill, campaign.servers.triton;"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'campaign']))"
    )
    found = installed.python(code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    files = [Path(f) for f in json.loads(found.stdout)]
    assert len(files) > 20
    assert not [f for f in files if not f.is_relative_to(installed.home)]
    assert not [f for f in files if f.is_relative_to(PROJECT)]


@pytest.mark.parametrize("at", ["elsewhere", "in the checkout"])
def test_the_command_shows_its_commands(installed: Installed, tmp_path: Path, at: str) -> None:
    """``campaign --help`` lists run, check, plan, status, stop first, wherever it is called."""
    cwd = installed.checkout if at == "in the checkout" else tmp_path
    for program in (("campaign",), ("python", "-m", "campaign.cli")):
        shown = installed.run(*program, "--help", cwd=cwd)
        assert shown.returncode == 0, shown.stderr
        after = shown.stdout.split("COMMAND\n", 1)[1].splitlines()
        commands = [line.split()[0] for line in after if line.startswith("    ") and line[4] != " "]
        assert commands[:5] == ["run", "check", "plan", "status", "stop"]


@pytest.mark.parametrize("at", ["elsewhere", "in the checkout"])
def test_every_entry_point_loads(installed: Installed, tmp_path: Path, at: str) -> None:
    """Each registered name leads to a class, found once."""
    code = (
        "from importlib.metadata import entry_points\n"
        "for group in ('campaign.providers', 'campaign.servers', 'campaign.stages'):\n"
        "    found = list(entry_points(group=group))\n"
        "    assert found and len({e.name for e in found}) == len(found), found\n"
        "    for e in found:\n"
        "        assert isinstance(e.load(), type), e\n"
    )
    ran = installed.python(code, cwd=installed.checkout if at == "in the checkout" else tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("at", ["elsewhere", "in the checkout"])
def test_there_is_no_second_campaign(installed: Installed, tmp_path: Path, at: str) -> None:
    """``campaign.campaign`` cannot be imported."""
    ran = installed.python("import campaign.campaign", cwd=installed.checkout if at == "in the checkout" else tmp_path)
    assert ran.returncode == 1
    assert "ImportError: import campaign, not" in ran.stderr or "ModuleNotFoundError" in ran.stderr


def test_a_users_own_stages_and_providers_are_the_users(installed: Installed, small: Path) -> None:
    """Beside a script lie ``stages.py`` and ``providers/`` of hers: they import, and a campaign uses them."""
    (small / "providers").mkdir()
    (small / "providers" / "__init__.py").write_text("MINE = True\n")
    (small / "script.py").write_text(
        "import providers, stages, campaign.providers, campaign.stages, campaign.stages.fill, sys\n"
        "assert providers.MINE and stages.select and providers.__file__.startswith(sys.path[0])\n"
        "assert not hasattr(campaign.providers, 'MINE') and not hasattr(campaign.stages, 'select')\n"
        "from campaign import load\n"
        "print(sorted(load('c.yaml').stages))\n"
    )
    ran = installed.run("python", "script.py", cwd=small)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "['first', 'mean', 'predict', 'second', 'select']\n"
    checked = installed.run("campaign", "check", "c.yaml", cwd=small)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_campaign_runs(installed: Installed, small: Path) -> None:
    """Servers, workers and merge of the installed package give all outputs."""
    ran = installed.run("campaign", "run", "c.yaml", "--run-dir", "r", cwd=small)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((small / "r" / "report.json").read_text())
    assert report["status"] == "complete"
    assert "first/mc/tree_up" in report["outputs"]


def test_top_level_names_stay_free(installed: Installed, tmp_path: Path) -> None:
    """Installed, the package brings no module ``providers`` or ``stages``, and no folder but its own."""
    for name in ("providers", "stages", "tests", "examples", "model_repository"):
        ran = installed.python(f"import {name}", cwd=tmp_path)
        assert f"ModuleNotFoundError: No module named '{name}'" in ran.stderr
