"""Reads Iceberg tables with PyIceberg and with DuckDB, and prints their rows as JSON.

usage: read.py CATALOG TABLE...    CATALOG is a JSON object: name, and PyIceberg's properties

Prints a line for each reader and table: {"reader", "table", "columns", "rows"}. Decimals and
identifiers are strings, times are microseconds since 1970, and bytes are in hexadecimal.
"""

import datetime
import decimal
import glob
import json
import sys

import duckdb
import pyarrow as pa
from pyiceberg.catalog import load_catalog

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def value(v):
    if isinstance(v, datetime.datetime):
        return ((v if v.tzinfo else v.replace(tzinfo=datetime.timezone.utc)) - EPOCH) // datetime.timedelta(microseconds=1)
    if isinstance(v, bytes):
        return v.hex()
    if isinstance(v, decimal.Decimal):
        return format(v, "f")
    if isinstance(v, list):
        return [value(x) for x in v]
    if isinstance(v, dict):
        return [value(x) for x in v.values()]
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    return str(v)


def show(reader: str, table: str, data: pa.Table) -> None:
    rows = [[value(v) for v in row.values()] for row in data.to_pylist()]
    print(json.dumps({"reader": reader, "table": table, "columns": data.column_names, "rows": rows}))


def main() -> None:
    properties = json.loads(sys.argv[1])
    catalog = load_catalog(properties.pop("name"), **properties)
    duck = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):  # shipped as Python packages: nothing is downloaded
        (path,) = [p for d in sys.path for p in glob.glob(f"{d}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")]
        duck.execute(f"LOAD '{path}'")
    duck.execute("SET TimeZone = 'UTC'")
    if endpoint := properties.get("s3.endpoint"):
        scheme, _, place = endpoint.partition("://")
        duck.execute(
            "CREATE SECRET (TYPE s3, KEY_ID '%s', SECRET '%s', REGION '%s', ENDPOINT '%s', URL_STYLE 'path', USE_SSL %s)"
            % (properties["s3.access-key-id"], properties["s3.secret-access-key"], properties["s3.region"], place, scheme == "https")
        )
    for name in sys.argv[2:]:
        table = catalog.load_table(name)
        show("PyIceberg", name, table.scan().to_arrow())
        where = table.metadata_location.removeprefix("file://")
        show("DuckDB", name, duck.execute("SELECT * FROM iceberg_scan(?)", [where]).to_arrow_table())


main()
