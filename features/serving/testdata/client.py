"""An unmodified Feast client, whose online store is the server under test."""
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import FeatureServiceNotFoundException
from feast.types import Array, Float64, Int64, String

customer = Entity(name="customer_id", join_keys=["customer_id"], value_type=ValueType.STRING)
activity = FeatureView(
    name="activity", entities=[customer],
    source=FileSource(path="unused.parquet", timestamp_field="event_timestamp"),
    schema=[
        Field(name="customer_id", dtype=String), Field(name="orders_7d", dtype=Int64),
        Field(name="orders_1h", dtype=Int64), Field(name="spent_7d", dtype=Float64),
        Field(name="mean_1h", dtype=Float64), Field(name="country_lifetime", dtype=String),
        Field(name="countries_lifetime", dtype=Array(String)),
    ],
)
service = FeatureService(name="activity", features=[activity])
missing = FeatureService(name="missing", features=[activity])
store = FeatureStore(".")
store.registry.apply_entity(customer, "test")
store.registry.apply_feature_view(activity, "test")
store.registry.apply_feature_service(service, "test")


def get(features, rows, **more):
    return store.get_online_features(features=features, entity_rows=rows, **more).to_dict()


def check(got, want):
    assert got == want, f"got {got}, want {want}"


rows = [{"customer_id": name} for name in ("c1", "nobody", "c2")]
refs = ["activity:orders_7d", "activity:spent_7d", "activity:mean_1h", "activity:country_lifetime"]
check(get(refs[:1], rows[:1]), {"customer_id": ["c1"], "orders_7d": [2]})
check(get(refs, rows), {
    "customer_id": ["c1", "nobody", "c2"], "orders_7d": [2, None, 1], "spent_7d": [3.0, None, 1e-05],
    "mean_1h": [None, None, None], "country_lifetime": ["GB", None, None],
})
check(get(refs[:1], rows[:1], full_feature_names=True), {"customer_id": ["c1"], "activity__orders_7d": [2]})
check(get(service, rows[:1]), {
    "customer_id": ["c1"], "orders_7d": [2], "orders_1h": [0], "spent_7d": [3.0], "mean_1h": [None],
    "country_lifetime": ["GB"], "countries_lifetime": [["GB", 'ü"<\n']],
})
try:
    get(missing, rows)
    raise SystemExit("an unknown feature service was answered")
except FeatureServiceNotFoundException as e:
    check(str(e), "Feature service missing does not exist")
print("all right")
