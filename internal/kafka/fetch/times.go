package fetch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The client returns a record's timestamp as a time.Time. It computes it with a multiplication that
// overflows beyond the year 2262. A producer that wrote microseconds seems to have written a date
// in 2047, and 2^63-1 becomes the last millisecond of 1969. The result does not show whether it
// overflowed. So if a timestamp may have, its batch is read again in the broker's format.

// maxTrustedMillis bounds the milliseconds that are accepted as they are: from 1970 to the year
// 2100. One in seventy thousand overflowed numbers falls into that range.
const maxTrustedMillis = 4_102_444_800_000

// exactTime reports whether the client's time is the record's timestamp.
func exactTime(r *kgo.Record) bool {
	nanos := r.Timestamp.UnixNano()
	return nanos > 0 && nanos < maxTrustedMillis*1_000_000 && nanos%1_000_000 == 0
}

// timestamps returns the timestamps of records as the broker has them, by offset. It returns nil if
// the client's are right, which is nearly always the case and costs no request.
func (r *Reader) timestamps(ctx context.Context, partition int32, records []*kgo.Record) (map[int64]int64, error) {
	i := slices.IndexFunc(records, func(r *kgo.Record) bool { return !exactTime(r) && !r.Attrs.IsControl() })
	if i < 0 {
		return nil, nil
	}
	next, last := records[i].Offset, records[len(records)-1].Offset
	millis := map[int64]int64{}
	topics, err := r.admin.ListTopics(ctx, r.topic)
	if err != nil {
		return nil, err
	}
	at := topics[r.topic].Partitions[partition]
	if err := errors.Join(topics.Error(), at.Err); err != nil {
		return nil, err
	}
	// One fetch may not return all batches of these records.
	for next <= last {
		raw, err := r.raw(ctx, [16]byte(topics[r.topic].ID), partition, at.Leader, next)
		if err != nil {
			return nil, err
		}
		after, err := batchTimes(raw, millis)
		if err != nil {
			return nil, err
		}
		if after <= next {
			return nil, fmt.Errorf("the broker returned no batch at offset %d", next)
		}
		next = after
	}
	return millis, nil
}

// raw fetches batches in the broker's format. The first one contains the offset.
func (r *Reader) raw(ctx context.Context, topicID [16]byte, partition, leader int32, offset int64) ([]byte, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 500, 1, 1<<20, 1
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = r.topic, topicID
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, offset, 1<<20
	topic.Partitions = append(topic.Partitions, p)
	req.Topics = append(req.Topics, topic)
	answer, err := r.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	fetched, ok := answer.(*kmsg.FetchResponse)
	if !ok || len(fetched.Topics) != 1 || len(fetched.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("the broker returned %T without the partition", answer)
	}
	got := fetched.Topics[0].Partitions[0]
	return got.RecordBatches, errors.Join(kerr.ErrorForCode(fetched.ErrorCode), kerr.ErrorForCode(got.ErrorCode))
}

// Offsets in a batch's header, in all versions, and the size of version 2's header.
const (
	batchLength = 8
	batchMagic  = 16
	batchHeader = 61
)

// batchTimes adds the timestamps of raw batches to millis, by offset. It returns the offset after
// the last complete batch. It skips batches of formats before version 2, for which the client's
// times are used.
func batchTimes(raw []byte, millis map[int64]int64) (after int64, err error) {
	for len(raw) > batchMagic {
		size := int64(batchLength) + 4 + int64(int32(binary.BigEndian.Uint32(raw[batchLength:])))
		if size < batchMagic || size > int64(len(raw)) { // the broker has truncated it
			break
		}
		batch := raw[:size]
		raw = raw[size:]
		if batch[batchMagic] != 2 {
			after = max(after, int64(binary.BigEndian.Uint64(batch))+1)
			continue
		}
		var b kmsg.RecordBatch
		if size < batchHeader {
			return after, errors.New("batch is shorter than its header")
		}
		if err := b.ReadFrom(batch); err != nil {
			return after, fmt.Errorf("parse batch: %w", err)
		}
		if err := recordTimes(b, millis); err != nil {
			return after, err
		}
		after = max(after, b.FirstOffset+int64(b.LastOffsetDelta)+1)
	}
	return after, nil
}

// recordTimes adds the timestamps of one batch's records.
func recordTimes(b kmsg.RecordBatch, millis map[int64]int64) error {
	in := b.Records
	if codec := kgo.CompressionCodecType(b.Attributes & 7); codec != kgo.CodecNone {
		var err error
		if in, err = kgo.DefaultDecompressor().Decompress(in, codec); err != nil {
			return fmt.Errorf("decompress batch: %w", err)
		}
	}
	const byBroker = 1 << 3 // attribute: the broker has set one timestamp for the whole batch
	// A record is its length, and then its attributes, timestamp and offset relative to the
	// batch's.
	for range b.NumRecords {
		size, used := kbin.Varint(in)
		if used <= 0 || size < 0 || int64(used)+int64(size) > int64(len(in)) {
			return errors.New("batch is truncated")
		}
		record := kbin.Reader{Src: in[used : used+int(size)]}
		record.Int8() // attributes
		at := b.FirstTimestamp + record.Varlong()
		offset := b.FirstOffset + int64(record.Varint())
		if !record.Ok() {
			return errors.New("record is truncated")
		}
		if b.Attributes&byBroker != 0 {
			at = b.MaxTimestamp
		}
		millis[offset] = at
		in = in[used+int(size):]
	}
	return nil
}

// millisAt returns the timestamp of a record in milliseconds.
func (b Batch) millisAt(r *kgo.Record) int64 {
	if at, ok := b.millis[r.Offset]; ok {
		return at
	}
	if r.Timestamp.IsZero() { // Kafka's first format has no timestamps
		return -1
	}
	return r.Timestamp.UnixMilli()
}
