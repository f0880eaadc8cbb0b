"""The stage ``reweight``: multiply a weight column by a frozen factor, looked up in bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np

from campaign.errors import OutputError
from campaign.outputs import Columns
from campaign.protocols import Context


@dataclass(frozen=True)
class Reweight:
    """Multiply ``weight`` by ``frozen[factors][...]`` in the bin each row falls into.

    The frozen value (or the part of it that ``path`` leads to) is ``{"values": array of shape (n1, ..., nk),
    "edges": [k arrays of edges]}``; rows outside the edges keep their weight.

    Args:
        factors: Reduce stage whose frozen value is used; it stands under ``with`` too.
        by: Columns that the edges belong to, in order.
        weight: Column that is multiplied (float64).
        path: Keys that lead into the frozen value.
        where: A boolean column: only rows where it is true are reweighted.
    """

    factors: str
    by: Sequence[str]
    weight: str = "weight"
    path: Sequence[str] = ()
    where: str | None = None

    def __call__(self, batch: Any, ctx: Context) -> Columns:
        """Reweight one range."""
        if self.factors not in ctx.frozen:
            raise OutputError(
                f"'{self.factors}' is not among its frozen values", remedy=f"add 'with: [{self.factors}]'"
            )
        table: Mapping[str, Any] = ctx.frozen[self.factors]
        for key in self.path:
            table = table[key]
        values, edges = np.asarray(table["values"], float), [np.asarray(e, float) for e in table["edges"]]
        inside = np.ones(len(batch), bool)
        bins = []
        for column, edge in zip(self.by, edges, strict=True):
            index = np.searchsorted(edge, ak.to_numpy(batch[column]), side="right") - 1
            inside &= (index >= 0) & (index < len(edge) - 1)
            bins.append(np.clip(index, 0, len(edge) - 2))
        if self.where is not None:
            inside &= ak.to_numpy(batch[self.where]).astype(bool)
        factor = np.where(inside, values[tuple(bins)], 1.0)
        columns = {name: batch[name] for name in ak.fields(batch)}
        columns[self.weight] = ak.to_numpy(batch[self.weight]).astype(float) * factor
        return Columns(columns)
