"""What a worker's stages print: moved to the log of the file, cut where it is too much, kept where the worker dies."""

from __future__ import annotations

import subprocess
import sys

from campaign.stagelog import LIMIT, log_of, tidy

CODE = """
import os, sys
from pathlib import Path
from campaign import stagelog
folder = Path(sys.argv[1])
log = stagelog.stage_log(folder, "call")
assert stagelog.stage_log(folder, "") is None
assert not log.printed()
print("one")
os.write(2, b"two\\n")
assert log.printed()
assert log.move(folder / "d" / "a.log", "first")
assert not log.move(folder / "d" / "a.log", "nothing")
print("x" * (stagelog.LIMIT + 10))
stagelog.trim()
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


def test_files_of_one_name_have_logs_of_their_own(tmp_path):
    """The name is there to be read, and a digest of the whole path tells two of them apart."""
    one, other = (log_of(tmp_path, url, "d") for url in ("/a/x 1.root", "root://h//b/x 1.root"))
    assert one != other
    assert {one.parent, other.parent} == {tmp_path / "d"}
    assert one.name.startswith("x_1.root-")
