"""Campaign-style, ephemeral inference: servers that live exactly as long as the campaign that needs them."""

if __name__ != "campaign":  # the __path__ line below would otherwise make campaign.campaign a second package
    raise ImportError("import campaign, not " + __name__)

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from campaign.client import connect
    from campaign.engine import run
    from campaign.errors import CampaignError, InferenceError, SpecError
    from campaign.histogram import Histogram, fill_together
    from campaign.outputs import Columns, Counts, Histograms
    from campaign.pool import ServerPool
    from campaign.spec import Campaign, Dataset, ModelSpec, ProviderSpec, ServerSpec, StageSpec, Variation
    from campaign.specfile import load
    from campaign.verification import verify

__version__ = "0.1.0"

_WHERE = {
    "Campaign": "spec",
    "CampaignError": "errors",
    "Columns": "outputs",
    "Counts": "outputs",
    "Dataset": "spec",
    "Histogram": "histogram",
    "Histograms": "outputs",
    "InferenceError": "errors",
    "ModelSpec": "spec",
    "ProviderSpec": "spec",
    "ServerPool": "pool",
    "ServerSpec": "spec",
    "SpecError": "errors",
    "StageSpec": "spec",
    "Variation": "spec",
    "connect": "client",
    "fill_together": "histogram",
    "load": "specfile",
    "run": "engine",
    "verify": "verification",
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


# A wheel holds providers/ and stages/ inside this folder; a checkout keeps them beside it.
if not Path(__file__).with_name("providers").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))
