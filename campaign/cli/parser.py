"""Describes the arguments of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from campaign._version import __version__
from campaign.cli import commands as do


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The parsed arguments hold the function to call as ``do``."""
    made = argparse.ArgumentParser(
        prog="campaign",
        description="Run a campaign: a pool of Triton servers, file-parallel tasks that call it, an exact merge.",
    )
    made.add_argument("--version", action="version", version=f"campaign {__version__}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", "run a campaign file; on an existing run directory, what is missing of it", do.run)
    _file(run)
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="where everything goes (default: ./runs/<campaign>)")
    run.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N rows of each file, in a run directory of its own"
    )
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.add_argument("--profile", action="store_true", help="say at the end where each second went")

    check = _command(commands, "check", "say whether a campaign file is right; no server is started", do.check)
    _file(check)
    check.add_argument(
        "--try", action="store_true", dest="try_", help="run all stages on 100 rows, with zeros in place of answers"
    )

    plan = _command(commands, "plan", "show what a run would do, and why", do.plan)
    _file(plan)
    plan.add_argument("--run-dir", type=Path, metavar="DIR", help="take into account what is done there")
    plan.add_argument("--limit", type=_positive, metavar="N", help="of a run with this --limit")
    plan.add_argument("--json", action="store_true", help="every task, for a program")

    for name, text, function in (
        ("status", "show what a run is doing now: its tasks, its servers; in one line where it is over", do.status),
        ("stop", "stop a run in good order; it can be resumed", do.stop),
        ("report", "show the result of a run that is over: outputs, failures, notes", do.report),
    ):
        command = _command(commands, name, text, function)
        command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
        if function is do.report:
            command.add_argument("--profile", action="store_true", help="say where each second went")

    verify = _command(
        commands, "verify", "hold a complete run against its manifest, and do a sample of its tasks again", do.verify
    )
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    verify.add_argument(
        "--sample", type=_percentage, default=1.0, metavar="P%", help="of the files, done again (default: 1%%; 0: none)"
    )
    verify.add_argument("--workers", type=_positive, metavar="N", help="worker processes, and threads that hash")
    verify.add_argument("--json", action="store_true", help="for a program")
    reaper = _command(commands, "reap", "end what dead campaigns of yours left here or in the scheduler", do.reap)
    reaper.add_argument("--dry-run", action="store_true", help="only say what would be done")

    tune = _command(commands, "tune", "measure a sample against one server, propose batch, window, workers", do.tune)
    _file(tune)
    canary = _command(
        commands, "canary", "make the known answer of a model from rows of the campaign's data", do.canary
    )
    _file(canary)
    canary.add_argument("model", metavar="MODEL", help="one of servers.models")
    canary.add_argument("--force", action="store_true", help="replace a known answer that is there")
    _file(_command(commands, "prepare", "make the server environment ahead of the first run", do.prepare))
    _command(commands, "schema", "print the JSON schema of a campaign file, for editors", do.schema)
    return made


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, function: Callable[..., int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(do=function, limit=None)
    return parser


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the campaign, YAML")
    parser.add_argument("--provider", metavar="NAME", help="who lends the machines, in place of the file's")
    parser.add_argument("--workers", type=_positive, metavar="N", help="worker processes")
    parser.add_argument("--servers", type=_positive, metavar="N", help="servers in the pool")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, e.g. --set servers.window=4"
    )


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _percentage(text: str) -> float:
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 to 100")
    return number
