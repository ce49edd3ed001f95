package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// The values are from UtilsTest of Kafka's Java client.
func TestPartitionMatchesKafka(t *testing.T) {
	t.Parallel()
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		const n = 1 << 20
		if got, want := kafka.Partition([]byte(key), n), (hash&0x7fffffff)%n; got != want {
			t.Errorf("%q: partition %d, want %d", key, got, want)
		}
	}
}

// The producer puts each key on the partition that Partition returns.
func TestPartitionMatchesProducer(t *testing.T) {
	t.Parallel()
	const partitions = 7
	each(t, partitions, func(t *testing.T, b broker) {
		p := b.transactional(t, "p")
		var records []kafka.Record
		for i := range 300 {
			key := strings.Repeat("x", i%9) + fmt.Sprint(i)
			records = append(records, b.record(kafka.AnyPartition, key, key))
		}
		records = append(records, b.record(kafka.AnyPartition, "", ""))
		commit(t, p, records...)
		seen := 0
		err := kafka.ReadAll(t.Context(), b.Config, b.topic, nil, b.ends(t, (*kafka.Admin).HighWatermarks),
			func(m kafka.Message) error {
				seen++
				if want := kafka.Partition(m.Value, partitions); m.Partition != want {
					return fmt.Errorf("key %q is on partition %d, Partition returns %d", m.Key, m.Partition, want)
				}
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		if seen != len(records) {
			t.Fatalf("read %d records of %d", seen, len(records))
		}
	})
}

// The header is read back, and any invalid value counts as missing.
func TestPartitionsHeader(t *testing.T) {
	t.Parallel()
	h := func(key, value string) event.Header { return event.Header{Key: key, Value: []byte(value)} }
	for want, headers := range map[int32][]event.Header{
		4:   {h("a", "7"), kafka.PartitionsHeader(4)},
		128: {kafka.PartitionsHeader(128), h("traceparent", "x")},
	} {
		if got := kafka.PartitionsOf(headers); got != want {
			t.Errorf("%v: %d", headers, got)
		}
	}
	for _, value := range []string{"", "0", "-4", "x", "4294967296", "4 "} {
		if got := kafka.PartitionsOf([]event.Header{h(kafka.PartitionsHeader(1).Key, value)}); got != 0 {
			t.Errorf("%q: %d", value, got)
		}
	}
	if got := kafka.PartitionsOf(nil); got != 0 {
		t.Errorf("none: %d", got)
	}
}
