"""Reads a topic with Confluent's Python client and its deserializers.

usage: read_topic.py BROKERS REGISTRY_URL TOPIC avro
       read_topic.py BROKERS REGISTRY_URL TOPIC protobuf DESCRIPTOR_SET MESSAGE

Prints each value as a line of JSON: {"partition", "offset", "content_type", "value"}. An Avro value
is the deserializer's result, with times as microseconds since 1970, and decimals and bytes as text.
A Protobuf value is the message as Python serialises it, in hexadecimal.
"""

import datetime
import decimal
import json
import sys

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def plain(value):
    if isinstance(value, datetime.datetime):
        return str((value - EPOCH) // datetime.timedelta(microseconds=1))
    if isinstance(value, decimal.Decimal):
        return f"{value:.9f}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    return str(value)


def message_class(descriptor_set: str, name: str):
    files = descriptor_pb2.FileDescriptorSet()
    with open(descriptor_set, "rb") as f:
        files.ParseFromString(f.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def main() -> None:
    decimal.getcontext().prec = 60
    brokers, url, topic, form = sys.argv[1:5]
    registry = SchemaRegistryClient({"url": url})
    if form == "avro":
        deserialize, show = AvroDeserializer(registry), plain
    else:
        message = message_class(*sys.argv[5:7])
        # The message's class is enough to decode it. With a registry, the client would also request
        # the schema in another format, for data contracts, and Apicurio 3.3.3 fails to return that.
        deserialize = ProtobufDeserializer(message, {"use.deprecated.format": False})
        show = lambda m: m.SerializeToString(deterministic=True).hex()

    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "python", "enable.auto.commit": False, "isolation.level": "read_committed"})
    left = {}
    for p in consumer.list_topics(topic, timeout=30).topics[topic].partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30)
        if high > low:
            left[p] = high
    consumer.assign([TopicPartition(topic, p, 0) for p in left])
    while left:
        m = consumer.poll(30)
        if m is None:
            raise SystemExit(f"nothing came within 30 s, and these partitions have more: {left}")
        if m.error():
            raise SystemExit(str(m.error()))
        value = deserialize(m.value(), SerializationContext(topic, MessageField.VALUE))
        headers = dict(m.headers())
        print(json.dumps({"partition": m.partition(), "offset": m.offset(), "content_type": headers["content-type"].decode(), "value": show(value)}))
        # The marker that ends a transaction follows its last record, and has the last offset.
        if m.offset() + 2 >= left[m.partition()]:
            del left[m.partition()]
    consumer.close()


if __name__ == "__main__":
    main()
