"""Files of one columns output that differ in their columns' types: named in the report, with types that hold all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from campaign.merge import Merged

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "columns "  # of the remark in a receipt that says which columns a file has
LONGEST = 4000  # characters of such a remark: of tables with hundreds of columns only some are compared


def remark(schema: pa.Schema) -> str:
    """The columns of one file and their types, short enough for a receipt."""
    text = PREFIX + json.dumps({field.name: str(field.type) for field in schema}, ensure_ascii=False)
    return text if len(text) <= LONGEST else ""


def is_remark(note: str) -> bool:
    """Whether a note is one of these, for `differences` to judge."""
    return note.startswith(PREFIX)


def differences(merged: Mapping[str, Merged]) -> Iterator[str]:
    """One sentence for each output that other programs cannot read as one table.

    Args:
        merged: The outputs there are, by name.
    """
    for name, output in sorted(merged.items()):
        files = [json.loads(note.removeprefix(PREFIX)) for note in output.notes if is_remark(note)]
        if len(files) < 2:
            continue
        missing = sorted(set().union(*files) - set.intersection(*(set(f) for f in files)))
        kinds = {c: sorted({f[c] for f in files if c in f}) for c in sorted(set().union(*files))}
        differ = [f"{c} ({', '.join(k)})" for c, k in kinds.items() if len(k) > 1]
        what = [f"the type of {', '.join(differ[:5])}"] if differ else []
        what += [f"the columns {', '.join(missing[:5])}, which some lack"] if missing else []
        if what:
            yield (
                f"{name}: its Parquet files differ in {' and '.join(what)}; to read them as one table, give a schema: "
                "pyarrow.dataset.dataset(folder, schema=pyarrow.unify_schemas([...], promote_options='permissive'))"
            )
