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

    run = _command(
        commands, "run", "run a campaign file; in an existing run directory, do only the missing tasks", do.run
    )
    _file(run)
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory (default: ./runs/<campaign>)")
    run.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N rows of each file, in a run directory of its own"
    )
    how = run.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="show no progress")
    how.add_argument("--json", action="store_true", help="print progress as JSON, one event a line")
    run.add_argument("--profile", action="store_true", help="show at the end where the time went")

    check = _command(commands, "check", "check a campaign file; no server is started", do.check)
    _file(check)
    check.add_argument(
        "--try", action="store_true", dest="try_", help="run all stages on 100 rows, with zeros in place of answers"
    )

    plan = _command(commands, "plan", "show what a run would do, and why", do.plan)
    _file(plan)
    plan.add_argument("--run-dir", type=Path, metavar="DIR", help="count the work done in this run directory")
    plan.add_argument("--limit", type=_positive, metavar="N", help="plan a run with this --limit")
    plan.add_argument("--json", action="store_true", help="print every task as JSON")

    for name, text, function in (
        ("status", "show the tasks and servers of a run; one line if the run is over", do.status),
        ("stop", "stop a run in order; it can be resumed", do.stop),
        ("watch", "show the live view of a run that was started elsewhere, until it is over", do.watch),
        ("logs", "print the logs of a run: stages by input file, servers, workers", do.logs),
        ("report", "show the result of a run that is over: outputs, failures, notes", do.report),
    ):
        command = _command(commands, name, text, function)
        command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
        if function is do.report:
            command.add_argument("--profile", action="store_true", help="show where the time went")
            form = command.add_mutually_exclusive_group()
            form.add_argument("--text", dest="form", action="store_const", const="text", help="text (default)")
            form.add_argument("--json", dest="form", action="store_const", const="json", help="report.json")
            form.add_argument("--html", dest="form", action="store_const", const="html", help="write report.html again")
            command.set_defaults(form="text")
        if function is do.logs:
            which = command.add_mutually_exclusive_group()
            which.add_argument("--file", metavar="NAME", default="", help="logs of input files with this in their name")
            which.add_argument("--server", metavar="NAME", default="", help="logs of a server, e.g. server-0")
            which.add_argument("--failed", action="store_true", help="logs of input files that failed")
            command.add_argument("--follow", action="store_true", help="go on printing until the run is over")

    show = _command(commands, "show", "show the outputs of a run, or the histograms of one output", do.show)
    show.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    show.add_argument(
        "output", nargs="?", metavar="OUTPUT", help="STAGE/DATASET/VARIATION, or STAGE/DATASET/VARIATION/HISTOGRAM"
    )

    verify = _command(
        commands, "verify", "compare a complete run with its manifest, and repeat a sample of its tasks", do.verify
    )
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    verify.add_argument(
        "--sample", type=_percentage, default=1.0, metavar="P%", help="of the files, done again (default: 1%%; 0: none)"
    )
    verify.add_argument("--workers", type=_positive, metavar="N", help="worker processes, and threads for hashing")
    verify.add_argument("--json", action="store_true", help="for a program")
    reaper = _command(
        commands, "reap", "end leftovers of your dead campaigns on this machine and in the scheduler", do.reap
    )
    reaper.add_argument("--dry-run", action="store_true", help="only list what would be done")

    tune = _command(commands, "tune", "measure a sample against one server, propose batch, window, workers", do.tune)
    _file(tune)
    canary = _command(
        commands, "canary", "make the known answer of a model from rows of the campaign's data", do.canary
    )
    _file(canary)
    canary.add_argument("model", metavar="MODEL", help="one of servers.models")
    canary.add_argument("--force", action="store_true", help="replace a known answer that is there")
    _file(_command(commands, "prepare", "make the server environment before the first run", do.prepare))
    schema = _command(commands, "schema", "print the JSON schema of a campaign file, for editors", do.schema)
    schema.add_argument("--events", action="store_true", help="the schema of an event of run --json instead")
    return made


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, function: Callable[..., int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(do=function, limit=None)
    return parser


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the campaign, YAML")
    parser.add_argument("--provider", metavar="NAME", help="provider, in place of the file's")
    parser.add_argument("--workers", type=_positive, metavar="N", help="worker processes")
    parser.add_argument("--servers", type=_positive, metavar="N", help="servers in the pool")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, e.g. --set servers.window=4"
    )


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _percentage(text: str) -> float:
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 to 100")
    return number
