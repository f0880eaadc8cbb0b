"""Arguments of Parsl's classes are found wrong at their key, before anything is started or asked."""

from __future__ import annotations

import pytest

from campaign import engine, specfile
from campaign.errors import SpecError

TEXT = """\
campaign: c
datasets: {d: {files: x.root, tree: t}}
provider:
  kind: parsl
  %s
stages:
  s: {use: fill, histograms: {h: {x: {edges: [0, 1]}}}}
"""
WRONG = {  # what stands there: key, what is said
    "{class: SLURM, account: 1234}": (
        "provider.account", "takes text or nothing for account, and 1234 is a whole number; write quotes: account",
    ),
    "{class: SLURM, walltime: 90}": ("provider.walltime", "90 is no walltime; write hours, minutes"),
    "{class: SLURM, walltime: '90'}": ("provider.walltime", "'90' is no walltime"),
    "{class: SLURM, walltime: 1:30:00}": ("provider.walltime", "1:30:00 may be a time"),
    "{class: PBSProProvider, walltime: 3600}": ("provider.walltime", "3600 is no walltime"),
    "{class: SLURM, nodes_per_block: two}": ("provider.nodes_per_block", "takes a whole number for nodes_per_block"),
    "{class: SLURM, max_blocks: true}": ("provider.max_blocks", "takes a whole number for max_blocks"),
    "{class: SLURM, exclusive: 1}": ("provider.exclusive", "takes true or false for exclusive"),
    "{class: LocalProvider, max_blocks: x}": ("provider.max_blocks", "and 'x' is text"),
    "{class: SLURM, accont: m1}": ("provider.accont", "'accont' is none of the arguments of SlurmProvider"),
    "{class: SLURM, launcher: SrunLauncher}": ("provider.launcher", "write launcher: {class: SrunLauncher}"),
    "{class: SLURM, launcher: {class: Srun}}": ("provider.launcher.class", "'Srun' is none of the classes of"),
    "{class: SLURM, launcher: {class: SRUN, overides: x}}": ("provider.launcher.overides", "did you mean"),
    "{class: SLURM, launcher: {class: SRUN, overrides: 3}}": ("provider.launcher.overrides", "takes text"),
    "{class: Slurm}": ("provider.class", "'Slurm' is none of the classes of parsl.providers"),
    "{account: m1}": ("provider.class", "write class: SlurmProvider"),
    "{class: KubernetesProvider}": ("provider", "KubernetesProvider needs image"),
    "{class: SLURM, scheduler_options: echo hi}": ("provider.scheduler_options", "begins with #SBATCH"),
}  # fmt: skip


def check(root, line):
    (root / "x.root").touch()
    (root / "c.yaml").write_text(TEXT % line)
    return engine.check(specfile.load(root / "c.yaml"))


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


def test_arguments_of_the_executor_are_looked_at_too(tmp_path):
    """A whole number is no text."""
    with pytest.raises(SpecError, match=r"provider\.executor\.cpu_affinity: .* takes text for cpu_affinity"):
        check(tmp_path, "executor: {cpu_affinity: 3}")


@pytest.mark.parametrize("given", [
    "{class: SLURM, account: m1, walltime: '01:30:00', parallelism: 1, launcher: {class: SrunLauncher}}",
    "{class: LocalProvider, max_blocks: 2}", "{class: PBSProProvider, queue: q, walltime: 00:20:00}",
    "{class: SLURM, scheduler_options: '#SBATCH -C gpu', worker_init: 'module load x', mem_per_node: null}",
])  # fmt: skip
def test_right_arguments_pass(tmp_path, given):
    """None where Parsl takes it, whole numbers for floats, shell in ``worker_init``."""
    check(tmp_path, f"provider: {whole(given)}")
