"""What a worker's stages print: moved to the log of the file, cut where it is too much, kept where the worker dies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from campaign.worker.stage_log import LIMIT, LOG_LIMIT, _whole, log_of, logs, tidy

CODE = """
import os, sys
from pathlib import Path
from campaign.worker import stage_log
folder = Path(sys.argv[1])
log = stage_log.stage_log(folder, "call")
assert stage_log.stage_log(folder, "") is None
assert not log.printed()
print("one")
os.write(2, b"two\\n")
assert log.printed()
assert log.move(folder / "d" / "a.log", "first")
assert not log.move(folder / "d" / "a.log", "nothing")
print("x" * (stage_log.LIMIT + 10))
stage_log.trim()
print("this goes nowhere")
log.move(folder / "d" / "b.log", "second")
print("three")
log.move(folder / "d" / "a.log", "third")
print("last words", flush=True)
os._exit(1)
"""


def test_what_is_printed_lies_in_the_log_of_its_file(tmp_path):
    """By Python and by C, title above; too much is cut and says so; what a dying worker has printed stays."""
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert (tmp_path / "d" / "a.log").read_text() == "--- first\none\ntwo\n--- third\nthree\n"
    text = (tmp_path / "d" / "b.log").read_text()
    assert text.endswith("x\n[cut: stages of one file may print 256 KiB]\n")
    assert len(text) < LIMIT + 100
    (tmp_path / ".empty").touch()
    assert tidy(tmp_path) == 3
    (left,) = tmp_path.glob("worker-*.log")
    assert left.read_text() == "last words\n"
    assert not list(tmp_path.glob(".*"))


BOUND = """
import os, sys, time, warnings
from pathlib import Path
from campaign.worker import stage_log
folder = Path(sys.argv[1])
log = stage_log.stage_log(folder, "call")
for i in range(40_000):
    print(f"row {i} \u00e9" + "x" * 100)
assert os.fstat(log._fd).st_size <= stage_log.LIMIT, os.fstat(log._fd).st_size
assert log.move(folder / "python.log", "by Python")
for i in range(5):  # code in C: found by the look, and not by the write
    os.write(1, b"x" * (100 << 10))
    time.sleep(2 * stage_log.LOOK_S if i == 2 else 0)
assert log.move(folder / "c.log", "by C")
for i in range(8):
    print("y" * 200_000)
    assert log.move(folder / "many.log", f"run {i}")
log._moved = stage_log.WORKER_LIMIT
print("z")
log.move(folder / "many.log", "the last whole one")
print("z" * 5000)
log.move(folder / "many.log", "after very many")
"""


def test_no_stage_fills_the_disk(tmp_path):
    """In one call of 40,000 prints too; no character is cut in two; a log keeps its newest lines."""
    done = subprocess.run([sys.executable, "-c", BOUND, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    python = (tmp_path / "python.log").read_text("utf-8", errors="strict")
    assert python.startswith("--- by Python\nrow 0 \u00e9xxx")
    assert python.endswith("\n[cut: stages of one file may print 256 KiB]\n")
    assert (tmp_path / "c.log").stat().st_size <= LIMIT + 100
    many = (tmp_path / "many.log").read_text()
    assert len(many) <= LOG_LIMIT
    assert many.startswith("[older lines were removed]\n")
    assert "run 0" not in many
    assert "run 7" in many
    assert many.endswith("[cut: stages of one file may print 4 KiB]\n")


@pytest.mark.parametrize("whole", ["e", "\u00e9", "\u20ac", "\U0001d53c"])
def test_a_character_is_not_cut_in_two(whole):
    """Of one to four bytes: what is left of it at the end goes, a whole one stays."""
    text = whole.encode()
    assert _whole(b"ab" + text) == b"ab" + text
    for some in range(1, len(text)):
        assert _whole(b"ab" + text[:some]) == b"ab"


WARNS = """
import sys
from pathlib import Path
import numpy as np
from campaign.worker import stage_log
from campaign.util.user_code import load_file
log = stage_log.stage_log(Path(sys.argv[1]), "call")
load_file(Path(sys.argv[2])).stage()
log.move(Path(sys.argv[1]) / "w.log", "warned")
"""


def test_a_warning_names_the_line_of_the_stage(tmp_path):
    """A library's warning names the library's file; the line of the user's that called the library stands below."""
    stages = tmp_path / "stages.py"
    stages.write_text("import json, library\n\ndef stage():\n    return library.f(1)\n")
    (tmp_path / "library.py").write_text("import warnings\ndef f(x):\n    warnings.warn('too few')\n")
    done = subprocess.run([sys.executable, "-c", WARNS, str(tmp_path), str(stages)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "w.log").read_text() == (
        f"--- warned\n{tmp_path}/library.py:3: UserWarning: too few\n  warnings.warn('too few')\n"
        f"  called from {stages}:4: return library.f(1)\n"
    )


TWO_RUNS = """
import os, sys, threading, time
from pathlib import Path
from campaign.worker import stage_log
first, second = Path(sys.argv[1]) / "one", Path(sys.argv[1]) / "two"
old = stage_log.stage_log(first, "call")
os.write(1, b"x" * (stage_log.LIMIT + 1))  # too much, and not yet looked at
log = stage_log.stage_log(second, "call")
time.sleep(3 * stage_log.LOOK_S)
print("of the second run")
assert log.move(second / "a.log", "second")
assert [t.name for t in threading.enumerate()].count("campaign-stage-log") == 1
assert not any(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(first)) for fd in os.listdir("/proc/self/fd"))
"""


def test_a_worker_of_two_runs_prints_into_the_second(tmp_path):
    """A long-lived worker: no thread, open file or limit of the first run is left."""
    done = subprocess.run([sys.executable, "-c", TWO_RUNS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "two" / "a.log").read_text() == "--- second\nof the second run\n"


RACE = """
import os, sys, time
from pathlib import Path
from campaign.worker import stage_log
stage_log.LIMIT = 1 << 10
stage_log.LOOK_S = 0.0
log = stage_log.stage_log(Path(sys.argv[1]), "call")
for i in range(300):
    os.write(1, b"x" * 5000)
    log.move(Path(sys.argv[1]) / "much.log", "much")
    os.write(1, b"task %d\\n" % i)
    assert log.move(Path(sys.argv[1]) / "little.log", "little"), i
"""


def test_a_look_that_meets_a_move_takes_nothing_from_the_next_task(tmp_path):
    """What the next task prints is there, however often the size is looked at."""
    done = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = (tmp_path / "little.log").read_text().splitlines()
    assert lines[1::2] == [f"task {i}" for i in range(300)]


def test_only_logs_of_this_run_are_counted(tmp_path):
    """A run that did nothing says nothing of the logs of an earlier one."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.log").write_text("earlier")
    before = logs(tmp_path)
    assert tidy(tmp_path, before) == 0
    (tmp_path / "d" / "b.log").write_text("new")
    (tmp_path / "d" / "a.log").write_text("earlier, and more")
    assert tidy(tmp_path, before) == 2


def test_files_of_one_name_have_logs_of_their_own(tmp_path):
    """The name is there to be read, and a digest of the whole path tells two of them apart."""
    one, other = (log_of(tmp_path, url, "d") for url in ("/a/x 1.root", "root://h//b/x 1.root"))
    assert one != other
    assert {one.parent, other.parent} == {tmp_path / "d"}
    assert one.name.startswith("x_1.root-")
