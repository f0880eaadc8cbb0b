"""Builds the `Context` of each stage call, for tasks and for reduce stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from campaign.planning.stage_code import StageCode
from campaign.protocols import WEIGHT, Context
from campaign.storage.frozen_values import Frozen, fresh, thawed


class StageUse(Protocol):
    """A stage with a variation: a `campaign.planning.task.Step` or a `campaign.worker.reducing.ReduceCall`."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def variation(self) -> str:
        """Name of the variation."""

    @property
    def frozen(self) -> Iterable[tuple[str, str]]:
        """``(reduce stage, variation)`` of the frozen values that the stage takes."""


class Contexts:
    """Reads options and frozen values once, and gives the same objects to each call of a task.

    Another task gets objects of its own. So a stage that changes its options changes them for its own task only.

    Args:
        code: The stages of the job, by name.
        uses: The stages that are called.
        frozen: Path and SHA-256 of the frozen values.

    Raises:
        FrozenChanged: The file of a frozen value has changed.
    """

    def __init__(self, code: Mapping[str, StageCode], uses: Iterable[StageUse], frozen: Frozen) -> None:
        every = list(uses)
        self._frozen = {at: thawed(*frozen[at]) for use in every for at in use.frozen if at in frozen}
        self._options = {use.stage: fresh(code[use.stage].options) for use in every}

    def of(
        self,
        use: StageUse,
        *,
        dataset: str,
        metadata: Mapping[str, Any],
        servers: Any = None,
        artefacts: Path | None = None,
        missing: Mapping[str, Any] | None = None,
    ) -> Context:
        """The context of one call; the arguments are the attributes of `Context`."""
        return Context(
            dataset=dataset,
            metadata=metadata,
            variation=use.variation,
            weight=WEIGHT,
            options=self._options[use.stage],
            frozen={at[0]: self._frozen[at] for at in use.frozen},
            servers=servers,
            artefacts=artefacts,
            missing=missing or {},
        )
