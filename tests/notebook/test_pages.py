"""What the pages about notebooks show is accepted."""

from __future__ import annotations

import re

import nbformat
import yaml

from campaign import Campaign
from campaign.util import plugins
from tests.conftest import PROJECT


def test_the_campaign_of_the_nersc_page_is_accepted():
    """Keys of servers and of Parsl's providers are right, each with its arguments."""
    page = (PROJECT / "docs" / "jupyter-nersc.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    rest = {"datasets": {"d": {"files": "d", "tree": "t"}}, "stages": {"s": {"use": "s.py:s"}}}
    made = Campaign.model_validate({"campaign": "c", **rest, **yaml.safe_load(block)})
    options = plugins.get(plugins.PROVIDERS, "parsl").Options.model_validate(made.provider.inline)
    assert options.server_provider["constraint"] == "gpu"
    assert options.provider["walltime"] == "00:30:00"


def test_the_example_notebook_holds_no_results():
    """It is a dozen cells of code or so, none with outputs; a person runs it."""
    notebook = nbformat.read(PROJECT / "examples" / "notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 12
    assert not any(cell.outputs or cell.execution_count for cell in code)
