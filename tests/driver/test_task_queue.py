"""Batches: what is ready, longest first, as long as was measured; and what a lost worker costs."""

from __future__ import annotations

import os
from concurrent.futures import BrokenExecutor, Executor, Future

import numpy as np
import pytest

from campaign import Campaign, Dataset, StageSpec, Variation
from campaign.driver import task_queue
from campaign.driver.merge_trees import LEAF, MergeTree
from campaign.driver.partial_index import PartialIndex
from campaign.driver.task_queue import TaskQueue
from campaign.driver.worker_calls import LOSSES, WorkerCall, WorkerCalls
from campaign.errors import ProviderError
from campaign.planning.plan import PendingTasks
from campaign.planning.planner import plan
from campaign.storage.receipts import Receipts
from campaign.worker.deadline import Death

STAGES = "def s(b, c):\n    return {'x': b.x}\n\n\ndef r(m, c):\n    return {}\n"


@pytest.fixture
def two_passes(tmp_path):
    """A plan of 40 files of growing size and two passes, the second of which reads what the first has kept."""
    (tmp_path / "st.py").write_text(STAGES)
    for i in range(40):
        (tmp_path / f"{i:02}.root").write_bytes(b"x" * i)
    stages = {
        "a": StageSpec(use="st.py:s", keep=True), "f": StageSpec(use="st.py:r", reduce="a"),
        "b": StageSpec(use="st.py:s", from_="a", with_="f"),
    }  # fmt: skip
    made = plan(Campaign(campaign="c", datasets={"d": Dataset(files=".", tree="t")}, stages=stages).at(tmp_path), {})
    return made, PartialIndex(made, Receipts(tmp_path / "log"))


def everything(queue, ready=lambda shape: True, took=None):
    found = []
    while (batch := queue.next(ready)) is not None:
        found.append(batch)
        if took is not None:
            queue.measured(batch[0], len(batch[1]), took * len(batch[1]))
    return found


def done(index, line, places):
    places = np.asarray(places)
    index.record([line], places, np.zeros((len(places), 1), int), np.zeros(len(places), int))


def test_files_go_longest_first_and_each_once(two_passes):
    """However large batches become, every file is in one of them, the largest in the first."""
    made, index = two_passes
    (first, _) = made.todo()
    for took in (None, 1.0, 1e-6):
        found = everything(TaskQueue([first], index, 2), took=took)
        assert np.concatenate([places for _, places in found]).tolist() == list(range(39, -1, -1))


