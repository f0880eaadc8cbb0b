"""Campaign-style, ephemeral inference: servers that live exactly as long as the campaign that needs them."""

if __name__ != "campaign":  # the __path__ line below would otherwise make campaign.campaign a second package
    raise ImportError("import campaign, not " + __name__)

import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign._version import __version__ as __version__

if TYPE_CHECKING:
    from campaign.audit.verify import verify
    from campaign.driver.run import run
    from campaign.errors import CampaignError, InferenceError, SpecError
    from campaign.histogram.histogram import Histogram, fill_together
    from campaign.inference.client import connect
    from campaign.outputs.columns import Columns
    from campaign.outputs.counts import Counts
    from campaign.outputs.histograms import Histograms
    from campaign.pool.pool import ServerPool
    from campaign.spec.models import Campaign, Dataset, ModelSpec, ProviderSpec, ServerSpec, StageSpec, Variation
    from campaign.spec.yaml_file import load

_WHERE = {
    "Campaign": "spec.models",
    "CampaignError": "errors",
    "Columns": "outputs.columns",
    "Counts": "outputs.counts",
    "Dataset": "spec.models",
    "Histogram": "histogram.histogram",
    "Histograms": "outputs.histograms",
    "InferenceError": "errors",
    "ModelSpec": "spec.models",
    "ProviderSpec": "spec.models",
    "ServerPool": "pool.pool",
    "ServerSpec": "spec.models",
    "SpecError": "errors",
    "StageSpec": "spec.models",
    "Variation": "spec.models",
    "connect": "inference.client",
    "fill_together": "histogram.histogram",
    "load": "spec.yaml_file",
    "load_ipython_extension": "notebook.magic",
    "run": "driver.run",
    "unload_ipython_extension": "notebook.magic",
    "verify": "audit.verify",
}

__all__ = [
    "Campaign",
    "CampaignError",
    "Columns",
    "Counts",
    "Dataset",
    "Histogram",
    "Histograms",
    "InferenceError",
    "ModelSpec",
    "ProviderSpec",
    "ServerPool",
    "ServerSpec",
    "SpecError",
    "StageSpec",
    "Variation",
    "connect",
    "fill_together",
    "load",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `import campaign` must not cost what pydantic, hist and grpc cost.
    if name not in _WHERE:
        raise AttributeError(f"module 'campaign' has no attribute {name!r}")
    value = getattr(import_module(f"campaign.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


logging.getLogger(__name__).addHandler(logging.NullHandler())  # a program that uses campaign decides what it shows

# A wheel holds providers/ and stages/ inside this folder; a checkout keeps them beside it.
if not Path(__file__).with_name("providers").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))
