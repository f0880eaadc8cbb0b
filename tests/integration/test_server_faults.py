"""Servers that crash, hang, lie or go: found out, replaced, and no bit of any output changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml

from campaign import ServerPool
from campaign.discovery.records import ServerRecord, newest, read_records
from campaign.util.files import write_json
from tests.conftest import (
    PROJECT,
    alive,
    campaign_dict,
    change,
    command,
    hashes,
    make_small,
    report_of,
    start,
    unload,
    wait_until,
    write_tree,
)
from tests.memory import limited

Run = Callable[..., subprocess.Popen[str]]
FAULTS, SLOW = pytest.mark.faults, pytest.mark.slow


def prepare(folder: Path, delay_s: float = 0.4, **servers: Any) -> Path:
    """The small campaign with a model that takes its time, so that there is a middle in which something happens.

    65 requests; `finish` lets it hurry.
    """
    made = campaign_dict("slow")
    made["variations"] = {}
    made["servers"]["models"]["slow"]["batch"] = 64
    made["servers"].update({"window": 2, "canary_s": 1, **servers})
    made["servers"]["models"]["slow"]["parameters"] = {"delay_s": delay_s, "mark": str(folder / "in-flight")}
    (folder / "in-flight").mkdir(exist_ok=True)
    (folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outputs' hashes of a run that nothing happens to."""
    folder = prepare(make_small(tmp_path_factory.mktemp("undisturbed")), delay_s=0.0)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return hashes(folder / "r")


@pytest.fixture
def run(small: Path) -> Iterator[Run]:
    """Starts the campaign; one that still runs when a law was broken is ended."""
    drivers: list[subprocess.Popen[str]] = []

    def started(*options: str) -> subprocess.Popen[str]:
        drivers.append(start("run", "c.yaml", "--run-dir", "r", *options, cwd=small))
        return drivers[-1]

    yield started
    for driver in drivers:
        if driver.poll() is None:
            driver.terminate()
            driver.communicate(timeout=60)


def records(folder: Path) -> list[ServerRecord]:
    """The record of the newest server in each slot."""
    return newest(read_records(folder / "r" / "servers", None))


def executions(folder: Path) -> int:
    """Requests that all servers have answered, by their own count."""
    return sum(r.statistics.get("slow", [0, 0])[1] for r in read_records(folder / "r" / "servers", None))


def busy(folder: Path, record: ServerRecord) -> bool:
    """Whether a server has answered, and has a request in flight at this moment: its model says so."""
    answered = record.statistics.get("slow", [0, 0])[1]
    return bool(record.state == "ready" and answered and (folder / "in-flight" / str(record.server_pid)).exists())


def reach(driver: subprocess.Popen[str], law: Callable[[], bool]) -> None:
    """Wait for a moment in a campaign that runs."""
    assert wait_until(lambda: law() or driver.poll() is not None, 150), "it never came"
    assert driver.poll() is None, driver.communicate()


def finish(driver: subprocess.Popen[str], folder: Path, code: int = 0) -> str:
    """Let the model take no more time, and wait for the campaign's end; what it said."""
    write_json(folder / "in-flight" / "pace", 0)
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == code, output
    return output


def stub(record: ServerRecord) -> int:
    """The process behind the model."""
    children = psutil.Process(record.server_pid).children(recursive=True)
    return next(p.pid for p in children if "triton_python_backend_stub" in " ".join(p.cmdline()))


def starve(record: ServerRecord, folder: Path) -> None:
    """Put the process behind the model under a limit, and let it take memory until the kernel ends it."""
    pid = stub(record)
    with limited() as procs:
        if procs:
            Path(procs).write_text(str(pid))
        else:
            os.kill(pid, signal.SIGKILL)
        (folder / "in-flight" / f"hungry-{pid}").touch()
        assert wait_until(lambda: not alive(pid), 30)


FOUND: dict[str, tuple[Callable[[ServerRecord, Path], None], str]] = {
    "killed": (lambda r, _: os.kill(r.server_pid, signal.SIGKILL), "the server ended by signal 9"),
    "crashed": (lambda r, _: os.kill(r.server_pid, signal.SIGSEGV), "the server ended (by signal|with exit code)"),
    "stopped": (lambda r, _: os.kill(r.server_pid, signal.SIGSTOP), "it has not answered for [0-9]+ s"),
    "drained": (lambda r, _: os.kill(r.server_pid, signal.SIGTERM), "the server ended with exit code|no available"),
    "stub killed": (
        lambda r, _: os.kill(stub(r), signal.SIGKILL),
        "its process triton_python_backend_stub .* has ended",
    ),
    "stub stopped": (
        lambda r, _: os.kill(stub(r), signal.SIGSTOP),
        "model slow does not serve its canary|has been stopped",
    ),
    "unloaded": (lambda r, _: unload(r, "slow"), "its process .* has ended|.*no available versions"),
    "stub out of memory": (starve, "its process triton_python_backend_stub .* ended"),
}


