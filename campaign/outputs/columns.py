"""Columns: arrays of equal length per row; their partials (Arrow) and their output (Parquet)."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pyarrow as pa

from campaign.errors import ArtefactError, OutputError
from campaign.outputs.column_schemas import PARQUET
from campaign.outputs.counts import what
from campaign.util.casting import DoesNotFit
from campaign.util.files import writing
from campaign.util.lazy import LazyModule
from campaign.util.messages import listed
from campaign.util.text import decoded

if TYPE_CHECKING:
    import pyarrow.parquet as pq
else:
    pq = LazyModule("pyarrow.parquet")

COLUMNS = "columns"


class Columns(dict[str, Any]):
    """Equal-length arrays by column name: numpy arrays, or awkward arrays where entries vary in length."""

    def __init__(self, *args: Any, **columns: Any) -> None:
        super().__init__(*args, **columns)
        for name, column in self.items():
            if not isinstance(name, str) or not _is_array(column):
                raise OutputError(f"the column {name!r} is {what(column)}, not an array")
        lengths = {name: len(column) for name, column in self.items()}
        if len(set(lengths.values())) > 1:
            counted = Counter(lengths.values()).most_common()
            usual = counted[0][0]
            odd = next(name for name, length in lengths.items() if length != usual)
            other = next(name for name, length in lengths.items() if length == usual)
            raise OutputError(
                f"columns differ in length: '{other}' has {usual} entries, '{odd}' has {lengths[odd]}",
                remedy="return one entry per row in every column",
            )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return next((len(column) for column in self.values()), 0)

    def to_awkward(self) -> ak.Array:
        """An awkward record array; what a following stage gets as its batch."""
        contents = [_layout(name, column) for name, column in self.items()]
        return ak.Array(ak.contents.RecordArray(contents, list(self), length=self.rows))


def _layout(name: str, column: Any) -> Any:
    if isinstance(column, np.ma.MaskedArray) and not np.ma.is_masked(column):
        column = column.data
    if isinstance(column, np.ndarray) and column.dtype.kind == "O":
        column = _text(name, column)
    if isinstance(column, np.ndarray) and 0 in column.shape[1:]:
        raise OutputError(f"the column {name!r} has shape {column.shape}: its entries are empty")
    try:
        # A masked array's entries that are missing stay missing.
        return ak.from_numpy(column).layout if isinstance(column, np.ma.MaskedArray) else ak.to_layout(column)
    except (TypeError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise OutputError(f"the column {name!r} cannot be kept: {text}", remedy="use numbers, text or lists") from error


def _text(name: str, column: np.ndarray[Any, Any]) -> Any:
    """Objects that are text, or bytes in UTF-8, as awkward's text."""
    try:
        values = decoded(column)
    except DoesNotFit as error:
        raise OutputError(
            f"the column {name!r} cannot be kept: row {error.row}: {error}", remedy="use numbers, text or lists"
        ) from None
    if not column.size:
        return ak.from_iter([""])[:0] if column.ndim == 1 else column.astype("U1")
    return ak.to_regular(ak.from_iter(values), axis=1) if column.ndim > 1 else ak.from_iter(values)


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping, ak.Record))


def as_columns(array: ak.Array) -> Columns:
    """The fields of a record array."""
    return Columns({name: array[name] for name in ak.fields(array)})


_COLUMNS_FORMAT = b"campaign-columns-1"


def _add_range(content: Any, array: ak.Array) -> None:
    """Add one range's entries, in canonical layout, to a hash."""
    form, length, buffers = ak.to_buffers(array)
    content.update(f"{form.to_json()} {length}".encode())
    for name in sorted(buffers):
        content.update(np.ascontiguousarray(buffers[name]).tobytes())


