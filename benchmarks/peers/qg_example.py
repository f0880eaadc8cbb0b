"""Case ``qg``: the example's calibration as a campaign, and by hand; both start and stop a server inside the time."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import folder

from campaign.protocols import Launch
from campaign.spec.models import ServerSpec
from campaign.supervision.cleanup import sweep

from .servers import TcpTriton
from .timing import timed

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "qg_calibration"
VARIATIONS = ("nominal", "jes_up", "trk_eff", "pdf_7")


def data() -> Path:
    """The example's minitrees at their default size, made once."""
    makers = [EXAMPLE / "make_data.py", EXAMPLE / "jets.py", ROOT / "model_repository/qg_tagger/1/model.onnx"]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()[:12]
    made = folder() / f"qg-{stamp}"
    if not made.is_dir():
        with tempfile.TemporaryDirectory(dir=folder()) as place:
            aside = Path(place) / "data"
            subprocess.run([sys.executable, str(makers[0]), "--out", str(aside)], check=True)
            aside.rename(made)
    return made


def server_script(place: Path) -> tuple[Path, Launch]:
    """A shell script that starts Triton on a fixed port, as a batch script does, in our managed environment."""
    spec = ServerSpec.model_validate({"model_repository": str(ROOT / "model_repository"), "models": ["qg_tagger"]})
    kind = TcpTriton(spec, ROOT)
    place.mkdir()
    launch = TcpTriton.launch(kind.prepare(print), place, "by-hand")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in launch.env.items()]
    script = place / "start_triton.sh"
    script.write_text("\n".join([*lines, f"exec {shlex.join(launch.argv)}\n"]))
    return script, launch


def by_hand() -> tuple[float, float, dict[str, float], dict[str, Any]]:
    """Wall, CPU, wall by stage, scale factors."""
    with tempfile.TemporaryDirectory(prefix="campaign-peers-") as root:
        results = Path(root) / "results"
        results.mkdir()
        script, launch = server_script(Path(root) / "server-00000001")
        command = [sys.executable, str(Path(__file__).with_name("qg_by_hand.py")), "--server", str(script)]
        command += ["--url", launch.url, "--data", str(data()), "--folder", str(results)]
        try:
            wall, cpu = timed(command, results)
        finally:
            sweep(str(script.parent), launch.shm_prefix)
        took = json.loads((results / "took.json").read_text())
        return wall, cpu, took, {v: json.loads(_table(results, v).read_text()) for v in VARIATIONS}


def campaign() -> tuple[float, float, dict[str, Any]]:
    """Wall, CPU, scale factors."""
    made = data()
    changed = {
        "datasets.mc.files": f"{made}/mc/*/*.root",
        "datasets.mc.metadata": f"{made}/samples.yaml",
        "datasets.data.files": f"{made}/data/*/*.root",
    }
    command = [str(Path(sys.executable).with_name("campaign")), "run", str(EXAMPLE / "campaign.yaml"), "--quiet"]
    command += ["--workers", "2"]
    for key, value in changed.items():
        command += ["--set", f"{key}={value}"]
    with tempfile.TemporaryDirectory(prefix="campaign-peers-") as root:
        run_dir = Path(root) / "run"
        wall, cpu = timed([*command, "--run-dir", str(run_dir)], Path(root))
        folders = {v: run_dir / "artefacts" / "scale_factors" / v for v in VARIATIONS}
        return wall, cpu, {v: json.loads(_table(folders[v], v).read_text()) for v in VARIATIONS}


def _table(place: Path, variation: str) -> Path:
    return place / f"scale_factors{'' if variation == 'nominal' else f'_{variation}'}.json"


def numbers(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a table, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{at}/{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{at}/{i}")
    else:
        yield at, value


def agree(mine: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of any scale factor; texts and places must be equal."""
    worst = 0.0
    for (at, a), (there, b) in zip(numbers(mine), numbers(other), strict=True):
        assert at == there, (at, there)
        if isinstance(a, float) and isinstance(b, float):
            worst = max(worst, abs(a - b) / max(abs(a), abs(b), 1e-300) if a != b else 0.0)
        else:
            assert a == b, f"{at}: {a} and {b}"
    assert worst < 1e-9, f"tables differ by {worst:.1e}"
    return worst


def measure(rounds: int) -> None:
    """Rounds in turn, after one that is thrown away."""
    data()
    walls, cpus, stages = [], [], []
    for number in range(rounds + 1):
        wall, cpu, mine = campaign()
        hand_wall, hand_cpu, took, other = by_hand()
        worst = agree(mine, other)
        print(
            f"  round {number}: campaign {wall:.2f}, by hand {hand_wall:.2f}; tables agree to {worst:.0e}", flush=True
        )
        if number:
            walls.append((wall, hand_wall, hand_wall - took["stop the server"]))
            cpus.append((cpu, hand_cpu))
            stages.append(took)
    _table_of(walls, cpus, stages)


def _table_of(walls: list[tuple[float, ...]], cpus: list[tuple[float, float]], stages: list[dict[str, float]]) -> None:
    middle = statistics.median
    names = ("campaign x2, own server", "pool per stage x2, own server", "the same, not waiting for its stop")
    print(f"\n{'':36} {'wall s':>8} {'range':>13} {'CPU s':>7} {'ours/it':>8}")
    for i, name in enumerate(names):
        mine = [w[i] for w in walls]
        cpu = middle(c[min(i, 1)] for c in cpus)
        ratio = middle(w[0] / w[i] for w in walls)
        print(f"{name:36} {middle(mine):8.2f} {min(mine):6.2f}-{max(mine):.2f} {cpu:7.2f} {ratio:8.2f}")
    print("pool per stage: " + ", ".join(f"{name} {middle(s[name] for s in stages):.2f}" for name in stages[0]))
