"""Finds outputs that a variation of the weight has not changed, although its weights are not 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from campaign.errors import SpecError
from campaign.outputs.histograms import HISTOGRAMS
from campaign.outputs.merged import Merged
from campaign.planning.plan import Output, Plan
from campaign.spec.models import NOMINAL
from campaign.worker.weight_use import ROUNDED, UNUSED, WEIGHED

_FEW = 5  # names that a sentence lists
_HUSH = "write 'weighted: false' there if it is meant to"


def notes_of(merged: Merged) -> list[str]:
    """The notes about one output. Remarks of its tasks about the weight are left to `unmoved`."""
    return [note for note in merged.notes if note not in (WEIGHED, UNUSED, ROUNDED)]


def unmoved(plan: Plan, merged: Mapping[str, Merged]) -> Iterator[str]:
    """Sentences, one per stage and kind of mistake, whatever the number of variations.

    Args:
        plan: The plan.
        merged: What there is, by the output's name.
    """
    by_stage: dict[str, list[Output]] = {}
    for output in plan.outputs:
        if output.line is not None and output.line.weighs and WEIGHED in _notes(merged, output.name):
            by_stage.setdefault(output.stage, []).append(output)
    for stage, outputs in sorted(by_stage.items()):
        where = _place(plan, stage)
        unused = [o for o in outputs if UNUSED in _notes(merged, o.name)]
        same = [o for o in outputs if o not in unused and _equal(merged, o)]
        if unused:
            yield f"{where}: counts without ctx.weight, also in {_named(unused)}; {_HUSH}"
        if same:
            yield (
                f"{where}: its output is nominal's, bit for bit, in {_named(same)}, "
                f"though weights of its events are not 1; does it use ctx.weight? {_HUSH}"
            )
        yield from _in_part(where, merged, [o for o in outputs if o not in same])
        rounded = [o for o in outputs if ROUNDED in _notes(merged, o.name)]
        if rounded:
            yield f"{where}: hands ctx.weight on with fewer digits than float64 has, in {_named(rounded)}"


def _in_part(where: str, merged: Mapping[str, Merged], outputs: list[Output]) -> Iterator[str]:
    alike: dict[str, list[Output]] = {}
    for output in outputs:
        here, nominal = merged[output.name].parts, _nominal(merged, output)
        for name, digest in here.items():
            if nominal is not None and nominal.parts.get(name) == digest:
                alike.setdefault(name, []).append(output)
    if alike:
        first = next(iter(alike.values()))
        yield (
            f"{where}: of its histograms, {_listed(sorted(alike))} are nominal's, bit for bit, in {_named(first)}, "
            "though weights of its events are not 1; are they filled with ctx.weight?"
        )


def _notes(merged: Mapping[str, Merged], name: str) -> tuple[str, ...]:
    return merged[name].notes if name in merged else ()


def _nominal(merged: Mapping[str, Merged], output: Output) -> Merged | None:
    return merged.get(f"{output.stage}/{output.dataset}/{NOMINAL}")


def _equal(merged: Mapping[str, Merged], output: Output) -> bool:
    nominal = _nominal(merged, output)
    holds = nominal is not None and (nominal.kind != HISTOGRAMS or bool(nominal.parts))
    return nominal is not None and holds and nominal.sha256 == merged[output.name].sha256


def _named(outputs: list[Output]) -> str:
    names = list(dict.fromkeys(o.variation for o in outputs))
    return f"variation{'s' if len(names) > 1 else ''} {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    given = list(names)
    more = f" and {len(given) - _FEW:,} more" if len(given) > _FEW else ""
    return ", ".join(given[:_FEW]) + more


def _place(plan: Plan, stage: str) -> str:
    where = plan.campaign.locate(SpecError("", key=("stages", stage))).where
    return where or f"stage {stage}"
