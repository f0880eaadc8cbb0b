"""Runs the command line: calls the command that the arguments name, and turns errors into exit codes."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from campaign.cli.parser import parser
from campaign.errors import CampaignError


def command() -> NoReturn:
    """The installed command: runs `main` and ends the process without freeing its modules.

    By then everything is closed. The interpreter would free a thousand modules one by one, and the user would wait a
    fifth of a second longer for the prompt.
    """
    try:
        code = main()
    except SystemExit as end:  # argparse: --help, or a wrong command line
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: complete, or incomplete within what the campaign tolerates. 1: failed. 2: the request is wrong, nothing was
    started. 130: interrupted.
    """
    args = parser().parse_args(argv)
    try:
        code: int = args.do(args)
    except CampaignError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `campaign report DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("campaign: interrupted", file=sys.stderr)
        return 130
    return code
