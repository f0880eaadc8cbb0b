"""Measures a sample of a campaign and proposes settings: rows per request, requests in flight, workers per server."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from campaign.discovery.address import PoolAddress
from campaign.driver.check import Checked
from campaign.errors import CampaignError
from campaign.inference.client import Servers, connect
from campaign.planning.plan import Plan, longest_first
from campaign.planning.task import Task
from campaign.pool.pool import ServerPool
from campaign.report.timing import AHEAD, RUN, WAIT, WRITE
from campaign.spec.models import NOMINAL, Campaign
from campaign.storage.packs import PackWriter
from campaign.storage.rundir import RunDir
from campaign.supervision import driver_watchdog
from campaign.supervision.forkserver import ask_child
from campaign.supervision.identity import mark, own
from campaign.util.messages import counted
from campaign.worker.job import Job, JobTicket, save_job
from campaign.worker.pipeline import Hooks, Pipeline
from campaign.worker.process import worker_of
from campaign.worker.stage_log import silent

ROWS = 131_072  # rows of a model's input that are kept and sent again
ENOUGH = 4  # a sample must fill so many requests of the smallest batch
EACH_S = 0.4  # seconds of one measurement
WINDOWS = (1, 2, 4, 8, 16)
NEAR_BATCH, NEAR_WINDOW = (
    0.95,
    0.97,
)  # a smaller batch or window is proposed if its rate is at least this fraction of the best


@dataclass
class Measured:
    """The measurements of a sample.

    Attributes:
        files, events: Number of files and events that were read.
        rows: Rows sent, by model.
        worker_s: Seconds that a worker spent reading, in stages, and writing.
        waited_s: Seconds that it waited for servers.
        rates: ``{model: {(batch, window): rows/s}}`` of one server.
    """

    files: int = 0
    events: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    worker_s: float = 0.0
    waited_s: float = 0.0
    rates: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """Settings for one model, and the rates that were measured with them."""

    model: str
    batch: int
    window: int
    rows_per_s: float
    workers_per_server: int


def tune(checked: Checked, say: Callable[[str], None]) -> tuple[Measured, list[Proposal]]:
    """Run a sample of a campaign's files against one server and try batches and windows.

    Args:
        checked: From `campaign.driver.check.check`.
        say: Called with progress lines.

    Raises:
        CampaignError: The campaign has no servers, or the sample fails.
    """
    campaign = checked.campaign
    if campaign.servers is None:
        raise CampaignError("has no servers: there is nothing to tune", where=campaign.campaign)
    tasks = sample(checked.plan)
    with tempfile.TemporaryDirectory(prefix="campaign-tune-") as name, driver_watchdog.hold(Path(name)):
        root = Path(name)
        own(root, str(mark()))  # if this process is killed, `campaign reap` knows the owner of the folder
        provider = checked.provider(checked.options, root)
        spec = campaign.servers.model_copy(update={"count": 1})
        with (
            provider,
            ServerPool(spec, provider=provider, folder=root / "servers", base=campaign.base, say=say) as pool,
        ):
            pool.wait_ready()
            job = Job(
                checked.plan.code, checked.plan.readers, pool.address, campaign.read_rows, campaign.task_deadline_s
            )
            say(f"reading {counted(len(tasks), 'file')} as the campaign does, then asking the server again and again")
            found = _in_child(save_job(job, root / "job"), tasks, root)
    return found, [propose(model, rates, found) for model, rates in sorted(found.rates.items())]


def sample(plan: Plan) -> list[Task]:
    """For each dataset a task: a file of middle size of the larger half, with its nominal steps of the first pass."""
    chosen: dict[str, Task] = {}
    for some in plan.todo():
        if some.shape.artefact is None and any(line.variation == NOMINAL for line in some.shape.lines):
            sizes = np.frombuffer(some.shape.events.files.sizes, np.int64)
            larger = longest_first(some.places, sizes)[: (len(some.places) + 1) // 2]
            task = some.shape.tasks([int(larger[len(larger) // 2])]).task(0)
            if not any(step.frozen for step in task.steps):
                chosen.setdefault(task.source.dataset, task)
    return list(chosen.values())


def propose(model: str, rates: Mapping[tuple[int, int], float], found: Measured) -> Proposal:
    """Propose the smallest batch near the best rate, and the smallest window near the best rate of this batch."""
    best = max(rates.values())
    batch = min(b for (b, _), rate in rates.items() if rate >= NEAR_BATCH * best)
    mine = {w: rate for (b, w), rate in rates.items() if b == batch}
    window = min(w for w, rate in mine.items() if rate >= NEAR_WINDOW * max(mine.values()))
    # The rate at which one worker sends rows while it also reads and fills. A server is busy if its workers together
    # send rows as fast as it answers them.
    per_worker = found.rows[model] / max(found.worker_s, 1e-9)
    workers = math.ceil(mine[window] / max(per_worker, 1e-9))
    return Proposal(model, batch, window, mine[window], max(1, workers))


def _in_child(job: JobTicket, tasks: list[Task], root: Path) -> Measured:
    """Measure in a child process, because a stage may crash."""
    found = ask_child(_measure_and_tell, (job, tasks, root), None, "tune: the sample")
    if isinstance(found, CampaignError):
        raise found
    assert isinstance(found, Measured)
    return found


def _measure_and_tell(pipe: Connection, job: JobTicket, tasks: list[Task], root: Path) -> None:
    try:
        with silent():  # the text that stages print must not appear in the table
            found = _measure(job, tasks, root)
        pipe.send(found)
    except CampaignError as error:
        pipe.send(error)


class _SentRows:
    """Keeps the first rows that stages send to each model, and counts all of them."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[Mapping[str, Any]]] = {}
        self.rows: Counter[str] = Counter()

    def add(self, model: str, inputs: Mapping[str, Any]) -> None:
        """Keep a copy of the rows if fewer than `ROWS` are kept."""
        rows = len(next(iter(inputs.values())))
        if self.rows[model] < ROWS:
            self.inputs.setdefault(model, []).append({k: np.array(v) for k, v in inputs.items()})
        self.rows[model] += rows


