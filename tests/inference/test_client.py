"""Calls to a pool of real servers: checked before they are sent, cut canonically, moved on failure."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest

from campaign import InferenceError, ServerPool, connect
from campaign.errors import CampaignError, ServerError
from campaign.inference.client import Servers
from campaign.inference.request import Request
from tests.conftest import PROJECT, left, lying_about, ours, wait_until

REPOSITORY = PROJECT / "tests" / "models"
MODELS = {
    "batch_sensitive": {"batch": 64},
    "batch_sensitive_dynamic": {"batch": 64},
    "slow": {"batch": 8, "parameters": {"delay_s": 0.05}},
    "stub_dies": {"batch": 8},
    "no_canary": {},
}


@pytest.fixture(scope="module")
def long_lived_pool() -> Iterator[ServerPool]:
    """Three servers with the tests' models; nothing is left of them at the end."""
    before = (set(ours()), lying_about())
    with ServerPool(REPOSITORY, models=MODELS, count=3) as pool:
        pool.wait_ready()
        yield pool
    assert wait_until(lambda: not left(before), 5), left(before)


@pytest.fixture
def servers(long_lived_pool: ServerPool) -> Iterator[Servers]:
    """A handle of one's own."""
    made = connect(long_lived_pool.address)
    yield made
    made.close()


def column(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """As many rows of one float32."""
    return np.random.default_rng(seed).lognormal(0, 3, size=(n, 1)).astype(np.float32)


def by_hand(x: np.ndarray[Any, Any], batch: int) -> np.ndarray[Any, Any]:
    """What the batch-sensitive model gives for canonical batches: rows in order, the last one repeated to the end."""
    parts = []
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        parts.append((full - full.mean(dtype=np.float32))[: len(part)])
    return np.concatenate(parts)


def test_rows_come_back_in_order_cut_into_canonical_batches(servers: Servers) -> None:
    """More rows than ``max_batch_size`` are split; every request is one padded batch; order is kept."""
    x = column(5000)
    y = servers.infer("batch_sensitive", {"X": x})["Y"]
    assert y.shape == x.shape
    assert np.allclose(y, by_hand(x, 64), rtol=1e-5, atol=1e-5)
    assert servers.requests["batch_sensitive"] == -(-5000 // 64)
    assert servers.rows == {"first": 5000}


def test_no_rows_is_an_answer_too(servers: Servers) -> None:
    """Zero rows give arrays of no rows with the outputs' dtype, and no request."""
    y = servers.infer("batch_sensitive", {"X": column(0)})["Y"]
    assert y.shape == (0, 1)
    assert y.dtype == np.float32
    assert servers.requests["batch_sensitive"] == 0


@pytest.mark.parametrize("window", [1, 2, 8, 32, "auto"])
@pytest.mark.parametrize("count", [1, 3])
def test_no_window_and_no_number_of_servers_shows(long_lived_pool: ServerPool, window: Any, count: int) -> None:
    """Byte-equal predictions of a model that subtracts its request's mean."""
    records = tuple(long_lived_pool.records()[:count])
    address = dataclasses.replace(long_lived_pool.address, folder="", records=records, window=window)
    x = column(3001, seed=1)  # the last request holds one row and its copies
    live = connect(address)
    y = live.infer("batch_sensitive", {"X": x})["Y"]
    live.close()
    reference = connect(long_lived_pool.address)
    assert y.tobytes() == reference.infer("batch_sensitive", {"X": x})["Y"].tobytes()
    reference.close()


def test_dynamic_batching_would_show(servers: Servers) -> None:
    """The control: the same model with the server's dynamic batching on gives other bytes when requests meet."""
    x = column(6400, seed=2)
    fixed = servers.infer("batch_sensitive", {"X": x})["Y"]
    dynamic = servers.infer("batch_sensitive_dynamic", {"X": x})["Y"]
    assert servers.model("batch_sensitive_dynamic").dynamic
    assert not servers.model("batch_sensitive").dynamic
    assert fixed.tobytes() != dynamic.tobytes()


def test_requests_are_spread_over_the_servers(long_lived_pool: ServerPool) -> None:
    """Least outstanding: with a model that takes its time, every server gets its share."""

    def executions() -> list[int]:
        return [r["statistics"].get("slow", [0, 0])[1] for r in long_lived_pool.records()]

    start = executions()
    live = connect(long_lived_pool.address)
    live.infer("slow", {"X": column(8 * 60)})
    live.close()
    assert wait_until(lambda: sum(executions()) - sum(start) == 60, 5)
    shares = [b - a for a, b in zip(start, executions(), strict=True)]
    assert min(shares) >= 15, shares


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"X": np.zeros((3, 1))}, "expected float32, got float64"),
        ({"X": np.zeros((3, 2), np.float32)}, "expected shape (any, 1), got (3, 2)"),
        ({"X": np.zeros(3, np.float32)}, "expected shape (any, 1), got (3,)"),
        ({"Z": np.zeros((3, 1), np.float32)}, "takes the inputs X; given: Z"),
        ({}, "takes the inputs X; given:"),
    ],
)
def test_wrong_arrays_are_refused_before_they_are_sent(servers: Servers, inputs: dict[str, Any], text: str) -> None:
    """The error names model and input, what was expected and what was given; no request leaves."""
    with pytest.raises(InferenceError) as caught:
        servers.infer("batch_sensitive", inputs)
    assert text in str(caught.value)
    assert "batch_sensitive" in str(caught.value)
    assert caught.value.permanent
    assert sum(servers.requests.values()) == 0


