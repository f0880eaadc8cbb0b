"""What is kept of when workers were in tasks: bounded, and nothing of it is lost that shows."""

from __future__ import annotations

from campaign.driver.task_times import MOST_SPANS, SLOWEST, TaskTimes


def test_the_slowest_files_are_named_once_each():
    """Of many tasks the longest of each file is kept, the slowest file first."""
    times = TaskTimes()
    for n in range(1000):
        start = 1000.0 + n * 100
        times.add("w 1", [start], start + (n * 7) % 1000 / 20, lambda _, n=n: {"file": f"f{n % 500}"})
    slowest = times.to_json(1000.0)["slowest"]
    longest = sorted({max((n * 7) % 1000, ((n + 500) * 7) % 1000) / 20 for n in range(500)}, reverse=True)
    assert [x["seconds"] for x in slowest] == longest[:SLOWEST]
    assert len({x["file"] for x in slowest}) == SLOWEST


def test_spans_are_bounded_and_keep_begin_and_end():
    """A worker with very many tasks keeps a bounded number of spans, in order, from its first task to its last."""
    times = TaskTimes()
    for n in range(20 * MOST_SPANS):
        times.add("w 1", [n * 1.0], n + 0.5, lambda _: {"file": "f"})
    spans = times.to_json(0.0)["workers"]["w 1"]
    assert len(spans) <= MOST_SPANS
    assert (spans[0][0], spans[-1][1]) == (0.0, 20 * MOST_SPANS - 0.5)
    assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_tasks_of_a_batch_end_where_the_next_begins():
    """The places of a batch's tasks tell their files apart; a batch that failed as a whole has no times."""
    times = TaskTimes()
    times.add("w 1", [10.0, 13.0, 14.0], 20.0, lambda i: {"file": f"f{i}"})
    times.add("", [], 0.0, lambda i: {"file": f"f{i}"})
    told = times.to_json(10.0)
    assert {x["file"]: x["seconds"] for x in told["slowest"]} == {"f0": 3.0, "f1": 1.0, "f2": 6.0}
    assert told["workers"] == {"w 1": [[0.0, 10.0]]}
