"""The results of stages (columns, histograms, counts): how they are stored as partials, and merged.

The names users need are here: `Columns`, `Counts`, `Histograms`, `read_columns` and `read_histograms`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from campaign.outputs.columns import Columns, read_columns
    from campaign.outputs.counts import Counts
    from campaign.outputs.histograms import Histograms, read_histograms

__all__ = ["Columns", "Counts", "Histograms", "read_columns", "read_histograms"]

_WHERE = {
    "Columns": "columns",
    "Counts": "counts",
    "Histograms": "histograms",
    "read_columns": "columns",
    "read_histograms": "histograms",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use: counts need neither hist nor pyarrow.
    if name not in _WHERE:
        raise AttributeError(f"module 'campaign.outputs' has no attribute {name!r}")
    return getattr(import_module(f"campaign.outputs.{_WHERE[name]}"), name)
