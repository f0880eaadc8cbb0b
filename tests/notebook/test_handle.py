"""Runs from cells of a real kernel: in the foreground, in the background, attached to, interrupted and killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import PROJECT, alive, ours, report_of, start, wait_until
from tests.notebook.conftest import CELLS
from tests.notebook.kernel import CellError, Kernel, kernel

pytestmark = pytest.mark.slow  # a kernel for each test


def begin(k: Kernel, folder: Path) -> None:
    """Start the gated campaign in the background, and wait until workers are in the gated stage."""
    k.run(CELLS)
    k.run("handle = gated.start()")
    assert wait_until((folder / "gate.begun").exists, 60)


def test_other_cells_work_while_a_run_goes_on(cells):
    """A started run returns at once, other cells run meanwhile, and waiting gives the report."""
    with kernel(cells) as k:
        begin(k, cells)
        assert k.run("print(handle.status, 6 * 7)") == "running 42\n"
        assert "slow" in k.run("handle")
        (cells / "gate").touch()
        assert (
            k.run("print(handle.wait().tasks['done'], handle.status, handle.report.status)") == "3 complete complete\n"
        )
        assert "complete" in k.view()["text/plain"]


def test_an_interrupt_of_another_cell_leaves_the_run_alone(cells):
    """Interrupt ends the cell that sleeps; the run in the background comes to its end."""
    with kernel(cells) as k:
        begin(k, cells)
        sleeping = k.send("time.sleep(60)")
        k.watch(1.0, lambda: False)
        k.interrupt()
        with pytest.raises(CellError, match="KeyboardInterrupt"):
            k.finish(sleeping)
        assert k.run("print(handle.status)") == "running\n"
        (cells / "gate").touch()
        assert k.run("print(handle.wait().status)") == "complete\n"


def test_an_interrupt_of_the_waiting_cell_ends_the_wait_only(cells):
    """After it the run goes on; stop() stops it in good order, and a new run resumes."""
    with kernel(cells) as k:
        begin(k, cells)
        waiting = k.send("handle.wait()")
        k.watch(1.0, lambda: False)
        k.interrupt()
        with pytest.raises(CellError, match="KeyboardInterrupt"):
            k.finish(waiting)
        assert k.run("print(handle.status); handle.stop(); print(handle.status)") == "running\ninterrupted\n"
        with pytest.raises(CellError, match="Interrupted"):
            k.run("handle.wait()")
        (cells / "gate").touch()
        assert k.run("print(gated.start().wait().status)") == "complete\n"
        assert not (cells / "runs" / "gated" / "stop").exists()


def test_awaiting_a_run_does_not_block_the_loop(cells):
    """While a cell awaits the run, other coroutines of the kernel's loop go on."""
    with kernel(cells) as k:
        begin(k, cells)
        k.run(
            "import asyncio\n"
            "async def tick():\n"
            "    for i in range(5):\n"
            "        await asyncio.sleep(0.1)\n"
            "    open(gate, 'w').close()\n"  # the run can end only if this coroutine goes on
            "ticking = asyncio.ensure_future(tick())"
        )
        assert k.run("report = await handle\nprint(report.status)") == "complete\n"


def test_one_run_at_a_time(cells):
    """A second start in the same kernel is refused, and names the run that goes on."""
    with kernel(cells) as k:
        begin(k, cells)
        with pytest.raises(CellError, match=r"a campaign runs in this process already"):
            k.run("cells.start()")
        k.run("handle.stop()")


def test_an_interrupt_of_a_run_in_the_foreground_stops_it(cells):
    """Interrupt of the cell with run() stops the run in good order; a second one does not end the kernel."""
    with kernel(cells) as k:
        k.run(CELLS + "\nmine = 1")
        running = k.send("gated.run()")
        assert wait_until((cells / "gate.begun").exists, 60)
        k.interrupt()
        k.interrupt()
        with pytest.raises(CellError, match="Interrupted"):
            k.finish(running)
        assert k.run("print(mine)") == "1\n"
        assert report_of(cells / "runs" / "gated")["status"] == "interrupted"
        assert not ours()


def test_a_refused_campaign_says_so(cells):
    """A wrong request raises its error where it is waited for, and the view says that it was refused."""
    with kernel(cells) as k:
        k.run(CELLS)
        k.run("handle = Campaign(campaign='no', datasets={'d': Dataset(files='nope/*.root', tree='events')},"
              " stages={'count': StageSpec(use=count)}).start()")  # fmt: skip
        with pytest.raises(CellError, match="SpecError"):
            k.run("handle.wait()")
        assert k.run("print(handle.status)") == "refused\n"
        assert "refused" in k.view()["text/plain"]


@pytest.mark.parametrize("how", ["run", "start"])
def test_a_killed_kernel_leaves_nothing(cells, how):
    """SIGKILL of the kernel in a run: server, workers, fork server, folders and shared memory are gone soon after."""
    k = Kernel(cells)
    try:
        k.run(CELLS)
        k.run(
            "from campaign import ServerPool\n"
            f"pool = ServerPool({str(PROJECT / 'tests' / 'models')!r}, models=['batch_sensitive']).__enter__()\n"
            "pool.wait_ready()"
        )
        assert k.run("pool").startswith("ServerPool: 1 of 1 ready")
        assert any("tritonserver" in line for line in ours().values())
        k.send(f"gated.{how}()")
        assert wait_until((cells / "gate.begun").exists, 60)
        assert ours()
        pid = k.pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(pid), 10)
        assert wait_until(lambda: not ours(), 20), ours()
    finally:
        k.close()


def test_a_restarted_kernel_ends_its_run_in_order(cells):
    """A restart stops the run; the new kernel attaches to it, and sees that it was stopped."""
    with kernel(cells) as k:
        begin(k, cells)
        k.manager.restart_kernel(now=False)
        k.client.wait_for_ready(timeout=60)
        assert wait_until(lambda: not ours(), 20), ours()
        text = k.run("import campaign\nrun = campaign.Campaign.attach('runs/gated')\nprint(run.status)\nrun")
        assert text.startswith(("interrupted", "ended"))
        assert "run" in text


def test_a_kernel_attaches_to_the_run_of_another_process(cells):
    """attach() shows a run that the command started, waits for it, and shows it again when it is over."""
    (cells / "stages.py").write_text(CELLS.split("data = ")[0])
    (cells / "c.yaml").write_text(
        "campaign: other\nworkers: 1\ndatasets: {d: {files: 'd/*.root', tree: events}}\n"
        f"stages: {{slow: {{use: 'stages.py:slow', options: {{gate: {cells / 'gate'}}}}}}}\n"
    )
    other = start("run", "c.yaml", cwd=cells)
    try:
        assert wait_until((cells / "gate.begun").exists, 60)
        with kernel(cells) as k:
            k.run("import campaign\nrun = campaign.Campaign.attach('runs/other')")
            text = k.run("print(run.status)\nrun")
            assert text.startswith("running")
            assert "0/3" in text
            waiting = k.send("print(run.wait().status)")
            k.watch(1.0, lambda: False)
            (cells / "gate").touch()
            assert k.finish(waiting) == "complete\n"
            assert k.view()["text/plain"].startswith("Campaign other: complete")
            assert "complete" in k.run("campaign.Campaign.attach('runs/other')")
            with pytest.raises(CellError, match="is no run directory"):
                k.run("campaign.Campaign.attach('d')")
    finally:
        (cells / "gate").touch()
        other.communicate(timeout=60)
