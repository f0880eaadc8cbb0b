"""A folder of columns is one table to other programs, whatever types its files had; values are what they were."""

from __future__ import annotations

import re

import awkward as ak
import numpy as np
import polars as pl
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from campaign.outputs.column_schemas import DIFFER, Schemas, unify
from campaign.outputs.columns import Columns, ColumnsPartial, ColumnsReader


def folder_of(path, *files):
    """Files as a task leaves them, and what is known of their types."""
    path.mkdir(exist_ok=True)
    schemas = Schemas()
    for i, columns in enumerate(files):
        file = path / f"{i:06d}.parquet"
        partial = ColumnsPartial(file)
        partial.add(Columns(columns))
        partial.write(file)
        reader = ColumnsReader(file)
        schemas.add(i, reader.schema, reader.rows)
        reader.close()
    return {i: f"{i:06d}.parquet" for i in range(len(files))}, schemas


I4, I8, F4, F8 = (np.arange(3, dtype=t) for t in ("i4", "i8", "f4", "f8"))
JAGGED = {"x": ak.Array([[1, 2], []])}
TOGETHER = {
    "i4 i8": ([{"x": I4}, {"x": I8}], "int64"),
    "f4 f8": ([{"x": F4}, {"x": F8 + 0.1}], "double"),
    "i8 f8": ([{"x": I8}, {"x": F8 + 0.5}], "double"),
    "i4 f4": ([{"x": I4}, {"x": F4}], "double"),
    "bool i4": ([{"x": np.array([True, False])}, {"x": I4 + 5}], "int32"),
    "u1 i1": ([{"x": np.array([255], "u1")}, {"x": np.array([-1], "i1")}], "int16"),
    "u8 i8": ([{"x": np.arange(3, dtype="u8")}, {"x": -I8}], "double"),
    "f2 f8": ([{"x": np.arange(3, dtype="f2")}, {"x": F8}], "double"),
    "missing entries": ([{"x": I8}, {"x": ak.Array([1, None])}], "int64 or missing"),
    "missing entries of another type": ([{"x": ak.Array([None, 2])}, {"x": F8 + 0.5}], "double or missing"),
    "jagged": ([JAGGED, {"x": ak.Array([[1.5], []])}], "large_list<element: double not null>"),
    "jagged, missing lists": (
        [JAGGED, {"x": ak.Array([[1.5], None, []])}], "large_list<element: double not null> or missing",
    ),
    "jagged, missing numbers": (
        [{"x": ak.Array([[1, None]])}, {"x": ak.Array([[2.5]])}], "large_list<element: double>",
    ),
    "jagged and regular": ([JAGGED, {"x": np.arange(6).reshape(3, 2)}], "large_list<element: int64 not null>"),
    "regular of two sizes": ([{"x": np.ones((3, 3))}, {"x": np.zeros((3, 2))}], "large_list<element: double not null>"),
    "regular of two types": (
        [{"x": np.ones((3, 2))}, {"x": np.arange(6).reshape(3, 2)}], "fixed_size_list<element: double not null>[2]",
    ),
    "no rows": ([JAGGED, {"x": ak.Array([])}, JAGGED], "large_list<element: int64 not null>"),
    "no rows first": ([{"x": np.zeros(0), "z": np.zeros(0)}, {"x": ak.Array(["a", "b"])}], "large_string"),
    "text": ([{"x": ak.Array(["a"])}, {"x": ak.Array(["b", None])}], "large_string or missing"),
    "records": (
        [{"x": ak.Array([{"a": 1, "b": [1]}])}, {"x": ak.Array([{"b": [2.5], "a": 2}, {"b": [], "a": 3}])}], "struct<",
    ),
    "order": ([{"x": I8, "y": F8}, {"y": F8, "x": I8}], "int64"),
    "categories": ([{"x": ak.str.to_categorical(ak.Array(["a", "b"]))}, {"x": ak.Array(["b", "c"])}], "large_string"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_files_of_different_types_become_one_table_with_the_same_values(tmp_path, case):
    """The type is numpy's common one; pyarrow, awkward and polars read all rows in order, as each file had them."""
    files, kind = TOGETHER[case]
    partials, made = tmp_path / "partials", tmp_path / "made"
    names, schemas = folder_of(partials, *files)
    before = {name: (partials / name).read_bytes() for name in names.values()}
    made.mkdir()
    for name in names.values():
        (made / name).hardlink_to(partials / name)
    note, digests = unify(made, names, schemas)
    assert not note.startswith(DIFFER), note
    assert {name: (partials / name).read_bytes() for name in names.values()} == before
    assert {n for n in names.values() if (made / n).stat().st_ino != (partials / n).stat().st_ino} == set(digests)
    assert sorted(p.name for p in made.iterdir()) == sorted(names.values())
    assert len({str(pq.read_schema(made / n).remove_metadata()) for n in names.values()}) == 1
    field = pq.read_schema(made / "000000.parquet").field("x")
    assert f"{field.type}{' or missing' if field.nullable else ''}".startswith(kind)
    want = [row for columns in files for row in ak.to_list(Columns(columns).to_awkward())]
    want = [{name: row[name] for name in sorted(row)} for row in want]
    for got in (pads.dataset(made).to_table().to_pylist(), ak.to_list(ak.from_parquet(made)),
                pl.read_parquet(made).to_dicts()):  # fmt: skip
        assert [{name: row[name] for name in sorted(row)} for row in got] == want
        assert [str(type(r["x"])) for r in got[:1]] == [str(type(r["x"])) for r in got[-1:]] or "missing" in kind


APART = {
    "a column that some lack": ([{"x": I8}, {"x": I8, "y": F8}], "the columns y, which some lack"),
    "text and numbers": ([{"x": ak.Array(["a"])}, {"x": I8}], r"the type of x \(int64, large_string\)"),
    "records of other members": ([{"x": ak.Array([{"a": 1}])}, {"x": ak.Array([{"c": 1}])}], "the type of x "),
    "no common type holds it": (
        [{"x": np.array([2**53 + 1])}, {"x": F8}], r"x \(double, int64: double\), and not all values have that type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_files_that_no_schema_fits_stay_as_they_are_and_are_told(tmp_path, case):
    """No value is changed and none is made up: what differs is named, for the report to warn of."""
    files, said = APART[case]
    names, schemas = folder_of(tmp_path / "d", *files)
    before = {name: (tmp_path / "d" / name).read_bytes() for name in names.values()}
    note, digests = unify(tmp_path / "d", names, schemas)
    assert note.startswith(DIFFER)
    assert re.search(said, note), note
    assert digests == {}
    assert {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()} == before


def test_schemas_joined_are_those_of_all_files(tmp_path):
    """What leaves of a merge know of their files is what one merge of all would know."""
    _, whole = folder_of(tmp_path / "d", {"x": I4}, {"x": I8}, {"x": np.zeros(0)}, {"x": I4})
    parts = Schemas(), Schemas()
    for place, at in whole.of.items():
        parts[place // 2].add(place, whole.known[at], place not in whole.empty)
    joined = Schemas()
    for part in parts:
        joined.join(part.told())
    assert joined.common() == whole.common()
    assert (joined.of, joined.empty) == (whole.of, whole.empty)
