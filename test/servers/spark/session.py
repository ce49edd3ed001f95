"""A Spark session that answers SQL queries on standard input.

usage: session.py SETTINGS    Spark's settings, as a JSON object

Each input line is a query, {"sql": …}. Each output line is its answer, {"rows": […]} or
{"error": …}. Decimals, dates and bytes (in hexadecimal) are strings. Times are microseconds since
1970. The session ends with its input, and removes its working directory.
"""

import datetime
import decimal
import json
import os
import shutil
import sys

from pyspark.sql import SparkSession

EPOCH = datetime.datetime(1970, 1, 1)


def value(v):
    if isinstance(v, datetime.datetime):
        return (v - EPOCH) // datetime.timedelta(microseconds=1)  # in UTC, as TZ says
    if isinstance(v, (bytes, bytearray)):
        return v.hex()
    if isinstance(v, decimal.Decimal):
        return format(v, "f")
    if isinstance(v, (list, tuple)):
        return [value(x) for x in v]
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    return str(v)


def main() -> None:
    # Answers have a descriptor of their own, so that Spark's output does not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    builder = SparkSession.builder
    for name, setting in json.loads(sys.argv[1]).items():
        builder = builder.config(name, setting)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    for line in sys.stdin:
        try:
            answer = {"rows": [value(row) for row in spark.sql(json.loads(line)["sql"]).collect()]}
        except Exception as e:  # every error is an answer
            answer = {"error": str(e)}
        print(json.dumps(answer), file=answers, flush=True)
    # The input has ended. After a killed test, no other process removes the folder.
    spark.stop()
    shutil.rmtree(os.getcwd(), ignore_errors=True)


main()
