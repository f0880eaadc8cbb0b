"""The line of a stage in the progress: how much is done, and that something has failed."""

from __future__ import annotations

import io

from campaign.report.progress import Progress


def test_a_line_says_how_many_have_failed():
    """As soon as one has; nothing of it where none has."""
    stream = io.StringIO()
    shown = Progress(stream)
    shown.expect("select", 3)
    shown.expect("fill", 2)
    shown.add("fill", 2)
    shown.add("select", 1)
    shown.add("select", 0, failed=2)
    lines = stream.getvalue().splitlines()
    assert [line.split("] ", 1)[1].split()[0] for line in lines if "2 failed" in line] == ["select"]
    assert lines[-1].endswith("[########................] 1/3  2 failed  done")
    assert not any("failed" in line for line in lines if "fill" in line)
