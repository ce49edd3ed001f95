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

// Record is what is produced.
type Record struct {
	Topic     string
	Partition int32 // AnyPartition leaves it to the key
	Key       []byte
	Value     []byte // nil is a tombstone
	Headers   []event.Header
}

// connection is what every producer is made of.
type connection struct {
	client  *kafka.Producer
	refused *refusal
	logs    *logs
	events  sync.WaitGroup
	closed  sync.Once
}

func connect(cfg Config, tuning, must kafka.ConfigMap) (*connection, error) {
	log := cfg.logger()
	c := &connection{refused: &refusal{}, logs: newLogs(log)}
	conf, err := cfg.configMap(c.logs, tuning, must)
	if err == nil {
		c.client, err = kafka.NewProducer(conf)
	}
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("kafka: open a producer on %s: %w", cfg.Brokers, err)
	}
	c.events.Go(func() { c.watch(log) })
	return c, nil
}

// watch drains what librdkafka reports outside of calls, until the client is closed.
func (c *connection) watch(log *slog.Logger) {
	for e := range c.client.Events() {
		if err, ok := e.(kafka.Error); ok {
			c.refused.note(err)
			log.Warn("kafka producer", "error", err, "client", c.client.String())
		}
	}
}

// Close drops what was not sent. It may be called again.
func (c *connection) Close() {
	c.closed.Do(func() {
		c.client.Close()
		c.events.Wait()
		c.logs.close()
	})
}

// goChannels keeps the Go client from allocating room for a million events and a million messages.
func goChannels(m kafka.ConfigMap) kafka.ConfigMap {
	m["go.events.channel.size"] = 100
	m["go.produce.channel.size"] = 0
	return m
}

// TransactionalProducer writes records that become visible together. It is for one goroutine.
type TransactionalProducer struct{ *connection }

// NewTransactionalProducer opens a producer under a transactional id, of which at most one producer
// can commit. No broker is asked before Init.
func NewTransactionalProducer(cfg Config, transactionalID string) (*TransactionalProducer, error) {
	c, err := connect(cfg,
		kafka.ConfigMap{
			"compression.type": "lz4",
			"linger.ms":        5, // Commit sends at once what waits
			// How long a dead producer can hold up read_committed readers where no successor takes
			// over its id. Messages time out with it by default.
			"transaction.timeout.ms": 30000,
		},
		goChannels(kafka.ConfigMap{
			"transactional.id":   transactionalID,
			"enable.idempotence": true,
			"partitioner":        "murmur2_random",
			// The outcome of the transaction is the delivery report.
			"go.delivery.reports": false,
		}))
	if err != nil {
		return nil, err
	}
	return &TransactionalProducer{c}, nil
}

// Init takes over the transactional id: it waits for or aborts what the last producer left behind
// and fences it. Call it once, first.
func (p *TransactionalProducer) Init(ctx context.Context) error {
	return classify(p.client, "take over the transactional id", resumed(ctx, p.refused, p.client.InitTransactions))
}

// Begin opens a transaction.
func (p *TransactionalProducer) Begin() error {
	return classify(p.client, "begin a transaction", p.client.BeginTransaction())
}

// Produce adds a record to the transaction. It copies the record and does not wait for the broker,
// except for room where too much is on the way. Records of one partition keep their order.
func (p *TransactionalProducer) Produce(ctx context.Context, r Record) error {
	err := enqueue(ctx, p.client, r, nil)
	if isCode(err, kafka.ErrState) { // the transaction failed under way; Commit would tell why
		return fmt.Errorf("kafka: produce to %s: %w: %w", r.Topic, ErrMustAbort, err)
	}
	return classify(p.client, "produce to "+r.Topic, err)
}

// Commit returns the transaction's records visible. An error that is none of our sentinels leaves
// the outcome open. Close the producer then: the Init of the next one settles it.
func (p *TransactionalProducer) Commit(ctx context.Context) error {
	const doing = "commit the transaction"
	// The wait for the records may be long, and ends with ctx.
	err := resumed(ctx, p.refused, func(short context.Context) error {
		deadline, _ := short.Deadline()
		if p.client.Flush(max(int(time.Until(deadline).Milliseconds()), 0)) > 0 {
			return kafka.NewError(kafka.ErrTimedOut, "records are under way", false)
		}
		return nil
	})
	if err != nil {
		return classify(p.client, doing, err)
	}
	// One long call. On a machine so busy that short calls timed out, an assertion in librdkafka's
	// state machine killed the process.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return classify(p.client, doing, p.client.CommitTransaction(end))
}

// endTimeout bounds the wait for the coordinator to end a transaction whose records are all
// delivered.
const endTimeout = 10 * time.Second

// Abort returns the transaction's records invisible for good.
func (p *TransactionalProducer) Abort(ctx context.Context) error {
	return classify(p.client, "abort the transaction", resumed(ctx, p.refused, p.client.AbortTransaction))
}

// Producer writes single records, each at least once and, while the producer lives, exactly once
// and in order. It is safe for concurrent use.
type Producer struct{ *connection }

// NewProducer opens a producer.
func NewProducer(cfg Config) (*Producer, error) {
	c, err := connect(cfg,
		kafka.ConfigMap{"compression.type": "lz4", "linger.ms": 0, "message.timeout.ms": 30000},
		goChannels(kafka.ConfigMap{"enable.idempotence": true, "partitioner": "murmur2_random"}))
	if err != nil {
		return nil, err
	}
	return &Producer{c}, nil
}

// Produce writes a record and returns when the brokers have it. Where ctx ends first, they may have
// it nonetheless. Without an answer for half a minute it fails, with ErrRefused too where that is
// why.
func (p *Producer) Produce(ctx context.Context, r Record) error {
	err := p.produce(ctx, r)
	if err == nil {
		p.refused.last.Store(nil) // what was refused before is over
		return nil
	}
	return errors.Join(err, p.refused.err())
}

// ProduceAll is Produce for many records, which are on their way together. After an error the
// brokers may have any of them.
func (p *Producer) ProduceAll(ctx context.Context, records []Record) error {
	if err := p.produce(ctx, records...); err != nil {
		return errors.Join(err, p.refused.err())
	}
	p.refused.last.Store(nil)
	return nil
}

func (p *Producer) produce(ctx context.Context, records ...Record) error {
	delivered := make(chan kafka.Event, len(records)) // room for all, for librdkafka must not wait for who has given up
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
				return fmt.Errorf("kafka: produce to %s: unexpected report %v", r.Topic, e)
			}
			if err := classify(p.client, "produce to "+r.Topic, m.TopicPartition.Error); err != nil {
				return err
			}
		}
	}
	return nil
}

// enqueue hands a record to librdkafka, waiting while its queue is full.
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
		if !isCode(err, kafka.ErrQueueFull) {
			return err
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}
