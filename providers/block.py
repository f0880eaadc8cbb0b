"""Runs on each node of a block of workers: gives Parsl's worker pool a private folder for temporary files, and runs it.

    python -m campaign.providers.block PROGRAM ARGUMENT...

The pool's managers and workers make sockets and files there; killed, they would leave them in the node's ``/tmp``.
"""

from __future__ import annotations

import os
import sys
import tempfile

from campaign.supervision.server_watchdog import ServerWatchdog


def main(argv: list[str] | None = None) -> None:
    """Become the program, with a server watchdog that removes the folder when it has ended, however."""
    program = argv or sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="campaign-")
    watchdog = ServerWatchdog()
    watchdog.guard(0, folder, "")
    watchdog.hand_over()
    os.execvpe(program[0], program, {**os.environ, "TMPDIR": folder})  # noqa: S606


if __name__ == "__main__":
    main()
