"""Arguments of Parsl's classes are found wrong at their key, before anything is started or asked."""

from __future__ import annotations

import os

import pytest

from campaign.driver import check as checks
from campaign.errors import SpecError
from campaign.spec import yaml_file

TEXT = """\
campaign: c
datasets: {d: {files: x.root, tree: t}}
provider:
  kind: parsl
  %s
stages:
  s: {use: fill, histograms: {h: {x: {edges: [0, 1]}}}}
"""
MINE = """\
from pydantic import BaseModel, ConfigDict


class Mine:
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        account: str
"""
WRONG = {  # what stands there: key, what is said
    "{class: SLURM, account: 1234}": (
        "provider.account", "takes text or nothing for account, and 1234 is a whole number; write quotes around it",
    ),
    "{class: SLURM, walltime: 90}": ("provider.walltime", "90 is no walltime; write hours, minutes"),
    "{class: SLURM, walltime: '90'}": ("provider.walltime", "'90' is no walltime"),
    "{class: SLURM, walltime: 1:30:00}": ("provider.walltime", "1:30:00 may be a time"),
    "{class: PBSProProvider, walltime: 3600}": ("provider.walltime", "3600 is no walltime"),
    "{class: SLURM, nodes_per_block: two}": ("provider.nodes_per_block", "takes a whole number for nodes_per_block"),
    "{class: SLURM, max_blocks: true}": ("provider.max_blocks", "takes a whole number for max_blocks"),
    "{class: SLURM, exclusive: 1}": ("provider.exclusive", "takes true or false for exclusive"),
    "{class: LocalProvider, max_blocks: x}": ("provider.max_blocks", "and 'x' is text"),
    "{class: SLURM, accont: m1}": ("provider.accont", "'accont' is not one of the arguments of SlurmProvider"),
    "{class: SLURM, launcher: SrunLauncher}": ("provider.launcher", "write launcher: {class: SrunLauncher}"),
    "{class: SLURM, launcher: {class: Srun}}": ("provider.launcher.class", "'Srun' is not one of the classes of"),
    "{class: SLURM, launcher: {class: SRUN, overides: x}}": ("provider.launcher.overides", "did you mean"),
    "{class: SLURM, launcher: {class: SRUN, overrides: 3}}": ("provider.launcher.overrides", "takes text"),
    "{class: SLURM, launcher: 5}": ("provider.launcher", "write launcher: {class: SrunLauncher}"),
    "{class: SLURM, launcher: {}}": ("provider.launcher", "the key 'class' is needed, one of AprunLauncher"),
    "{class: SLURM, launcher: {class: WrappedLauncher}}": ("provider.launcher", "WrappedLauncher needs prepend"),
    "{class: Slurm}": ("provider.class", "'Slurm' is not one of the classes of parsl.providers"),
    "{account: m1}": ("provider", "the key 'class' is needed, one of AWSProvider"),
    "SlurmProvider": ("provider", "'SlurmProvider' is no Parsl execution provider; write {class: SlurmProvider}"),
    "{class: KubernetesProvider}": ("provider", "KubernetesProvider needs image"),
    "{class: AWSProvider, image_id: a, key_name: b}": ("provider.class", "needs the Python package boto3"),
    "{class: SLURM, walltime: 2-00:00:00}": ("provider.walltime", "write hours, minutes and seconds: '48:00:00'"),
    "{class: SLURM, walltime: 00:00:59}": ("provider.walltime", "less than a minute, which Parsl cuts off"),
    "{class: SLURM, partition: 0x1F}": ("provider.partition", "write quotes around it, as it stands in the file"),
    "{class: SLURM, cmd_timeout: 1e1}": ("provider.cmd_timeout", "and 10.0 is a number; write 10"),
    "{class: SLURM, nodes_per_block: 0}": ("provider.nodes_per_block", "write a number from 1 upward"),
    "{class: LocalProvider, init_blocks: .inf}": ("provider.init_blocks", "inf is no init_blocks"),
    "{class: PBSProProvider, account: 1.50}": ("provider.account", "and 1.5 is a number; write quotes around it"),
    "{class: PBSProProvider, queue: true}": ("provider.queue", "and True is true or false"),
    "{class: PBSProProvider, queue: [a]}": ("provider.queue", "and ['a'] is a list"),
    "{class: LocalProvider, worker_init: {a: b}}": ("provider.worker_init", "and {'a': 'b'} is a mapping"),
    "{class: CondorProvider, environment: {A: 1}}": ("provider.environment", "takes a mapping of text to text"),
    "{class: CondorProvider, environment: {A: \"b\\nqueue\"}}": ("provider.environment", "holds a line break"),
    "{class: CondorProvider, transfer_input_files: a}": ("provider.transfer_input_files", "takes a list of text"),
    "{class: LSFProvider, request_by_nodes: false}": ("provider", "refuses its arguments: Requesting resources by the"),
    "{class: LocalProvider, 5: 3}": ("provider.5", "'5' is not one of the arguments of LocalProvider"),
    "{class: SLURM, scheduler_options: echo hi}": ("provider.scheduler_options", "begins with #SBATCH"),
}  # fmt: skip


