"""Order and neighbours cannot show: shuffled submission, and who the workers are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from campaign import load
from campaign.driver import task_queue
from campaign.driver.run import run
from tests.conftest import change, command, hashes, report_of, yaml_of


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_shuffled_submission_changes_no_byte(small: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever the order in which tasks are submitted and arrive, every output has the same sha256."""
    change(small, read_rows=300)
    first = run(load(small / "c.yaml"), run_dir=small / "in-order", progress=False)

    def shuffled(places: Any, _sizes: Any) -> Any:
        return np.random.default_rng(seed).permutation(places)

    monkeypatch.setattr(task_queue, "longest_first", shuffled)
    monkeypatch.setattr(task_queue, "BATCH_S", 0.01)
    second = run(load(small / "c.yaml"), run_dir=small / "shuffled", workers=2, servers=2, progress=False)
    assert {n: o["sha256"] for n, o in second.outputs.items()} == {n: o["sha256"] for n, o in first.outputs.items()}


@pytest.mark.slow
def test_predictions_do_not_depend_on_the_ranges_a_file_is_read_in(small: Path) -> None:
    """A model whose answers depend on the batch gives every row the same one, read in ranges of 130 rows or at once."""
    found = []
    for rows in (130, 100_000):
        report = run(load(small / "c.yaml", [f"read_rows={rows}"]), run_dir=small / str(rows), progress=False)
        found.append({n: o["sha256"] for n, o in report.outputs.items() if n.startswith("first/")})
    assert found[0] == found[1]
    assert len(found[0]) == 4


WHO = '''

def who(batch, ctx):
    """Leaves the name of this process and of its ancestors."""
    import os, pathlib
    lines, pid = [], os.getpid()
    while pid > 1:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        lines.append(pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\\0", " "))
        pid = int(stat[1])
    (pathlib.Path(ctx.options["folder"]) / str(os.getpid())).write_text("\\n".join(lines))
    return select(batch, ctx)
'''


@pytest.mark.slow
def test_with_parsl_the_workers_belong_to_its_executor(small: Path) -> None:
    """Every task of `provider: parsl` runs under HTEX's process_worker_pool, none under this package's own pool."""
    (small / "stages.py").write_text((small / "stages.py").read_text() + WHO)
    who = small / "who"
    who.mkdir()
    stages = yaml_of(small)["stages"]
    stages["select"] = {"use": "stages.py:who", "options": {"folder": str(who)}}
    change(small, stages=stages, provider={"kind": "parsl", "provider": {"class": "LocalProvider"}})
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {p.name: p.read_text() for p in who.iterdir()}
    # One of them is the child process that looked at the files before anything was started.
    looked = [pid for pid, text in found.items() if "process_worker_pool.py" not in text]
    assert len(looked) == 1
    assert "forkserver" in found[looked[0]]
    assert 1 <= len(found) - 1 <= 2
    assert str(os.getpid()) not in found
    assert report_of(small / "r")["status"] == "complete"


@pytest.mark.slow
def test_dynamic_batching_is_said_to_be_irreproducible(small: Path) -> None:
    """A model whose server may mix requests: the campaign runs, and its report says what that means."""
    text = (small / "c.yaml").read_text().replace("batch_sensitive", "batch_sensitive_dynamic")
    (small / "c.yaml").write_text(text)
    change(small, variations={})
    assert command("run", "c.yaml", "--run-dir", "r", cwd=small).returncode == 0
    report = report_of(small / "r")
    assert report["reproducible"] is False
    assert any("batch_sensitive_dynamic dynamically" in w for w in report["warnings"])


@pytest.mark.slow
def test_the_name_of_the_run_directory_does_not_show(small: Path) -> None:
    """Two runs in two places, days apart or not: the same bytes."""
    change(small, variations={})
    for name in ("a", "b/c"):
        assert command("run", "c.yaml", "--run-dir", name, cwd=small).returncode == 0
    assert hashes(small / "a") == hashes(small / "b/c")
