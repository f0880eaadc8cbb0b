"""``campaign logs``: finds the logs of a run by the name of an input file or of a server, and prints them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from campaign.errors import SpecError
from campaign.report.report import Report
from campaign.storage.rundir import RunDir
from campaign.util.messages import unknown

POLL_S = 0.3  # between two looks at logs that are followed


def find(rundir: RunDir, file: str = "", server: str = "", *, failed: bool = False) -> list[Path]:
    """The logs of a run, oldest first.

    Args:
        rundir: The run directory.
        file: Part of the name of an input file: only its logs.
        server: Name of a server, e.g. ``server-0``: only its logs and its pilot's.
        failed: Only the logs of input files that the report names in an error.

    Raises:
        SpecError: No log has this name; the message lists the logs there are.
    """
    stages = [p for p in rundir.stage_logs.glob("**/*.log") if not p.name.startswith(".")]
    servers = list(rundir.servers.glob("*.log"))
    if server:
        slot = server.removeprefix("server-").partition(".")[0]
        found = [p for p in servers if p.stem == server or p.stem in (f"pilot-{slot}", f"server-{slot}")]
        if not found:
            raise SpecError(unknown(server, [p.stem for p in servers], "logs of servers"), where=str(rundir.servers))
    elif file or failed:
        found = [p for p in stages if Path(file).name in _input(p)] if file else list(_failed(rundir, stages))
        if file and not found:
            names = [str(p.relative_to(rundir.stage_logs)) for p in stages]
            raise SpecError(
                unknown(file, names, "logs of input files"), where=str(rundir.stage_logs),
                remedy="a file has a log only if a stage printed something or warned",
            )  # fmt: skip
    else:
        found = [*stages, *servers, *(p for p in rundir.logs.glob("**/*.log") if p not in stages)]
    return sorted(found, key=lambda p: (p.stat().st_mtime, p))


def _failed(rundir: RunDir, logs: Sequence[Path]) -> Iterator[Path]:
    report = Report.load(rundir.root)
    errors = [] if report is None else [*report.errors, *(str(lost.get("file", "")) for lost in report.lost)]
    for path in logs:
        if any(_input(path) in error or str(path) in error for error in errors):
            yield path


def _input(log: Path) -> str:
    """The name of the input file of a log, which is called NAME-HASH.log."""
    return log.name.rpartition("-")[0]


def show(logs: Callable[[], Sequence[Path]], *, follow: bool = False, running: Callable[[], bool]) -> None:
    """Print logs, each under its path; with ``follow`` also what is added, until the run is over."""
    read: dict[Path, int] = {}
    last: Path | None = None
    while True:
        for path in logs():
            with path.open("rb") as stream:
                stream.seek(read.get(path, 0))
                text = stream.read()
            read[path] = read.get(path, 0) + len(text)
            if text:
                if path != last:
                    print(f"==> {path} <==")
                last = path
                sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        if not follow or not running():
            return
        time.sleep(POLL_S)