def test_an_unknown_model_is_refused_with_those_there_are(servers: Servers) -> None:
    """The message lists the pool's models."""
    with pytest.raises(InferenceError, match=r"'nn' is not one of the models of the pool .known: batch_sensitive, "):
        servers.infer("nn", {"X": column(1)})


def test_events_come_back_in_order(servers: Servers) -> None:
    """One request per event, several in flight, answers in the order given."""
    events = [{"X": np.full((i % 8 + 1, 1), i, np.float32)} for i in range(50)]
    answers = servers.infer_events("slow", events)
    assert [a["Y"][0, 0] for a in answers] == list(range(50))
    assert [len(a["Y"]) for a in answers] == [i % 8 + 1 for i in range(50)]


def test_servers_do_not_wait_for_the_caller(servers: Servers) -> None:
    """Starting returns at once, and all requests are sent and answered while the caller does something else."""
    pending = servers.start("slow", {"X": column(8 * 40)})
    assert servers.requests["slow"] < 40
    assert wait_until(lambda: all(span.request.done.is_set() for span in pending._spans), 20)
    assert servers.requests["slow"] == 40
    assert pending.result()["Y"].tobytes() == column(8 * 40).tobytes()
    assert pending.result() is pending.result()


def test_who_brings_too_much_waits(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a limit of bytes waits for room: the next caller is held back until requests have left."""
    monkeypatch.setattr("campaign.inference.dispatcher.WAITING_BYTES", 8 * 4 * 10)
    waiting = []
    for i in range(12):
        waiting.append(servers.start("slow", {"X": column(8 * 5, seed=i)}))
        assert servers._dispatcher._waiting_bytes <= 8 * 4 * 10
    assert all((p.result()["Y"] == column(8 * 5, seed=i)).all() for i, p in enumerate(waiting))
    assert servers._dispatcher._waiting_bytes == servers._dispatcher._out_bytes == 0


def test_large_requests_narrow_the_window(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes in flight are bounded too; a server without any request is given one all the same."""
    monkeypatch.setattr("campaign.inference.dispatcher.OUT_BYTES", 1)
    pending = servers.start("slow", {"X": column(8 * 12)})
    while not all(span.request.done.is_set() for span in pending._spans):
        assert all(link.outstanding <= 1 for link in servers._connections.connections.values())
    assert pending.result()["Y"].tobytes() == column(8 * 12).tobytes()


def test_what_is_given_up_is_not_sent(servers: Servers) -> None:
    """Requests that wait for room can be called back; those that were sent are answered, and the pool serves on."""
    pending = servers.start("slow", {"X": column(8 * 100)})
    pending.cancel()
    with pytest.raises(InferenceError, match="given up before it was sent"):
        pending.result()
    assert servers.requests["slow"] < 100
    assert len(servers.infer("slow", {"X": column(8)})["Y"]) == 8


def test_a_closed_handle_says_so(long_lived_pool: ServerPool) -> None:
    """Closing ends what is not answered with an error, and takes nothing more."""
    live = connect(long_lived_pool.address)
    pending = live.start("slow", {"X": column(8 * 50)})
    live.close()
    with pytest.raises(ServerError, match="closed before the answer came"):
        pending.result()
    with pytest.raises(ServerError, match="was closed"):
        live.infer("slow", {"X": column(8)})


def test_a_forked_child_is_refused(servers: Servers) -> None:
    """A handle carried through a fork says so at once, in place of waiting for threads that are not there.

    Nor for a lock that one of them holds: here all locks are held in the moment of the fork.
    """
    pending = servers.start("slow", {"X": column(8)})
    x = {"X": column(8)}
    calls = (pending.result, pending.cancel, lambda: servers.infer("slow", x), lambda: servers.model("slow"))
    with servers._dispatcher._lock, servers._dispatcher._taking:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            refused = 0
            for call in calls:
                try:
                    call()
                except ServerError as error:
                    refused += "made in another process" in str(error)
            servers.close()  # as the end of a with block in the child does: the parent's goes on
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(calls)
    assert len(pending.result()["Y"]) == 8


@pytest.mark.parametrize("sizes", [[3000], [1, 2999], [64] * 10 + [7], [100] * 30, [5, 0, 1, 63, 200, 0], [0, 0], []])
def test_a_stream_is_cut_as_its_rows_alone_say(servers: Servers, sizes: list[int]) -> None:
    """Whatever the ranges, the answers are those of one array with all the rows, and only the end is padded."""
    x = column(sum(sizes), seed=5)
    whole = servers.infer("batch_sensitive", {"X": x})["Y"]
    sent = servers.requests["batch_sensitive"]
    stream = servers.stream("batch_sensitive")
    ends = np.cumsum([0, *sizes])
    parts = [stream.add({"X": x[a:b]}) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    stream.end()
    stream.end()
    answers = [p.result()["Y"] for p in parts]
    assert [len(a) for a in answers] == sizes
    assert b"".join(a.tobytes() for a in answers) == whole.tobytes()
    assert servers.requests["batch_sensitive"] - sent == -(-len(x) // 64)
    assert servers.rows["first"] == 2 * len(x)


def test_rows_of_a_stream_wait_for_their_batch(servers: Servers) -> None:
    """An answer is there once its last batch is full or the stream has ended; before, asking for it is an error."""
    stream = servers.stream("batch_sensitive")
    first = stream.add({"X": column(100)})
    assert not first.sent
    with pytest.raises(RuntimeError, match="36 rows wait"):
        first.result()
    second = stream.add({"X": column(30)})
    assert first.sent
    assert not second.sent
    assert len(first.result()["Y"]) == 100
    stream.end()
    assert len(second.result()["Y"]) == 30
    with pytest.raises(InferenceError, match="the stream has ended"):
        stream.add({"X": column(1)})


def test_a_handle_does_not_travel_but_its_address_does(servers: Servers) -> None:
    """Live things refuse to be pickled; the recipe makes another one."""
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(servers)
    other = connect(pickle.loads(pickle.dumps(servers.address)))
    assert other.infer("batch_sensitive", {"X": column(10)})["Y"].shape == (10, 1)
    other.close()


def _child(address: Any, out: Any) -> None:
    live = connect(address)
    out.put(live.infer("batch_sensitive", {"X": column(100, seed=3)})["Y"].tobytes())
    live.close()


def test_spawned_processes_use_the_pool_while_this_one_does(long_lived_pool: ServerPool, servers: Servers) -> None:
    """Several processes call at once, this one with channels open; all get the same bytes."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    children = [context.Process(target=_child, args=(long_lived_pool.address, out)) for _ in range(2)]
    for child in children:
        child.start()
    mine = servers.infer("batch_sensitive", {"X": column(100, seed=3)})["Y"].tobytes()
    assert [out.get(timeout=60) for _ in children] == [mine, mine]
    for child in children:
        child.join(10)
    out.close()
    resource_tracker._resource_tracker._stop()  # the standard library's own, which spawning has started


def test_a_request_has_a_deadline(long_lived_pool: ServerPool) -> None:
    """A server that does not answer in time is given up, and the error says so."""
    address = dataclasses.replace(long_lived_pool.address, request_deadline_s=0.02, settle_s=0.5)
    live = connect(address)
    start = time.monotonic()
    with pytest.raises((InferenceError, ServerError), match=r"(?i)deadline"):
        live.infer("slow", {"X": column(8)})
    assert time.monotonic() - start < 20
    live.close()


def test_a_model_without_a_canary_is_served_with_a_warning(long_lived_pool: ServerPool) -> None:
    """Only shapes were checked, and the record says so."""
    assert all("no_canary has no canary.npz" in "".join(r["warnings"]) for r in long_lived_pool.records())


@pytest.mark.faults
def test_a_request_that_kills_is_given_up() -> None:
    """Every process that it is given to dies: an error by name after the third. What was beside it is answered."""
    with ServerPool(REPOSITORY, models={"stub_dies": {"batch": 8}}, count=1, canary_s=1, window=6) as pool:
        pool.wait_ready()
        live = pool.servers()
        x = [np.full((8, 1), 666 if i == 2 else i, np.float32) for i in range(9)]
        pending = [live.start("stub_dies", {"X": given}) for given in x]
        with pytest.raises(InferenceError, match="2 servers died while they worked on this request alone") as caught:
            pending[2].result()
        assert caught.value.permanent
        assert "stub_dies on server-" in str(caught.value)
        for i in (0, 1, *range(3, 9)):
            assert pending[i].result()["Y"].tobytes() == x[i].tobytes()
        assert live.infer("stub_dies", {"X": column(80)})["Y"].tobytes() == column(80).tobytes()
        assert live.rows["parked"] == 0, "nobody was missing"
        assert pool.failure() is None
        assert len(pool.records()) == 4, "one death beside others, two alone"


@pytest.mark.faults
def test_kills_and_retries_change_no_byte() -> None:
    """Servers killed and stopped while requests are out: the answers are those of an undisturbed pool."""
    x = column(8 * 150, seed=4)
    models = {"batch_sensitive": {"batch": 64}, "slow": {"batch": 8, "parameters": {"delay_s": 0.02}}}
    with ServerPool(REPOSITORY, models=models, count=3, window=2, request_deadline_s=3, restarts=0) as pool:
        pool.wait_ready()
        whole = pool.servers().infer("slow", {"X": x})["Y"].tobytes()
        mean = pool.servers().infer("batch_sensitive", {"X": x})["Y"].tobytes()
        pids = [r["server_pid"] for r in pool.records()]
        killer = threading.Timer(0.2, lambda: (os.kill(pids[0], signal.SIGKILL), os.kill(pids[1], signal.SIGSTOP)))
        killer.start()
        live = connect(pool.address)
        assert live.infer("slow", {"X": x})["Y"].tobytes() == whole
        killer.join()
        assert live.rows["other_server"] > 0
        assert sum(live.rows.values()) == len(x)
        assert live.infer("batch_sensitive", {"X": x})["Y"].tobytes() == mean
        live.close()
        os.kill(pids[2], signal.SIGKILL)
        os.kill(pids[1], signal.SIGKILL)
        assert wait_until(lambda: all(r["state"] == "ended" for r in pool.records()), 10)
        gone = connect(pool.address)
        with pytest.raises(ServerError, match="no server is left"):
            gone.infer("slow", {"X": x})
        gone.close()


@pytest.mark.faults
def test_the_last_resort_is_asked_when_nobody_is_left() -> None:
    """Not before: what servers answered is theirs; what it cannot answer either is parked."""
    seen: list[int] = []

    def last(request: Request) -> dict[str, Any] | None:
        seen.append(request.part.rows)
        if len(seen) > 2:
            raise ServerError("it is tired")
        return {"Y": np.full((request.part.rows, 1), 7, np.float32)}

    with ServerPool(REPOSITORY, models={"slow": {"batch": 8, "parameters": {"delay_s": 0.01}}}, restarts=0) as pool:
        pool.wait_ready()
        live = connect(pool.address)
        live._dispatcher.last = last
        assert live.infer("slow", {"X": column(16)})["Y"].tobytes() == column(16).tobytes()
        os.kill(pool.records()[0]["server_pid"], signal.SIGKILL)
        assert (live.infer("slow", {"X": column(13)})["Y"] == 7).all()
        assert (sorted(seen), live.rows) == ([5, 8], {"first": 16, "local_twin": 13})
        with pytest.raises(ServerError, match=r"no server is left.*it is tired"):
            live.infer("slow", {"X": column(3)})
        assert live.rows["parked"] == 3
        live.close()


def test_attached_servers_are_used_as_they_are(long_lived_pool: ServerPool) -> None:
    """Kind ``attach``: by URL, started and stopped by somebody else."""
    urls = [r["url"] for r in long_lived_pool.records()]
    from campaign.spec.models import ServerSpec

    spec = ServerSpec(kind="attach", models={"batch_sensitive": {"batch": 64}}, urls=urls)
    with ServerPool(spec) as pool:
        y = pool.servers().infer("batch_sensitive", {"X": column(200)})["Y"]
    reference = long_lived_pool.servers().infer("batch_sensitive", {"X": column(200)})["Y"]
    assert y.tobytes() == reference.tobytes()
    assert all(r["state"] == "ready" for r in long_lived_pool.records()), "they run on"


def test_records_hold_no_secret_and_are_whole(long_lived_pool: ServerPool) -> None:
    """Records are JSON that appears by rename: a reader never sees half of one."""
    for path in Path(long_lived_pool.folder).glob("server-*.json"):
        for _ in range(200):
            assert json.loads(path.read_text())["name"] == path.stem


def test_what_was_answered_is_let_go_at_once(servers: Servers) -> None:
    """Inputs are freed with their answer, not when the collector comes by: memory stays flat over a long file."""
    stream = servers.stream("batch_sensitive")
    gc.collect()
    gc.disable()
    try:
        sent = np.random.default_rng(1).normal(size=(1000, 1)).astype(np.float32)
        seen, answer = weakref.ref(sent), stream.add({"X": sent})
        stream.end()
        assert len(answer.result()["Y"]) == 1000
        del sent
        assert wait_until(lambda: seen() is None)
    finally:
        gc.enable()


def test_who_shares_requests_does_not_show(servers: Servers) -> None:
    """A stream that makes some of another's requests sends those not again, and is cut by its own rows all the same."""
    x = column(600)
    other = np.concatenate([x[:200], column(400, seed=9)])

    def answers(shared: Any, *given: np.ndarray[Any, Any]) -> list[bytes]:
        streams = [servers.stream("batch_sensitive", shared) for _ in given]
        parts = [
            [s.add({"X": a[i : i + 100]}) for s, a in zip(streams, given, strict=True)] for i in range(0, 600, 100)
        ]
        for stream in streams:
            stream.end()
        return [b"".join(p[i].result()["Y"].tobytes() for p in parts) for i in range(len(given))]

    before = servers.requests["batch_sensitive"]
    together = answers(WeakValueDictionary(), x, other)
    sent = servers.requests["batch_sensitive"] - before
    assert together == [*answers(None, x), *answers(None, other)]
    assert sent == 2 * 10 - 200 // 64, "the full requests of the rows both have are sent once"


def test_a_record_that_cannot_be_used_leaves_nobody_waiting(long_lived_pool: ServerPool, tmp_path: Path) -> None:
    """A server's record that leads nowhere, found while requests fail: their caller is told."""
    for record in long_lived_pool.records():
        (tmp_path / f"{record['name']}.json").write_text(json.dumps(record))
    servers = connect(
        dataclasses.replace(long_lived_pool.address, folder=str(tmp_path), request_deadline_s=0.02, settle_s=0)
    )
    servers.model("slow")
    bad = {**long_lived_pool.records()[0], "name": "server-9", "url": 9}
    (tmp_path / "server-9.json").write_text(json.dumps(bad))
    time.sleep(0.6)  # so that the next look at the records is due when the first request has failed
    told: list[CampaignError] = []

    def ask() -> None:
        try:
            servers.infer("slow", {"X": column(40)})
        except CampaignError as error:
            told.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    assert len(told) == 1, "the caller still waits"
    servers.close()
