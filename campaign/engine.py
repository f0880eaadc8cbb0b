"""The story: plan, pool, tasks, merge, teardown."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import registry, report, work
from campaign.checks import check_models, check_options
from campaign.client import PoolAddress
from campaign.errors import (
    CampaignError,
    CampaignFailed,
    FrozenChanged,
    InferenceError,
    InputError,
    Interrupted,
    PartialError,
    ProviderError,
    ServerError,
    SpecError,
)
from campaign.frozenvalue import thaw
from campaign.merge import Merged
from campaign.plan import Output, Plan, Reduce, Task, group, longest_first, plan
from campaign.pool import ServerPool, make_kind
from campaign.preflight import preflight
from campaign.progress import Progress, to_terminal
from campaign.protocols import Job, Provider, campaign_workers
from campaign.report import Report
from campaign.rundir import Receipt, Receipts, RunDir, write_json
from campaign.spec import Campaign, ProviderSpec

AHEAD = 3  # tasks waiting per worker: enough that none idles, few enough that the driver's memory stays small
LOSSES = 3  # workers a task may lose before it is held to be the cause


def default_run_dir(campaign: Campaign) -> Path:
    """``./runs/<campaign>/``."""
    return Path.cwd() / "runs" / campaign.campaign


def override(
    campaign: Campaign, *, workers: int | None = None, servers: int | None = None, provider: str | None = None
) -> Campaign:
    """The campaign with another number of workers or servers, or another provider."""
    changed: dict[str, Any] = {}
    if workers is not None:
        changed["workers"] = workers
    if provider is not None and provider != campaign.provider.kind:
        changed["provider"] = ProviderSpec(kind=provider)
    if servers is not None and campaign.servers is not None:
        changed["servers"] = campaign.servers.model_copy(update={"count": servers})
    return campaign.model_copy(update=changed) if changed else campaign


@dataclass
class Checked:
    """A campaign that was found right: its plan, and who does it."""

    campaign: Campaign
    plan: Plan
    kind: Any
    provider: type[Provider]
    options: Any


def check(campaign: Campaign) -> Checked:
    """Everything that can be known without starting anything.

    Raises:
        SpecError: With file, line and key where the campaign came from a file.
    """
    try:
        cls = registry.get(registry.PROVIDERS, campaign.provider.kind, key=("provider",))
        options = check_options(cls.Options, campaign.provider.given, ("provider",), ProviderSpec)
        kind = None
        models: dict[str, Mapping[str, Any]] = {}
        if campaign.servers is not None:
            kind = make_kind(campaign.servers, campaign.base)
            kind.check()
            models = {name: kind.identity(name) for name in campaign.servers.models}
        made = plan(campaign, models)
        check_models(campaign, made.code, kind)
    except SpecError as error:
        raise campaign.locate(error) from error.__cause__
    return Checked(campaign, made, kind, cls, options)


def run(
    campaign: Campaign,
    *,
    run_dir: Path | str | None = None,
    workers: int | None = None,
    servers: int | None = None,
    provider: str | None = None,
    progress: bool | Progress = True,
    raises: bool = True,
) -> Report:
    """Run a campaign; on an existing run directory, what is missing of it.

    Args:
        campaign: The campaign.
        run_dir: Where everything goes; None: ``./runs/<campaign>/``.
        workers, servers, provider: In place of the campaign's own.
        progress: Whether to show progress on standard error.
        raises: Raise if it does not end complete; otherwise only the report's ``status`` says so.

    Returns:
        The report.

    Raises:
        SpecError: The request is wrong; nothing was started.
        CampaignFailed: Something is missing at the end (``raises``); carries the report.
        Interrupted: INT, TERM or HUP came, or ``campaign stop`` (``raises``).
    """
    campaign = override(campaign, workers=workers, servers=servers, provider=provider)
    shown = progress if isinstance(progress, Progress) else (to_terminal() if progress else Progress())
    rundir = RunDir(Path(run_dir).resolve() if run_dir else default_run_dir(campaign))
    checked = check(campaign)
    with rundir.owned(), _signals() as stop:
        made = _Run(checked, rundir, shown, stop).run()
    if raises and made.status == report.INTERRUPTED:
        raise Interrupted("stopped as asked; run again to resume", where=str(rundir.root))
    if raises and made.exit_code:
        raise CampaignFailed("\n".join(made.errors) or made.status, report=made, where=campaign.campaign)
    return made


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """INT, TERM and HUP ask for an orderly end, once; a second one ends this process, and its children with it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handler(signum: int, _frame: object) -> None:
        if asked.is_set():
            os._exit(130)  # pilots, workers and guardians see this process go and clean up
        asked.set()

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for s, old in before.items():
            signal.signal(s, old)