@pytest.mark.parametrize("fault", [pytest.param(f, marks=SLOW if f == "stub stopped" else FAULTS) for f in FOUND])
def test_a_server_that_fails_is_replaced(small: Path, run: Run, undisturbed: dict[str, str], fault: str) -> None:
    """Whatever befalls the only server, the report says what; another takes its place, and no bit changes."""
    act, why = FOUND[fault]
    prepare(small, request_deadline_s=4)
    driver = run()
    reach(driver, lambda: any(busy(small, r) for r in records(small)))
    act(records(small)[0], small)
    finish(driver, small)
    report = report_of(small / "r")
    assert [s["name"] for s in report["servers"]] == ["server-0", "server-0.1"]
    assert re.search(why, report["servers"][0]["reason"])
    assert report["servers"][1]["reason"] == "asked to stop"
    # One that crashes may still give the answer it was working on: it says a lot before it dies.
    assert report["rows"]["restarted_server"] > 0 or fault == "crashed"
    assert report["rows"]["parked"] == 0
    assert hashes(small / "r") == undisturbed


@pytest.mark.faults
def test_all_servers_killed_at_half_time(small: Path, run: Run, undisturbed: dict[str, str]) -> None:
    """Both are replaced, what they were working on is asked again, and the outputs are those of an undisturbed run."""
    prepare(small, delay_s=0.3, count=2)
    driver = run()
    reach(driver, lambda: executions(small) > 65 // 2 and all(r.state == "ready" for r in records(small)))
    for record in records(small):
        os.kill(record.server_pid, signal.SIGKILL)
    finish(driver, small)
    report = report_of(small / "r")
    assert [s["name"] for s in report["servers"]] == ["server-0", "server-0.1", "server-1", "server-1.1"]
    assert report["rows"]["restarted_server"] > 0
    assert hashes(small / "r") == undisturbed


@pytest.mark.slow
def test_a_slow_server_is_not_a_dead_one(small: Path, run: Run) -> None:
    """A model slower than its canaries are frequent, with requests queueing before each of them, is left alone."""
    prepare(small, delay_s=2.5, request_deadline_s=30, window=4)
    driver = run()
    reach(driver, lambda: executions(small) > 3)
    finish(driver, small)
    assert [s["name"] for s in report_of(small / "r")["servers"]] == ["server-0"]
    assert report_of(small / "r")["rows"]["first"] == sum(report_of(small / "r")["rows"].values())


@pytest.mark.slow
def test_a_budget_that_is_spent_ends_the_campaign_with_its_causes(
    small: Path, run: Run, undisturbed: dict[str, str]
) -> None:
    """Exit 1, all deaths named, what is done stays done; run again, it completes as if nothing had been."""
    prepare(small, restarts=1)
    driver = run()
    for name in ("server-0", "server-0.1"):
        reach(driver, lambda name=name: any(r.name == name and busy(small, r) for r in records(small)))
        os.kill(records(small)[0].server_pid, signal.SIGKILL)
    finish(driver, small, 1)
    report = report_of(small / "r")
    assert report["status"] == "failed"
    text = "no server is left, each was replaced 1 times: the server ended by signal 9 (server-0, server-0.1)"
    assert any(text in e for e in report["errors"]), report["errors"]
    again = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert again.returncode == 0, again.stdout + again.stderr
    assert hashes(small / "r") == undisturbed


@FAULTS
def test_a_server_killed_while_it_starts_is_started_again(small: Path, run: Run, undisturbed: dict[str, str]) -> None:
    """A signal is not the model's own word: another is tried, where a model that does not load would not be."""
    prepare(small)
    driver = run()
    reach(driver, lambda: any(r.state == "starting" and r.server_pid for r in records(small)))
    os.kill(records(small)[0].server_pid, signal.SIGKILL)
    finish(driver, small)
    assert report_of(small / "r")["servers"][0]["ready_s"] is None
    assert hashes(small / "r") == undisturbed


@pytest.mark.parametrize(
    ("provider", "signum"),
    [
        pytest.param("local", signal.SIGKILL, marks=SLOW),
        pytest.param("local", signal.SIGTERM, marks=SLOW),
        pytest.param("parsl", signal.SIGKILL, marks=FAULTS),
    ],
)
def test_a_pilot_that_is_lost_is_sent_again(
    small: Path, run: Run, undisturbed: dict[str, str], provider: str, signum: int
) -> None:
    """Killed, or told to go by somebody who is not the campaign: the submitter sends another for its slot."""
    prepare(small, count=2)
    driver = run("--provider", provider)
    reach(driver, lambda: all(r.state == "ready" for r in records(small)) and executions(small) > 2)
    record = records(small)[0]
    os.kill(record.pid, signum)
    assert wait_until(lambda: not Path(record.private_dir).exists(), 15)
    reach(driver, lambda: records(small)[0].name == "server-0.1")
    output = finish(driver, small)
    report = report_of(small / "r")
    assert [s["name"] for s in report["servers"]] == ["server-0", "server-0.1", "server-1"]
    why = "server-0: its pilot was killed" if signum == signal.SIGKILL else "signal SIGTERM"
    assert report["servers"][0]["reason"] == why
    assert f"{why}; a pilot for server-0.1 is sent" in output
    assert hashes(small / "r") == undisturbed


@SLOW
@pytest.mark.parametrize("wakes", [True, False])
def test_a_pilot_that_is_not_heard_of_is_given_up(
    small: Path, run: Run, undisturbed: dict[str, str], wakes: bool
) -> None:
    """Nobody closes the record of a lost node, where no server watchdog is left either: the submitter does.

    A pilot that wakes up finds itself replaced: it ends its server and sweeps, while the campaign goes on.
    """
    prepare(small, lease_s=2)
    driver = run()
    reach(driver, lambda: any(busy(small, r) for r in records(small)))
    record = records(small)[0]
    (server_watchdog,) = [
        p.pid for p in psutil.Process(record.pid).children() if "campaign.supervision.server_watchdog" in p.cmdline()
    ]
    os.kill(record.pid, signal.SIGSTOP)
    os.kill(server_watchdog, signal.SIGKILL)
    reach(driver, lambda: records(small)[0].name == "server-0.1")
    assert psutil.pid_exists(record.server_pid), "nobody has ended it"
    if wakes:
        os.kill(record.pid, signal.SIGCONT)
        reach(driver, lambda: not Path(record.private_dir).exists() and not psutil.pid_exists(record.server_pid))
    finish(driver, small)
    first = report_of(small / "r")["servers"][0]
    assert re.fullmatch("server-0: nothing was heard of its pilot for [0-9]+ s: is the node lost[?]", first["reason"])
    assert hashes(small / "r") == undisturbed


ASKING = """
import numpy as np

def ask(batch, ctx):
    x = np.asarray(batch.x, np.float32)[:, None].copy()
    if ctx.metadata.get("deadly") and len(x):
        x[len(x) // 2] = 666
    y = ctx.servers.infer(ctx.options["model"], {"X": x})["Y"]
    return {"rows": len(y), "sum": float(np.sum(y, dtype=float))}
"""


def asking(folder: Path, model: str, deadly: int = 0, **servers: Any) -> Path:
    """Eight files whose rows are sent to a model; some hold a value that stub_dies dies of."""
    for i in range(8):
        write_tree(folder / "a" / f"a{i}.root", n=400, seed=i)
    (folder / "s.py").write_text(ASKING)
    names = [f"a/a{i}.root" for i in (1, 4, 6)[:deadly]]
    (folder / "side.yaml").write_text(yaml.safe_dump({**{n: {"deadly": True} for n in names}, "*": {}}))
    made = {
        "campaign": "asking",
        "datasets": {"a": {"files": "a", "tree": "events", "metadata": "side.yaml"}},
        "servers": {"model_repository": str(PROJECT / "tests" / "models"), "models": {model: {"batch": 64}}, **servers},
        "workers": 2,
        "stages": {"ask": {"use": "s.py:ask", "options": {"model": model}}},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return folder


@pytest.mark.parametrize("deadly", [pytest.param(1, marks=FAULTS), pytest.param(2, marks=SLOW)])
def test_files_that_kill_servers_are_named_and_no_other(tmp_path: Path, deadly: int) -> None:
    """One server, three restarts: the budget outlives them, of all that was lost with them nothing else fails."""
    asking(tmp_path, "stub_dies", deadly, count=1, canary_s=1, window=4)
    done = command("run", "c.yaml", "--run-dir", "r", "--set", "errors.max_failed_files=2", cwd=tmp_path)
    report = report_of(tmp_path / "r")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(Path(x["file"]).name for x in report["lost"]) == ["a1.root", "a4.root"][:deadly]
    assert all("died while they worked on this request alone" in x["error"] for x in report["lost"])
    assert report["tasks"]["done"] == 8 - deadly
    assert report["rows"]["parked"] == 0


class Faltering(grpc.GenericRpcHandler):
    """Hands requests on to a server; until told otherwise it has none."""

    def __init__(self, url: str) -> None:
        self.channel, self.refused = grpc.insecure_channel(url), 0

    def service(self, details: Any) -> Any:
        method = details.method

        def hand_on(request: bytes, context: Any) -> Any:
            if method.endswith("ModelInfer") and self.refused < 8:
                self.refused += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "no server at the moment")
            return self.channel.unary_unary(method)(request, timeout=30)

        return grpc.unary_unary_rpc_method_handler(hand_on)


@pytest.mark.slow
def test_rows_of_a_task_that_is_done_in_the_end_are_not_parked(tmp_path: Path) -> None:
    """A balancer without servers for a while: tasks fail and are tried again; nothing is lost, so says the report."""
    with ServerPool(PROJECT / "tests" / "models", models={"slow": {"batch": 64}}) as pool:
        pool.wait_ready()
        handler, server = Faltering(pool.records()[0].url), grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((handler,))
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            asking(tmp_path, "slow")
            change(tmp_path, retries=20, servers={"kind": "attach", "urls": url, "models": {"slow": {"batch": 64}}})
            done = command("run", "c.yaml", "--run-dir", "r", cwd=tmp_path)
        finally:
            server.stop(0).wait()
            handler.channel.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert handler.refused == 8
    rows = report_of(tmp_path / "r")["rows"]
    assert rows["parked"] == 0, rows
    assert sum(rows.values()) >= 8 * 400
