"""What a profile says of made-up runs: the sums add up, and the sentence names what took the time."""

from __future__ import annotations

import pytest

from campaign.report.profile import Profile, by_stage
from campaign.report.timing import AHEAD, RUN, WAIT, WRITE, Timing


def profile(computing=0.1, tasks_s=18.0, ready=1.0, **stages):
    timeline = {"checked": 1.0, "ready": ready, "tasks": 11.0}
    return Profile(0.0, timeline, 2, stages, tasks_s, computing={"server-0": computing})


def test_worker_seconds_add_up():
    """Reading, stages, waiting, writing, the engine's own and idleness are all the seconds there were."""
    told = profile(read={RUN: 4.0, WAIT: 1.0, AHEAD: 3.0}, select={RUN: 6.0}, infer={RUN: 1.0, WAIT: 2.0, WRITE: 0.5})
    sums = told.sums()
    assert sums == pytest.approx(
        {"reading": 5.0, "CPU": 7.0, "servers": 2.0, "start-up": 0.0, "writing": 0.5, "engine": 3.5, "idle": 2.0}
    )
    assert sum(sums.values()) == pytest.approx(2 * told.span_s)


@pytest.mark.parametrize(
    ("told", "bound"),
    [
        (profile(read={RUN: 15.0}, select={RUN: 3.0}), "reading"),
        (profile(read={RUN: 3.0}, select={RUN: 15.0}), "CPU"),
        (profile(read={RUN: 3.0}, infer={WAIT: 15.0}), "servers"),
        (profile(computing=0.95, read={RUN: 9.0}, infer={RUN: 5.0, WAIT: 4.0}), "servers"),
        (profile(tasks_s=2.0, read={RUN: 2.0}), "start-up"),
        (profile(ready=9.0, read={RUN: 2.0}, infer={WAIT: 15.0}), "start-up"),
        (profile(tasks_s=0.0), "nothing: all of it was done before"),
    ],
)
def test_the_sentence_names_what_took_the_time(told, bound):
    """Servers that compute nearly all the time are what everybody waits for, even if others look busy."""
    assert told.bound_by == bound
    assert bound in "\n".join(told.lines())


def test_seconds_are_put_by_stage_reading_first():
    """In the order of the campaign's stages; a stage that took nothing is left out."""
    spent = Timing()
    with spent.on("fill", RUN):
        pass
    spent.add("read", WAIT, 1.0)
    spent.add("fill", RUN, 2.0)
    told = by_stage(spent, ["select", "fill"])
    assert list(told) == ["read", "fill"]
    assert told["fill"][RUN] >= 2.0
