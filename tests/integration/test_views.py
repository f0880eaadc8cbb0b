"""What a person or a program sees of a run: JSON events, the view of another's run, logs by name."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jsonschema

from campaign.report.events import SCHEMA
from campaign.storage.rundir import RunDir
from tests.conftest import command, report_of, start, wait_until, write_tree

STAGES = """
import time


def count(batch, ctx):
    print("counted", len(batch), "rows")
    time.sleep(0.5)
    return {"n": len(batch)}


def broken(batch, ctx):
    print("about to fail")
    if len(batch) == 30:
        raise ValueError("thirty rows")
    return {"n": len(batch)}
"""


def made(folder: Path, stage: str) -> Path:
    """A campaign of four files without servers."""
    for i in range(4):
        write_tree(folder / "d" / f"{'abcd'[i]}.root", n=10 * (i + 1), seed=i)
    (folder / "s.py").write_text(STAGES)
    (folder / "c.yaml").write_text(
        "campaign: c\ndatasets: {d: {files: d, tree: events}}\nworkers: 2\nretries: 0\n"
        f"stages: {{count: {{use: 's.py:{stage}'}}}}\n"
    )
    return folder


def test_json_events_follow_the_run(tmp_path):
    """Every line of ``run --json`` is an event of the schema that ``schema --events`` prints; counts add up."""
    folder = made(tmp_path, "broken")
    schema = json.loads(command("schema", "--events", cwd=folder).stdout)
    assert schema == SCHEMA
    done = command("run", "--json", "c.yaml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    for event in events:
        jsonschema.validate(event, schema)
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["total"], last["done"], last["failed"]) == (4, 3, 1)
    assert [event["status"] for event in events if event["event"] == "end"] == [report_of(folder / "r")["status"]]
    failed = [event["text"] for event in events if event["event"] == "failed"]
    assert len(failed) == 1
    assert "thirty rows" in failed[0]


def test_watch_shows_a_run_that_was_started_elsewhere(tmp_path):
    """It follows a live run to its end and ends with its exit code; interrupting it leaves the run alone."""
    folder = made(tmp_path, "count")
    driver = start("run", "c.yaml", "--run-dir", "r", cwd=folder)
    assert wait_until(lambda: RunDir(folder / "r").started.exists(), 60)
    first = start("watch", "r", cwd=folder)
    second = start("watch", "r", cwd=folder)
    assert wait_until(lambda: bool(RunDir(folder / "r").owner()) or driver.poll() is not None, 30)
    os.kill(first.pid, signal.SIGINT)
    output, _ = second.communicate(timeout=120)
    first.communicate(timeout=60)
    driver.communicate(timeout=60)
    assert driver.returncode == second.returncode == 0
    assert report_of(folder / "r")["status"] == "complete"
    assert "campaign c: complete" in output
    again = command("watch", "r", cwd=folder)
    assert again.returncode == 0
    assert "campaign c: complete" in again.stdout


def test_logs_are_found_by_the_name_of_an_input_file(tmp_path):
    """By part of a file's name, or of all files that failed; an unknown name lists the logs there are."""
    folder = made(tmp_path, "broken")
    assert command("run", "c.yaml", "--run-dir", "r", "--quiet", cwd=folder).returncode == 1
    one = command("logs", "r", "--file", "b.root", cwd=folder)
    assert one.returncode == 0
    assert one.stdout.count("==> ") == 1
    assert "b.root" in one.stdout.splitlines()[0]
    failed = command("logs", "r", "--failed", cwd=folder).stdout
    assert failed.count("==> ") == 1
    assert "c.root" in failed.splitlines()[0]
    assert "about to fail" in failed
    everything = command("logs", "r", cwd=folder).stdout
    assert all(f"{name}.root" in everything for name in "abcd")
    none = command("logs", "r", "--file", "z.root", cwd=folder)
    assert none.returncode == 2
    assert "'z.root' is not one of the logs of input files" in none.stderr
    assert "remedy: " in none.stderr
    assert command("logs", "r", "--server", "server-0", cwd=folder).returncode == 2
