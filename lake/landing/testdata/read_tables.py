"""Reads the lake's tables with PyIceberg and with DuckDB, straight from the files, and prints what they hold as JSON.

usage: read_tables.py CATALOG TABLE...

CATALOG is SQLAlchemy's URL of the SQL catalog. Tables at s3:// are reached by the environment variables S3_ENDPOINT
(http://host:port), S3_REGION, S3_ACCESS_KEY and S3_SECRET_KEY.

For each reader and table one line: {"reader", "table", "metadata", "columns", "rows"}, or {"reader", "table", "metadata", "error"}. A row is a list of strings, null
where the value is: times as microseconds since 1970, decimals and integers in decimal, bytes in hexadecimal, what is
nested as JSON of such strings.
"""

import datetime
import decimal
import glob
import json
import os
import sys

import duckdb
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog


def text(column: pa.ChunkedArray) -> list:
    if pa.types.is_timestamp(column.type):  # microseconds, whatever Python's datetime holds
        assert column.type.unit == "us" and column.type.tz is not None, column.type
        return [None if v is None else str(v) for v in column.cast(pa.int64()).to_pylist()]
    values = [leaf(column.type, v) for v in column.to_pylist()]
    if pa.types.is_nested(column.type):
        return [None if v is None else json.dumps(v, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for v in values]
    return values


def leaf(kind: pa.DataType, v):
    """A value as text; a struct as an object of such, a list as a list, a map as a list of pairs."""
    if v is None:
        return None
    if pa.types.is_struct(kind):
        return {f.name: leaf(f.type, v[f.name]) for f in kind}
    if pa.types.is_map(kind):
        return [[leaf(kind.key_type, k), leaf(kind.item_type, w)] for k, w in v]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [leaf(kind.value_type, w) for w in v]
    if pa.types.is_timestamp(kind):
        return str((v - EPOCH) // datetime.timedelta(microseconds=1))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return v.hex()
    if pa.types.is_decimal(kind):
        assert (kind.precision, kind.scale) == (38, 9), kind
        return f"{v:.9f}"
    if pa.types.is_boolean(kind):
        return str(v).lower()
    return str(v)


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def show(reader: str, table: str, metadata: str, data: pa.Table) -> None:
    columns = [text(data.column(name)) for name in data.column_names]
    rows = [list(row) for row in zip(*columns)]
    print(json.dumps({"reader": reader, "table": table, "metadata": metadata, "columns": data.column_names, "rows": rows}))


def store() -> dict[str, str]:
    if "S3_ENDPOINT" not in os.environ:
        return {}
    return {
        "s3.endpoint": os.environ["S3_ENDPOINT"],
        "s3.region": os.environ["S3_REGION"],
        "s3.access-key-id": os.environ["S3_ACCESS_KEY"],
        "s3.secret-access-key": os.environ["S3_SECRET_KEY"],
    }


def main() -> None:
    decimal.getcontext().prec = 60
    catalog = SqlCatalog("millrace", uri=sys.argv[1], **store())
    duck = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):  # shipped as Python packages: nothing is downloaded
        (path,) = [p for d in sys.path for p in glob.glob(f"{d}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")]
        duck.execute(f"LOAD '{path}'")
    duck.execute("SET TimeZone = 'UTC'")
    if endpoint := os.environ.get("S3_ENDPOINT"):
        scheme, _, place = endpoint.partition("://")
        duck.execute(
            "CREATE SECRET (TYPE s3, KEY_ID '%s', SECRET '%s', REGION '%s', ENDPOINT '%s', URL_STYLE 'path', USE_SSL %s)"
            % (os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"], os.environ["S3_REGION"], place, scheme == "https")
        )
    for name in sys.argv[2:]:
        table = catalog.load_table(f"millrace.{name}")
        try:
            show("pyiceberg", name, table.metadata_location, table.scan().to_arrow())
        except ValueError as e:  # it reads no deletes by equality, and says so
            print(json.dumps({"reader": "pyiceberg", "table": name, "metadata": table.metadata_location, "error": str(e)}))
        where = table.metadata_location.removeprefix("file://")
        data = duck.execute("SELECT * FROM iceberg_scan(?)", [where]).to_arrow_table()
        show("duckdb", name, table.metadata_location, data)


main()
