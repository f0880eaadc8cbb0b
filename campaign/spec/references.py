"""Checks that the stages of a campaign name stages and datasets that exist, and do not wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from campaign.errors import SpecError
from campaign.util.messages import unknown

if TYPE_CHECKING:
    from campaign.spec.models import Campaign


def check_stages(c: Campaign) -> None:
    """Refuse a stage that names a stage or a dataset that does not exist.

    Raises:
        SpecError: Holds the wrong key.
    """
    per_file = [n for n, s in c.stages.items() if s.reduce is None]
    reducers = [n for n, s in c.stages.items() if s.reduce is not None]
    for name, stage in c.stages.items():
        at = ("stages", name)
        if stage.reduce is not None:
            check_known(stage.reduce, per_file, (*at, "reduce"), "per-file stages")
            _check_reduce(c, name)
        elif stage.from_ is not None:
            check_known(stage.from_, [n for n in per_file if n != name], (*at, "from"), "per-file stages")
        for other in stage.with_:
            check_known(other, [n for n in reducers if n != name], (*at, "with"), "reduce stages")
        for dataset in stage.datasets or ():
            check_known(dataset, list(c.datasets), (*at, "datasets"), "datasets")


def _check_reduce(c: Campaign, name: str) -> None:
    stage = c.stages[name]
    given = {"from": stage.from_, "keep": stage.keep, "datasets": stage.datasets, "weighted": not stage.weighted}
    for key, value in given.items():
        if value:
            raise SpecError(f"a reduce stage takes no '{key}'", key=("stages", name, key), remedy="take it out")


def check_known(name: str, known: list[str], key: tuple[str, ...], what: str) -> None:
    """Refuse an unknown name.

    Raises:
        SpecError: Lists the known names, and the name that was probably meant.
    """
    if name not in known:
        raise SpecError(unknown(name, known, what), key=key)


def refuse_circles(c: Campaign) -> None:
    """Refuse stages that wait for each other.

    Raises:
        SpecError: Lists the stages of the circle in order.
    """

    def needs(name: str) -> list[str]:
        s = c.stages[name]
        return [n for n in (s.from_, s.reduce, *s.with_) if n is not None]

    done: set[str] = set()
    for start in c.stages:
        trail: list[tuple[str, list[str]]] = [(start, needs(start))]
        while trail:
            name, left = trail[-1]
            if name in done or not left:
                done.add(name)
                trail.pop()
                continue
            step = left.pop()
            if step in [n for n, _ in trail]:
                raise SpecError(
                    f"stages wait for each other: {' -> '.join([n for n, _ in trail] + [step])}", key=("stages", start)
                )
            trail.append((step, needs(step)))
