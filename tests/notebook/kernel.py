"""A real kernel of Jupyter, as a notebook has it: cells go in, outputs come out."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager


class CellError(AssertionError):
    """A cell has raised something; ``name`` is its type."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Kernel:
    """A kernel and what a frontend knows of its outputs."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.views: dict[str, list[dict[str, str]]] = {}  # by display id, each version
        self.where: dict[str, str] = {}  # the cell of each display id

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def send(self, code: str) -> str:
        """Begin a cell, and return its id."""
        return str(self.client.execute(code))

    def finish(self, cell: str, seconds: float = 120.0) -> str:
        """Wait for the end of a cell; its printed text and the plain text of its result."""
        text, end = "", time.monotonic() + seconds
        error: CellError | None = None
        while time.monotonic() < end:
            message = self._next(end)
            if message is None:
                continue
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            if kind == "stream" and content["name"] == "stderr":
                print(content["text"])
            elif kind == "stream":
                text += content["text"]
            elif kind == "execute_result":
                text += content["data"]["text/plain"]
            elif kind == "error":
                error = CellError(content["ename"], content["evalue"] + "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                if error is None:
                    self._reply(cell, end)
                    return text
                with suppress(CellError):
                    self._reply(cell, end)
                raise error
        raise AssertionError(f"the cell has not ended within {seconds} s: {text}")

    def _reply(self, cell: str, end: float) -> None:
        reply: dict[str, Any] = {"parent_header": {}}
        while reply["parent_header"].get("msg_id") != cell:
            reply = self.client.get_shell_msg(timeout=max(1.0, end - time.monotonic()))
        if reply["content"]["status"] == "error":  # some errors have no output: UsageError
            raise CellError(reply["content"]["ename"], reply["content"]["evalue"])

    def _next(self, end: float) -> dict[str, Any] | None:
        try:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=max(0.05, min(1.0, end - time.monotonic())))
        except queue.Empty:
            return None
        if message["msg_type"] in ("display_data", "update_display_data"):
            content = message["content"]
            name = content.get("transient", {}).get("display_id", "")
            self.views.setdefault(name, []).append(content["data"])
            self.where.setdefault(name, message["parent_header"].get("msg_id", ""))
        return message

    def run(self, code: str, seconds: float = 120.0) -> str:
        """Run a cell to its end."""
        return self.finish(self.send(code), seconds)

    def watch(self, seconds: float, law: Any) -> bool:
        """Take messages until ``law()`` holds."""
        end = time.monotonic() + seconds
        while not law() and time.monotonic() < end:
            self._next(time.monotonic() + 0.2)
        return bool(law())

    def view(self, at: int = -1) -> dict[str, str]:
        """What the last output with an id shows now."""
        return list(self.views.values())[at][-1]

    def interrupt(self) -> None:
        """What the button Interrupt does."""
        self.manager.interrupt_kernel()

    def close(self) -> None:
        """End it as a frontend does."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel that is gone afterwards."""
    made = Kernel(folder)
    try:
        yield made
    finally:
        made.close()
