"""Checks a campaign before anything is started: files, stages, models, servers, provider."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.discovery.address import PoolAddress
from campaign.driver.partial_index import PartialIndex
from campaign.driver.preflight import PreflightReport, preflight
from campaign.driver.preflight import try_out as preflight_try
from campaign.errors import SpecError
from campaign.planning.plan import PendingTasks, Plan
from campaign.planning.planner import plan
from campaign.planning.stage_code import StageCode
from campaign.pool.server_kind import make_kind
from campaign.protocols import Provider, ServerKind
from campaign.spec.models import Campaign, ProviderSpec
from campaign.spec.options import check_options
from campaign.storage.receipts import Receipts
from campaign.util import messages, plugins
from campaign.worker.job import Job, save_job

if TYPE_CHECKING:
    from campaign.worker.try_stages import Tried


def check_models(campaign: Campaign, code: Mapping[str, StageCode], kind: ServerKind | None) -> None:
    """Refuse a stage that names a model, an input or an output that the pool does not have.

    Raises:
        SpecError: Holds the wrong key.
    """
    for name, stage in code.items():
        model = stage.options.get("model")
        given, wanted = stage.options.get("inputs"), stage.options.get("outputs")
        if not isinstance(model, str) or not isinstance(given, Mapping) or not isinstance(wanted, Mapping):
            continue
        key = ("stages", name)
        if campaign.servers is None:
            raise SpecError("infers, but the campaign has no 'servers'", key=key, remedy="add servers: {models: ...}")
        if model not in campaign.servers.models:
            known = sorted(campaign.servers.models)
            raise SpecError(messages.unknown(model, known, "models under servers.models"), key=(*key, "model"))
        signature = kind.signature(model) if kind is not None else None
        if signature is None:
            continue  # servers that already run are asked when they are used
        inputs, outputs = ([tensor[0] for tensor in signature[side]] for side in ("inputs", "outputs"))
        for what in given:
            if what not in inputs:
                raise SpecError(messages.unknown(what, inputs, f"inputs of {model}"), key=(*key, "inputs", what))
        for column, what in wanted.items():
            if what not in outputs:
                raise SpecError(messages.unknown(what, outputs, f"outputs of {model}"), key=(*key, "outputs", column))


def default_run_dir(campaign: Campaign) -> Path:
    """``./runs/<campaign>/``; with a limit ``./runs/<campaign>-limit-N/``."""
    return Path.cwd() / "runs" / (campaign.campaign + (f"-limit-{campaign.limit}" if campaign.limit else ""))


def override(
    campaign: Campaign,
    *,
    workers: int | None = None,
    servers: int | None = None,
    provider: str | None = None,
    limit: int | None = None,
) -> Campaign:
    """The campaign with another number of workers or servers, another provider, or only some rows of each file.

    Raises:
        SpecError: A number is not a whole number of at least 1.
    """
    for name, number in (("workers", workers), ("servers", servers), ("limit", limit)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise SpecError(
                f"{number!r} is no number of {name}", where=f"{name}=", remedy="write a whole number from 1"
            )
    changed: dict[str, Any] = {}
    if limit is not None:
        changed["limit"] = limit
    if workers is not None:
        changed["workers"] = workers
    if provider is not None and provider != campaign.provider.kind:
        changed["provider"] = ProviderSpec(kind=provider)
    if servers is not None and campaign.servers is not None:
        changed["servers"] = campaign.servers.model_copy(update={"count": servers})
    return campaign.model_copy(update=changed) if changed else campaign


def job_of(plan: Plan) -> Job:
    """The job of a plan for its workers, without servers."""
    c = plan.campaign
    return Job(plan.code, plan.readers, None, c.read_rows, c.task_deadline_s, c.limit)


@dataclass
class Checked:
    """A campaign that was checked.

    Attributes:
        campaign: The campaign.
        plan: Its plan.
        kind: Its server kind; None: it has no servers.
        provider: The class of its provider.
        options: The options of the provider.
        models: For each model, everything that its answers depend on.
    """

    campaign: Campaign
    plan: Plan
    kind: ServerKind | None
    provider: type[Provider]
    options: Any
    models: Mapping[str, Mapping[str, Any]]


def check(campaign: Campaign) -> Checked:
    """Check everything that can be checked without starting anything.

    Raises:
        SpecError: Holds file, line and key if the campaign came from a file.
    """
    try:
        cls = plugins.get(plugins.PROVIDERS, campaign.provider.kind, key=("provider",), base=campaign.base, of=Provider)
        options = check_options(
            cls.Options, campaign.provider.given, ("provider",), ProviderSpec, _kind_remedy(campaign.provider)
        )
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
    return Checked(campaign, made, kind, cls, options, models)


def _kind_remedy(spec: ProviderSpec) -> str:
    others = [name for name in plugins.names(plugins.PROVIDERS) if name != spec.kind]
    if "kind" in spec.model_fields_set or not others:
        return ""
    return f"without 'kind' the provider is '{spec.kind}'; for another write kind: {' or '.join(others)}"


def _untouched(checked: Checked) -> list[PendingTasks]:
    """All tasks, as if none were done."""
    return checked.plan.todo(PartialIndex(checked.plan, Receipts(Path("/nonexistent/receipts"))).missing())


def look(checked: Checked) -> PreflightReport:
    """Read one file of each dataset, as a run does before it starts servers.

    Returns:
        The files that were read, and the files that could not be read.

    Raises:
        SpecError: A tree, a branch, a weight or a column is missing. Holds the file and the key.
    """
    with tempfile.TemporaryDirectory(prefix="campaign-check-") as folder:
        return preflight(checked.plan, _untouched(checked), save_job(job_of(checked.plan), Path(folder) / "job"))


def refuse_unreadable(checked: Checked, looked: PreflightReport) -> None:
    """Refuse a dataset of which no file that was tried can be read, unless the campaign lets files fail.

    Raises:
        SpecError: Says why the first such dataset cannot be read.
    """
    if checked.campaign.errors.max_failed_files:
        return
    for dataset, why in looked.broken.items():
        key = ("datasets", dataset, "files")
        remedy = "check or replace it; or let files fail: errors: {max_failed_files: N}"
        raise checked.campaign.locate(SpecError(why, key=key, remedy=remedy))


def try_out(checked: Checked, address: PoolAddress | None = None) -> Tried:
    """Run the stages on 100 rows of one file of each dataset.

    Args:
        checked: The campaign.
        address: Real servers. None: servers that answer zeros.

    Raises:
        SpecError: A stage cannot work. Holds the key.
    """
    servers, kind = checked.campaign.servers, checked.kind
    models = servers.models if servers is not None and kind is not None else ()
    signatures = {name: known for name in models if kind is not None and (known := kind.signature(name)) is not None}
    with tempfile.TemporaryDirectory(prefix="campaign-check-") as folder:
        ticket = save_job(job_of(checked.plan), Path(folder) / "job")
        return preflight_try(checked.plan, _untouched(checked), ticket, signatures, address)
