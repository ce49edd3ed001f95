"""Counts a table's rows, and sums up their hashes, with PyIceberg and with DuckDB.

Both find the table through a REST catalog, which also vends the credentials for the files.

Standard input is a JSON object: catalog (PyIceberg's properties), table, columns (see columns.go),
duckdb (the query for DuckDB). Prints a line for each reader: {"Engine", "Count", "Hash"}, or
{"Engine", "Refused"} if the reader reports that it cannot read such a table.
"""

import datetime
import glob
import hashlib
import json
import sys

import duckdb
from pyiceberg.catalog import load_catalog

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def zero(column: dict) -> str:
    if len(column["path"]) == 1 and column["kind"] not in ("size", "entries", "elements"):
        return "~"
    return {"number": "0", "time": "0", "size": "0", "entries": "0", "bool": "false", "decimal": "0." + "0" * column["scale"]}.get(column["kind"], "")


def text(column: dict, v) -> str:
    for name in column["path"][1:]:
        v = None if v is None else v[name]
    if v is None:
        return zero(column)
    kind = column["kind"]
    if kind == "time":
        return str((v - EPOCH) // datetime.timedelta(microseconds=1))
    if kind == "binary":
        return v.hex()
    if kind == "bool":
        return str(v).lower()
    if kind == "decimal":
        return f"{v:.{column['scale']}f}"
    if kind in ("size", "entries"):
        return str(len(v))
    if kind == "elements":
        return ",".join(("" if e is None else e) if not column["element"] else ((e or {}).get(column["element"]) or "") for e in v)
    return str(v)


def hashed(columns: list, batches) -> tuple[int, int]:
    count = total = 0
    for batch in batches:
        values = {name: batch.column(name).to_pylist() for name in {c["path"][0] for c in columns}}
        for i in range(batch.num_rows):
            row = "|".join(text(c, values[c["path"][0]][i]) for c in columns)
            total += int(hashlib.md5(row.encode()).hexdigest()[:15], 16)
        count += batch.num_rows
    return count, total


def pyiceberg(ask: dict) -> dict:
    properties = dict(ask["catalog"])
    catalog = load_catalog(properties.pop("name"), **properties)
    try:
        count, total = hashed(ask["columns"], catalog.load_table(ask["table"]).scan().to_arrow_batch_reader())
    except ValueError as e:
        if "equality delete" not in str(e):
            raise
        return {"Engine": "PyIceberg", "Refused": str(e)}
    return {"Engine": "PyIceberg", "Count": str(count), "Hash": str(total)}


def duck(ask: dict) -> dict:
    properties = ask["catalog"]
    db = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):  # shipped as Python packages: nothing is downloaded
        (path,) = [p for d in sys.path for p in glob.glob(f"{d}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")]
        db.execute(f"LOAD '{path}'")
    db.execute("SET TimeZone = 'UTC'")
    client, _, secret = properties["credential"].partition(":")
    db.execute(f"CREATE SECRET (TYPE iceberg, CLIENT_ID '{client}', CLIENT_SECRET '{secret}', OAUTH2_SERVER_URI '{properties['oauth2-server-uri']}')")
    db.execute(f"ATTACH '{properties['warehouse']}' AS lake (TYPE iceberg, ENDPOINT '{properties['uri']}')")
    count, total = db.execute(ask["duckdb"]).fetchone()
    return {"Engine": "DuckDB", "Count": str(count), "Hash": str(total)}


def main() -> None:
    ask = json.load(sys.stdin)
    for read in (pyiceberg, duck):
        print(json.dumps(read(ask)), flush=True)


main()
