"""Whatever the order in which things come to pass, and whatever is lost or spoilt in between: the same outputs.

Calls are done here, one at a time, in an order drawn by lot, so that each moment of a run can be hit and a failure
repeated from its seed. What is done is real: stages, partials, packs, receipts, merges.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from campaign.providers.local import LocalProvider

from campaign import load
from campaign.audit.verify import verify
from campaign.driver import merge_trees, scheduler, task_queue, worker_calls
from campaign.driver import run as run_module
from campaign.driver.run import run
from campaign.errors import Interrupted
from campaign.report.report import COMPLETE, INTERRUPTED, Report
from campaign.storage.receipts import parse
from campaign.storage.rundir import RunDir
from campaign.worker import merging, tasks
from campaign.worker.deadline import Death
from tests.conftest import change
from tests.integration.test_scale import do, hashes, make_many


class Asked(Future[Any]):
    """A call that nobody has done yet."""

    def __init__(self, executor: Worker, function: Any, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.executor, self.function, self.args = executor, function, args
        self.answer: Any = None


class Worker(Executor):
    """Takes calls; `Lots` does them."""

    broken = False

    def submit(self, function: Any, /, *args: Any, **_: Any) -> Asked:
        """Remember it."""
        if self.broken:
            raise BrokenProcessPool("its worker is gone")
        return Asked(self, function, args)


class Lots:
    """Draws what happens next.

    Args:
        seed: Of the lots.
        root: The run directory.
    """

    def __init__(self, seed: int, root: Path) -> None:
        self.lots, self.rundir = random.Random(seed), RunDir(root)
        self.thread = ThreadPoolExecutor(1)  # deadlines and what a crash leaves are for workers' main threads
        self.happened: Counter[str] = Counter()
        self.spoilt: set[str] = set()  # keys of partials that were
        self.met: set[Any] = set()
        self.answers: Counter[str] = Counter()  # receipts that have come, by key
        self.left = 2  # workers that may still die without a word
        self.blamed: set[str] = set()  # tasks that workers have died in: not twice in one
        self.said: list[Death] = []

    def tasks(self, _workers: int) -> Worker:
        """In place of a process pool."""
        return Worker()

    def deaths(self, _folder: Path, _logs: Path) -> list[Death]:
        """What workers that died have left."""
        said, self.said = self.said, []
        return said

    def wait(self, asked: Iterator[Asked], timeout: float, return_when: str) -> tuple[list[Asked], list[Asked]]:
        """In place of `concurrent.futures.wait`: something happens, and some calls are answered."""
        del timeout, return_when
        every = list(asked)
        if self.lots.random() < 0.01:
            self.happened["stopped"] += 1
            raise Interrupted("by lot")
        for call in self.lots.sample(every, self.lots.randint(1, min(3, len(every)))):
            if call.done():
                continue
            if self.lots.random() < 0.05 and self._dies(call, every):
                break
            if call.answer is None:
                self._spoil(call)
                call.answer = self.thread.submit(call.function, *call.args).result()
                if self.lots.random() < 0.3:
                    continue  # it is told later
            call.set_result(call.answer)
            if call.function is tasks.run_batch:
                self.answers.update(r.key for r in map(parse, call.result().lines.splitlines(keepends=True)) if r)
        return [call for call in every if call.done()], [call for call in every if not call.done()]

    def _dies(self, call: Asked, every: list[Asked]) -> bool:
        """A worker dies, and what is under way with it is lost; it has said in which task it was, or has not."""
        lost = [other for other in every if other.executor is call.executor and not other.done()]
        if call.function is tasks.run_batch and self.lots.random() < 0.7:
            batch, name = call.args[2], call.args[-1]
            place = self.lots.randrange(len(batch))
            task = batch.task(place).id
            if task in self.blamed:
                return False
            self.blamed.add(task)
            self.said.append(Death(name, place, late=False, how="Segmentation fault", log=""))
            self.happened["died in a task"] += 1
        elif self.left and len(lost) > 1:
            self.left -= 1
            self.happened["died"] += 1
        else:
            return False
        call.executor.broken = True
        for other in lost:
            other.set_exception(BrokenProcessPool("a worker died"))
        return True

    def _spoil(self, call: Asked) -> None:
        """Now and then, alter a file that a call is about to read: each partial once at most."""
        if self.lots.random() < 0.5:
            return
        if call.function is tasks.run_batch and call.args[4]:
            task = call.args[2].task(0)
            if _number(task.source.file.url) % 2 and self._first(task.artefact):
                self._cut(task.artefact, "artefact")
        elif call.function in (merging.run_leaf, merging.run_whole):
            receipts = [r for r in map(parse, call.args[4]) if r and (r.pack or _number(r.file) % 2 == 0)]
            if receipts and not receipts[0].pack and self._first((call.args[1].name, call.args[2])):
                self._cut(self.lots.choice(receipts).key, "columns")
            elif receipts and receipts[0].pack and self._first(call.args[1].name):
                self._flip(self.lots.choice(receipts).pack)

    def _first(self, what: Any) -> bool:
        first = what not in self.met
        self.met.add(what)
        return first

    def _receipts(self) -> Iterator[Any]:
        yield from (r for r in map(parse, self.rundir.receipts.read_bytes().splitlines(keepends=True)) if r)

    def _flip(self, pack: str) -> None:
        """One bit somewhere in a pack."""
        self.spoilt |= {r.key for r in self._receipts() if r.pack == pack}
        self.happened["pack"] += 1
        path = self.rundir.pack(pack)
        data = bytearray(path.read_bytes())
        data[self.lots.randrange(len(data))] ^= 1 << self.lots.randrange(8)
        path.write_bytes(data)

    def _cut(self, key: str, what: str) -> None:
        """The last byte of columns, in place: what is linked to them is cut with them."""
        self.spoilt.add(key)
        self.happened[what] += 1
        path = self.rundir.columns(key)
        os.truncate(path, path.stat().st_size - 1)


def _number(file: str) -> int:
    return int(Path(file).stem)


class Moment(Lots):
    """One moment: tasks that read artefacts are under way when a merge finds one of these spoilt.

    Args:
        root: The run directory.
        dies: Whether a worker then dies in another task of theirs; else they have met the spoilt one too, and say so
            when it has been made again.
    """

    def __init__(self, root: Path, *, dies: bool) -> None:
        super().__init__(0, root)
        self.dies, self.met_it = dies, 0

    def wait(self, asked: Iterator[Asked], timeout: float, return_when: str) -> tuple[list[Asked], list[Asked]]:
        """See `Lots`."""
        del timeout, return_when
        every = list(asked)
        readers = [call for call in every if call.function is tasks.run_batch and call.args[4]]
        merges = [
            call for call in every if call.function is merging.run_whole and call.args[1].name == "keep/d/nominal"
        ]
        others = [call for call in every if call not in readers and call not in merges]
        several = [call for call in readers if len(call.args[2]) > 2]
        if not self.met_it and merges and several:
            self._meet(merges[0], several[0], every)
        elif others:
            self._do(others[0])
        else:
            self._do((readers or merges)[0])
        return [call for call in every if call.done()], [call for call in every if not call.done()]

    def _meet(self, merge: Asked, reader: Asked, every: list[Asked]) -> None:
        task = reader.args[2].task(1)
        self._cut(task.artefact, "columns")
        self._do(merge)
        assert isinstance(merge.result(), merging.CorruptPartials)
        self.met_it = len(reader.args[2])
        if self.dies:
            self.said.append(Death(reader.args[-1], 0, late=False, how="Segmentation fault", log=""))
            reader.executor.broken = True
            for call in every:
                if not call.done():
                    call.set_exception(BrokenProcessPool("a worker died"))
        else:
            reader.answer = self._answer(reader)
            assert len(reader.answer.errors) == 1

    def _do(self, call: Asked) -> None:
        call.set_result(call.answer or self._answer(call))

    def _answer(self, call: Asked) -> Any:
        return self.thread.submit(call.function, *call.args).result()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that nothing happens to."""
    return hashes(do(make_many(tmp_path_factory.mktemp("undisturbed"))))


