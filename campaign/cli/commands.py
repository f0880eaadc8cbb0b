"""The commands. Each loads the campaign or the run directory, calls the driver or the audit, and prints the result.

Modules are imported inside the functions: a command waits only for what it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from campaign.util.messages import counted

if TYPE_CHECKING:
    from campaign.driver.preflight import PreflightReport
    from campaign.spec.models import Campaign
    from campaign.worker.try_stages import Tried


def _load(args: argparse.Namespace) -> Campaign:
    from campaign.driver.check import override
    from campaign.spec import yaml_file

    campaign = yaml_file.load(args.file, args.set)
    return override(campaign, workers=args.workers, servers=args.servers, provider=args.provider, limit=args.limit)


@contextlib.contextmanager
def _fork_server() -> Iterator[None]:
    """A fork server, from which processes start quickly. It imports its modules while this process imports its own."""
    from campaign.supervision.forkserver import start_fork_server, stop_fork_server

    start_fork_server()
    try:
        yield
    finally:
        stop_fork_server()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """``campaign run``."""
    with _fork_server():
        from campaign.driver.run import run as run_campaign

        if args.json:
            return _run_with_events(args)
        made = run_campaign(_load(args), run_dir=args.run_dir, progress=not args.quiet, raises=False)
        print(made.text(profile=args.profile))
    return made.exit_code


def _run_with_events(args: argparse.Namespace) -> int:
    from campaign.driver.run import run as run_campaign
    from campaign.report.events import JsonProgress

    events = JsonProgress(sys.stdout)
    made = run_campaign(_load(args), run_dir=args.run_dir, progress=events, raises=False)
    events.end(made.status)
    return made.exit_code


def check(args: argparse.Namespace) -> int:
    """``campaign check``."""
    from campaign.driver import check as checks

    checked = checks.check(_load(args))
    with _fork_server():
        looked = checks.look(checked)
        tried = checks.try_out(checked) if args.try_ else None
    checks.refuse_unreadable(checked, looked)
    files = {name: len(found) for name, found in checked.plan.files.items()}
    print(
        f"{args.file}: right. {counted(checked.plan.total, 'task')} over "
        + ", ".join(f"{counted(n, 'file')} of {name}" for name, n in files.items())
        + f"; {counted(len(checked.plan.outputs), 'output')}, {counted(len(checked.plan.reduces), 'frozen value')}"
    )
    print("\n".join(_checked(looked, tried, list(checked.campaign.stages))))
    return 0


def _checked(looked: PreflightReport, tried: Tried | None, stages: list[str]) -> Iterator[str]:
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


def canary(args: argparse.Namespace) -> int:
    """``campaign canary``."""
    from campaign.driver.make_canary import make

    with _fork_server():
        path, rows = make(_load(args), args.model, args.force, print)
    print(f"{path}: the answers of {args.model} to {rows} of your own; each server must give them from now on")
    return 0


def plan(args: argparse.Namespace) -> int:
    """``campaign plan``."""
    from campaign.driver.check import check, default_run_dir
    from campaign.driver.forecast import forecast
    from campaign.storage.rundir import RunDir

    campaign = _load(args)
    rundir = RunDir(args.run_dir.resolve() if args.run_dir else default_run_dir(campaign))
    found = forecast(check(campaign), rundir)
    print(json.dumps(found.to_json(), indent=1) if args.json else "\n".join(found.lines()))
    return 0


def status(args: argparse.Namespace) -> int:
    """``campaign status``."""
    from campaign.driver.status import existing, status

    print("\n".join(status(existing(args.run_dir)).lines()))
    return 0


def watch(args: argparse.Namespace) -> int:
    """``campaign watch``. Interrupting it leaves the run alone."""
    from campaign.driver.status import existing
    from campaign.driver.watch import watch
    from campaign.report.progress import to_terminal

    try:
        report = watch(existing(args.run_dir), to_terminal())
    except KeyboardInterrupt:
        print("no longer watching; the run goes on", file=sys.stderr)
        return 0
    print(report.text() if report else "not running, and never came to its end; run it again to resume")
    return report.exit_code if report else 1


def logs(args: argparse.Namespace) -> int:
    """``campaign logs``."""
    from campaign.cli.logs import find, show
    from campaign.driver.status import existing

    rundir = existing(args.run_dir)
    show(
        lambda: find(rundir, args.file, args.server, failed=args.failed), follow=args.follow,
        running=lambda: bool(rundir.owner()),
    )  # fmt: skip
    return 0


def stop(args: argparse.Namespace) -> int:
    """``campaign stop``."""
    from campaign.driver.status import existing, stop

    owner = stop(existing(args.run_dir))
    print(f"stopped {owner}; run it again to resume" if owner else "not running")
    return 0


def report(args: argparse.Namespace) -> int:
    """``campaign report``."""
    from campaign.cli.show import report
    from campaign.driver.status import existing

    print(report(existing(args.run_dir).root, args.form, profile=args.profile))
    return 0


def show(args: argparse.Namespace) -> int:
    """``campaign show``."""
    from campaign.cli.show import show
    from campaign.driver.status import existing

    for line in show(existing(args.run_dir).root, args.output):
        print(line)
    return 0


def verify(args: argparse.Namespace) -> int:
    """``campaign verify``."""
    from campaign.audit.verify import verify
    from campaign.driver.status import existing
    from campaign.report.progress import to_terminal

    shown = None if args.json else to_terminal()
    made = verify(None, existing(args.run_dir).root, sample=args.sample, workers=args.workers, progress=shown)
    print(json.dumps(made.to_json(), indent=1) if args.json else made.text())
    return made.exit_code


def reap(args: argparse.Namespace) -> int:
    """``campaign reap``."""
    from campaign.supervision.reap import reap

    found = reap(dry_run=args.dry_run)
    for line in found.ended:
        print(f"{'would end' if args.dry_run else 'ended'} {line}")
    for line in found.left:
        print(f"left {line}")
    for line in found.live:
        print(f"live {line}")
    if not found.ended:
        print("nothing of a dead campaign was found")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """``campaign prepare``."""
    from campaign.driver.check import check

    checked = check(_load(args))
    if checked.kind is not None:
        checked.kind.prepare(_say)
    print("ready")
    return 0


def tune(args: argparse.Namespace) -> int:
    """``campaign tune``."""
    from campaign.audit.tune import lines, tune
    from campaign.driver.check import check

    with _fork_server():
        campaign = _load(args)
        found, proposals = tune(check(campaign), _say)
    print("\n".join(lines(campaign, found, proposals)))
    return 0


def schema(args: argparse.Namespace) -> int:
    """``campaign schema``."""
    from campaign.report import events
    from campaign.spec import yaml_file

    print(json.dumps(events.SCHEMA if args.events else yaml_file.schema(), indent=1))
    return 0
