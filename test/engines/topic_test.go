package engines_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
)

// record is a record of a topic, with the fields that the tables store.
type record struct {
	partition int32
	offset    int64
	key       string
	value     []byte
}

// topic reads the current content of a topic, and the end of each partition.
func (s *system) topic(t *testing.T, name string) (records []record, ends map[int32]int64) {
	t.Helper()
	reader, err := fetch.Open(fetch.Config{Brokers: []string{s.brokers}, Topic: name, ClientID: "engines",
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	is, err := reader.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := map[int32]int64{}
	ends = map[int32]int64{}
	left := 0
	for partition, has := range is.Partitions {
		from[partition], ends[partition] = has.Start, has.End
		if has.End > has.Start {
			left++
		}
	}
	reader.Assign(from)
	for left > 0 {
		batches, err := reader.Poll(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for r := range b.Records() {
				if r.Offset < ends[b.Partition] {
					records = append(records,
						record{b.Partition, r.Offset, string(r.Key), append([]byte(nil), r.Value...)})
				}
			}
			if from[b.Partition] < ends[b.Partition] && b.Next >= ends[b.Partition] {
				left--
			}
			from[b.Partition] = b.Next
		}
	}
	return records, ends
}
