"""Progress as JSON lines: every line is an event of the published schema."""

from __future__ import annotations

import io
import json

import jsonschema

from campaign.report.events import SCHEMA, JsonProgress
from campaign.report.progress import ServerProgress


def test_every_line_is_an_event_of_the_schema():
    """Messages, counts, failures, servers and the end: each line parses, fits the schema, and times never go back."""
    stream = io.StringIO()
    shown = JsonProgress(stream)
    shown.say("servers starting")
    shown.expect("select", 2)
    shown.expect("nothing to do", 0)
    servers = [ServerProgress("server-0", "ready", "node", 0.5, 0.0)]
    shown.show_servers(servers)
    shown.show_servers(list(servers))  # nothing has changed
    shown.add("select", 1, rows=10)
    shown.fail("bad.root: cannot be read\n  remedy: replace it")
    shown.add("select", 0, failed=1)
    shown.end("failed")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    for event in events:
        jsonschema.validate(event, SCHEMA)
    kinds = [event["event"] for event in events]
    assert kinds == ["message", "expected", "servers", "failed", "progress", "end"]
    assert events[-2] | {"time_s": 0} == {
        "event": "progress", "time_s": 0, "stage": "select", "total": 2, "done": 1, "failed": 1, "rows": 10,
    }  # fmt: skip
    assert [event["time_s"] for event in events] == sorted(event["time_s"] for event in events)
    assert events[-1]["status"] == "failed"
