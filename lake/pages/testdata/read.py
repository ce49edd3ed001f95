"""Reads two Parquet files with PyArrow and with DuckDB, and fails unless each finds the same in both.

usage: read.py OURS THEIRS

Prints a line for each reader: its name, and how many rows it found.
"""

import sys

import duckdb
import pyarrow.parquet as pq


def same(what, ours, theirs):
    if ours != theirs:
        sys.exit(f"{what}:\n{ours}\nnot\n{theirs}")


ours, theirs = sys.argv[1:]

# As text, in which one NaN is like the other.
have, want = pq.read_table(ours), pq.read_table(theirs)
same("PyArrow, schema", have.schema, want.schema)
for name in want.column_names:
    same(f"PyArrow, column {name}", str(have[name].to_pylist()), str(want[name].to_pylist()))
groups = pq.ParquetFile(ours).metadata
for i in range(groups.num_row_groups):
    for j in range(groups.num_columns):
        a, b = groups.row_group(i).column(j), pq.ParquetFile(theirs).metadata.row_group(i).column(j)
        same(f"PyArrow, values of {a.path_in_schema}", a.num_values, b.num_values)
        if "." not in a.path_in_schema:  # arrow-go has some wrong inside of lists
            same(f"PyArrow, bounds of {a.path_in_schema}", str(a.statistics.to_dict()), str(b.statistics.to_dict()))
print("PyArrow", have.num_rows)


def duck(path):
    read = f"from read_parquet('{path}')"
    names = [c[0] for c in duckdb.sql(f"describe select * {read}").fetchall()]
    rows = duckdb.sql(f"select * {read}").to_arrow_table().to_pylist()
    # What a filter leaves of them, for which it looks at bounds and dictionaries.
    some = [duckdb.sql(f'select count(*) {read} where "{n}" = (select max("{n}") {read})').fetchall() for n in names]
    return rows, some


rows, some = duck(ours)
same("DuckDB", str((rows, some)), str(duck(theirs)))
print("DuckDB", len(rows))
