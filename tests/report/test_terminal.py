"""The live view in a terminal: what is on the screen at any moment, at the widths people use."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from campaign.report.progress import ServerProgress
from campaign.report.terminal import TerminalProgress


def drawn(shown: TerminalProgress, width: int) -> list[str]:
    """The lines of one frame."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as captured:
        console.print(shown._view())
    return captured.get().splitlines()


def view(width: int) -> tuple[TerminalProgress, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, highlight=False, color_system=None)
    return TerminalProgress(console), stream


@pytest.mark.parametrize("width", [40, 80, 160])
def test_one_frame_shows_stages_servers_and_failures(width):
    """No line is wider than the terminal; each stage, each server and the number of failures has its place."""
    shown, _ = view(width)
    try:
        shown.expect("select", 1000)
        shown.expect("a_stage_with_a_long_name_that_must_be_cut_somewhere", 10)
        shown.add("select", 250, failed=1, rows=1_500_000)
        shown.show_servers([
            ServerProgress("server-0", "ready", "node1", 0.93, 4.2, 1),
            ServerProgress("server-1", "ended", reason="ended by signal 9 after a very long story " * 5),
        ])  # fmt: skip
        shown.fail("data/bad.root: cannot be read\n  remedy: replace it")
        frame = drawn(shown, width)
    finally:
        shown.close()
    assert all(len(line) <= width for line in frame)
    text = "\n".join(frame)
    assert "select" in text
    assert "server-0" in text
    assert "server-1" in text
    assert "1 failed" in text
    if width >= 80:
        assert "250/1,000" in text
        assert "93 % busy" in text
        assert "1 restart" in text


def test_many_servers_take_few_lines():
    """A pool of 200 servers does not push the stages off the screen: the rest is counted by state."""
    shown, _ = view(80)
    states = ["ready"] * 150 + ["starting"] * 50
    shown.show_servers([ServerProgress(f"server-{i}", state) for i, state in enumerate(states)])
    frame = drawn(shown, 80)
    assert len(frame) < 12
    assert "and 194 more" in "\n".join(frame)
    assert "144 ready, 50 starting" in "\n".join(frame)


def test_failures_stay_above_the_view_and_the_end_leaves_the_counts():
    """A failure is printed once, when it happens; after the end the last counts of the stages stay."""
    shown, stream = view(80)
    shown.expect("select", 2)
    shown.fail("data/bad.root: cannot be read")
    shown.add("select", 1, failed=1)
    shown.close()
    written = stream.getvalue()
    assert written.count("data/bad.root: cannot be read") == 1
    assert written.rstrip().endswith("done")
    assert "1/2" in written.splitlines()[-1]
    assert "1 failed" in written.splitlines()[-1]


def test_the_time_left_is_not_invented():
    """Nothing is said before some tasks are done."""
    shown, _ = view(80)
    try:
        shown.expect("select", 1000)
        assert "time left unknown yet" in drawn(shown, 80)[-1]
        assert shown.left_s() is None
    finally:
        shown.close()