class ColumnsPartial:
    """Columns streamed to Parquet, one row group per range. The digest is over the arrays, not over the file."""

    kind = COLUMNS

    def __init__(self, path: Path) -> None:
        self.aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        self.rows = 0
        self.notes: list[str] = []
        self._content = hashlib.sha256(_COLUMNS_FORMAT)
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def add(self, value: Any) -> None:
        """Append one range's rows.

        Raises:
            PartialError: They cannot be written.
            OutputError: They are nothing that columns can hold.
        """
        array = _canonical(value)  # reads what no stage has touched yet: what goes wrong there is the input's fault
        table = _table(array)
        if self._writer is not None and not table.schema.equals(self._schema):
            assert self._schema is not None
            raise OutputError(f"columns change between ranges: {_difference(self._schema, table.schema)}")
        try:
            with writing(self.aside):
                self._started(table.schema).write_table(table, row_group_size=max(1, len(array)))
        except pa.ArrowException as error:
            raise _cannot_hold(table.schema, error) from error
        _add_range(self._content, array)
        self.rows += len(array)

    def _started(self, schema: pa.Schema) -> pq.ParquetWriter:
        if self._writer is None:
            self.aside.parent.mkdir(parents=True, exist_ok=True)
            self._schema = schema
            self._writer = pq.ParquetWriter(self.aside, schema, **PARQUET)
        return self._writer

    def write(self, path: Path) -> str:
        """Finish the file and give it its name; raises `PartialError` if it cannot be written."""
        assert self._writer is not None
        with writing(path):
            self._writer.close()
            self.aside.replace(path)
        return self._content.hexdigest()

    def discard(self) -> None:
        """Remove the unfinished file."""
        with contextlib.suppress(OSError):  # a disk that is full has said so before
            if self._writer is not None:
                self._writer.close()
        with contextlib.suppress(OSError):
            self.aside.unlink(missing_ok=True)


def _canonical(value: Columns) -> ak.Array:
    """The same layout for the same entries, whether they come from a stage or from an artefact read back."""
    array = ak.materialize(value.to_awkward())

    def one_kind(layout: Any, **_: Any) -> Any:
        if layout.is_unknown:  # of no entries at all nobody knows the type; numpy says float64 too
            return ak.contents.NumpyArray(np.empty(0))
        return layout.to_IndexedOptionArray64() if layout.is_option and not layout.is_indexed else None

    return ak.to_packed(ak.transform(one_kind, ak.to_packed(array)))


def _table(array: ak.Array) -> pa.Table:
    try:
        return ak.to_arrow_table(array, extensionarray=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise OutputError(f"columns cannot be kept: {text}", remedy="use numbers, text or lists of them") from error


def _cannot_hold(schema: pa.Schema, error: Exception) -> OutputError:
    names = [f.name for f in schema if "union" in str(f.type)] or schema.names
    return OutputError(f"columns cannot be kept: {listed(names)}: {error}", remedy="give each column one type")


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    names = sorted(set(one.names) ^ set(other.names))
    if names:
        return f"{listed(names)} not in all"
    changed = [
        f"{n} ({one.field(n).type} and {other.field(n).type})" for n in one.names if one.field(n) != other.field(n)
    ]
    return listed(changed) or "another order"


class ColumnsReader:
    """An artefact read back range by range, as it was written."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise ArtefactError(f"is not a complete file of columns: {error}", where=str(path)) from error

    def __iter__(self) -> Iterator[ak.Array]:
        for i in range(self._file.num_row_groups):
            try:
                array = ak.from_arrow(self._file.read_row_group(i))
            except (OSError, pa.ArrowException, ValueError, TypeError, MemoryError) as error:  # a page of it is spoilt
                raise ArtefactError(
                    f"is not a complete file of columns: {error}", where=self._name, remedy=_ANEW
                ) from error
            yield array

    def verified(self, sha256: str) -> Iterator[ak.Array]:
        """The ranges. After the last one the content read is compared with the digest of the content written.

        Raises:
            ArtefactError: It is not the same.
        """
        content = hashlib.sha256(_COLUMNS_FORMAT)
        for array in self:
            _add_range(content, _canonical(as_columns(array)))
            yield array
        if content.hexdigest() != sha256:
            raise ArtefactError("has changed since it was written", where=self._name, remedy=_ANEW)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        return self._file.schema_arrow

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self._file.metadata.num_rows)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


_ANEW = "delete it and run again"


def read_columns(path: Path) -> ak.Array:
    """Columns of a partial or of a merged output (a folder of Parquet files, in canonical order)."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    parts = [array for file in files for array in ColumnsReader(file)]
    filled = [array for array in parts if len(array)] or parts[:1]  # an empty range's columns may have no type yet
    return ak.concatenate(filled) if len(filled) > 1 else filled[0]
