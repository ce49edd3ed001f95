"""An unmodified Feast client with generated settings, which reads over TLS with a token of its environment.

WANT_ONLINE and WANT_OFFLINE are parts of the errors of the two stores; empty: they answer."""
import os
from datetime import datetime

import pandas as pd
from feast import FeatureStore

store = FeatureStore(".")
entities = pd.DataFrame({"customer_id": ["c1"], "event_timestamp": [datetime(2026, 3, 1, 12)]})


def online():
    return store.get_online_features(["activity:orders_7d"], entity_rows=[{"customer_id": "c1"}]).to_dict()["orders_7d"]


def offline():
    return store.get_historical_features(entities, features=["activity:orders_7d"]).to_df()["orders_7d"].to_list()


for read, want in [(online, os.environ["WANT_ONLINE"]), (offline, os.environ["WANT_OFFLINE"])]:
    try:
        values = read()
    except Exception as e:
        assert want and want in f"{type(e).__name__}: {e}", f"{read.__name__}: {type(e).__name__}: {e}, want {want!r}"
        continue
    assert not want, f"{read.__name__}: {values}, want {want!r}"
    assert len(values) == 1 and values[0] > 0, values
print("all right")
