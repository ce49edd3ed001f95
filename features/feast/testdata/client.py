"""An unmodified Feast client, whose registry is generated and whose stores are the servers under test.

expected.json has the vectors, as the definition computes them."""
import json
from datetime import datetime

import pandas as pd
from feast import FeatureStore
from feast.errors import FeastError, FeatureViewNotFoundException

store = FeatureStore(".")
expected = json.load(open("expected.json"))


def check(got, want):
    assert got == want, f"got {got}, want {want}"


check(sorted(v.name for v in store.list_feature_views()), ["activity", "stock", "value"])
check(sorted(e.name for e in store.list_entities()), ["customer_id", "sku"])
check({f.name: str(f.dtype) for f in store.get_feature_view("activity").features}, {
    "orders_7d": "Int64", "orders_1h": "Int64", "mean_1h": "Float64", "country_lifetime": "String",
    "countries_7d": "Array(String)",
})

# Training sets: several entities, each row at its time and as known at its own time.
rows = expected["historical"]
entities = pd.DataFrame({
    "customer_id": [r["customer_id"] for r in rows], "sku": [r["sku"] for r in rows],
    "event_timestamp": pd.to_datetime([r["event_timestamp"] for r in rows], utc=True, format="ISO8601"),
    "as_known_at": pd.to_datetime([r["as_known_at"] for r in rows], utc=True, format="ISO8601"),
    "label": range(len(rows)),
})
features = ["activity:orders_7d", "activity:mean_1h", "activity:country_lifetime", "activity:countries_7d",
            "value:orders_7d", "stock:sold_7d"]
job = store.get_historical_features(entity_df=entities, features=features, full_feature_names=True)
names = [f.replace(":", "__") for f in features]
table = job.to_arrow()
check(table.column_names, list(entities.columns) + names)
check(table.column("label").to_pylist(), list(range(len(rows))))
for i, row in enumerate(table.select(names).to_pylist()):
    check(row, {name: rows[i][name] for name in names})
frame = job.to_df()
check(list(frame["customer_id"]), list(entities["customer_id"]))
check(list(frame["event_timestamp"]), list(entities["event_timestamp"]))

# Without as_known_at, a row knows what was known at its time. A table may be a part of another one.
part = entities.drop(columns=["as_known_at", "sku"])[3:7]
table = store.get_historical_features(part, features=["activity:orders_7d"]).to_arrow()
check(table.column_names, ["customer_id", "event_timestamp", "label", "orders_7d"])
check(table.column("orders_7d").to_pylist(), [r["known_then"] for r in rows[3:7]])

# A feature service; keys as categories, times without a zone.
service = store.get_feature_service("activity")
part = pd.DataFrame({"customer_id": pd.Categorical(["c1", "c2", "c1"]),
                     "event_timestamp": [datetime(2026, 3, 1, 12)] * 3, "as_known_at": [datetime(2030, 1, 1)] * 3})
table = store.get_historical_features(part, features=service).to_arrow()
online = store.get_online_features(service, entity_rows=[{"customer_id": c} for c in ("c1", "c2", "c1")]).to_dict()
for name in [f.name for f in store.get_feature_view("activity").features]:
    check(table.column(name).to_pylist(), online[name])

# Vectors of the present, of two entities.
online = store.get_online_features(["value:orders_7d", "stock:sold_7d"],
                                   entity_rows=[{"customer_id": "c1", "sku": "1"}]).to_dict()
check(online, {"customer_id": ["c1"], "sku": ["1"], **expected["online"]})

# Errors are Feast's own.
for frame, features, kind, text in [
    (entities.drop(columns="customer_id"), ["activity:orders_7d"], FeastError, "no column customer_id"),
    (entities, ["missing:orders_7d"], FeatureViewNotFoundException, "missing"),
    (entities.rename(columns={"label": "orders_7d"}), ["activity:orders_7d"], FeastError, "also the name of a feature"),
    ("SELECT 1", ["activity:orders_7d"], FeastError, "pass a DataFrame"),
    (None, ["activity:orders_7d"], FeastError, "entity_df is missing"),
]:
    try:
        store.get_historical_features(frame, features=features).to_df()
    except kind as e:
        assert text in str(e), e
    else:
        raise SystemExit(f"{text}: no error")
print("all right")
