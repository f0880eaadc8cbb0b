"""What stages return (columns, histograms, counts), how partial outputs are stored, and how they are merged.

The names users need are here: `Columns`, `Counts`, `Histograms`, `read_columns` and `read_histograms`.
"""

# Resolved on first use: a partial of counts needs neither hist nor pyarrow.
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from campaign.outputs.kinds import Columns, Counts, Histograms, read_columns, read_histograms

__all__ = ["Columns", "Counts", "Histograms", "read_columns", "read_histograms"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'campaign.outputs' has no attribute {name!r}")
    return getattr(import_module("campaign.outputs.kinds"), name)
