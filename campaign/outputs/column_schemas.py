"""Gives the Parquet files of one output a common schema, so that all of them read as one table.

pyarrow.dataset takes the first file's schema for all and casts the others to it, awkward and polars refuse them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from campaign.util.hashing import file_digest
from campaign.util.lazy import LazyModule

if TYPE_CHECKING:
    import pyarrow.parquet as pq
else:
    pq = LazyModule("pyarrow.parquet")

PARQUET = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
"""How columns are written: a later pass reads them once; dictionaries and statistics would cost more than all else."""
DIFFER = "its Parquet files differ in "
"""Begins the note of an output whose files could not be given one schema."""
_FEW = 5


class NoCommonType(Exception):
    """Columns that no type holds without loss."""


@dataclass
class Schemas:
    """Of the files of an output.

    Attributes:
        known: Each schema there is, once.
        of: Which one each file has, by place in the output; of files without rows too.
        empty: Places of files without rows.
    """

    known: list[pa.Schema] = field(default_factory=list)
    of: dict[int, int] = field(default_factory=dict)
    empty: set[int] = field(default_factory=set)

    def add(self, place: int, schema: pa.Schema, rows: int) -> None:
        """Take note of one file."""
        plain = schema.remove_metadata()
        at = next((i for i, known in enumerate(self.known) if known.equals(plain)), None)
        if at is None:
            at = len(self.known)
            self.known.append(plain)
        self.of[place] = at
        if not rows:
            self.empty.add(place)

    def told(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "known": [s.serialize().to_pybytes().hex() for s in self.known],
            "of": [list(item) for item in self.of.items()], "empty": sorted(self.empty),
        }  # fmt: skip

    def join(self, told: Mapping[str, Any]) -> None:
        """Add what `told` has given of other files."""
        known = [pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text))) for text in told["known"]]
        empty = set(told["empty"])
        for place, at in told["of"]:
            self.add(place, known[at], place not in empty)

    def common(self) -> pa.Schema | None:
        """The schema that all files can have; None where they have it.

        Raises:
            NoCommonType: There is none. The text says which columns differ.
        """
        if len(self.known) < 2:
            return None
        filled = sorted({at for place, at in self.of.items() if place not in self.empty}) or [0]
        schemas = [self.known[at] for at in filled]
        names = schemas[0].names
        missing = sorted(set().union(*(s.names for s in schemas)) - set.intersection(*(set(s.names) for s in schemas)))
        if missing:
            raise NoCommonType(f"the columns {_listed(missing)}, which some lack")
        made, wrong = [], []
        for name in names:
            try:
                made.append(_field([s.field(name) for s in schemas]))
            except NoCommonType:
                wrong.append(f"{name} ({', '.join(sorted({_said(s.field(name)) for s in schemas}))})")
        if wrong:
            raise NoCommonType(f"the type of {_listed(wrong)}")
        return pa.schema(made)

    def changes(self, schema: pa.Schema) -> str:
        """The changes that a common schema makes, in words."""
        kinds = {n: sorted({_said(s.field(n)) for s in self.known if n in s.names}) for n in schema.names}
        changed = [f"{n} ({', '.join(k)}: {_said(schema.field(n))})" for n, k in kinds.items() if len(k) > 1]
        return _listed(changed) or "the order of columns"


def _said(one: pa.Field) -> str:
    return f"{one.type}{' or missing' if one.nullable else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW:,} more" if len(names) > _FEW else "")


def _field(fields: Sequence[pa.Field]) -> pa.Field:
    """One field that holds all of them; metadata goes."""
    return pa.field(fields[0].name, _type([f.type for f in fields]), any(f.nullable for f in fields))


def _type(types: Sequence[pa.DataType]) -> pa.DataType:
    first = types[0]
    if all(t.equals(first) for t in types):
        return first
    if pa.types.is_struct(first) and all(pa.types.is_struct(t) for t in types):
        named = [f.name for f in first]
        if any(sorted(f.name for f in t) != sorted(named) for t in types):
            raise NoCommonType
        return pa.struct([_field([t.field(name) for t in types]) for name in named])
    if all(_is_list(t) for t in types):
        inner = _field([pa.field("element", t.value_type, t.value_field.nullable) for t in types])
        sizes = {t.list_size if pa.types.is_fixed_size_list(t) else -1 for t in types}
        size = sizes.pop() if len(sizes) == 1 else -1
        return pa.large_list(inner) if size < 0 else pa.list_(inner, size)
    if all(_is_number(t) for t in types):
        return pa.from_numpy_dtype(np.result_type(*(t.to_pandas_dtype() for t in types)))
    raise NoCommonType


def _is_list(one: pa.DataType) -> bool:
    return bool(pa.types.is_large_list(one) or pa.types.is_list(one) or pa.types.is_fixed_size_list(one))


def _is_number(one: pa.DataType) -> bool:
    return bool(pa.types.is_integer(one) or pa.types.is_floating(one) or pa.types.is_boolean(one))


def unify(folder: Path, name_of: Mapping[int, str], schemas: Schemas) -> tuple[str, dict[str, str]]:
    """Give all files of a folder one schema; only those that have another one are written anew.

    Args:
        folder: Where they lie; each may be a link to a partial, which stays as it is.
        name_of: Their names, by place.
        schemas: Of these files.

    Returns:
        What is to be said of it, and the SHA-256 of each file that was written anew.
    """
    try:
        schema = schemas.common()
    except NoCommonType as error:
        return _differ(str(error)), {}
    if schema is None:
        return "", {}
    aside: dict[str, Path] = {}
    said = schemas.changes(schema)
    try:
        for place, at in sorted(schemas.of.items()):
            if not schemas.known[at].equals(schema):
                path = folder / name_of[place]
                aside[path.name] = folder / f".{path.name}.{secrets.token_hex(6)}"
                _rewrite(path, aside[path.name], schema, rows=place not in schemas.empty)
        digests = {name: file_digest(path) for name, path in aside.items()}
        for name, path in aside.items():
            path.replace(folder / name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return _differ(f"{said}, and not all values have that type ({' '.join(str(error).split())[:100]})"), {}
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)
    return f"one schema for files that differ: {said}", digests


def _differ(what: str) -> str:
    return (
        f"{DIFFER}{what}; programs cannot read them as one table: give each a schema, or make "
        "the stage return the same columns and types for every file"
    )


def _rewrite(path: Path, to: Path, schema: pa.Schema, *, rows: bool) -> None:
    with pq.ParquetFile(path) as old, pq.ParquetWriter(to, schema, **PARQUET) as new:
        for i in range(old.num_row_groups if rows else 0):
            table = old.read_row_group(i).select(schema.names)
            # A cast that would change a value raises.
            columns = [_cast(table.column(f.name), f.type) for f in schema]
            new.write_table(pa.table(columns, schema=schema), row_group_size=max(1, table.num_rows))
        if not rows:
            new.write_table(schema.empty_table())


def _cast(column: pa.ChunkedArray, to: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(to):
        return column
    return pa.chunked_array([_converted(chunk, to) for chunk in column.chunks], to)


def _converted(array: pa.Array, to: pa.DataType) -> pa.Array:
    if array.type.equals(to):
        return array
    if pa.types.is_struct(to):
        parts = [_converted(array.field(array.type.get_field_index(f.name)), f.type) for f in to]
        return pa.StructArray.from_arrays(parts, fields=list(to), mask=array.is_null() if array.null_count else None)
    if _is_list(to) and _is_list(array.type) and not pa.types.is_fixed_size_list(to):
        if pa.types.is_fixed_size_list(array.type):
            array = array.cast(pa.large_list(array.type.value_field))
        inner = _converted(array.values, to.value_type)
        mask = array.is_null() if array.null_count else None
        return pa.LargeListArray.from_arrays(array.offsets, inner, type=to, mask=mask)
    if pa.types.is_boolean(array.type) and not pa.types.is_boolean(to):
        array = array.cast(pa.uint8())
    return array.cast(to)


def differences(merged: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each output that other programs cannot read as one table.

    Args:
        merged: The outputs there are (`campaign.outputs.merge.Merged`), by name.
    """
    for name, output in sorted(merged.items()):
        for note in output.notes:
            if note.startswith(DIFFER):
                yield f"{name}: {note}"
