"""The magic ``%%campaign``: runs the YAML of a cell. ``%load_ext campaign`` registers it."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from campaign.driver.run import run
from campaign.errors import CampaignError, SpecError
from campaign.notebook.handle import RunHandle, start
from campaign.report.report import Report
from campaign.spec import yaml_file
from campaign.spec.models import Campaign, Origin, StageSpec

CELL = "cell"  # in place of a file's name in messages
MAIN = "__main__:"


def load_ipython_extension(shell: Any) -> None:
    """Called by ``%load_ext campaign``."""

    def campaign(line: str, cell: str) -> Report | RunHandle:
        from IPython.core.error import UsageError

        try:
            return run_cell(line, cell, shell.user_ns)
        except CampaignError as error:
            raise UsageError(f"campaign: {error}") from None

    campaign.__doc__ = _parser().format_help()
    shell.register_magic_function(campaign, magic_kind="cell", magic_name="campaign")


def unload_ipython_extension(shell: Any) -> None:
    """Called by ``%unload_ext campaign``."""
    shell.magics_manager.magics["cell"].pop("campaign", None)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(message, where="%%campaign", remedy="see %%campaign?")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="%%campaign", add_help=False,
        description="Run the campaign that the cell describes in YAML. Paths are relative to the current folder. "
        "'use: __main__:NAME' takes a function of this notebook.",
    )  # fmt: skip
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where everything goes (default: runs/CAMPAIGN)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes")
    parser.add_argument("--servers", type=int, metavar="N", help="servers in the pool")
    parser.add_argument("--provider", metavar="NAME", help="who lends the machines")
    parser.add_argument("--limit", type=int, metavar="N", help="rows of each file, for a quick try")
    parser.add_argument("--background", action="store_true", help="go on in the background; the result is a handle")
    return parser


def run_cell(line: str, cell: str, names: Mapping[str, Any]) -> Report | RunHandle:
    """Run the YAML of a cell.

    Args:
        line: The options behind ``%%campaign``.
        cell: The YAML.
        names: The notebook's variables.
    """
    args = vars(_parser().parse_args(shlex.split(line)))
    background = args.pop("background")
    campaign = of_cell(cell, names)
    return start(campaign, **args) if background else run(campaign, **args)


def of_cell(cell: str, names: Mapping[str, Any]) -> Campaign:
    """The campaign of a cell; errors name the line of the cell.

    Args:
        cell: The YAML.
        names: The notebook's variables, for ``use: __main__:NAME``.

    Raises:
        SpecError: It is no campaign.
    """
    with tempfile.TemporaryDirectory(prefix="campaign-cell-") as folder:
        path = Path(folder) / CELL
        path.write_text(f"\n{cell}")  # the first line of the cell is the magic's
        try:
            loaded = yaml_file.load(path)
        except SpecError as error:
            error.where = error.where.replace(str(path), CELL)
            error.message = error.message.replace(str(path), CELL)
            raise
    lines = loaded._origin.lines if loaded._origin is not None else {}
    stages = {name: _of_notebook(name, stage, names) for name, stage in loaded.stages.items()}
    return loaded.model_copy(update={"stages": stages}).at(Path.cwd(), Origin(CELL, lines))


def _of_notebook(name: str, stage: StageSpec, names: Mapping[str, Any]) -> StageSpec:
    if not isinstance(stage.use, str) or not stage.use.startswith(MAIN):
        return stage
    wanted = stage.use.removeprefix(MAIN)
    if wanted not in names:
        raise SpecError(
            f"the notebook has no '{wanted}'", key=("stages", name, "use"), where=f"{CELL}: stages.{name}.use",
            remedy="run the cell that defines it",
        )  # fmt: skip
    return stage.model_copy(update={"use": names[wanted]})
