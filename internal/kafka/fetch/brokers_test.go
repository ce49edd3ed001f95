package fetch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A broker without records does not delay those of another one.
func TestIdleBroker(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(2, "topic"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	for partition := range int32(2) {
		if err := cluster.MoveTopicPartition("topic", partition, partition); err != nil {
			t.Fatal(err)
		}
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	// The answer of the idle broker would come after the end of the test.
	r, err := open(Config{Brokers: cluster.ListenAddrs(), Topic: "topic", ClientID: "test",
		Logger: slog.New(slog.DiscardHandler)}, kgo.FetchMaxWait(10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Assign(map[int32]int64{0: 0, 1: 0})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := range int64(5) {
		record := &kgo.Record{Topic: "topic", Partition: 1, Value: []byte("v")}
		if err := producer.ProduceSync(ctx, record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		for next := int64(0); next <= n; {
			batches, err := r.Poll(ctx, time.Second)
			if err != nil {
				t.Fatalf("record %d: %v", n, err)
			}
			for _, b := range batches {
				next = b.Next
			}
		}
	}
}
