"""Progress as JSON lines: one event a line, for programs that follow a run. `SCHEMA` describes an event."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from campaign.report.progress import Progress, ServerProgress, StageProgress

EVERY_S = 0.5  # the least time between two counts of one stage; the last one always comes

_COUNT = {"type": "integer", "minimum": 0}
_STATES = ["starting", "ready", "stopping", "ended"]
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "An event of `campaign run --json`",
    "type": "object",
    "required": ["event", "time_s"],
    "properties": {
        "event": {"enum": ["message", "expected", "progress", "failed", "servers", "end"]},
        "time_s": {"type": "number", "minimum": 0, "description": "Seconds since the run began."},
        "text": {"type": "string", "description": "Of message and failed."},
        "stage": {"type": "string", "description": "Of expected and progress."},
        "total": _COUNT,
        "done": _COUNT,
        "failed": _COUNT,
        "rows": _COUNT,
        "status": {"type": "string", "description": "Of end: complete, incomplete, failed or interrupted."},
        "servers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "state"],
                "properties": {
                    "name": {"type": "string"},
                    "state": {"enum": _STATES},
                    "host": {"type": "string"},
                    "busy": {"type": ["number", "null"], "description": "Share of time its models computed."},
                    "queue_s": {"type": ["number", "null"], "description": "Mean number of waiting requests."},
                    "restarts": _COUNT,
                    "reason": {"type": "string"},
                },
            },
        },
    },
}


class JsonProgress(Progress):
    """Writes each event as one line of JSON.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._out = stream

    def say(self, text: str) -> None:
        """Write a message of the run."""
        self._write("message", text=text)

    def expect(self, stage: str, total: int, done: int = 0) -> None:
        """Write how many tasks a stage has, and how many of them are done already."""
        super().expect(stage, total, done)
        if total:
            self._write("expected", stage=stage, total=total, done=done)

    def fail(self, message: str) -> None:
        """Write that a file or a reduce stage has failed for good."""
        self.failures.append(message)
        self._write("failed", text=message)

    def show_servers(self, servers: Sequence[ServerProgress]) -> None:
        """Write the servers of the pool, if something has changed."""
        if tuple(servers) != self.servers:
            super().show_servers(servers)
            self._write("servers", servers=[asdict(server) for server in servers])

    def end(self, status: str) -> None:
        """Write the status of the run: the last event."""
        self._write("end", status=status)

    def _counted(self, line: StageProgress, now: float) -> None:
        if line.over or now - line.shown > EVERY_S:
            line.shown = now
            counts = {"total": line.total, "done": line.done, "failed": line.failed, "rows": line.rows}
            self._write("progress", stage=line.name, **counts)

    def _write(self, event: str, **about: Any) -> None:
        made = {"event": event, "time_s": round(time.monotonic() - self.start, 3), **about}
        with self._lock:
            print(json.dumps(made), file=self._out, flush=True)
