"""Reads order_lines with PyIceberg and with DuckDB from its files, and the source file with DuckDB.

Prints one JSON object. For each reader and set of lines, it has the figures that the test compares.

usage: readers.py DATA_FOLDER SOURCE_PARQUET
"""
import json
import os
import sys
from decimal import Decimal

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

data, source = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
table = SqlCatalog("millrace", uri=f"sqlite:///{data}/lake/catalog.db").load_table("millrace.order_lines")

result = {}


def figures(lines, orders, items, sales):
    return {"lines": lines, "orders": orders, "items": items, "sales": str(Decimal(sales).quantize(Decimal("0.001")))}


# PyIceberg: rows as Python objects, summed here.
rows = table.scan(selected_fields=("order_id", "customer_id", "quantity", "unit_price")).to_arrow().to_pylist()
for name, some in (("all", rows), ("customers", [r for r in rows if r["customer_id"] is not None])):
    result[f"pyiceberg {name}"] = figures(
        len(some), len({r["order_id"] for r in some}), sum(r["quantity"] for r in some),
        sum(r["quantity"] * r["unit_price"] for r in some))

# DuckDB: its own reader of Iceberg. The extensions come as packages; nothing is downloaded.
db = duckdb.connect()
site = os.path.dirname(os.path.dirname(duckdb.__file__))
extensions = {}
for folder, _, files in os.walk(site):
    for f in files:
        if f.endswith(".duckdb_extension"):
            extensions[f] = os.path.join(folder, f)
for name in ("avro", "iceberg"):
    db.execute(f"LOAD '{extensions[name + '.duckdb_extension']}'")

FIGURES = "SELECT count(*), count(DISTINCT {order}), sum({quantity})::BIGINT, sum({quantity} * {price})::VARCHAR FROM {source} WHERE {where}"


def query(reader, source, order, quantity, price, where, customer):
    for name, more in (("all", "true"), ("customers", customer)):
        sql = FIGURES.format(source=source, order=order, quantity=quantity, price=price, where=f"({where}) AND {more}")
        result[f"{reader} {name}"] = figures(*db.execute(sql).fetchone())


query("duckdb", f"iceberg_scan('{table.metadata_location.removeprefix('file://')}')",
      "order_id", "quantity::INTEGER", "unit_price::DECIMAL(18,9)", "true", "customer_id IS NOT NULL")
query("source", f"read_parquet('{source}')", "InvoiceNo", "Quantity::INTEGER", "UnitPrice::DECIMAL(18,3)",
      "Quantity > 0 AND UnitPrice > 0 AND InvoiceNo NOT LIKE 'C%'", "CustomerID IS NOT NULL AND NOT isnan(CustomerID)")

json.dump(result, sys.stdout)
