#!/usr/bin/env bash
# A folder of Parquet files is read with the types of its first file, and values of the others are changed silently.
#
# pyarrow 26.0.1. Source: pyarrow.dataset.dataset, which takes the schema of the first fragment unless one is given.
# The first file has a bool column, the second an int64 column of that name with 0 and 5: the table says False and True.
# The first file has float32, the second float64 with 0.1: the table says 0.10000000149011612. Nothing is raised or warned of.
# The remedy: give dataset() a schema made by unify_schemas(..., promote_options="permissive"); it refuses bool with int64.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q pyarrow==26.0.1
"$place/venv/bin/python" - "$place" <<'PY' | tee "$place/seen"
import sys
from pathlib import Path
import pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq

def read(name, first, second):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    for file, array in (("a", first), ("b", second)):
        pq.write_table(pa.table({"c": array}), folder / f"{file}.parquet")
    return ds.dataset(folder).to_table()["c"].to_pylist()

print("bool, then int64:", read("bool", pa.array([True]), pa.array([0, 5])))
print("float32, then float64:", read("float", pa.array([1.0], pa.float32()), pa.array([0.1])))
PY
diff "$place/seen" - <<'SEEN'
bool, then int64: [True, False, True]
float32, then float64: [1.0, 0.10000000149011612]
SEEN
echo "as described"