def test_batches_grow_with_what_tasks_take_and_shrink_at_the_end(two_passes):
    """Long tasks go one by one; short ones in batches, never more than a share of what is left."""
    made, index = two_passes
    (first, _) = made.todo()
    assert {len(p) for _, p in everything(TaskQueue([first], index, 2), took=1.0)} == {1}
    sizes = [len(p) for _, p in everything(TaskQueue([first], index, 1), took=1e-6)]
    left = 40
    assert sizes[0] == 1
    assert max(sizes) > 1
    for size in sizes:
        assert size <= -(-left // task_queue.SHARE)
        left -= size
    assert sizes[-1] == 1


def test_a_task_waits_for_its_artefact_and_its_frozen_value(two_passes):
    """Of the second pass only those files are ready whose artefact is there, and none before the frozen value is."""
    made, index = two_passes
    (_, second) = made.todo()
    (line,) = [x for x in made.lines if x.stage == "a"]
    queue = TaskQueue([second], index, 1)
    assert queue.next(lambda shape: True) is None
    done(index, line, [3, 7])
    assert queue.next(lambda shape: False) is None
    assert [p.tolist() for _, p in everything(queue)] == [[7], [3]]
    done(index, line, [5])
    assert [p.tolist() for _, p in everything(queue)] == [[5]]


def test_what_cannot_become_ready_is_taken_out(two_passes):
    """A lost artefact takes its file out of the second pass; a lost frozen value all of them."""
    made, index = two_passes
    (_, second) = made.todo()
    (line,) = [x for x in made.lines if x.stage == "a"]
    queue = TaskQueue([second], index, 1)
    assert queue.hopeless(lambda shape: False) == []
    index.lose([line], np.array([2, 4]))
    ((_, places),) = queue.hopeless(lambda shape: False)
    assert sorted(places.tolist()) == [2, 4]
    ((_, places),) = queue.hopeless(lambda shape: True)
    assert sorted(places.tolist()) == sorted(set(range(40)) - {2, 4})
    assert queue.hopeless(lambda shape: True) == []


def test_a_range_is_merged_when_its_files_are_there():
    """Of a large output every range is ready as soon as all its partials are, and is asked for once."""

    class Half:
        def whole(self, line):
            return False

        def there(self, line, places):
            return places < LEAF + 5

    class Planned:
        keys = range(3 * LEAF - 7)
        line = object()

    tree = MergeTree(Planned())
    assert not tree.small
    assert list(tree.ready(Half())) == [0]
    tree.asked.add(0)
    assert list(tree.ready(Half())) == []
    assert [tree.end(first) for first in (0, LEAF, 2 * LEAF)] == [LEAF, 2 * LEAF, 3 * LEAF - 7]


# Lost workers ---------------------------------------------------------------------------------------------------------


class Fragile(Executor):
    """In-process; a call that holds a bad number breaks it for good."""

    def __init__(self, log):
        self.log, self.broken = log, False

    def submit(self, fn, /, *args):
        if self.broken:
            raise BrokenExecutor
        future = Future()
        self.log.append(args[0])
        if any(n in BAD for n in args[0]):
            self.broken = True
            future.set_exception(BrokenExecutor("a worker died"))
        else:
            future.set_result(fn(*args))
        return future


BAD = {11, 50}


def call(numbers, answers, lost):
    half = len(numbers) // 2
    halves = (lambda: (call(numbers[:half], answers, lost), call(numbers[half:], answers, lost))) if half else None
    return WorkerCall(str(numbers), answers.extend, lost.append, list, (numbers,), halves)


def to_the_end(calls):
    while calls:
        for take in calls.wait(1):
            take()
        calls.try_suspect()


def test_of_a_lost_batch_the_cause_is_found_and_the_rest_is_done():
    """A batch that kills its worker is halved until the task that does it is alone; all others are answered once."""
    log, answers, lost = [], [], []
    calls = WorkerCalls(lambda: Fragile(log))
    for start in range(0, 96, 32):
        calls.submit(call(list(range(start, start + 32)), answers, lost))
    to_the_end(calls)
    assert sorted(answers) == sorted(set(range(96)) - BAD)
    assert sorted(error.where for error in lost) == ["[11]", "[50]"]
    assert all(f"{LOSSES} workers were lost while they did nothing else" in str(error) for error in lost)
    assert len(log) < 50, "halving, not one by one"


def known(numbers, answers, lost):
    """A call whose worker says which task it is in."""
    made = call(numbers, answers, lost)
    made.id = str(numbers)
    if len(numbers) > 1:
        made.part = lambda i: (known([numbers[i]], answers, lost), known(numbers[:i] + numbers[i + 1 :], answers, lost))
    return made


@pytest.mark.parametrize("late", [False, True])
def test_who_says_what_killed_it_spares_the_others(late):
    """Only the task that a worker names is done alone, or not again if it was late; nobody else is suspected."""
    log, answers, lost = [], [], []

    asked_until = [0]

    def deaths():
        new, asked_until[0] = log[asked_until[0] :], len(log)
        how = "ran longer than 3 s" if late else "Segmentation fault"
        bad = [(numbers, [i for i, n in enumerate(numbers) if n in BAD]) for numbers in new]
        return [Death(str(numbers), places[0], late, how, "here") for numbers, places in bad if places]

    calls = WorkerCalls(lambda: Fragile(log), deaths)
    for start in range(0, 96, 32):
        calls.submit(known(list(range(start, start + 32)), answers, lost))
    to_the_end(calls)
    assert sorted(answers) == sorted(set(range(96)) - BAD)
    assert sorted(error.where for error in lost) == ["[11]", "[50]"]
    assert all(("ran longer than 3 s" if late else "Segmentation fault") in str(error) for error in lost)
    assert log.count([11]) == log.count([50]) == (0 if late else LOSSES - 1)
    assert len(log) == 3 + 2 + (0 if late else 2), "each batch, what was left of two, and the suspects"


def test_a_machine_on_which_nothing_lives_is_given_up():
    """Where every call kills its worker the machine is named, after a bounded number of executors."""
    log, lost = [], []
    calls = WorkerCalls(lambda: Fragile(log))
    for _ in range(4):
        calls.submit(call([11] * 64, [], lost))
    with pytest.raises(ProviderError, match="workers were lost together"):
        to_the_end(calls)
    assert len(log) < 100


def test_a_ledger_matches_what_lies_there(two_passes, tmp_path):
    """Read back: what the log names, the plan wants and the files hold; the last word counts, foreign keys do not."""
    from campaign.storage.packs import PackWriter
    from campaign.storage.receipts import Receipt
    from campaign.storage.rundir import RunDir

    made, _ = two_passes
    run = RunDir(tmp_path / "run")
    (line,) = [x for x in made.lines if x.stage == "b"]
    with PackWriter(run) as pack:
        spots = [pack.add(bytes(i)) for i in range(40)]

    def receipt(i, key="", **changes):
        at, sha = spots[i]
        given = {"pack": pack.name, "offset": at, "events": i, **changes}
        return Receipt(key or line.keys[i], "b", "d", "nominal", f"{i}", "counts", sha, i, **given)

    with Receipts(run.receipts) as log:
        at = [log.add(receipt(i)) for i in (3, 0, 39)]
        log.add(receipt(5, key="0" * 64))
        log.add(receipt(6, key="k"))
        log.add(receipt(7, pack="gone"))
        log.add(receipt(8, offset=10**6))
        log.add(receipt(9, pack=""))
        last = log.add(receipt(3))
        kept = PartialIndex(made, log)
        kept.read(run)
        assert [i for i in range(40) if kept.there(line, np.array([i]))[0]] == [0, 3, 39]
        assert kept.newest(line) == last > max(at)
        assert kept.raw(line, 3, 4) == [receipt(3).line()]
        assert kept.events["d"].sum() == 0 + 3 + 39
        assert kept.packs >= {pack.name, "gone"}
    os.truncate(run.pack(pack.name), 10)
    with Receipts(run.receipts) as log:
        kept = PartialIndex(made, log)
        kept.read(run)
        assert [i for i in range(40) if kept.there(line, np.array([i]))[0]] == [0, 3]


def test_partials_made_with_another_frozen_value_are_forgotten(two_passes, tmp_path):
    """Each is known by the mark of its receipt, the last word counts, and what needs no frozen value is kept."""
    from campaign.storage.packs import PackWriter
    from campaign.storage.receipts import Receipt
    from campaign.storage.rundir import RunDir

    made, _ = two_passes
    run = RunDir(tmp_path / "run")
    first, second = (next(x for x in made.lines if x.stage == s) for s in "ab")
    assert (first.needs, second.needs) == (frozenset(), {("f", "nominal")})
    with PackWriter(run) as pack, Receipts(run.receipts) as log:
        at, sha = pack.add(b"x")
        log.add(Receipt(first.keys[0], "a", "d", "nominal", "f", "counts", sha, 1, pack=pack.name, offset=at))
        for line, i, mark in [(second, i, m) for i, m in ((0, "old"), (1, "new"), (2, ""), (3, "old"), (3, "new"))]:
            log.add(Receipt(line.keys[i], line.stage, "d", "nominal", "f", "counts", sha, 1, pack=pack.name, offset=at,
                            more=mark))  # fmt: skip
    kept = PartialIndex(made, Receipts(run.receipts))
    kept.read(run)
    ((events, lines, places),) = kept.stale({second: "new"})
    assert (events, lines, places.tolist()) == (second.events, {second}, [0, 2])
    assert kept.there(second, np.arange(4)).tolist() == [False, True, False, True]
    assert kept.there(first, np.arange(1)).all()
    assert kept.stale({second: "new"}) == []


def test_tasks_tried_again_join_the_others_of_their_shape(two_passes):
    """Files of different sizes, tried again while others wait, are put among them, largest first, none twice."""
    made, index = two_passes
    (first, second) = made.todo()
    queue = TaskQueue([first, second], index, 1)
    shape, places = queue.next(lambda shape: shape is first.shape)
    assert places.tolist() == [39]
    queue.add(PendingTasks(shape, np.array([3, 39])))
    left = np.concatenate([p for s, p in everything(queue, ready=lambda shape: shape is first.shape)])
    assert left.tolist() == sorted([*range(39), 3, 39], reverse=True)


def test_nominal_goes_first(tmp_path):
    """Before variations whose files are larger: who draws figures of it, or waits for it, works beside the rest."""
    (tmp_path / "st.py").write_text(STAGES)
    (tmp_path / "small.root").write_bytes(b"x")
    (tmp_path / "large.root").write_bytes(b"x" * 1000)
    campaign = Campaign(
        campaign="c", datasets={"d": Dataset(files="small.root", tree="t")}, stages={"a": StageSpec(use="st.py:s")},
        variations={"up": Variation(datasets=["d"], files="large.root")},
    ).at(tmp_path)  # fmt: skip
    made = plan(campaign, {})
    passes = made.todo()
    assert [p.shape.nominal for p in passes].count(True) == 1
    for order in (passes, passes[::-1]):
        found = everything(TaskQueue(order, PartialIndex(made, Receipts(tmp_path / "log")), 1))
        assert [shape.nominal for shape, _ in found] == [True, False]
