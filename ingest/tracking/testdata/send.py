# Sends events with Segment's client for Python: send.py URL WRITE_KEY COUNT PAUSE_MS.
import sys
import time

from segment.analytics.client import Client

url, key, count, pause = sys.argv[1:]
client = Client(key, host=url, gzip=True, upload_size=7, upload_interval=0.05, max_retries=1000)
for n in range(int(count)):
    client.track(f"user-{n % 5}", "Sent", {"n": n})
    time.sleep(int(pause) / 1000)
client.flush()  # blocks until every event is delivered, or given up
client.join()
print("done", flush=True)
