package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/event"
)

// Record is a record to produce.
type Record struct {
	Topic     string
	Partition int32 // AnyPartition lets the key decide
	Key       []byte
	Value     []byte // nil is a tombstone
	Headers   []event.Header
}

// connection is the common part of producers and Admin: a librdkafka producer with its logs and
// events.
type connection struct {
	client  *kafka.Producer
	refused *refusalTracker
	logs    *logs
	events  sync.WaitGroup
	closed  sync.Once
}

// connect opens a client. The caller must close it.
func connect(cfg Config, tuning, must kafka.ConfigMap) (*connection, error) {
	log := cfg.logger()
	c := &connection{refused: &refusalTracker{}, logs: newLogs(log)}
	conf, err := cfg.configMap(c.logs, tuning, must)
	if err == nil {
		c.client, err = kafka.NewProducer(conf)
	}
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("kafka: open a producer on %s: %w", cfg.Brokers, err)
	}
	// Without a reader, librdkafka's event channel would fill up and block.
	c.events.Go(func() { c.watch(log) })
	return c, nil
}

// watch receives events that librdkafka reports outside of calls, until the client is closed.
func (c *connection) watch(log *slog.Logger) {
	for e := range c.client.Events() {
		if err, ok := e.(kafka.Error); ok {
			c.refused.note(err)
			log.Warn("kafka: producer", "error", err, "client", c.client.String())
		}
	}
}

// Close drops records that were not sent. It may be called more than once.
func (c *connection) Close() {
	c.closed.Do(func() {
		c.client.Close()
		c.events.Wait()
		c.logs.close()
	})
}

// limitChannels keeps the Go client from allocating room for a million events and a million
// messages.
func limitChannels(m kafka.ConfigMap) kafka.ConfigMap {
	m["go.events.channel.size"] = 100
	m["go.produce.channel.size"] = 0
	return m
}

// TransactionalProducer writes records that become visible together. It is not safe for concurrent
// use.
//
// The order of calls is Init, and then for each transaction Begin, Produce any number of times, and
// Commit or Abort.
type TransactionalProducer struct{ *connection }

// NewTransactionalProducer returns a producer with a transactional id. At most one producer with
// this id can commit. It sends nothing before Init.
func NewTransactionalProducer(cfg Config, transactionalID string) (*TransactionalProducer, error) {
	c, err := connect(cfg,
		kafka.ConfigMap{
			"compression.type": "lz4",
			"linger.ms":        5, // Commit flushes at once
			// How long a dead producer can block read_committed readers if no successor takes over
			// its id. By default, it is also the timeout of messages.
			"transaction.timeout.ms": 30000,
		},
		limitChannels(kafka.ConfigMap{
			"transactional.id":   transactionalID,
			"enable.idempotence": true,
			"partitioner":        "murmur2_random",
			// Reports per record are not needed: a transaction commits only if all are delivered.
			"go.delivery.reports": false,
		}))
	if err != nil {
		return nil, err
	}
	return &TransactionalProducer{c}, nil
}

// Init takes over the transactional id. It ends the open transaction of the previous producer and
// fences that producer. Call it once, before all other methods.
func (p *TransactionalProducer) Init(ctx context.Context) error {
	return classify(p.client, "initialize the transactional id", retry(ctx, p.refused, p.client.InitTransactions))
}

// Begin opens a transaction.
func (p *TransactionalProducer) Begin() error {
	return classify(p.client, "begin a transaction", p.client.BeginTransaction())
}

// Produce adds a record to the transaction. It copies the record and does not wait for the broker,
// unless the queue is full. Records of a partition keep their order.
func (p *TransactionalProducer) Produce(ctx context.Context, r Record) error {
	err := enqueue(ctx, p.client, r, nil)
	if isCode(err, kafka.ErrState) { // the transaction failed; Commit would return the reason
		return fmt.Errorf("kafka: produce to %s: %w: %w", r.Topic, ErrMustAbort, err)
	}
	return classify(p.client, "produce to "+r.Topic, err)
}

