"""The stage ``reweight``: multiply a weight column by a frozen factor, looked up in bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np

from campaign.errors import OutputError
from campaign.outputs.columns import Columns
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

    def __post_init__(self) -> None:
        for name in ("by", "path"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"'{name}' is a list of names")

    def __call__(self, batch: Any, ctx: Context) -> Columns:
        """Reweight one range."""
        if self.factors not in ctx.frozen:
            raise OutputError(
                f"'{self.factors}' is not among its frozen values", remedy=f"add 'with: [{self.factors}]'"
            )
        values, edges = self._table(ctx.frozen[self.factors])
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

    def _table(self, frozen: Any) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
        """Factors of shape (n1, ..., nk), and k arrays of edges."""
        place = "/".join([self.factors, *self.path])
        try:
            for key in self.path:
                frozen = frozen[key]
            values, edges = np.asarray(frozen["values"], float), [np.asarray(e, float) for e in frozen["edges"]]
        except (KeyError, TypeError, IndexError) as error:
            raise OutputError(f"the frozen value {place} has no values and edges: {error!r}") from error
        if values.shape != tuple(len(e) - 1 for e in edges) or len(edges) != len(self.by):
            shape = tuple(len(e) - 1 for e in edges)
            raise OutputError(f"{place}: values of shape {values.shape}, bins {shape}, for the columns {self.by}")
        return values, edges
