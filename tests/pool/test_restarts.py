"""Who sends pilots in place of lost ones, where the sending itself goes wrong; see test_server_faults for real loss."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from campaign.discovery.records import ServerRecord, backoff, causes, new_record, newest, read_records
from campaign.errors import ProviderError
from campaign.pool.restarts import Restarts
from campaign.protocols import PilotHandle
from campaign.util.files import write_json
from tests.conftest import wait_until


class Child:
    """A pilot that is a child of this process."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-S", "-c", code])

    def poll(self) -> int | None:
        """Its exit code."""
        return self.process.poll()

    def cancel(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def records(folder: Path) -> list[ServerRecord]:
    """All records, the newest last."""
    return read_records(folder, None)


def lost(folder: Path, restarts: int) -> None:
    """The record of a server whose pilot was killed."""
    new_record(0, 0, folder, restarts).ended("its pilot was killed").write(folder / "server-0.json")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two tries."""
    monkeypatch.setattr("campaign.pool.restarts.backoff", lambda _: 0.0)


def test_pilots_that_end_at_their_start_spend_the_budget(tmp_path: Path) -> None:
    """Each that never leaves a record is noted as one of the slot's incarnations; then nobody is coming any more."""
    lost(tmp_path, restarts=2)
    sent: list[Sequence[str]] = []

    def carry(more: Sequence[str]) -> list[PilotHandle]:
        sent.append(more)
        return [Child("pass")]

    replacer = Restarts(tmp_path, 2, 10, 60, carry, lambda _: None)

    def spent() -> bool:
        replacer.look()
        return not newest(records(tmp_path))[0].server_expected

    assert wait_until(spent, 30)
    replacer.look()
    assert sent == [["--slot=0", "--generation=1"], ["--slot=0", "--generation=2"]]
    assert [r.name for r in records(tmp_path)] == ["server-0", "server-0.1", "server-0.2"]
    told = causes(records(tmp_path))
    assert told == "its pilot was killed (server-0); its pilot ended at its start (server-0.1, server-0.2)"


@pytest.mark.parametrize(
    "error", [ProviderError("the queue is closed"), OSError(28, "No space left on device"), BlockingIOError(11, "fork")]
)
def test_a_provider_that_refuses_is_asked_again_within_the_budget(tmp_path: Path, error: Exception) -> None:
    """What it says stands in the record of the one that could not be sent."""
    lost(tmp_path, restarts=1)
    said: list[str] = []

    def carry(_: Sequence[str]) -> list[PilotHandle]:
        raise error

    replacer = Restarts(tmp_path, 1, 10, 60, carry, said.append)
    for _ in range(3):
        replacer.look()
    assert said == ["its pilot was killed; a pilot for server-0.1 is sent"]
    assert records(tmp_path)[1].reason == str(error)
    assert not records(tmp_path)[1].server_expected


def test_where_nothing_can_be_noted_nobody_is_asked_all_the_time(tmp_path: Path) -> None:
    """The folder takes no record (a full disk): the next try has to wait, though no budget was spent."""
    lost(tmp_path, restarts=1)
    said: list[str] = []

    def carry(_: Sequence[str]) -> list[PilotHandle]:
        raise OSError(28, "No space left on device")

    replacer = Restarts(tmp_path, 1, 10, 60, carry, said.append)
    (tmp_path / "server-0.1.json").mkdir()  # nothing can be renamed onto it
    for _ in range(3):
        replacer.look()
    assert len(said) == 1


def test_records_of_others_or_of_no_server_are_passed_over(tmp_path: Path) -> None:
    """Of another pool in the same folder, under a wrong name, a field of a wrong type: the others are looked at."""
    lost(tmp_path, restarts=1)
    good = new_record(1, 0, tmp_path, 1).model_dump(mode="json")
    write_json(tmp_path / "server-1.json", good)
    new_record(0, 1, tmp_path, 1, pool="another").write(tmp_path / "server-0.1.json")
    for i, change in enumerate(({"slot": []}, {"name": "../x"}, {"generation": "x"}, {"beat": None}, {"state": {}}), 2):
        write_json(tmp_path / f"server-{i}.json", {**good, "name": f"server-{i}", "slot": i, **change})
    (tmp_path / "server-9.json").write_text("[" * 100_000)
    write_json(tmp_path / "server-8.json", {})
    sent: list[Sequence[str]] = []

    def carry(more: Sequence[str]) -> list[PilotHandle]:
        sent.append(more)
        return []

    Restarts(tmp_path, 1, 10, 60, carry, lambda _: None).look()
    assert sent == [["--slot=0", "--generation=1"]]


def test_a_pilot_that_runs_and_has_said_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    """One that queues, or imports: no second one is sent beside it."""
    lost(tmp_path, restarts=3)
    sent: list[Child] = []

    def carry(_: Sequence[str]) -> list[PilotHandle]:
        sent.append(Child("import time; time.sleep(60)"))
        return [sent[-1]]

    replacer = Restarts(tmp_path, 3, 10, 60, carry, lambda _: None)
    for _ in range(5):
        replacer.look()
    assert len(sent) == 1
    assert len(records(tmp_path)) == 1
    sent[0].cancel()


def test_waiting_doubles_and_is_spread() -> None:
    """Half a second at first, twice as much each time, half a minute at the most."""
    assert 0.375 <= backoff(1) <= 0.625
    assert 1.5 <= backoff(3) <= 2.5
    assert 22 <= backoff(1000) <= 37.5
    assert len({backoff(5) for _ in range(10)}) > 1
