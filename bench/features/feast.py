"""Feast repository of the benchmark. Run as a program, it fills the online store."""
from datetime import datetime, timedelta, timezone

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

features = open("features.txt").read().split()
customer = Entity(name="customer_id", join_keys=["customer_id"], value_type=ValueType.STRING)
bench = FeatureView(
    name="bench", entities=[customer], ttl=timedelta(days=0),
    source=FileSource(path="unused.parquet", timestamp_field="event_timestamp"),
    schema=[Field(name="customer_id", dtype=String)] + [Field(name=f, dtype=Float64) for f in features],
)

if __name__ == "__main__":
    import pandas as pd

    entities = open("entities.txt").read().split()
    frame = {f: [float(i)] * len(entities) for i, f in enumerate(features)}
    frame["customer_id"] = entities
    frame["event_timestamp"] = [datetime.now(timezone.utc)] * len(entities)
    frame = pd.DataFrame(frame)
    frame.to_parquet("unused.parquet")
    store = FeatureStore(".")
    store.apply([customer, bench])
    store.write_to_online_store("bench", frame)
