"""The managed server environment: which Python it takes, where it lies, and that however many ask, one is made."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import psutil
import pytest

from campaign.errors import ServerError, SpecError
from campaign.servers import environment
from campaign.servers.environment import VERSIONS, Environment, cache_dir, find_python
from tests.conftest import PROJECT, wait_until

REMEDY = ("apt-get install python3-venv libpython3-dev", "servers: {python: /path/to/python3.11}")


def executable(path: Path, script: str) -> str:
    """A program that runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def too_new(tmp_path: Path) -> str:
    """A program that answers as a Python does for which numpy < 2 has no wheel."""
    return executable(tmp_path / "new" / "python", "#!/bin/sh\necho 3.99\necho /usr/lib\n")


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on PATH, empty."""
    folder = tmp_path / "only"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


# Which Python.
def test_the_python_that_runs_is_taken_where_it_is_fit() -> None:
    """No other one is looked for; its shared library, which the server loads, is there."""
    assert sys.version_info[:2] in VERSIONS, "the tests' own servers need one of these"
    python, version, libdir = find_python()
    assert python == sys.executable
    assert version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert (Path(libdir) / f"libpython{version}.so.1.0").exists()


def test_another_one_is_found_on_path(too_new: str, only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user's Python is too new, the newest fit one on PATH is taken; what does not run is passed over."""
    monkeypatch.setattr(sys, "executable", too_new)
    executable(only / "python3.12", "this is no program\n")
    executable(only / "python3.11", "#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    fit = only / "python3.10"
    fit.symlink_to(Path(os.path.realpath(sysconfig.get_config_var("BINDIR"))) / "python3")
    python, version, _ = find_python()
    assert python == str(fit)
    assert tuple(int(n) for n in version.split(".")) in VERSIONS


def test_without_a_fit_one_the_remedy_is_said(too_new: str, only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the key, every Python that was looked at and why it does not do, and what to install."""
    monkeypatch.setattr(sys, "executable", too_new)
    static = executable(only / "python3.11", "#!/bin/sh\necho 3.11\necho\n")
    with pytest.raises(SpecError) as caught:
        find_python()
    assert caught.value.key == ("servers", "python")
    assert caught.value.exit_code == 2
    for text in (*REMEDY, "3.10, 3.11, 3.12", f"{too_new} is 3.99", f"{static} has no shared libpython3.11"):
        assert text in str(caught.value)


def test_the_one_that_is_asked_for_is_taken_or_refused(too_new: str, tmp_path: Path) -> None:
    """``servers: {python: ...}`` is never replaced by another: it is fit, or the error names it."""
    assert find_python(sys.executable)[0] == sys.executable
    for wanted in (too_new, str(tmp_path / "none"), executable(tmp_path / "text", "no program\n")):
        with pytest.raises(SpecError) as caught:
            find_python(wanted)
        assert wanted in str(caught.value)


def prepare(folder: Path, *arguments: str, code: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """The command ``campaign prepare`` on the folder's campaign, after some code."""
    code = f"import sys; {code or 'pass'}; from campaign.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "prepare", "c.yaml", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **variables},
    )  # fmt: skip


def test_the_command_exits_2_where_no_python_will_do(small: Path, too_new: str, tmp_path: Path) -> None:
    """A wrong request, not a failure: exit 2 with the remedy, whether asked for or run by it; nothing is made."""
    cache = tmp_path / "cache"
    asked = prepare(small, "--set", f"servers.python={too_new}", CAMPAIGN_CACHE=str(cache))
    run = prepare(small, code=f"sys.executable = {too_new!r}", PATH=str(tmp_path / "none"), CAMPAIGN_CACHE=str(cache))
    for done in (asked, run):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "servers.python" in done.stderr
        assert "Traceback" not in done.stderr
        for text in (*REMEDY, f"{too_new} is 3.99"):
            assert text in done.stderr
    assert not cache.exists()


# Where it lies.
def test_other_requirements_are_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is known before it is made, by what is asked for: order and repetition do not count."""
    monkeypatch.setenv("CAMPAIGN_CACHE", str(tmp_path / "cache"))
    plain, more = environment.environment(), environment.environment(["lightgbm", "xgboost"])
    assert plain.path != more.path
    assert environment.environment(["xgboost", "lightgbm", "xgboost"]) == more
    assert plain.path.parent == more.path.parent == tmp_path / "cache" / "servers"
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``$CAMPAIGN_CACHE``, else ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CAMPAIGN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home" / ".cache" / "inference-campaign"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "inference-campaign"
    monkeypatch.setenv("CAMPAIGN_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "home" / "mine"


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the folder and the way out."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CAMPAIGN_CACHE", str(tmp_path / "file"))
    with pytest.raises(ServerError, match="set CAMPAIGN_CACHE") as caught:
        environment.prepare((), None, print)
    assert str(tmp_path / "file") in str(caught.value)


# How it is made: for real.
def works(env: Environment) -> str:
    """What its Python says of itself, having imported what the server's models import; the server runs."""
    code = "import numpy, onnxruntime; assert onnxruntime.__file__.startswith(numpy.__file__.split('numpy')[0])"
    python = subprocess.run(
        [str(env.path / "bin" / "python"), "-I", "-c", f"{code}; print(numpy.__version__)"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    server = subprocess.run(
        [str(env.server), "--help"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **env.variables()},
    )  # fmt: skip
    assert "--model-repository" in server.stdout + server.stderr
    assert (env.backends / "python" / "triton_python_backend_stub").stat().st_mode & 0o111
    return python.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(900)  # it downloads
def test_many_first_uses_at_once_make_one(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four `campaign prepare` one makes it and says what it does, three wait; a fifth finds it ready at once."""
    monkeypatch.setenv("CAMPAIGN_CACHE", str(tmp_path / "cache"))
    env = environment.environment()
    # numpy 2 of the user's own PYTHONPATH must not count as installed, nor a file of such a name where it is run.
    path = os.pathsep.join([str(PROJECT), sysconfig.get_path("purelib")])
    (small / "venv.py").write_text("raise SystemExit('the user has a venv.py of her own')\n")
    with ThreadPoolExecutor(4) as four:
        done = list(four.map(lambda _: prepare(small, PYTHONPATH=path), range(4)))
    for one in done:
        assert one.returncode == 0, one.stdout + one.stderr
        assert one.stdout.splitlines()[-1] == "ready"
    makers = [one.stderr for one in done if "making it in" in one.stderr]
    assert len(makers) == 1
    for text in (str(env.path), "installing numpy, onnxruntime", "installing nvidia-pytriton", "environment: ready"):
        assert text in makers[0]
    others = {one.stderr for one in done if one.stderr != makers[0]}
    assert others == {"server environment: another process is making it, waiting\n"}
    fifth = prepare(small)
    assert (fifth.returncode, fifth.stdout, fifth.stderr) == (0, "ready\n", "")
    assert [p for p in env.path.parent.iterdir() if p.is_dir()] == [env.path]
    assert works(env).startswith("1.")


def read_until(stream: IO[str], text: str) -> None:
    """Read lines until one holds the text."""
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"never said: {text}")


@pytest.mark.slow
@pytest.mark.timeout(900)  # it downloads
def test_what_a_killed_maker_left_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its installer works on alone and holds the lock: the next waits for it, then starts from an empty folder."""
    monkeypatch.setenv("CAMPAIGN_CACHE", str(tmp_path / "cache"))
    env = environment.environment()
    code = "from campaign.servers import environment as e; e.prepare((), None, lambda text: print(text, flush=True))"
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    read_until(maker.stdout, "installing numpy")
    assert wait_until(lambda: psutil.Process(maker.pid).children(), 10)
    (installer,) = psutil.Process(maker.pid).children()
    maker.kill()
    maker.communicate()
    assert installer.is_running()
    assert (env.path / "bin" / "python").exists()
    assert not (env.path / "complete").exists()
    (env.path / "half").touch()
    said: list[str] = []
    assert environment.prepare((), None, said.append) == env
    assert not installer.is_running() or installer.status() == psutil.STATUS_ZOMBIE  # nobody may have reaped it yet
    assert said[0] == "server environment: another process is making it, waiting"
    assert "making it in" in said[1]
    assert not (env.path / "half").exists()
    assert works(env).startswith("1.")


@pytest.mark.slow
@pytest.mark.timeout(900)  # it downloads
def test_a_requirement_that_cannot_be_installed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the installer's own words and the key to look at; what was begun does not count as made."""
    monkeypatch.setenv("CAMPAIGN_CACHE", str(tmp_path / "cache"))
    wanted = [str(tmp_path / "no-such-package-1.0-py3-none-any.whl")]
    with pytest.raises(ServerError, match=r"servers\.requirements") as caught:
        environment.prepare(wanted, None, print)
    assert "no-such-package" in caught.value.log
    assert not (environment.environment(wanted).path / "complete").exists()
