package kafka

import (
	"strconv"

	"github.com/millrace/millrace/event"
)

// AnyPartition lets the producer choose the partition by the record's key, as Partition does.
const AnyPartition int32 = -1

// Partition returns the partition of a key. It uses murmur2, like the Java client, Kafka Connect
// and Kafka Streams, and like the producers here. So everything that writes or looks up a key finds
// the same partition. The key must not be nil: records without a key go to any partition.
func Partition(key []byte, partitions int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % partitions
}

// headerPartitions is the key of the header with the number of partitions that the topic's keys are
// spread over. A widened topic has more, but its keys remain in their partitions.
const headerPartitions = "millrace-partitions"

// PartitionsHeader returns the header with the number of partitions that keys are spread over.
func PartitionsHeader(partitions int32) event.Header {
	return event.Header{Key: headerPartitions, Value: strconv.AppendInt(nil, int64(partitions), 10)}
}

// PartitionsOf reads PartitionsHeader from a record's headers. It returns 0 if there is none or it
// is invalid.
func PartitionsOf(headers []event.Header) int32 {
	for i := len(headers) - 1; i >= 0; i-- { // the relay adds it last
		if headers[i].Key != headerPartitions {
			continue
		}
		if n, err := strconv.ParseInt(string(headers[i].Value), 10, 32); err == nil && n > 0 {
			return int32(n)
		}
		return 0
	}
	return 0
}

// murmur2 is Austin Appleby's 32-bit MurmurHash2 with Kafka's seed.
func murmur2(b []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := seed ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h = h*m ^ k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
