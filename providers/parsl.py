"""Provider ``parsl``: a Parsl execution provider runs the pilots, a HighThroughputExecutor of its own the tasks."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import parsl.config
import parsl.launchers
import parsl.providers
from campaign.providers.arguments import WrongArgument, check_arguments, try_to_make
from campaign.providers.batch_script import ASSIGNMENT
from campaign.providers.parsl_executor import HtexExecutor, interchange_command, remember_job, worker_command
from parsl.executors import HighThroughputExecutor
from parsl.providers.base import ExecutionProvider
from pydantic import BaseModel, ConfigDict, Field, field_validator

from campaign.discovery.pooldir import PoolDir
from campaign.errors import ProviderError, SpecError
from campaign.protocols import PilotHandle, Provider
from campaign.supervision.identity import VARIABLE, mark, marked
from campaign.util.messages import unknown

DIRECTIVES = {
    "SlurmProvider": "#SBATCH", "PBSProProvider": "#PBS", "TorqueProvider": "#PBS", "GridEngineProvider": "#$",
    "LSFProvider": "#BSUB", "CondorProvider": ASSIGNMENT,
}  # fmt: skip


class Options(BaseModel):
    """Keys of ``provider`` for ``kind: parsl``.

    Args:
        provider: Any Parsl execution provider: an object, or ``{class: SlurmProvider, walltime: ..., launcher: {class:
            SrunLauncher}}`` with the arguments of that class. None: ``LocalProvider``. No argument may hold a line
            break but ``worker_init``, which is shell, and ``scheduler_options``, whose every line is a directive.
        server_provider: Another one for the pilots; None: the same.
        config: A ``parsl.Config`` whose first executor's provider and address are taken, in place of ``provider``.
        address: Address of this machine as workers see it. Parsl would ask the network for it otherwise.
        blocks: Blocks of workers.
        workers_per_node: Workers per node; None: the campaign's ``workers`` divided by the nodes.
        heartbeat_period_s: Between workers and interchange.
        heartbeat_threshold_s: Silence after which a worker is lost (Parsl's own default is two minutes).
        executor: Further arguments of HighThroughputExecutor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    provider: Any = None
    server_provider: Any = None
    config: Any = None
    address: str = "127.0.0.1"
    blocks: int = Field(default=1, ge=1)
    workers_per_node: int | None = Field(default=None, ge=1)
    heartbeat_period_s: int = Field(default=3, ge=1)
    heartbeat_threshold_s: int = Field(default=10, ge=2)
    executor: dict[str, Any] = Field(default_factory=dict)

    @field_validator("provider", "server_provider")
    @classmethod
    def _can_be_made(cls, value: Any) -> Any:
        if isinstance(value, Mapping):  # of a file; an object is the user's own code
            try_to_make(*_described(value))
        elif value is not None and not isinstance(value, ExecutionProvider):
            given = f"{{class: {value}}}" if value in _classes(parsl.providers) else "{class: SlurmProvider}"
            raise WrongArgument(f"{value!r} is no Parsl execution provider; write {given} with its arguments")
        return value

    @field_validator("config")
    @classmethod
    def _has_a_provider(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, parsl.config.Config):
            raise WrongArgument(f"{value!r} is no parsl.Config; in a file write provider: {{class: ...}}")
        if value is not None and getattr(next(iter(value.executors), None), "provider", None) is None:
            raise WrongArgument("its first executor has no provider; give a HighThroughputExecutor")
        return value

    @field_validator("executor")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = check_arguments(HighThroughputExecutor, value)
        return found


def _classes(module: Any) -> list[str]:
    return sorted(n for n in dir(module) if inspect.isclass(getattr(module, n)))


def _class(given: Mapping[str, Any], module: Any) -> type:
    have = _classes(module)
    if "class" not in given:
        raise WrongArgument(f"the key 'class' is needed, one of {', '.join(have)}")
    name = given["class"]
    if not isinstance(name, str) or name not in have:
        raise WrongArgument(unknown(str(name), have, f"classes of {module.__name__}"), "class")
    return getattr(module, name)  # type: ignore[no-any-return]


def _described(given: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class of the provider and its arguments. The launcher is made.

    Raises:
        WrongArgument: An argument is wrong. Holds its key.
    """
    cls = _class(given, parsl.providers)
    arguments = {k: v for k, v in given.items() if k != "class"}
    found = check_arguments(cls, arguments, DIRECTIVES.get(cls.__name__, ""), made=["launcher"])
    if "launcher" in found:
        found["launcher"] = _launcher(found["launcher"])
    return cls, found


def _launcher(given: Any) -> Any:
    if isinstance(given, parsl.launchers.base.Launcher):
        return given
    if not isinstance(given, Mapping):
        name = given if given in _classes(parsl.launchers) else "SrunLauncher"
        raise WrongArgument(f"{given!r} is no launcher; write launcher: {{class: {name}}}", "launcher")
    try:
        cls = _class(given, parsl.launchers)
        arguments = check_arguments(cls, {k: v for k, v in given.items() if k != "class"})
        return cls(**arguments)
    except WrongArgument as error:
        error.key = ("launcher", *error.key)
        raise


def build(given: Any) -> ExecutionProvider:
    """Return the Parsl provider that the user asked for.

    A description is turned into a provider. A provider object is copied without its jobs, so that the campaign's jobs
    stay apart from the user's. None gives a local provider with at most one block.

    Raises:
        SpecError: The description has wrong arguments.
    """
    if given is None:
        return parsl.providers.LocalProvider(init_blocks=0, max_blocks=1)
    if isinstance(given, ExecutionProvider):
        made = copy.copy(given)
        made.resources = {}
        return made
    try:
        cls, arguments = _described(given)
        provider: ExecutionProvider = cls(**arguments)
    except (TypeError, WrongArgument) as error:
        raise SpecError(f"{given.get('class')}: {error}", key=("provider", "provider")) from error
    return provider


def _stays_here(given: Any) -> bool:
    if isinstance(given, Mapping) and given.get("class") != "LocalProvider":
        return False
    made = build(given)
    near = (parsl.launchers.SingleNodeLauncher, parsl.launchers.SimpleLauncher)
    local = isinstance(made, parsl.providers.LocalProvider)
    return local and made.nodes_per_block == 1 and isinstance(made.launcher, near)


class ParslProvider(Provider):
    """See `campaign.protocols.Provider`. No DataFlowKernel: a user's own stays untouched."""

    Options = Options

    @staticmethod
    def hint(name: str) -> str:
        """The text to write if the name is a batch system or a class of Parsl. Otherwise empty."""
        called = name.lower()
        meant = [n for n in _classes(parsl.providers) if len(called) > 2 and n.lower().startswith(called)]
        return f"write provider: {{kind: parsl, provider: {{class: {meant[0]}}}}}" if meant else ""

    def __init__(self, options: BaseModel, folder: Path) -> None:
        assert isinstance(options, Options)
        self.options, self.folder = options, folder
        given, self.address = options.provider, options.address
        if options.config is not None:
            first = options.config.executors[0]
            given, self.address = first.provider, first.address or options.address
        self._given = given
        self._tasks: list[HtexExecutor] = []
        self._carried: list[_Job] = []

    @property
    def one_node(self) -> bool:
        """True if tasks and pilots run on this node: with Parsl's LocalProvider and a launcher that stays here."""
        theirs = self.options.server_provider
        return _stays_here(self._given) and (theirs is None or _stays_here(theirs))

    @property
    def walltime_s(self) -> float | None:
        """The walltime of the pilots' jobs. None: their provider has none."""
        given = self.options.server_provider if self.options.server_provider is not None else self._given
        told = given.get("walltime") if isinstance(given, Mapping) else getattr(given, "walltime", None)
        parts = str(told or "").replace("-", ":").split(":")
        if not all(part.isdigit() for part in parts):
            return None
        return float(sum(int(part) * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False)))

    def __enter__(self) -> ParslProvider:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.ExitStack() as each:  # whatever one of them raises, the others are given back
            for tasks in self._tasks:
                each.callback(tasks.end)
            for job in self._carried:  # the last in is the first out: jobs are told before blocks are waited for
                each.callback(job.cancel)

    def _provider(self, given: Any, name: str) -> Any:
        provider = build(given)
        folder = self.folder / "parsl" / name
        folder.mkdir(parents=True, exist_ok=True)
        provider.script_dir = str(folder)
        return provider

    def tasks(self, workers: int) -> Executor:
        """A HighThroughputExecutor whose blocks were requested."""
        o = self.options
        provider = self._provider(self._given, f"workers-{len(self._tasks)}")
        nodes = o.blocks * int(getattr(provider, "nodes_per_block", 1))
        per_node = o.workers_per_node or math.ceil(workers / nodes)
        arguments = {
            "label": f"campaign-{mark().campaign}-{len(self._tasks)}",  # the blocks' jobs bear it in their names
            "provider": provider,
            "address": self.address,
            "max_workers_per_node": per_node,
            "cores_per_worker": 1e-6,  # the number of workers is ours to say
            "heartbeat_period": o.heartbeat_period_s,
            "heartbeat_threshold": o.heartbeat_threshold_s,
            "interchange_launch_cmd": interchange_command(),
            "launch_cmd": worker_command(),
            "encrypted": True,  # tasks carry the pool's certificates; and nobody else may hand out or take tasks
            **o.executor,
        }
        htex = HighThroughputExecutor(**arguments)
        htex.run_dir = str(self.folder / "parsl")
        made = HtexExecutor(htex, o.blocks)
        self._tasks.append(made)
        made.start()
        executor: Executor = made
        return executor

    def carry(self, argv: Sequence[str], count: int, folder: Path) -> list[PilotHandle]:
        """One job for all pilots. Parsl's launcher spreads it over the nodes of a block."""
        given = self.options.server_provider if self.options.server_provider is not None else self._given
        provider = self._provider(given, "servers")
        per_node = math.ceil(count / int(getattr(provider, "nodes_per_block", 1)))
        provider.worker_init = f"{getattr(provider, 'worker_init', '')}\n{_HAND_ON}\n"
        # exec: the pilot itself is what gets the scheduler's SIGTERM, not a shell around it. A batch system may pass no
        # environment on.
        command = "exec " + shlex.join(["env", f"{VARIABLE}={mark()}", *argv])
        name = f"campaign-{mark().campaign}-servers"
        remember_job(provider, "", name)
        try:
            with marked():
                job = provider.submit(command, per_node, job_name=name)
        except Exception as error:
            raise ProviderError(f"the pilots' job was refused: {error}", where=type(provider).__name__) from error
        if job is None:
            raise ProviderError(
                "the pilots' job was not taken: the provider is at capacity", where=type(provider).__name__
            )
        with PoolDir(folder).jobs.open("a") as stream:  # one more for each pilot that is sent in place of a lost one
            stream.write(f"{type(provider).__name__} {job}\n")
        remember_job(provider, job, name)
        carried = _Job(provider, job)
        self._carried.append(carried)
        return [carried]


# A scheduler's SIGTERM ends the job's shell, and with it, by SIGKILL, whatever else is in the job: nobody would be left
# to sweep. Pilots that the shell has put into the background are told, and waited for.
_HAND_ON = "trap 'kill -TERM $(jobs -p) 2>/dev/null; wait' TERM"


class _Job:
    """The pilots' job."""

    def __init__(self, provider: Any, job: Any) -> None:
        self._provider, self._job, self._over = provider, job, False

    def poll(self) -> int | None:
        """Exit code with LocalProvider only. A batch system's status is late and at times wrong: the records count."""
        if not isinstance(self._provider, parsl.providers.LocalProvider):
            return None
        status = self._provider.status([self._job])[0]
        return (status.exit_code if status.exit_code is not None else -1) if status.terminal else None

    def cancel(self) -> None:
        """Cancel the job."""
        if not self._over:
            self._over = True
            if self.poll() is None:
                self._provider.cancel([self._job])
