"""Parses the arguments of ``campaign``, calls the driver or the audit, and prints their results."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from campaign._version import __version__
from campaign.errors import CampaignError, SpecError
from campaign.util.messages import counted

if TYPE_CHECKING:
    from campaign.driver.preflight import PreflightReport
    from campaign.spec.models import Campaign
    from campaign.worker.try_stages import Tried


def command() -> NoReturn:
    """What the installed command calls: `main`, and then the end of the process without tearing down its modules.

    All that is to be done at the end has been done by then; the interpreter would free a thousand modules one by one,
    a fifth of a second in which a user waits for the prompt.
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
    """Entry point; returns the exit code.

    0 complete (or incomplete within what the campaign tolerates), 1 failed, 2 the request is wrong and nothing was
    started, 130 interrupted.
    """
    args = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="campaign",
        description="Run a campaign: a pool of Triton servers, file-parallel tasks that call it, an exact merge.",
    )
    parser.add_argument("--version", action="version", version=f"campaign {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(
        commands, "run", "run a campaign file; in an existing run directory, do only the missing tasks", _run
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

    check = _command(commands, "check", "check a campaign file; no server is started", _check)
    _file(check)
    check.add_argument(
        "--try", action="store_true", dest="try_", help="run all stages on 100 rows, with zeros in place of answers"
    )

    plan = _command(commands, "plan", "show what a run would do, and why", _plan)
    _file(plan)
    plan.add_argument("--run-dir", type=Path, metavar="DIR", help="count the work done in this run directory")
    plan.add_argument("--limit", type=_positive, metavar="N", help="plan a run with this --limit")
    plan.add_argument("--json", action="store_true", help="print every task as JSON")

    for name, text, do in (
        ("status", "show the tasks and servers of a run; one line if the run is over", _status),
        ("watch", "show the live view of a run that was started elsewhere, until it is over", _watch),
        ("logs", "print the logs of a run: stages by input file, servers, workers", _logs),
        ("stop", "stop a run in order; it can be resumed", _stop),
        ("report", "show the result of a run that is over: outputs, failures, notes", _report),
    ):
        command = _command(commands, name, text, do)
        command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
        if do is _report:
            command.add_argument("--profile", action="store_true", help="show where the time went")
        if do is _logs:
            which = command.add_mutually_exclusive_group()
            which.add_argument("--file", metavar="NAME", default="", help="logs of input files with this in their name")
            which.add_argument("--server", metavar="NAME", default="", help="logs of a server, e.g. server-0")
            which.add_argument("--failed", action="store_true", help="logs of input files that failed")
            command.add_argument("--follow", action="store_true", help="go on printing until the run is over")

    verify = _command(
        commands, "verify", "compare a complete run with its manifest, and repeat a sample of its tasks", _verify
    )
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    verify.add_argument(
        "--sample", type=_percentage, default=1.0, metavar="P%", help="of the files, done again (default: 1%%; 0: none)"
    )
    verify.add_argument("--workers", type=_positive, metavar="N", help="worker processes, and threads for hashing")
    verify.add_argument("--json", action="store_true", help="for a program")
    reaper = _command(
        commands, "reap", "end leftovers of your dead campaigns on this machine and in the scheduler", _reap
    )
    reaper.add_argument("--dry-run", action="store_true", help="only list what would be done")

    tune = _command(commands, "tune", "measure a sample against one server, propose batch, window, workers", _tune)
    _file(tune)
    canary = _command(commands, "canary", "make the known answer of a model from rows of the campaign's data", _canary)
    _file(canary)
    canary.add_argument("model", metavar="MODEL", help="one of servers.models")
    canary.add_argument("--force", action="store_true", help="replace a known answer that is there")
    _file(_command(commands, "prepare", "make the server environment before the first run", _prepare))
    schema = _command(commands, "schema", "print the JSON schema of a campaign file, for editors", _schema)
    schema.add_argument("--events", action="store_true", help="the schema of an event of run --json instead")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, do: Callable[..., int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(do=do)
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


def _load(args: argparse.Namespace) -> Campaign:
    from campaign.driver.check import override
    from campaign.spec import yaml_file

    campaign = yaml_file.load(args.file, args.set)
    limit = getattr(args, "limit", None)  # some commands have none
    return override(campaign, workers=args.workers, servers=args.servers, provider=args.provider, limit=limit)


def _run(args: argparse.Namespace) -> int:
    from campaign.supervision.forkserver import start_fork_server, stop_fork_server

    start_fork_server()  # its imports take as long as ours: half a second each, now at the same time
    try:
        return _run_loaded(args)
    finally:
        stop_fork_server()


def _run_loaded(args: argparse.Namespace) -> int:
    from campaign.driver.run import run

    if args.json:
        from campaign.report.events import JsonProgress

        events = JsonProgress(sys.stdout)
        report = run(_load(args), run_dir=args.run_dir, progress=events, raises=False)
        events.end(report.status)
        return report.exit_code
    report = run(_load(args), run_dir=args.run_dir, progress=not args.quiet, raises=False)
    print(report.text(profile=args.profile))
    return report.exit_code


def _check(args: argparse.Namespace) -> int:
    from campaign.driver.check import check, look, try_out
    from campaign.supervision.forkserver import start_fork_server, stop_fork_server

    checked = check(_load(args))
    start_fork_server()
    try:
        looked = look(checked)
        tried = try_out(checked) if args.try_ else None
    finally:
        stop_fork_server()
    for dataset, why in looked.broken.items():
        if not checked.campaign.errors.max_failed_files:
            key = ("datasets", dataset, "files")
            remedy = "check or replace it; or let files fail: errors: {max_failed_files: N}"
            raise checked.campaign.locate(SpecError(why, key=key, remedy=remedy))
    files = {name: len(found) for name, found in checked.plan.files.items()}
    print(
        f"{args.file}: right. {counted(checked.plan.total, 'task')} over "
        + ", ".join(f"{counted(n, 'file')} of {name}" for name, n in files.items())
        + f"; {counted(len(checked.plan.outputs), 'output')}, {counted(len(checked.plan.reduces), 'frozen value')}"
    )
    print("\n".join(_seen(looked, tried, list(checked.campaign.stages))))
    return 0


def _seen(looked: PreflightReport, tried: Tried | None, stages: list[str]) -> Iterator[str]:
    for name, file in looked.files.items():
        yield f"  looked at up to 100 rows of {file} ({name})"
    if tried is None and looked.files:
        yield "  tried the stages before the first inference; --try runs the others too"
    if tried is not None and tried.stages:
        yield f"  ran on 100 rows, with zeros in place of models' answers: {', '.join(tried.stages)}"
    others = [name for name in stages if tried is not None and name not in tried.stages]
    if others:
        yield f"  not tried: {', '.join(others)}"
    for note in dict.fromkeys([*looked.notes, *(tried.notes if tried is not None else ())]):
        yield f"  note: {note}"


def _canary(args: argparse.Namespace) -> int:
    from campaign.driver.make_canary import make
    from campaign.supervision.forkserver import start_fork_server, stop_fork_server

    start_fork_server()
    try:
        path, rows = make(_load(args), args.model, args.force, print)
    finally:
        stop_fork_server()
    print(f"{path}: the answers of {args.model} to {rows} of your own; each server must give them from now on")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from campaign.driver.check import check, default_run_dir
    from campaign.driver.explain import Explanations, as_json
    from campaign.driver.failed_files import FailedFiles
    from campaign.driver.partial_index import PartialIndex
    from campaign.driver.state import State
    from campaign.planning.free_values import as_taken
    from campaign.planning.plan_file import PlanFile
    from campaign.storage.receipts import Receipts
    from campaign.storage.rundir import RunDir

    campaign = _load(args)
    checked = check(campaign)
    plan = checked.plan
    rundir = RunDir(args.run_dir.resolve() if args.run_dir else default_run_dir(campaign))
    index = PartialIndex(plan, Receipts(rundir.receipts))
    index.read(rundir)
    state = State(index, FailedFiles(plan))
    state.remember(plan, rundir)  # forgets what was made with other frozen values
    todo = plan.todo(index.missing())
    reasons = Explanations(plan, state, PlanFile.read(rundir), rundir)
    if args.json:
        print(json.dumps(as_json(plan, reasons, todo), indent=1))
        return 0
    least = "at least " if state.open else ""  # a frozen value that is made again may differ
    print(f"plan {plan.digest[:16]}: {least}{counted(sum(len(some.places) for some in todo), 'task')} to do")
    for some in todo:
        for group in reasons.groups(some):
            print(f"  {group.text()}")
    for reduce in plan.reduces:
        why = "; ".join(reasons.reduce(reduce))
        said = f"to do: {why}" if why else "done"
        print(f"  {reduce.stage}/{reduce.variation}: {said}, from {', '.join(o.name for o in reduce.inputs.values())}")
    taken = as_taken(campaign, plan, checked.models)
    print("\n".join(["values as they were read (text stands in quotes):", *taken] if taken else []))
    return 0


def _existing(args: argparse.Namespace) -> Path:
    from campaign.storage.rundir import RunDir

    path: Path = args.run_dir
    if not RunDir(path).begun:
        raise SpecError(
            "is no run directory" if path.exists() else "is not there",
            where=str(path),
            remedy="give the folder that 'campaign run' has made, runs/NAME for example",
        )
    return path.resolve()


def _status(args: argparse.Namespace) -> int:
    from campaign.discovery.records import in_order
    from campaign.planning.plan_file import progress_of
    from campaign.report.report import Report
    from campaign.storage.rundir import RunDir
    from campaign.util.files import read_json

    rundir = RunDir(_existing(args))
    owner = rundir.owner()
    if not owner:
        report = Report.load(rundir.root)
        over = f"not running; {report.status} after {report.wall_s:.0f} s: see 'campaign report'" if report else ""
        print(over or "not running, and never came to its end; run it again to resume")
        return 0
    total, done = progress_of(rundir)
    print(f"running on {owner}")
    for stage, n in total.items():
        print(f"  {stage:<16} {done.get(stage, 0)}/{n} files and variations")
    for record in in_order(r for p in rundir.servers.glob("server-*.json") if (r := read_json(p)) is not None):
        said = [record.get(key, "?") for key in ("name", "state", "host")]
        print(f"  {said[0]!s:<16} {said[1]} on {said[2]} {record.get('why', '')}".rstrip())
    return 0


def _watch(args: argparse.Namespace) -> int:
    from campaign.driver.watch import watch
    from campaign.report.progress import to_terminal
    from campaign.storage.rundir import RunDir

    try:
        report = watch(RunDir(_existing(args)), to_terminal())
    except KeyboardInterrupt:
        print("no longer watching; the run goes on", file=sys.stderr)
        return 0
    print(report.text() if report else "not running, and never came to its end; run it again to resume")
    return report.exit_code if report else 1


def _logs(args: argparse.Namespace) -> int:
    from campaign.cli.logs import find, show
    from campaign.storage.rundir import RunDir

    rundir = RunDir(_existing(args))
    show(
        lambda: find(rundir, args.file, args.server, failed=args.failed), follow=args.follow,
        running=lambda: bool(rundir.owner()),
    )  # fmt: skip
    return 0


def _stop(args: argparse.Namespace) -> int:
    from campaign.storage.rundir import RunDir

    rundir = RunDir(_existing(args))
    owner = rundir.owner()
    if not owner:
        print("not running")
        return 0
    rundir.request_stop.touch()
    end = time.monotonic() + 60
    while rundir.owner():
        if time.monotonic() > end:
            raise CampaignError(f"{owner} does not stop", where=str(rundir.root), remedy="end that process")
        time.sleep(0.1)
    print(f"stopped {owner}; run it again to resume")
    return 0


def _report(args: argparse.Namespace) -> int:
    from campaign.report.report import Report

    report = Report.load(_existing(args))
    if report is None:
        raise CampaignError("has no report yet", where=str(args.run_dir), remedy="see 'campaign status'")
    print(report.text(profile=args.profile))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from campaign.audit.verify import verify
    from campaign.report.progress import to_terminal

    shown = None if args.json else to_terminal()
    made = verify(None, _existing(args), sample=args.sample, workers=args.workers, progress=shown)
    print(json.dumps(made.to_json(), indent=1) if args.json else made.text())
    return made.exit_code


def _reap(args: argparse.Namespace) -> int:
    from campaign.supervision.reap import reap

    said = reap(dry_run=args.dry_run)
    for line in said.ended:
        print(f"{'would end' if args.dry_run else 'ended'} {line}")
    for line in said.left:
        print(f"left {line}")
    for line in said.live:
        print(f"live {line}")
    if not said.ended:
        print("nothing of a dead campaign was found")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from campaign.driver.check import check

    checked = check(_load(args))
    if checked.kind is not None:
        checked.kind.prepare(lambda text: print(text, file=sys.stderr, flush=True))
    print("ready")
    return 0


def _tune(args: argparse.Namespace) -> int:
    from campaign.audit.tune import lines, tune
    from campaign.driver.check import check
    from campaign.supervision.forkserver import start_fork_server, stop_fork_server

    start_fork_server()
    try:
        campaign = _load(args)
        found, proposals = tune(check(campaign), lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        stop_fork_server()
    print("\n".join(lines(campaign, found, proposals)))
    return 0


def _schema(args: argparse.Namespace) -> int:
    from campaign.report import events
    from campaign.spec import yaml_file

    print(json.dumps(events.SCHEMA if args.events else yaml_file.schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
