"""Keys and receipts of merged outputs: which are complete already and need no merge."""

from __future__ import annotations

from collections.abc import Sequence

from campaign.outputs.merged import Merged, fingerprint
from campaign.planning.plan import Output
from campaign.storage.receipts import MERGED, Receipt
from campaign.storage.rundir import RunDir
from campaign.util.hashing import canonical_json, digest


# Merged outputs of an earlier run.
def merge_key(output: Output) -> str:
    """The key of a merged output: a digest of its name and of its partials' keys in order."""
    line = output.line
    assert line is not None
    return digest(["merged", output.name, line.keys.digest])


def receipt_of(
    rundir: RunDir, output: Output, merged: Merged, gaps: Sequence[int] = (), *, shaky: bool = False
) -> Receipt:
    """The receipt of a merged output: its files, the files it lacks, and if its frozen values lack some."""
    root = str(merged.root.relative_to(rundir.root)) if merged.root else ""
    about = {"kind": merged.kind, "root": root, "files": merged.files, "gaps": list(gaps), "parts": dict(merged.parts)}
    if merged.rewritten:
        about["rewritten"] = {name: list(told) for name, told in merged.rewritten.items()}
    more = canonical_json({**about, "shaky": True} if shaky else about)
    return Receipt(
        merge_key(output), output.stage, output.dataset, output.variation, "", MERGED, merged.sha256, 0,
        notes=merged.notes, more=more,
    )  # fmt: skip


def of_receipt(rundir: RunDir, output: Output, receipt: Receipt) -> Merged:
    """The merged output that a receipt speaks of, whatever has become of it; KeyError: it is another's receipt."""
    kind = receipt.about["kind"]
    path = rundir.output(output.stage, output.dataset, output.variation, kind)
    root = rundir.root / str(receipt.about["root"]) if receipt.about["root"] else None
    files, parts = str(receipt.about["files"]), dict(receipt.about.get("parts", {}))
    rewritten = dict(receipt.about.get("rewritten", {}))
    return Merged(output.name, kind, path, receipt.sha256, root, receipt.notes, files, parts, rewritten)


def restored(rundir: RunDir, output: Output, receipt: Receipt) -> Merged | None:
    """The merged output of a receipt, if it lacks nothing and its files are what they were."""
    if receipt.key != merge_key(output):
        return None
    try:
        if receipt.about.get("gaps"):
            return None
        merged = of_receipt(rundir, output, receipt)
        return merged if fingerprint(merged) == merged.files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # gone, or a receipt of something else
        return None
