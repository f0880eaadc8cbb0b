"""Makes Python child processes through a fork server, so that none is forked from a process with open channels."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, process, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from campaign.errors import CampaignError
from campaign.supervision.identity import OWNER, mark, marked, own
from campaign.supervision.linux import die_with_parent
from campaign.util import plugins

LOOK_S = 0.2
_tracker = {"ours": False}


def context() -> ForkServerContext:
    """The fork server, which imports the worker's modules once; nothing in them opens a channel when imported."""
    if not fork_server_runs():
        _tracker["ours"] = getattr(resource_tracker._resource_tracker, "_pid", None) is None
        _private_folder()
        with no_main():
            forkserver.set_forkserver_preload(_preload())
            forkserver.ensure_running()
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_preload())
    return made


def _preload() -> list[str]:
    return ["campaign.worker.tasks", *plugins.modules(plugins.STAGES)]


def _private_folder() -> None:
    """Give the fork server's socket a folder that says whose it is.

    multiprocessing would make one called ``pymp-...``, which nobody could know for ours after this process was killed.
    """
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]  # where it looks first
    if config.get("tempdir") is None:
        folder = tempfile.mkdtemp(prefix="campaign-")
        own(Path(folder), str(mark()))
        config["tempdir"] = folder
        util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # as multiprocessing does


def _forget_folder() -> None:
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    folder = Path(config.get("tempdir") or "/")
    with contextlib.suppress(OSError):
        if [p.name for p in folder.iterdir()] == [OWNER]:  # ours, and nobody else has put anything there
            shutil.rmtree(folder, ignore_errors=True)
            config["tempdir"] = None


def start_fork_server() -> None:
    """Let the fork server begin its imports, on another core, while this process goes on with its own."""
    context()


@contextlib.contextmanager
def no_main() -> Iterator[None]:
    """Hide ``__main__`` from processes started inside.

    They would import the user's script again, and a script without a ``__main__`` guard would start a campaign
    inside the campaign. Stages defined in it travel by value, so nobody needs it there. A fork server that was killed
    is started again together with the next process: it bears the campaign's mark too.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        with marked():
            yield
    finally:
        del main["__spec__"]
        main.update(hidden)


def fork_server_runs() -> bool:
    """True if this process has started the fork server."""
    return getattr(forkserver._forkserver, "_forkserver_pid", None) is not None


def ask_child(
    function: Callable[..., None],
    args: tuple[Any, ...],
    deadline_s: float | None,
    what: str,
    look: Callable[[], object] = lambda: None,
) -> Any:
    """Call a function in a process of its own, which is gone afterwards.

    Args:
        function: Called with the sending end of a pipe and ``args``; what it sends is the answer.
        args: Its other arguments.
        deadline_s: How long it may take; None: as long as it likes.
        what: What it is doing, for errors.
        look: Called several times a second while it is waited for; what it raises ends the process and is raised.

    Returns:
        The answer, or a `CampaignError` if the process ended or hung without one.
    """
    ours, theirs = context().Pipe(duplex=False)
    child = context().Process(target=_child, args=(function, theirs, *args), daemon=True)
    with no_main():
        child.start()
    theirs.close()
    end = time.monotonic() + (math.inf if deadline_s is None else deadline_s)
    try:
        while not ours.poll(min(LOOK_S, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return CampaignError(f"did not end within {deadline_s:g} s", where=what)
            look()
        return ours.recv()
    except EOFError:
        child.join(5)
        return CampaignError(f"its process ended ({_ended(child.exitcode)})", where=what)
    finally:
        child.kill()
        child.join()
        ours.close()


def _ended(exitcode: int | None) -> str:
    """How a process has ended, in words."""
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _child(function: Callable[..., None], pipe: Connection, *args: Any) -> None:
    child_setup()
    function(pipe, *args)


def child_setup() -> None:
    """First thing in a child: end with the fork server (which ends with the driver), and leave Ctrl-C to the driver."""
    die_with_parent(signal.SIGKILL)
    # Each child is given the driver's end of the pipe by which the fork server knows that the driver lives.
    # As long as a child holds it, the fork server, and so the child, would outlive a driver that was killed.
    server: Any = forkserver._forkserver
    held = getattr(server, "_forkserver_alive_fd", None)
    if held is not None:
        os.close(held)
        server._forkserver_alive_fd = None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wake_fork_server() -> None:
    """Let the fork server go on if it was stopped: without it no worker starts, and no worker's end is noticed."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def stop_fork_server() -> None:
    """End the fork server and the resource tracker, unless other children of this process need them.

    They would otherwise stay until this process ends: after a campaign in a notebook, nothing of ours runs. Both own
    nothing by now, so they are ended at once: their own way out takes a quarter of a second. A tracker that was there
    before us may hold somebody's shared memory and is left alone.
    """
    if multiprocessing.active_children():
        return
    ours: list[tuple[Any, str]] = [(forkserver._forkserver, "_forkserver_pid")]
    if _tracker["ours"]:
        ours.append((resource_tracker._resource_tracker, "_pid"))
    for server, name in ours:
        pid, stop = getattr(server, name, None), getattr(server, "_stop", None)
        if pid is not None and stop is not None:  # private, but the only way before the process ends
            os.kill(pid, signal.SIGKILL)
            stop()
    _forget_folder()