def check(root, line):
    (root / "x.root").touch()
    (root / "c.yaml").write_text(TEXT % line)
    return checks.check(yaml_file.load(root / "c.yaml"))


def whole(given):
    return given.replace("SLURM", "SlurmProvider").replace("SRUN", "SrunLauncher")


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_argument_is_named_at_its_key(tmp_path, given):
    """Unknown, missing, of another type, or a value that YAML reads otherwise: file, line, key and remedy."""
    key, said = WRONG[given]
    with pytest.raises(SpecError) as caught:
        check(tmp_path, f"provider: {whole(given)}")
    assert f"{tmp_path}/c.yaml:5: provider.{key}: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("line", "said"), [
    ("executor: {cpu_affinity: 3}", r"provider\.executor\.cpu_affinity: .* takes text for cpu_affinity"),
    ("executor: {max_workers: 3}", r"provider\.executor\.max_workers: .* did you mean 'max_workers_per_node'"),
    ("executor: {provider: {class: LocalProvider}}", r"provider\.executor\.provider: .* takes ExecutionProvider"),
    ("executor: {interchange_launch_cmd: a b}", r"interchange_launch_cmd: .* takes a list of text or nothing"),
    ("executor: {available_accelerators: [0, 1]}", r"available_accelerators: .* a list of text for available_acc"),
    ("server_provider: {class: SlurmProvider, account: 1}", r"provider\.server_provider\.account: .* takes text"),
    ("config: mine", r"provider\.config: 'mine' is no parsl\.Config; in a file write provider: {class: \.\.\.}"),
])  # fmt: skip
def test_arguments_of_the_executor_are_looked_at_too(tmp_path, line, said):
    """What stands beside the provider is held against types as well."""
    with pytest.raises(SpecError, match=said):
        check(tmp_path, line)


@pytest.mark.parametrize(("line", "said"), [
    ("provider: slurm", "write provider: {kind: parsl, provider: {class: SlurmProvider}}"),
    ("provider: LSFProvider", "write provider: {kind: parsl, provider: {class: LSFProvider}}"),
    ("provider: {class: SlurmProvider}", "without 'kind' the provider is 'local'; for another write kind: parsl"),
    ("provider: {kind: 'site.py:Mine'}", "there is no file {}/site.py"),
    ("provider: {kind: 'mine.py:Min'}", "'Min' is not one of the classes of mine.py; did you mean 'Mine'?"),
    ("provider: {kind: 'mine.py:Mine', account: 5}", "provider.account: text is needed; found 5"),
    ("provider: {kind: 'mine.py:Mine', acount: m}", "provider.acount: 'acount' is not one of the keys here"),
    ("provider: {kind: 'mine.py:Mine'}", "the key 'account' is needed"),
])  # fmt: skip
def test_a_provider_that_is_named_wrongly_gets_a_remedy_that_leads_somewhere(tmp_path, line, said):
    """A batch system's name, no kind, a file or a class that is not there, options of a provider of one's own."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "x.root").touch()
    (tmp_path / "c.yaml").write_text(TEXT.replace("provider:\n  kind: parsl\n  %s", line))
    with pytest.raises(SpecError) as caught:
        checks.check(yaml_file.load(tmp_path / "c.yaml"))
    assert said.replace("{}", str(tmp_path)) in str(caught.value)
    assert f"{tmp_path}/c.yaml:3: provider" in str(caught.value)


def test_lists_become_the_tuples_that_a_class_asks_for(tmp_path):
    """YAML has no tuples, and Parsl takes no list in place of one."""
    checked = check(tmp_path, "executor: {worker_port_range: [54000, 54100], available_accelerators: ['0', '1']}")
    assert checked.options.executor == {"worker_port_range": (54000, 54100), "available_accelerators": ["0", "1"]}


def test_checking_runs_no_command(tmp_path, monkeypatch):
    """SlurmProvider asks ``sacct`` when it is made; what is checked is made without that."""
    fake = tmp_path / "sacct"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check(tmp_path, "provider: {class: SlurmProvider}")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("given", [
    "{class: SLURM, account: m1, walltime: '01:30:00', parallelism: 1, launcher: {class: SrunLauncher}}",
    "{class: LocalProvider, max_blocks: 2}", "{class: PBSProProvider, queue: q, walltime: 00:20:00}",
    "{class: SLURM, scheduler_options: '#SBATCH -C gpu', worker_init: 'module load x', mem_per_node: null}",
])  # fmt: skip
def test_right_arguments_pass(tmp_path, given):
    """None where Parsl takes it, whole numbers for floats, shell in ``worker_init``."""
    check(tmp_path, f"provider: {whole(given)}")
