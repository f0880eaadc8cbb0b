"""What a worker that has died leaves: read once, and removed."""

from __future__ import annotations

import subprocess
import sys

from campaign.worker.deadline import deaths

DIES = """
import os, sys
from pathlib import Path
from campaign.worker.deadline import watch
watch(Path(sys.argv[1])).task("call-1", 3, 60.0)
os.abort()
"""


def test_a_death_is_told_once(tmp_path):
    """Its note is gone when it has been read, so that no later question takes it for another death."""
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -6
    (death,) = deaths(tmp_path)
    assert (death.call, death.place, death.late, death.how) == ("call-1", 3, False, "Aborted")
    assert not list(tmp_path.iterdir())
    assert deaths(tmp_path) == []
