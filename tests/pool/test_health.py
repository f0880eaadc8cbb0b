"""What a server's pilot finds out about it: held against real servers that are broken in real ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from campaign import ServerPool
from campaign.inference import canary
from campaign.pool.health import Health
from campaign.pool.server_processes import ServerProcesses
from tests.conftest import PROJECT, alive, left, lying_about, ours, unload, wait_until

REPOSITORY = PROJECT / "tests" / "models"
MODELS: dict[str, Any] = {
    "slow": {"parameters": {"delay_s": 0.7}},
    "batch_sensitive": {},
    "stub_dies": {},
    "no_canary": {},
    "text": {},
}


@pytest.fixture(scope="module")
def long_lived_pool() -> Iterator[ServerPool]:
    """One server whose pilot is stopped, so that nobody but the tests looks after it."""
    before = (set(ours()), lying_about())
    with ServerPool(REPOSITORY, models=MODELS, lease_s=600) as pool:
        pool.wait_ready()
        os.kill(pool.records()[0].pid, signal.SIGSTOP)
        yield pool
        os.kill(pool.records()[0].server_pid, signal.SIGCONT)
        os.kill(pool.records()[0].pid, signal.SIGCONT)
    assert wait_until(lambda: not left(before), 5), left(before)


def health(pool: ServerPool, *models: str, every_s: float = 0.2, deadline_s: float = 2, silent_s: float = 3) -> Health:
    """Somebody who looks after some of the server's models, and has seen their first proof."""
    canaries = {m: str(p) if (p := REPOSITORY / m / "canary.npz").exists() else None for m in models}
    made = Health(
        canary.client_of("server-0", pool.records()[0].url), canaries,
        every_s=every_s, deadline_s=deadline_s, silent_s=silent_s,
    )  # fmt: skip
    for model in models:
        made.prove(model, 5)
    return made


def watch(made: Health, seconds: float) -> str:
    """The first thing it says, if it says anything in this time."""
    end, why = time.monotonic() + seconds, ""
    while not why and time.monotonic() < end:
        why = made.look()
        time.sleep(0.02)
    return why


def stub(pool: ServerPool, model: str) -> int:
    """The process behind a model."""
    children = psutil.Process(pool.records()[0].server_pid).children(recursive=True)
    alive = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
    return next(p.pid for p in alive if f"/{model}/" in " ".join(p.cmdline()))


def test_a_model_that_is_well_stays_so_and_its_canaries_are_not_counted(long_lived_pool: ServerPool) -> None:
    """Asked again and again: no word, the counters show only the rows of others."""
    made = health(long_lived_pool, "batch_sensitive", "no_canary")
    x = grpcclient.InferInput("X", [5, 1], "FP32").set_data_from_numpy(np.zeros((5, 1), np.float32))
    assert watch(made, 2.5) == ""
    assert made.counted["batch_sensitive"][2] > 0, "known answers take time too"
    for _ in range(3):
        assert watch(made, 0.8) == ""
        made.client.infer("batch_sensitive", [x])
    made.settle()
    made.close()
    assert made.counted["batch_sensitive"][:2] == [15, 3]
    assert made.counted["no_canary"][:2] == [0, 0]


@pytest.mark.slow
def test_a_busy_model_is_not_a_dead_one(long_lived_pool: ServerPool) -> None:
    """Its canary waits behind requests for longer than its deadline: what is answered meanwhile speaks for it."""
    made = health(long_lived_pool, "slow", deadline_s=1.5)
    x = grpcclient.InferInput("X", [1, 1], "FP32").set_data_from_numpy(np.zeros((1, 1), np.float32))
    calls = [made.client.async_infer("slow", [x], lambda *_: None) for _ in range(8)]
    assert watch(made, 5) == ""
    assert all(call is not None for call in calls)
    assert wait_until(lambda: (canary.statistics(made.client) or {})["slow"][canary.OK] > 8, 10)
    made.close()


def test_a_model_that_was_taken_out_is_found(long_lived_pool: ServerPool) -> None:
    """It has gone from the counters; the answer to its canary says the rest."""
    made = health(long_lived_pool, "text", every_s=60)
    unload(long_lived_pool.records()[0], "text")
    assert "no available versions" in watch(made, 10)
    made.close()


@pytest.mark.faults
def test_failures_of_others_requests_bring_the_canary_at_once(long_lived_pool: ServerPool) -> None:
    """The process behind a model has died: READY all the same, but the first request that fails gives it away."""
    made = health(long_lived_pool, "stub_dies", every_s=60)
    family = ServerProcesses(long_lived_pool.records()[0].server_pid, 3)
    assert family.look() == ""
    os.kill(stub(long_lived_pool, "stub_dies"), signal.SIGKILL)
    assert wait_until(lambda: "stub_dies/1/model.py has ended" in family.look(), 5)
    assert made.client.is_model_ready("stub_dies"), "so says the server"
    x = grpcclient.InferInput("X", [1, 1], "FP32").set_data_from_numpy(np.zeros((1, 1), np.float32))
    assert watch(made, 1.5) == "", "nobody has asked it"
    with pytest.raises(Exception, match="is not healthy"):
        made.client.infer("stub_dies", [x])
    assert "is not healthy" in watch(made, 10)
    made.close()


def test_what_a_model_starts_in_its_turn_may_come_and_go() -> None:
    """Only the server's own children take a model along when they end; what they have started is their own affair."""
    code = "import subprocess as s; s.run(['bash', '-c', 'sleep 600 & echo $! >&2; sleep 600'])"
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert server.stderr is not None
        helper = int(server.stderr.readline())
        family = ServerProcesses(server.pid, 3)
        os.kill(helper, signal.SIGKILL)
        assert wait_until(lambda: not alive(helper), 10)
        assert family.look() == ""
        psutil.Process(server.pid).children()[0].kill()
        assert wait_until(lambda: "has ended" in family.look(), 10)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


@pytest.mark.faults
def test_a_model_that_hangs_is_found_by_its_canary(long_lived_pool: ServerPool) -> None:
    """The process behind it is stopped: nothing is answered within the deadline."""
    made = health(long_lived_pool, "batch_sensitive")
    family = ServerProcesses(long_lived_pool.records()[0].server_pid, 1)
    os.kill(stub(long_lived_pool, "batch_sensitive"), signal.SIGSTOP)
    assert "model batch_sensitive does not serve its canary" in watch(made, 20)
    assert wait_until(lambda: "batch_sensitive/1/model.py has been stopped for" in family.look(), 10)
    os.kill(stub(long_lived_pool, "batch_sensitive"), signal.SIGCONT)
    made.close()


@pytest.mark.faults
def test_a_server_that_hangs_is_found_by_its_silence(long_lived_pool: ServerPool) -> None:
    """Stopped as a whole it says nothing to anybody."""
    made = health(long_lived_pool, "no_canary", every_s=60)
    os.kill(long_lived_pool.records()[0].server_pid, signal.SIGSTOP)
    assert "it has not answered for" in watch(made, 30)
    os.kill(long_lived_pool.records()[0].server_pid, signal.SIGCONT)
    made.close()
