package fetchtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Stamped is a value with its record's timestamp, which need not be a valid time.
type Stamped struct {
	Millis int64
	Value  []byte
}

// Stamp produces values in one batch with the given timestamps. Clients cannot do this, because
// they set timestamps themselves. A batch of several records is compressed.
func (p *Producer) Stamp(ctx context.Context, topic string, partition int32, values ...Stamped) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := p.stamp(ctx, topic, partition, values)
		// A broker may not know a new topic yet, or that it leads it. Then it has stored nothing.
		if !errors.Is(err, kerr.NotLeaderForPartition) && !errors.Is(err, kerr.UnknownTopicOrPartition) &&
			!errors.Is(err, kerr.UnknownTopicID) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (p *Producer) stamp(ctx context.Context, topic string, partition int32, values []Stamped) error {
	topics, err := p.admin.ListTopics(ctx, topic)
	if err = errors.Join(err, topics.Error()); err != nil {
		return err
	}
	// Newer brokers expect the topic's id, and older ones its name.
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.TopicID = topic, [16]byte(topics[topic].ID)
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = partition, batch(values)
	t.Partitions = append(t.Partitions, part)
	req.Topics = append(req.Topics, t)
	answer, err := p.client.Broker(int(topics[topic].Partitions[partition].Leader)).RetriableRequest(ctx, req)
	if err != nil {
		return err
	}
	produced, ok := answer.(*kmsg.ProduceResponse)
	if !ok || len(produced.Topics) != 1 || len(produced.Topics[0].Partitions) != 1 {
		return fmt.Errorf("the broker returned %T without the partition", answer)
	}
	return kerr.ErrorForCode(produced.Topics[0].Partitions[0].ErrorCode)
}

// batch encodes a batch in Kafka's format, version 2. It has no producer id, so the broker neither
// checks sequence numbers nor includes it in a transaction. values must not be empty.
func batch(values []Stamped) []byte {
	first, highest := values[0].Millis, values[0].Millis
	var records []byte
	// Timestamps and offsets are relative to the batch's first.
	for i, v := range values {
		highest = max(highest, v.Millis)
		r := []byte{0} // attributes
		r = kbin.AppendVarlong(r, v.Millis-first)
		r = kbin.AppendVarint(r, int32(i))
		r = kbin.AppendVarint(r, -1) // no key
		r = append(kbin.AppendVarint(r, int32(len(v.Value))), v.Value...)
		r = kbin.AppendVarint(r, 0) // headers
		records = append(kbin.AppendVarint(records, int32(len(r))), r...)
	}
	attributes := int16(0)
	if len(values) > 1 {
		records, attributes = zipped(records), int16(kgo.CodecGzip)
	}
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: attributes, LastOffsetDelta: int32(len(values) - 1),
		FirstTimestamp: first, MaxTimestamp: highest, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
		NumRecords: int32(len(values)), Records: records,
	}
	// Length and checksum cover the bytes after them, so they are filled in last.
	const afterLength, crcAt, afterCRC = 12, 17, 21
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-afterLength))
	binary.BigEndian.PutUint32(raw[crcAt:], crc32.Checksum(raw[afterCRC:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// zipped compresses with gzip.
func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		panic(err) // a buffer does not fail
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}