@dataclass
class _State:
    """What is done, under way and to do."""

    have: dict[str, Receipt]
    frozen: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    merged: dict[str, Merged] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    tries: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    errors: dict[str, list[str]] = field(default_factory=dict)


class _Run:
    """One run from start to report."""

    def __init__(self, checked: Checked, rundir: RunDir, shown: Progress, stop: threading.Event) -> None:
        self.campaign, self.plan, self.checked = checked.campaign, checked.plan, checked
        self.rundir, self.shown, self.stop = rundir, shown, stop
        self.report = Report(self.campaign.campaign, str(rundir.root))
        self.receipts = Receipts(rundir.receipts)
        self.pool: ServerPool | None = None
        self.executor: Executor | None = None
        self.provider: Provider | None = None
        self.under_way: dict[Future[Any], Callable[[Any], None]] = {}
        self.task_of: dict[Future[Any], Task] = {}
        self.seen_stop = 0.0

    def run(self) -> Report:
        """Do it and write the report, however it ends."""
        start = time.monotonic()
        self.rundir.request_stop.unlink(missing_ok=True)
        self.state, self.todo = _State({}), list(self.plan.tasks)
        try:
            self._remember()
            self._prepare()
            with ExitStack() as stack:
                self._start(stack)
                self._loop()
                self._end(stack)
            self._judge()
        except Interrupted as error:
            self.report.status = report.INTERRUPTED
            self.report.errors.append(str(error))
        except SpecError:
            raise
        except CampaignError as error:
            self.report.status = report.FAILED
            self.report.errors.append(str(error))
        finally:
            self.receipts.close()
        self._fill_report(time.monotonic() - start)
        self.report.save()
        self.shown.close()
        return self.report

    def _remember(self) -> None:
        self.receipts.read()
        mine = {s.key for t in self.plan.tasks for s in t.steps} | {r.key for r in self.plan.reduces}
        valid = {
            k: r for k, r in self.receipts.have.items() if k in mine and (r.kind == "frozen" or self.rundir.has(r))
        }
        self.state = _State({k: r for k, r in valid.items() if r.kind != "frozen"})
        for reduce in self.plan.reduces:
            old = valid.get(reduce.key)
            path = self.rundir.frozen(reduce.stage, reduce.variation)
            if old is not None and path.exists():
                thaw(path, old.sha256)  # an altered one is refused now, not when half the work is done
                self.state.frozen[reduce.stage, reduce.variation] = (str(path), old.sha256)
        self.todo = list(group((s for t in self.plan.tasks for s in t.steps), self.state.have))

    def _prepare(self) -> None:
        self.job = Job(
            stages=self.plan.code,
            reader=self._reader(),
            servers=None,
            read_rows=self.campaign.read_rows,
        )
        if self.todo:
            preflight(self.plan, self.todo, work.save_job(self.job, self.rundir.job))
        total = Counter(s.stage for t in self.plan.tasks for s in t.steps if s.emit)
        write_json(self.rundir.root / "plan.json", {"plan": self.plan.digest, "partials": dict(total)})

    @staticmethod
    def _reader() -> str:
        reader = registry.get(registry.STAGES, "read")
        return f"{reader.__module__}:{reader.__qualname__}"

    # Start and end of what runs.
    def _start(self, stack: ExitStack) -> None:
        waiting = [r for r in self.plan.reduces if (r.stage, r.variation) not in self.state.frozen]
        needs_servers = any(self._infers(s.stage) for t in self.todo for s in t.steps) or any(
            self.plan.code[r.stage].uses_servers for r in waiting
        )
        self._expect(waiting)
        self.provider = self.checked.provider(self.checked.options, self.rundir.logs)
        self.rundir.logs.mkdir(parents=True, exist_ok=True)
        stack.enter_context(self.provider)
        address: PoolAddress | None = None
        if self.campaign.servers is not None and needs_servers:
            self.pool = ServerPool(
                self.campaign.servers,
                provider=self.provider,
                folder=self.rundir.servers,
                base=self.campaign.base,
                say=self.shown.say,
            )
            stack.enter_context(self.pool)
            self.shown.say(f"servers   starting {self.campaign.servers.wanted} of kind {self.campaign.servers.kind}")
            address = self.pool.address
        self.told_ready = address is None
        job = Job(self.job.stages, self.job.reader, address, self.job.read_rows)
        self.job_at = work.save_job(job, self.rundir.job)
        self.workers = campaign_workers(self.campaign)
        self.executor = self.provider.tasks(self.workers)

    def _infers(self, stage: str) -> bool:
        code = self.plan.code[stage]
        return code.uses_servers or isinstance(code.options.get("model"), str)

    def _expect(self, waiting: list[Reduce]) -> None:
        per_stage = Counter(s.stage for t in self.todo for s in t.steps)
        reduces = Counter(r.stage for r in waiting)
        for stage in self.campaign.stages:
            self.shown.expect(stage, per_stage[stage] + reduces[stage])

    def _end(self, stack: ExitStack) -> None:
        if self.pool:
            self._look_at_servers()
        self.shown.say("servers and workers: stopping" if self.pool else "workers: stopping")
        stack.close()
        if self.pool:
            self.report.servers = self.pool.report()

    # The loop: whatever is ready is submitted; whatever arrives makes more ready.
    def _loop(self) -> None:
        self.queue: deque[Task] = deque(longest_first(self.todo))
        self.unmerged = list(self.plan.outputs)
        self.unreduced = [r for r in self.plan.reduces if (r.stage, r.variation) not in self.state.frozen]
        try:
            while True:
                self._submit_ready()
                if not self.under_way:
                    break
                arrived, _ = wait(self.under_way, timeout=0.2, return_when=FIRST_COMPLETED)
                self._look_around()
                for future in arrived:
                    self.under_way.pop(future)(future)
        except BaseException:
            if self.pool:
                self.report.servers = self.pool.report()
            raise

    def _look_around(self) -> None:
        """Every fifth of a second or so.

        Raises:
            Interrupted: A signal came, or ``campaign stop``.
            ServerError: The pool is of no use any more.
        """
        now = time.monotonic()
        if self.stop.is_set() or (now - self.seen_stop > 0.5 and self.rundir.request_stop.exists()):
            raise Interrupted("stopped as asked; run again to resume")
        if now - self.seen_stop > 0.5 and self.pool is not None:
            self.seen_stop = now
            failure = self.pool.failure()
            if failure is not None:
                raise failure
            if not self.told_ready:
                self._tell_ready()

    def _tell_ready(self) -> None:
        assert self.pool is not None
        records = self.pool.records()
        if records and all(r["state"] == "ready" for r in records) and len(records) == self.pool.spec.wanted:
            self.told_ready = True
            slowest = max((float(r.get("ready_s", 0)) for r in records), default=0)
            self.shown.say(f"servers   {len(records)} ready, known answers given, after {slowest:.1f} s")

    def _submit_ready(self) -> None:
        self._submit_merges()
        self._submit_reduces()
        room = self.workers * AHEAD - len(self.under_way)
        later: list[Task] = []
        while self.queue and room > 0:
            task = self.queue.popleft()
            state = self._task_state(task)
            if state == "ready":
                self._submit_task(task)
                room -= 1
            elif state == "waits":
                later.append(task)
            else:
                self._give_up(task, state)
        self.queue.extendleft(reversed(later))

    def _task_state(self, task: Task) -> str:
        for step in task.steps:
            for at in step.frozen:
                if f"{at[0]}/{at[1]}" in self.state.failed:
                    return f"{at[0]} ({at[1]}) is missing"
                if at not in self.state.frozen:
                    return "waits"
        if task.artefact is not None and task.artefact not in self.state.have:
            return "the artefact it reads is missing" if task.artefact in self.state.failed else "waits"
        return "ready"

    def _give_up(self, task: Task, _why: str) -> None:
        # The cause is named where it happened; here only the consequences are counted.
        for step in task.steps:
            self.state.failed.add(step.key)
            self.shown.add(step.stage, 0, failed=1)

    def _call(self, then: Callable[[Any], None], function: Callable[..., Any], *args: Any) -> Future[Any]:
        assert self.executor is not None
        try:
            future: Future[Any] = self.executor.submit(function, *args)
        except BrokenExecutor:
            self._new_executor()
            future = self.executor.submit(function, *args)
        self.under_way[future] = then
        return future

    def _new_executor(self) -> None:
        assert self.provider is not None
        self.executor = self.provider.tasks(self.workers)

    # Tasks.
    def _submit_task(self, task: Task) -> None:
        frozen = {at: self.state.frozen[at] for s in task.steps for at in s.frozen}
        self._call(
            lambda f: self._task_arrived(task, f), work.run_task, self.job_at, str(self.rundir.root), task, frozen
        )

    def _task_arrived(self, task: Task, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._worker_lost(task, error)
            return
        result: work.Result = future.result()
        for rung, rows in result.rungs.items():
            self.report.rows[rung] += rows
        if result.error is not None:
            self._task_failed(task, result.error)
            return
        for receipt in result.receipts:
            self.receipts.add(receipt)
            self.state.have[receipt.key] = receipt
        self.report.tasks["done"] += 1
        for stage, count in Counter(s.stage for s in task.steps).items():
            self.shown.add(stage, count, rows=result.rows[stage])

    def _worker_lost(self, task: Task, error: BaseException) -> None:
        """Not the file's fault at first: the task is done again by another worker."""
        self.state.losses[task.id] += 1
        if self.state.losses[task.id] < LOSSES:
            self.queue.appendleft(task)
            return
        self._task_failed(
            task,
            ProviderError(
                f"{LOSSES} workers were lost while they did it ({type(error).__name__}: {error})",
                where=task.source.file.url,
                remedy="does a stage crash on this file, or need more memory than there is?",
            ),
        )

    def _task_failed(self, task: Task, error: CampaignError) -> None:
        if isinstance(error, FrozenChanged):
            raise error  # everything that follows would be wrong
        failure = self.pool.failure() if self.pool and isinstance(error, ServerError) else None
        if failure is not None:
            raise failure  # one error of the pool, not one of each file
        self.state.tries[task.id] += 1
        if _can_heal(error) and self.state.tries[task.id] <= self.campaign.retries:
            self.queue.append(task)
            return
        self._note(error)
        self.report.tasks["failed"] += 1
        for step in task.steps:
            self.state.failed.add(step.key)
            self.shown.add(step.stage, 0, failed=1)

    def _note(self, error: CampaignError) -> None:
        if isinstance(error, InputError):  # one file, one error, however many variations read it
            self.state.errors.setdefault(error.where, [str(error)])
            return
        # A wrong shape fails on every file alike: one error, and how many more there are.
        self.state.errors.setdefault(f"{type(error).__name__} {error.message}", []).append(str(error))

    # Merges and reduce stages.
    def _submit_merges(self) -> None:
        left: list[Output] = []
        for output in self.unmerged:
            if all(k in self.state.have for k in output.keys):
                receipts = [self.state.have[k] for k in output.keys]
                self._call(
                    lambda f, o=output: self._merged(o, f),  # type: ignore[misc]
                    work.run_merge, str(self.rundir.root), output, receipts,
                )  # fmt: skip
            elif any(k in self.state.failed for k in output.keys):
                self.state.failed.add(output.name)
            else:
                left.append(output)
        self.unmerged = left

    def _merged(self, output: Output, future: Future[Any]) -> None:
        found = self._answer(future)
        if isinstance(found, CampaignError):
            self._note(found)
            self.state.failed.add(output.name)
            return
        self.state.merged[output.name] = found

    def _answer(self, future: Future[Any]) -> Any:
        error = future.exception()
        return ProviderError(f"a worker was lost: {error}") if error is not None else future.result()

    def _submit_reduces(self) -> None:
        left: list[Reduce] = []
        for reduce in self.unreduced:
            names = [o.name for o in reduce.inputs.values()]
            needs = [f"{s}/{v}" for s, v in reduce.frozen]
            if any(n in self.state.failed for n in names + needs):
                self.state.failed.add(f"{reduce.stage}/{reduce.variation}")
                self.shown.add(reduce.stage, 0, failed=1)
            elif all(n in self.state.merged for n in names) and all(f in self.state.frozen for f in reduce.frozen):
                self._submit_reduce(reduce)
            else:
                left.append(reduce)
        self.unreduced = left

    def _submit_reduce(self, reduce: Reduce) -> None:
        merged = {d: self.state.merged[o.name] for d, o in reduce.inputs.items()}
        frozen = {at: self.state.frozen[at] for at in reduce.frozen}
        metadata = {d: {"is_mc": self.campaign.datasets[d].is_mc} for d in reduce.inputs}
        self._call(
            lambda f: self._reduced(reduce, f),
            work.run_reduce, self.job_at, str(self.rundir.root), reduce, merged, frozen, metadata,
        )  # fmt: skip

    def _reduced(self, reduce: Reduce, future: Future[Any]) -> None:
        found = self._answer(future)
        name = f"{reduce.stage}/{reduce.variation}"
        if isinstance(found, CampaignError):
            if isinstance(found, FrozenChanged):
                raise found
            self._note(found)
            self.state.failed.add(name)
            self.shown.add(reduce.stage, 0, failed=1)
            return
        size = Path(found.path).stat().st_size
        self.receipts.add(
            Receipt(reduce.key, reduce.stage, "all", reduce.variation, "", "frozen", found.sha256, size, 0, 0)
        )
        self.state.frozen[reduce.stage, reduce.variation] = (found.path, found.sha256)
        self.shown.add(reduce.stage)

    # The report.
    def _look_at_servers(self) -> None:
        assert self.pool is not None
        address = self.pool.address
        if not self.pool.kind.managed or not address.servers():
            return
        for record in self.pool.records():
            self.report.warnings += [w for w in record["warnings"] if w not in self.report.warnings]

    def _judge(self) -> None:
        missing = [o.name for o in self.plan.outputs if o.name not in self.state.merged]
        missing += [
            f"{r.stage}/{r.variation}" for r in self.plan.reduces if (r.stage, r.variation) not in self.state.frozen
        ]
        self.report.status = report.FAILED if missing else report.COMPLETE
        for texts in self.state.errors.values():
            more = f"\n  and {len(texts) - 1} more alike" if len(texts) > 1 else ""
            self.report.errors.append(texts[0] + more)
        if missing:
            self.report.errors.append("missing: " + ", ".join(missing))

    def _fill_report(self, wall_s: float) -> None:
        r = self.report
        r.wall_s = round(wall_s, 3)
        if self.pool and not r.servers:
            r.servers = self.pool.report()
        dynamic = self._dynamic()
        if dynamic:
            r.reproducible = False
            r.warnings.append(
                f"the server batches requests of {', '.join(dynamic)} dynamically: predictions depend on their neighbours"
            )
        everything = list(group(s for t in self.plan.tasks for s in t.steps))
        r.tasks["total"] = len(everything)
        r.tasks["reused"] = len(everything) - len(self.todo) if self.todo or not r.tasks["done"] else 0
        r.tasks["reused"] = max(0, r.tasks["reused"])
        events = self._events()
        for name, files in self.plan.files.items():
            r.datasets[name] = {"files": len(files), "events": sum(events.get((name, f.url), 0) for f in files)}
        for name, m in sorted(self.state.merged.items()):
            r.outputs[name] = {"path": str(m.path), "kind": m.kind, "sha256": m.sha256}
            if m.root:
                r.outputs[name]["root"] = str(m.root)
            if m.notes:
                r.outputs[name]["notes"] = list(m.notes)
        for (stage, variation), (path, sha256) in sorted(self.state.frozen.items()):
            r.outputs[f"{stage}/all/{variation}"] = {"path": path, "kind": "frozen", "sha256": sha256}
        r.artefacts = self._artefacts()
        identity = None
        if self.checked.kind is not None and self.campaign.servers is not None:
            identity = self.checked.kind.identity(next(iter(self.campaign.servers.models)))
        r.versions = report.versions(identity)

    def _dynamic(self) -> list[str]:
        kind, servers = self.checked.kind, self.campaign.servers
        if servers is None or not hasattr(kind, "config"):
            return []
        return [name for name in servers.models if kind.config(name).HasField("dynamic_batching")]

    def _events(self) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for receipt in self.state.have.values():
            if receipt.variation == "nominal":
                at = (receipt.dataset, receipt.file)
                found[at] = max(found.get(at, 0), receipt.events)
        return found

    def _artefacts(self) -> dict[str, str]:
        root = self.rundir.root / "artefacts"
        mine = {(r.stage, r.variation) for r in self.plan.reduces}
        return {
            str(p.relative_to(root)): str(p)
            for stage, variation in sorted(mine)
            for p in sorted((root / stage / variation).rglob("*"))
            if p.is_file()
        }


def _can_heal(error: CampaignError) -> bool:
    if isinstance(error, InferenceError):
        return not error.permanent
    return isinstance(error, (ServerError, PartialError)) or isinstance(
        error.__cause__, (TimeoutError, ConnectionError)
    )