def _measure(job: JobTicket, tasks: list[Task], root: Path) -> Measured:
    worker = worker_of(job)
    servers, sent = worker.connected(), _SentRows()
    hooks = Hooks(rows_sent=sent.add)
    found = Measured()
    for task in tasks:
        with PackWriter(RunDir(root)) as pack:
            chain = Pipeline(worker, RunDir(root), task, pack=pack, hooks=hooks)
            chain.run()
        found.files += 1
        found.events += chain.events
        for (_, what), seconds in chain.spent.items():
            if what == WAIT:
                found.waited_s += seconds
            elif what in (RUN, WRITE, AHEAD):
                found.worker_s += seconds
    found.rows = sent.rows
    address: PoolAddress = worker.job.servers
    for model, parts in sent.inputs.items():
        info = servers.model(model)
        if info.batch and sent.rows[model]:
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            found.rates[model] = dict(_rates(address, model, joined, info.max_batch))
    servers.close()
    return found


def _rates(
    address: PoolAddress, model: str, inputs: Mapping[str, Any], most: int
) -> Iterator[tuple[tuple[int, int], float]]:
    batches = [b for b in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768) if b < most] + [most]
    for batch in batches[-6:]:
        for window in WINDOWS:
            servers = connect(replace(address, batches={model: batch}, window=window))
            rows = _repeated(inputs, batch * window * 2)
            servers.infer(model, _first(rows, batch))  # the first request of a new batch size may be slow
            yield (batch, window), max(_rate(servers, model, rows) for _ in range(3))
            servers.close()


def _rate(servers: Servers, model: str, rows: Mapping[str, Any]) -> float:
    """Rows per second. All rows are sent again and again, until a third of `EACH_S` has passed."""
    count, turns, start = len(next(iter(rows.values()))), 0, time.perf_counter()
    while time.perf_counter() - start < EACH_S / 3:
        servers.infer(model, rows)
        turns += 1
    return count * turns / (time.perf_counter() - start)


def _repeated(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    have = len(next(iter(inputs.values())))
    return {
        name: np.resize(array, (count, *array.shape[1:])) if have < count else array[:count]
        for name, array in inputs.items()
    }


def _first(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {name: array[:count] for name, array in inputs.items()}


def lines(campaign: Campaign, found: Measured, proposals: Sequence[Proposal]) -> Iterator[str]:
    """The lines for the terminal: the table of rates, and the proposed keys."""
    assert campaign.servers is not None
    yield f"sample: {counted(found.files, 'file')}, {counted(found.events, 'event')}"
    yield f"a worker had {found.worker_s:.2f} s of work of its own and waited {found.waited_s:.2f} s for the server"
    for p in proposals:
        rates = found.rates[p.model]
        windows = sorted({w for _, w in rates})
        yield f"{p.model}: rows/s of one server, by rows per request and requests in flight"
        yield " " * 10 + "".join(f"{w:>12}" for w in windows)
        for batch in sorted({b for b, _ in rates}):
            yield f"{batch:>10}" + "".join(f"{rates[batch, w]:>12,.0f}" for w in windows)
    for p in proposals:
        least = min(b for b, _ in found.rates[p.model])
        if found.rows[p.model] < ENOUGH * least:
            yield (
                f"{p.model}: the sample sends {found.rows[p.model]:,} rows, less than {ENOUGH} requests of {least}: "
                "that cannot tell which batch or window is best; take larger files, or leave the settings as they are"
            )
            continue
        now = campaign.servers.models[p.model].batch or "the model's max_batch_size"
        yield f"proposed: --set servers.models.{p.model}.batch={p.batch} (now {now}; part of the results' identity)"
        yield f"          --set servers.window={p.window} (now {campaign.servers.window})"
        yield f"          {p.workers_per_server} workers per server: {p.rows_per_s:,.0f} rows/s keep one server busy"
    if not proposals:
        yield "no model that batches was sent anything: nothing to propose"