// Commit makes the transaction's records visible. If the error is not one of the package's
// sentinels, it is unknown whether the transaction is committed. Then close the producer: the Init
// of the next one completes or aborts it.
func (p *TransactionalProducer) Commit(ctx context.Context) error {
	const action = "commit the transaction"
	// Flushing may take long, so it ends with ctx.
	err := retry(ctx, p.refused, func(short context.Context) error {
		for p.client.Flush(flushStep) > 0 {
			if short.Err() != nil {
				return kafka.NewError(kafka.ErrTimedOut, "records are in flight", false)
			}
		}
		return nil
	})
	if err != nil {
		return classify(p.client, action, err)
	}
	// Use one long call that ignores ctx. On a machine so busy that short calls timed out, an
	// assertion in librdkafka's state machine killed the process.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return classify(p.client, action, p.client.CommitTransaction(end))
}

// flushStep is the duration of one call of Flush, in milliseconds. Without delivery reports, Flush
// does not notice the last delivery: it returns at the end of its time, at most 100 ms. With less
// than 2 it does not wait at all.
const flushStep = 2

// endTimeout bounds the wait for the coordinator to end a transaction whose records are all
// delivered.
const endTimeout = 10 * time.Second

// Abort discards the transaction's records. Readers with read_committed never see them.
func (p *TransactionalProducer) Abort(ctx context.Context) error {
	return classify(p.client, "abort the transaction", retry(ctx, p.refused, p.client.AbortTransaction))
}

// Producer writes single records at least once. While the producer lives, it writes them exactly
// once and in order. It is safe for concurrent use.
type Producer struct{ *connection }

// NewProducer returns a producer.
func NewProducer(cfg Config) (*Producer, error) {
	c, err := connect(cfg,
		kafka.ConfigMap{"compression.type": "lz4", "linger.ms": 0, "message.timeout.ms": 30000},
		limitChannels(kafka.ConfigMap{
			"enable.idempotence": true,
			"partitioner":        "murmur2_random",
			// Reports would contain a copy of each record.
			"go.delivery.report.fields": "none",
		}))
	if err != nil {
		return nil, err
	}
	return &Producer{c}, nil
}

// Produce writes a record and returns when the brokers have it. If ctx ends first, they may have
// it, too. It fails after half a minute without a response, also with ErrRefused if that is the
// reason.
func (p *Producer) Produce(ctx context.Context, r Record) error {
	err := p.produce(ctx, r)
	if err == nil {
		p.refused.last.Store(nil) // an earlier refusal is obsolete
		return nil
	}
	return errors.Join(err, p.refused.err())
}

// ProduceAll is like Produce for many records, which are in flight together. After an error the
// brokers may have any of them.
func (p *Producer) ProduceAll(ctx context.Context, records []Record) error {
	if err := p.produce(ctx, records...); err != nil {
		return errors.Join(err, p.refused.err())
	}
	p.refused.last.Store(nil)
	return nil
}

// produce sends all records and then waits for all of their reports.
func (p *Producer) produce(ctx context.Context, records ...Record) error {
	// The channel has room for all reports: librdkafka must not block after this call has returned.
	delivered := make(chan kafka.Event, len(records))
	for _, r := range records {
		if err := enqueue(ctx, p.client, r, delivered); err != nil {
			return classify(p.client, "produce to "+r.Topic, err)
		}
	}
	for _, r := range records {
		select {
		case <-ctx.Done():
			return fmt.Errorf("kafka: produce to %s: %w", r.Topic, context.Cause(ctx))
		case e := <-delivered:
			m, ok := e.(*kafka.Message)
			if !ok {
				return fmt.Errorf("kafka: produce to %s: unexpected delivery report %v", r.Topic, e)
			}
			if err := classify(p.client, "produce to "+r.Topic, m.TopicPartition.Error); err != nil {
				return err
			}
		}
	}
	return nil
}

// enqueue passes a record to librdkafka. It blocks while its queue is full.
func enqueue(ctx context.Context, client *kafka.Producer, r Record, delivered chan kafka.Event) error {
	m := kafka.Message{
		TopicPartition: kafka.TopicPartition{Topic: &r.Topic, Partition: r.Partition},
		Key:            r.Key, Value: r.Value, Headers: make([]kafka.Header, len(r.Headers)),
	}
	for i, h := range r.Headers {
		m.Headers[i] = kafka.Header(h)
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := client.Produce(&m, delivered)
		// A full queue empties as records are delivered.
		if !isCode(err, kafka.ErrQueueFull) {
			return err
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}
