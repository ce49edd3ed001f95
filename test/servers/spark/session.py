"""A Spark session that answers SQL: one JSON object a line, {"sql": …}, is answered by one, {"rows": […]} or {"error": …}.

usage: session.py SETTINGS    a JSON object, Spark's settings

It ends when its input does, and removes the folder it runs in. Values are JSON's; decimals, dates and bytes (in hexadecimal) are strings, times are microseconds since 1970.
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
    # What Spark prints must not stand among the answers.
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
        except Exception as e:  # whatever it is, the one who asked is told
            answer = {"error": str(e)}
        print(json.dumps(answer), file=answers, flush=True)
    # The test has ended without a word: nobody else will remove the folder.
    spark.stop()
    shutil.rmtree(os.getcwd(), ignore_errors=True)


main()
