// Package fetchtest writes records to topics for tests of package fetch and its users: in
// transactions that commit or abort, or as raw batches with any timestamps.
//
// A Producer writes, and also changes topics as an operator would. It returns only once the written
// records are readable, or known to be aborted, so tests need not wait.
package fetchtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/event"
)

// Record is a record to produce. The test chooses its partition, so that it knows the order of
// records on each.
type Record struct {
	Partition  int32
	Key, Value []byte
	Headers    []event.Header
}

// Event returns the record of an event, on the given partition.
func Event(partition int32, e event.Event) Record {
	return Record{Partition: partition, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers()}
}

// Producer writes to the topics of one cluster, one transaction at a time.
type Producer struct {
	client *kgo.Client
	admin  *kadm.Client
}

// New returns a transactional producer that is closed at the end of the test.
func New(t testing.TB, brokers []string, transactionalID string) *Producer {
	t.Helper()
	// Tests choose the partition of each record.
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.TransactionalID(transactionalID),
		kgo.TransactionTimeout(time.Minute),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &Producer{client, kadm.NewClient(client)}
}

// CreateTopic creates a topic.
func (p *Producer) CreateTopic(ctx context.Context, topic string, partitions int32) error {
	_, err := p.admin.CreateTopic(ctx, partitions, 1, nil, topic)
	return err
}

// AddPartitions adds partitions to a topic. add is how many more there will be.
func (p *Producer) AddPartitions(ctx context.Context, topic string, add int) error {
	r, err := p.admin.CreatePartitions(ctx, add, topic)
	p.client.PurgeTopicsFromClient(topic) // so that the client asks for the new partitions
	return errors.Join(err, r.Error())
}

// DeleteTopic deletes a topic.
func (p *Producer) DeleteTopic(ctx context.Context, topic string) error {
	_, err := p.admin.DeleteTopic(ctx, topic)
	// The client has cached the deleted topic, including its id.
	p.client.PurgeTopicsFromClient(topic)
	return err
}

// DeleteRecords deletes the records before an offset, as retention would. The partition then starts
// at that offset.
func (p *Producer) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error {
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: before})
	r, err := p.admin.DeleteRecords(ctx, offsets)
	return errors.Join(err, r.Error())
}

// Ends returns the offset after the last record or marker, by partition. Each end of a transaction
// adds a marker, which takes an offset of its own.
func (p *Producer) Ends(ctx context.Context, topic string) (map[int32]int64, error) {
	listed, err := p.admin.ListEndOffsets(ctx, topic)
	if err = errors.Join(err, listed.Error()); err != nil {
		return nil, err
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, nil
}

// Commit produces the records in one transaction.
func (p *Producer) Commit(ctx context.Context, topic string, records ...Record) error {
	return p.transact(ctx, topic, kgo.TryCommit, records)
}

// Abort produces the records in a transaction that is aborted.
func (p *Producer) Abort(ctx context.Context, topic string, records ...Record) error {
	return p.transact(ctx, topic, kgo.TryAbort, records)
}

// transact produces records in one transaction and ends it.
func (p *Producer) transact(ctx context.Context, topic string, end kgo.TransactionEndTry, records []Record) error {
	if err := p.client.BeginTransaction(); err != nil {
		return err
	}
	out := make([]*kgo.Record, len(records))
	for i, r := range records {
		out[i] = &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			out[i].Headers = append(out[i].Headers, kgo.RecordHeader(h))
		}
	}
	// End the transaction even if a record failed.
	err := p.client.ProduceSync(ctx, out...).FirstErr()
	if err = errors.Join(err, p.client.EndTransaction(ctx, end)); err != nil {
		return err
	}
	return p.ended(ctx, topic, out)
}

// ended blocks until the transaction's markers are on the log. Apache Kafka acknowledges the end of
// a transaction before it writes them.
func (p *Producer) ended(ctx context.Context, topic string, records []*kgo.Record) error {
	for {
		stable, err := p.admin.ListCommittedOffsets(ctx, topic)
		if err = errors.Join(err, stable.Error()); err != nil {
			return err
		}
		// The last stable offset is above the records of a transaction that has ended.
		open := func(r *kgo.Record) bool {
			o, ok := stable.Lookup(topic, r.Partition)
			return !ok || o.Offset <= r.Offset
		}
		if !slices.ContainsFunc(records, open) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}
