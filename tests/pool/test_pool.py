"""The pool and its pilots: what their records say, how each of them ends, and that pools do not know each other."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from campaign import ServerPool, connect
from campaign.discovery.records import ServerRecord, ServerState, new_record, read_records
from campaign.errors import ServerError
from tests.conftest import PROJECT, left, lying_about, ours, regions_of, wait_until

REPOSITORY = PROJECT / "tests" / "models"
MODELS = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}
X = np.arange(100, dtype=np.float32).reshape(-1, 1)


def identity(pool: ServerPool) -> bool:
    """Whether the pool gives the identity's known answer."""
    answer: bytes = pool.servers().infer("slow", {"X": X})["Y"].tobytes()
    return answer == X.tobytes()


def gone(pid: int) -> bool:
    """Whether a process has ended, looked after or not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def in_thread(do: Callable[[], Any]) -> Any:
    """Do it in a thread that has ended when this returns; hand on what it gives or raises."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.extend((do(), None))
        except BaseException as error:  # noqa: BLE001  it belongs to the thread that asked
            found.extend((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if found[1] is not None:
        raise found[1]
    return found[0]


# What records say.
@pytest.mark.faults
def test_a_server_is_starting_then_ready_then_ended(tmp_path: Path) -> None:
    """Its record goes through these states in this order, names the processes and the socket, and says why it ended."""
    seen: list[str] = []
    pool = ServerPool(REPOSITORY, models=MODELS, folder=tmp_path / "pool")

    def look() -> str:
        state = "".join(r.state for r in pool.records())
        if state and [state] != seen[-1:]:
            seen.append(state)
        return state

    with pool:
        assert wait_until(lambda: look() == "ready", 30), pool.records()
        record = pool.records()[0]
        assert not gone(record.pid)
        assert psutil.Process(record.server_pid).ppid() == record.pid
        assert Path(record.url.removeprefix("unix:").removesuffix(":0")).parent == Path(record.private_dir)
        assert identity(pool)
    look()
    assert seen in (["starting", "ready", "ended"], ["ready", "ended"])  # the first may be missed, the order not
    record = pool.records()[0]
    assert (record.reason, record.stop_requested, record.tail) == ("asked to stop", True, "")
    assert record.statistics == {"slow": [-(-len(X) // 8) * 8, -(-len(X) // 8)]}, "the canary is not counted"
    assert gone(record.pid)
    assert gone(record.server_pid)
    assert not Path(record.private_dir).exists()


@pytest.mark.faults
def test_each_end_has_its_reason(tmp_path: Path) -> None:
    """A signal to the pilot, the death of the server, a request to stop: records tell them apart."""
    with ServerPool(REPOSITORY, models=MODELS, count=3, folder=tmp_path / "pool", restarts=0) as pool:
        pool.wait_ready()
        first, second, _ = pool.records()
        os.kill(first.pid, signal.SIGTERM)
        os.kill(second.server_pid, signal.SIGKILL)
        assert wait_until(lambda: [r.state for r in pool.records()] == ["ended", "ended", "ready"], 15)
        assert pool.failure() is None, "one is left"
        assert identity(pool)
    assert [(r.reason, r.stop_requested) for r in pool.records()] == [
        ("signal SIGTERM", True),
        ("server-1: the server ended by signal 9", False),
        ("asked to stop", True),
    ]


@pytest.mark.parametrize("state", ["stopping", "ended"])
def test_the_pool_has_failed_as_soon_as_clients_find_nobody(tmp_path: Path, state: str) -> None:
    """While the last server is still being swept, too: what a client says then would be held against its file."""
    pool = ServerPool(REPOSITORY, models=MODELS, folder=tmp_path)
    changes = {"state": ServerState(state), "restart_expected": False, "reason": "a wrong answer"}
    new_record(0, 0, tmp_path, 3, pool._nonce).model_copy(update=changes).write(tmp_path / "server-0.json")
    with pytest.raises(ServerError, match="no server is left"):
        connect(pool.address).infer("slow", {"X": X})
    assert "a wrong answer" in str(pool.failure())


def test_a_killed_server_is_replaced_in_its_place(tmp_path: Path) -> None:
    """The same pilot starts another; nobody sees a moment in which none is coming, and canaries are not counted."""
    nobody_came: list[Any] = []
    over = threading.Event()
    with ServerPool(REPOSITORY, models=MODELS, folder=tmp_path / "pool", canary_s=0.1) as pool:
        pool.wait_ready()
        live = pool.servers()
        assert live.infer("slow", {"X": X})["Y"].tobytes() == X.tobytes()
        (first,) = pool.records()

        def look() -> None:
            while not over.wait(0.005):
                records = pool.current()
                if pool.failure() or not any(r.state in ("starting", "ready") or r.restart_expected for r in records):
                    nobody_came.append(records)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            os.kill(first.server_pid, signal.SIGKILL)
            assert live.infer("slow", {"X": X})["Y"].tobytes() == X.tobytes()
            assert wait_until(lambda: pool.current()[0].statistics.get("slow") == [104, 13], 10), "13 of 8 rows"
        finally:
            over.set()
            looking.join()
        assert not nobody_came
        first, second = pool.records()
        assert [r.name for r in (first, second)] == ["server-0", "server-0.1"]
        assert (first.state, first.reason) == ("ended", "server-0: the server ended by signal 9")
        assert second.state == "ready"
        assert first.pid == second.pid, "the pilot keeps its machine"
        assert not Path(first.private_dir).exists()
        assert live.rows == {"first": len(X), "restarted_server": len(X)}


@pytest.mark.faults
def test_a_restart_that_cannot_heal_is_not_repeated(tmp_path: Path) -> None:
    """A model that does not load ends the pool at its first word, whatever the budget."""
    pool = ServerPool(REPOSITORY, models=["crashes_at_load"], folder=tmp_path / "pool", restarts=5)
    with pytest.raises(ServerError, match="failed to load 'crashes_at_load'"), pool:
        pool.wait_ready()
    assert [r.name for r in pool.records()] == ["server-0"]


def test_a_pool_without_servers_says_why(tmp_path: Path) -> None:
    """When the last server has died the pool's failure names it and how it ended."""
    with ServerPool(REPOSITORY, models=MODELS, folder=tmp_path / "pool", restarts=0) as pool:
        pool.wait_ready()
        os.kill(pool.records()[0].server_pid, signal.SIGKILL)
        assert wait_until(lambda: pool.failure() is not None, 15)
        assert "the server ended by signal 9" in str(pool.failure())
        assert "server server-0" in str(pool.failure())
        with pytest.raises(ServerError, match="the server ended by signal 9"):
            pool.wait_ready()


# Servers that do not come up.
BAD = {
    "wrong_answer": ["model wrong_answer on server-0", "wrong answer: Y is [", "known is ["],
    "crashes_at_load": ["failed to load 'crashes_at_load'", "the weights of this model are missing on purpose"],
    "hangs_at_load": ["not ready within 4 s"],
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ServerError, list[dict[str, Any]]]]:
    """Each bad model in a pool of its own, all at once; the error of `wait_ready`, and the records after the end."""
    found = {}

    def use(model: str, folder: Path) -> None:
        pool = ServerPool(REPOSITORY, models=[model], folder=folder, start_deadline_s=4 if "hangs" in model else 60)
        with pytest.raises(ServerError) as caught, pool:
            pool.wait_ready()
        found[model] = (caught.value, pool.records())

    threads = [threading.Thread(target=use, args=(model, tmp_path_factory.mktemp(model))) for model in BAD]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("model", BAD)
@pytest.mark.slow
def test_a_bad_model_is_named_and_its_server_is_stopped(model: str, failed: dict[str, Any]) -> None:
    """Wrong answer, crash, hang: never called ready; the error has the name and the log's end."""
    error, (record,) = failed[model]
    for text in [*BAD[model], "server-0", "remedy: ", f"see {record.log}", "log:"]:
        assert text in str(error)
    assert error.log.strip()
    assert pickle.loads(pickle.dumps(error)).log == error.log
    assert (record.state, record.stop_requested) == ("ended", False)
    assert record.ready_s is None
    assert Path(record.log).stat().st_size > len(record.tail) > 0
    assert gone(record.pid)
    assert gone(record.server_pid)


def test_a_socket_that_would_not_fit_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton calls a path that is too long "already in use"; here the error names the path and nothing is started."""
    long = tmp_path / ("long-" * 30)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    pool = ServerPool(REPOSITORY, models=MODELS, folder=tmp_path / "pool")
    with pytest.raises(ServerError, match="is too long for a Unix socket") as caught, pool:
        pool.wait_ready()
    assert str(long) in str(caught.value)
    assert pool.records()[0].server_pid is None
    assert not list(long.iterdir())


# The lease.
HOLDER = """
import sys, time
from pathlib import Path
from parsl.providers import LocalProvider
from campaign import ServerPool

if __name__ == "__main__":
    models = {"slow": {"batch": 8, "parameters": {"delay_s": 0.001}}}
    provider = LocalProvider(init_blocks=0, max_blocks=1)
    pool = ServerPool(sys.argv[1], models=models, count=2, folder=Path(sys.argv[2]), provider=provider, lease_s=2)
    with pool:
        pool.wait_ready()
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_without_its_submitter_a_server_ends_by_its_lease(tmp_path: Path, signum: int) -> None:
    """Stopped or killed, the submitter says nothing any more; pilots that are nobody's children end by themselves."""
    (tmp_path / "holder.py").write_text(HOLDER)
    argv = [sys.executable, str(tmp_path / "holder.py"), str(REPOSITORY), str(tmp_path / "pool")]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})

    def records() -> list[ServerRecord]:
        return read_records(tmp_path / "pool", None)

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        before = records()
        assert [r.state for r in before] == ["ready", "ready"]
        holder.send_signal(signum)
        assert wait_until(lambda: all(gone(r.server_pid) and gone(r.pid) for r in before), 2 + 8)
    finally:
        holder.kill()
        holder.communicate()
    assert [r.reason for r in records()] == ["the lease ran out: the submitter is gone"] * 2
    assert not any(Path(r.private_dir).exists() for r in records())


# Pools among themselves.
def test_a_pool_does_not_travel_but_its_address_does() -> None:
    """Pickling a pool says what to send in its place; the address survives it."""
    pool = ServerPool(REPOSITORY, models=MODELS)
    with pytest.raises(TypeError, match=r"does not travel; send its \.address"):
        pickle.dumps(pool)
    assert pickle.loads(pickle.dumps(pool.address)) == pool.address


def test_two_pools_in_one_process_do_not_know_each_other() -> None:
    """Own folders, own sockets, own shared memory; one may be left while the other is in use, in any order."""
    first = ServerPool(REPOSITORY, models=MODELS)
    with first:
        with ServerPool(REPOSITORY, models=MODELS) as second:
            first.wait_ready()
            second.wait_ready()
            mine, other = first.records()[0], second.records()[0]
            same = {k for k in ServerRecord.model_fields if getattr(mine, k) == getattr(other, k)}
            assert same >= {"name", "state"}
            assert not {"url", "private_dir", "shm_prefix", "pid", "server_pid", "log"} & same
            assert identity(first)
            assert identity(second)
        assert wait_until(lambda: gone(other.server_pid), 5)
        assert regions_of(mine)
        assert not regions_of(other)
        assert identity(first)


def test_a_pool_outlives_the_thread_that_opened_it() -> None:
    """A pilot dies with the thread that starts it: that is one of the pool's own, not the caller's."""
    pool = in_thread(ServerPool(REPOSITORY, models=MODELS).__enter__)
    try:
        pool.wait_ready()
        pid = pool.records()[0].server_pid
        assert in_thread(lambda: identity(pool))
        assert identity(pool)
        assert not gone(pid)
    finally:
        in_thread(lambda: pool.__exit__(None, None, None))
    assert gone(pid)


def test_what_is_private_goes_with_the_pool() -> None:
    """Without a folder of the caller's, records and logs lie in one that only the user may enter, and are removed."""
    with ServerPool(REPOSITORY, models=MODELS) as pool:
        pool.wait_ready()
        assert pool.folder.parent == Path(tempfile.gettempdir())
        assert pool.folder.stat().st_mode & 0o777 == 0o700
    assert not pool.folder.exists()


# What the campaign says of a model reaches the server.
TELLER = '''
"""Y = X times the parameter ``factor`` plus the number in ``offset.txt``; I = which copy of the model answered."""
import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.factor = float(json.loads(args["model_config"])["parameters"]["factor"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.offset = float((folder / "offset.txt").read_text())
        self.copy = int(args["model_instance_name"].rsplit("_", 1)[1])

    def execute(self, requests):
        time.sleep(0.02)
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            y = (x * self.factor + self.offset).astype(np.float32)
            copy = np.full(x.shape, self.copy, np.int32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", y), pb_utils.Tensor("I", copy)]))
        return answers
'''
CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "I" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_AUTO } ]
parameters: { key: "factor" value: { string_value: "1" } }
"""


@pytest.fixture(scope="module")
def long_lived_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """One server, with a model whose parameter, file and number of copies the campaign has changed."""
    before = (set(ours()), lying_about())
    folder = tmp_path_factory.mktemp("teller")
    (folder / "repository" / "teller" / "1").mkdir(parents=True)
    (folder / "repository" / "teller" / "1" / "model.py").write_text(TELLER)
    (folder / "repository" / "teller" / "1" / "offset.txt").write_text("0")
    (folder / "repository" / "teller" / "config.pbtxt").write_text(CONFIG)
    (folder / "other.txt").write_text("0.5")
    teller = {"parameters": {"factor": 3}, "files": {"offset.txt": "other.txt"}, "instances": 2}
    with ServerPool("repository", models={"teller": teller}, base=folder, folder=folder / "pool") as pool:
        pool.wait_ready()
        yield pool
    assert (folder / "repository" / "teller" / "1" / "offset.txt").read_text() == "0", "the user's own stays"
    assert wait_until(lambda: not left(before), 5), left(before)


def test_parameters_and_files_of_the_campaign_reach_the_model(long_lived_pool: ServerPool) -> None:
    """The answer is made with the campaign's parameter and file, not with those of the model's folder."""
    answer = long_lived_pool.servers().infer("teller", {"X": X})["Y"]
    assert answer.tobytes() == (X * 3 + np.float32(0.5)).tobytes()


def test_instances_are_copies_that_share_the_work(long_lived_pool: ServerPool) -> None:
    """``instances: 2``: two Python processes behind the model, and both answer."""
    live = connect(long_lived_pool.address)
    copies = live.infer("teller", {"X": np.zeros((8 * 40, 1), np.float32)})["I"]
    live.close()
    assert set(np.unique(copies)) == {0, 1}
    server = psutil.Process(long_lived_pool.records()[0].server_pid)
    stubs = [p for p in server.children(recursive=True) if "triton_python_backend_stub" in p.name() + p.cmdline()[0]]
    assert len(stubs) == 2


def test_a_pilot_too_many_ends_quietly(long_lived_pool: ServerPool) -> None:
    """A launcher that starts the command more often than asked gets exit code 0, no word and no further server."""
    done = subprocess.run(
        [sys.executable, "-m", "campaign.pool.pilot", str(long_lived_pool.folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [r.name for r in long_lived_pool.records()] == ["server-0"]
    assert long_lived_pool.records()[0].state == "ready"
