"""Uses a REST catalog as PyIceberg's and DuckDB's users do, and fails where something is not as they would expect.

usage: client.py URI CREDENTIAL

CREDENTIAL is id:secret for OAuth2's client credentials flow. Nothing tells the clients where the files are, nor how to
reach them: they learn that from the catalog.
"""

import glob
import sys
import threading

import duckdb
import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NamespaceNotEmptyError,
    NoSuchNamespaceError,
    NoSuchTableError,
    OAuthError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import LongType, NestedField, StringType


def fails(error: type, call, *args, **kwargs) -> None:
    try:
        call(*args, **kwargs)
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def data(*numbers: int) -> pa.Table:
    return pa.table({"n": pa.array(numbers, pa.int64()), "text": pa.array([f"row {n}" for n in numbers])})


def numbers(table) -> list[int]:
    return sorted(table.scan().to_arrow()["n"].to_pylist())


def namespaces(catalog) -> None:
    catalog.create_namespace("shop", {"owner": "anna"})
    fails(NamespaceAlreadyExistsError, catalog.create_namespace, "shop")
    catalog.create_namespace(("shop", "inner"))
    assert catalog.list_namespaces() == [("shop",)], catalog.list_namespaces()
    assert catalog.list_namespaces("shop") == [("shop", "inner")], catalog.list_namespaces("shop")
    assert catalog.load_namespace_properties("shop") == {"owner": "anna"}
    summary = catalog.update_namespace_properties("shop", {"owner"}, {"since": "today"})
    assert (summary.removed, summary.updated, summary.missing) == (["owner"], ["since"], []), summary
    assert catalog.namespace_exists("shop") and not catalog.namespace_exists("none")
    fails(NamespaceNotEmptyError, catalog.drop_namespace, "shop")
    catalog.drop_namespace(("shop", "inner"))
    fails(NoSuchNamespaceError, catalog.load_namespace_properties, "none")
    assert catalog.list_views("shop") == []


def tables(catalog) -> None:
    schema = Schema(NestedField(11, "n", LongType()), NestedField(12, "text", StringType()))
    orders = catalog.create_table(
        "shop.orders",
        schema,
        partition_spec=PartitionSpec(PartitionField(11, 1000, BucketTransform(2), "part")),
        sort_order=SortOrder(SortField(12, IdentityTransform())),
        properties={"comment": "of the shop"},
    )
    fails(TableAlreadyExistsError, catalog.create_table, "shop.orders", schema)
    fails(ForbiddenError, catalog.create_table, "shop.elsewhere", schema, location="file:///etc/elsewhere")
    orders.append(data(1, 2, 3))
    orders.append(data(4))
    assert numbers(catalog.load_table("shop.orders")) == [1, 2, 3, 4]

    stale = catalog.load_table("shop.orders")
    orders.append(data(5))
    fails(CommitFailedException, stale.append, data(6))

    with orders.transaction() as transaction:  # one commit
        transaction.append(data(7))
        transaction.set_properties(checked="yes")
        with transaction.update_schema() as update:
            update.add_column("note", StringType())
            update.rename_column("text", "words")
    have = catalog.load_table("shop.orders")
    assert have.properties["checked"] == "yes" and [f.name for f in have.schema().fields] == ["n", "words", "note"], have
    assert numbers(have) == [1, 2, 3, 4, 5, 7], numbers(have)
    have.delete("n >= 5")
    have.overwrite(data(1, 2, 3).rename_columns(["n", "words"]))
    assert numbers(catalog.load_table("shop.orders")) == [1, 2, 3]
    have.manage_snapshots().create_tag(have.history()[0].snapshot_id, "first").commit()

    catalog.rename_table("shop.orders", "shop.renamed")
    fails(NoSuchTableError, catalog.load_table, "shop.orders")
    assert numbers(catalog.load_table("shop.renamed")) == [1, 2, 3]
    assert catalog.list_tables("shop") == [("shop", "renamed")], catalog.list_tables("shop")

    with catalog.create_table_transaction("shop.staged", schema) as transaction:
        assert not catalog.table_exists("shop.staged")
        transaction.append(data(1))
    assert numbers(catalog.load_table("shop.staged")) == [1]

    where = catalog.load_table("shop.staged").metadata_location
    catalog.drop_table("shop.staged")
    assert not catalog.table_exists("shop.staged")
    registered = catalog.register_table("shop.registered", where)
    assert numbers(registered) == [1]
    catalog.purge_table("shop.registered")
    fails(NoSuchTableError, catalog.load_table, "shop.registered")


def together(catalog) -> None:
    """Writers that try again lose nothing."""
    catalog.create_table("shop.together", data(0).schema)
    failures = []

    def write(first: int) -> None:
        for n in range(first, first + 4):
            while True:
                try:
                    catalog.load_table("shop.together").append(data(n))
                    break
                except CommitFailedException:
                    continue
                except Exception as e:
                    failures.append(e)
                    return

    threads = [threading.Thread(target=write, args=(10 * i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures
    assert numbers(catalog.load_table("shop.together")) == [10 * i + n for i in range(3) for n in range(4)]


def duck(uri: str, client: str, secret: str) -> None:
    db = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):  # shipped as Python packages: nothing is downloaded
        (path,) = [p for d in sys.path for p in glob.glob(f"{d}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")]
        db.execute(f"LOAD '{path}'")
    db.execute(f"CREATE SECRET lake (TYPE iceberg, CLIENT_ID '{client}', CLIENT_SECRET '{secret}', OAUTH2_SERVER_URI '{uri}/v1/oauth/tokens')")
    db.execute(f"ATTACH 'millrace' AS lake (TYPE iceberg, ENDPOINT '{uri}', SECRET lake)")
    assert db.execute("SELECT n FROM lake.shop.renamed ORDER BY n").fetchall() == [(1,), (2,), (3,)]
    db.execute("CREATE TABLE lake.shop.ducks (n BIGINT, name VARCHAR)")
    db.execute("INSERT INTO lake.shop.ducks VALUES (1, 'one'), (2, 'two')")
    assert db.execute("SELECT sum(n) FROM lake.shop.ducks").fetchall() == [(3,)]
    db.execute("DROP TABLE lake.shop.ducks")


def main() -> None:
    uri, credential = sys.argv[1:]
    client, _, secret = credential.partition(":")
    fails(OAuthError, load_catalog, "wrong", type="rest", uri=uri, credential=client + ":wrong")
    catalog = load_catalog("millrace", type="rest", uri=uri, credential=credential, warehouse="millrace")
    namespaces(catalog)
    tables(catalog)
    together(catalog)
    duck(uri, client, secret)
    for _, name in catalog.list_tables("shop"):
        catalog.drop_table(f"shop.{name}")
    catalog.drop_namespace("shop")
    print("all as expected")


main()
