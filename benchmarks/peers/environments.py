"""Virtual environments of the peers: made once in the cache, byte-code compiled, versions as in ours where shared."""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from data import folder


def pinned(*names: str) -> list[str]:
    """Requirements (``name`` or ``name[extra]``) at the versions our own environment has."""
    return [f"{name}=={importlib.metadata.version(name.partition('[')[0])}" for name in names]


def make(name: str, requirements: list[str]) -> Path:
    """The Python of an environment with these requirements."""
    stamp = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    path = folder() / "environments" / f"{name}-{stamp}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "complete").exists():
            print(f"making the environment of {name}: {', '.join(requirements)}", flush=True)
            shutil.rmtree(path, ignore_errors=True)
            _install(path, requirements)
            (path / "complete").touch()
    return path / "bin" / "python"


def _install(path: Path, requirements: list[str]) -> None:
    uv = shutil.which("uv")
    python = str(path / "bin" / "python")
    if uv and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(path)], check=True)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
    else:
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]  # pip compiles by itself
    subprocess.run([*install, *requirements], check=True)


def compile_ours() -> None:
    """Byte-code of our own environment and of the peers' programs: nobody is measured compiling."""
    import campaign

    here = Path(__file__).resolve().parent
    places = {Path(p) for p in sys.path if p.endswith("site-packages")} | {here, here.parents[1] / "examples"}
    places |= {Path(p) / part for p in campaign.__path__ for part in (".", "providers", "stages")} - {here.parents[1]}
    for place in sorted(places):
        compileall.compile_dir(place, quiet=2)
