"""Makes the managed environment of the server, once: Triton's binary and the Python of its backend.

It is apart from the user's environment because the server's Python stub was built against numpy 1: with numpy 2 in it,
models load, say READY, and read every element of an input as its first one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from campaign.errors import ServerError, SpecError
from campaign.util.hashing import canonical_json

WHEEL = "nvidia-pytriton==0.7.0"  # holds tritonserver 2.51.0 (release 24.10)
BASE = ("numpy<2", "onnxruntime")
VERSIONS = ((3, 12), (3, 11), (3, 10))  # numpy < 2 has no wheel for later ones; the wheel has a stub for each of these


def cache_dir() -> Path:
    """The folder of environments: ``$CAMPAIGN_CACHE``, or ``inference-campaign`` in the user's cache directory."""
    own = os.environ.get("CAMPAIGN_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    return Path(platformdirs.user_cache_dir("inference-campaign")).expanduser()


@dataclass(frozen=True)
class Environment:
    """One server environment.

    Attributes:
        path: Its folder, a virtual environment.
        version: The Python of its stub, ``3.11`` for example.
        libdir: Folder of that Python's shared library.
    """

    path: Path
    version: str
    libdir: str

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return self.path / "lib" / f"python{self.version}" / "site-packages"

    @property
    def server(self) -> Path:
        """The server's binary."""
        return self.site / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """A backend directory that holds the Python backend and the stub of this Python."""
        return self.path / "backends"

    def variables(self) -> dict[str, str]:
        """Environment variables by which the server finds its libraries and the stub its interpreter."""
        libraries = [str(self.site / "nvidia_pytriton.libs"), self.libdir]
        return {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{self.path / 'bin'}:{os.environ.get('PATH', '')}"}


def find_python(wanted: str | None = None) -> tuple[str, str, str]:
    """A Python that can serve: ``(executable, version, folder of its shared library)``.

    Raises:
        SpecError: There is none; says what to install.
    """
    candidates = [wanted] if wanted else [sys.executable, *(f"python{a}.{b}" for a, b in VERSIONS)]
    seen = []
    for name in candidates:
        path = shutil.which(name)
        found = _probe(path) if path else None
        if not path or not found:
            seen += [f"{name} is no Python that runs"] if wanted else []
            continue
        version, libdir = found
        if tuple(int(n) for n in version.split(".")) not in VERSIONS:
            seen.append(f"{path} is {version}")
        elif not libdir:
            seen.append(f"{path} has no shared libpython{version}")
        else:
            return path, version, libdir
    wanted_versions = ", ".join(f"{a}.{b}" for a, b in reversed(VERSIONS))
    raise SpecError(
        f"the server's Python backend needs Python {wanted_versions} with a shared library, and none was found"
        + (f" ({'; '.join(seen)})" if seen else ""),
        key=("servers", "python"),
        remedy="install one (Debian: apt-get install python3-venv libpython3-dev) and put it on PATH, "
        "or name it: servers: {python: /path/to/python3.11}",
    )


_PROBE = (
    "import sys,sysconfig as s,os;v='%d.%d'%sys.version_info[:2];"
    "d=[s.get_config_var('LIBDIR') or '',sys.base_prefix+'/lib','/usr/lib/'+(s.get_config_var('MULTIARCH') or '')];"
    "print(v);print(next((x for x in d if os.path.exists(x+'/libpython'+v+'.so.1.0')),''))"
)


def _probe(python: str) -> tuple[str, str] | None:
    try:
        done = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return (lines[0], lines[1]) if done.returncode == 0 and len(lines) == 2 else None


def environment(requirements: Iterable[str] = (), python: str | None = None) -> Environment:
    """The folder of the environment for these requirements. It may not exist yet."""
    executable, version, libdir = find_python(python)
    wanted = [WHEEL, *BASE, *sorted(set(requirements)), os.path.realpath(executable), version, platform.machine()]
    name = hashlib.sha256(canonical_json(wanted).encode()).hexdigest()[:16]
    return Environment(cache_dir() / "servers" / f"py{version}-{name}", version, libdir)


def prepare(requirements: Iterable[str], python: str | None, say: Callable[[str], None]) -> Environment:
    """Make the environment if it is not there. Any number of processes may ask at once: one makes it.

    Raises:
        ServerError: It cannot be made; carries the installer's last lines.
    """
    env = environment(requirements, python)
    done = env.path / "complete"
    if done.exists():
        return env
    try:
        env.path.parent.mkdir(parents=True, exist_ok=True)
        lock = env.path.with_name(f"{env.path.name}.lock").open("w")
    except OSError as error:
        raise ServerError(
            f"the cache cannot be written: {error.strerror}", where=str(env.path.parent), remedy="set CAMPAIGN_CACHE"
        ) from error
    with lock:
        _wait_for(lock, say)
        if not done.exists():
            say(f"server environment: making it in {env.path} (once, some 300 MB)")
            _make(env, requirements, find_python(python)[0], say, lock.fileno())
            (env.path / "versions.txt").write_text(_frozen(env))
            done.touch()
            say("server environment: ready")
    return env


def _wait_for(lock: IO[str], say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("server environment: another process is making it, waiting")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise ServerError(
            f"its file system has no locks: {error.strerror}",
            where=lock.name,
            remedy="set CAMPAIGN_CACHE to a folder on another one",
        ) from error


def _make(env: Environment, requirements: Iterable[str], python: str, say: Callable[[str], None], lock: int) -> None:
    shutil.rmtree(env.path, ignore_errors=True)  # what a killed maker left
    # -I: neither PYTHONPATH nor the current folder may say what is installed already; the server sees neither.
    pip = [str(env.path / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--no-user"]
    pip += ["--disable-pip-version-check", "--no-input"]
    _run([python, "-I", "-m", "venv", str(env.path)], "Debian: apt-get install python3-venv", lock)
    say("server environment: installing numpy, onnxruntime" + "".join(f", {r}" for r in requirements))
    _run([*pip, *BASE, *requirements], "check the names under servers.requirements, and the network", lock)
    say(f"server environment: installing {WHEEL}")
    # Its own requirements are for its Python API, which is not used, and would bring numpy 2 back.
    _run([*pip, "--no-deps", WHEEL], "check the network", lock)
    # The wheel ships the backend without a stub; Triton looks for it beside the backend's library.
    triton = env.site / "pytriton" / "tritonserver"
    target = env.backends / "python"
    target.mkdir(parents=True)
    for source in (
        triton / "backends" / "python" / "libtriton_python.so",
        triton / "backends" / "python" / "triton_python_backend_utils.py",
        triton / "python_backend_stubs" / env.version / "triton_python_backend_stub",
    ):
        shutil.copy2(source, target)


def _frozen(env: Environment) -> str:
    """The exact versions installed. The answers of models depend on them."""
    pip = [str(env.path / "bin" / "python"), "-I", "-m", "pip", "freeze", "--all", "--disable-pip-version-check"]
    return subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


def _run(argv: list[str], remedy: str, lock: int) -> None:
    # The installer holds the lock too: when this process is killed it works on alone, and nobody may come in between.
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        pass_fds=[lock],
    )
    if done.returncode:
        raise ServerError(
            f"{' '.join(argv[:4])} ... failed with {done.returncode}",
            where="server environment",
            remedy=remedy,
            log="\n".join(done.stdout.splitlines()[-12:]),
        )