def rule(lots: Lots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let them say what happens."""
    monkeypatch.setattr(LocalProvider, "tasks", lots.tasks)
    monkeypatch.setattr(worker_calls, "wait", lots.wait)
    monkeypatch.setattr(scheduler, "deaths", lots.deaths)
    monkeypatch.setattr(run_module, "preflight", lambda *_: None)  # a process, which takes longer than all else


def to_its_end(folder: Path, lots: Lots) -> Report:
    """Run until nothing interrupts it; the last report."""
    for _ in range(100):
        report = run(load(folder / "c.yaml"), run_dir=lots.rundir.root, progress=False, raises=False)
        if report.status != INTERRUPTED:
            return report
    raise AssertionError("it is interrupted for ever")


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 26))])
def test_no_order_and_no_loss_shows(
    tmp_path: Path, undisturbed: dict[str, str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops, dying workers and spoilt partials at any moment: complete, same hashes, nothing done twice for nothing."""
    lots = Lots(seed, make_many(tmp_path) / "r")
    rule(lots, monkeypatch)
    monkeypatch.setattr(task_queue, "LARGEST", lots.lots.choice([1, 4, 1000]))
    monkeypatch.setattr(merge_trees, "LEAF", lots.lots.choice([7, 1000]))
    report = to_its_end(tmp_path, lots)
    print(dict(lots.happened))
    assert report.status == COMPLETE, report.errors
    assert hashes(report) == undisturbed
    assert {key for key, n in lots.answers.items() if n > 1} <= lots.spoilt
    # A pack that was spoilt when what lay in it was merged is no output's fault, but no longer what was written either.
    findings = verify(None, tmp_path / "r", sample=0).findings
    assert not [finding for finding in findings if finding.what != "partial"]


@pytest.mark.parametrize("dies", [True, False])
def test_readers_of_an_artefact_that_is_made_anew_lose_nothing(
    tmp_path: Path, undisturbed: dict[str, str], dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their worker dies then, or they were quicker: they are done again without spending a retry, of which none is."""
    moment = Moment(make_many(tmp_path) / "r", dies=dies)
    change(tmp_path, retries=0)
    rule(moment, monkeypatch)
    report = to_its_end(tmp_path, moment)
    assert moment.met_it > 2
    assert report.status == COMPLETE, report.errors
    assert hashes(report) == undisturbed
