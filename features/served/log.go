package served

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/features/online"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
)

// LogConfig configures a Log.
type LogConfig struct {
	// Sample is the share of vectors that are logged, from 0 to 1. SetSample changes it.
	Sample float64
	Kafka  kafka.Config
	// Partitions is how many Topic gets if it does not exist.
	Partitions int32
	Now        func() time.Time
	Logger     *slog.Logger
}

const (
	queueSize = 4096 // vectors that wait to be written
	batchSize = 500  // vectors that are written together
	// writeTimeout is how long brokers may take to accept a batch. Meanwhile the queue fills.
	writeTimeout = 10 * time.Second
	// warnEvery limits warnings while brokers do not accept records.
	warnEvery = time.Minute
)

// Log writes a sample of the vectors that are served. It is safe for concurrent use.
type Log struct {
	cfg     LogConfig
	sample  atomic.Uint64 // the bits of the present Sample
	wanted  chan struct{} // closed once it was above 0
	first   sync.Once     // closes wanted
	queue   chan *featuresv1.ServedVector
	written atomic.Int64
	dropped atomic.Int64
}

// NewLog returns a Log. Run must run for anything to be written.
func NewLog(c LogConfig) *Log {
	l := &Log{cfg: c, wanted: make(chan struct{}), queue: make(chan *featuresv1.ServedVector, queueSize)}
	l.SetSample(c.Sample)
	return l
}

// SetSample changes the share of vectors that are logged. A number outside of 0 to 1 counts as the
// nearer of them.
func (l *Log) SetSample(share float64) {
	share = min(max(share, 0), 1)
	l.sample.Store(math.Float64bits(share))
	if share > 0 {
		l.first.Do(func() { close(l.wanted) })
	}
}

// Add offers vectors of a query, which were computed for a time. It keeps those of the sample and
// does not block: vectors that do not fit into the queue are dropped.
func (l *Log) Add(q *online.Query, vectors []online.Vector, at time.Time) {
	share := math.Float64frombits(l.sample.Load())
	if share == 0 {
		return
	}
	var now time.Time
	for i := range vectors {
		if rand.Float64() >= share {
			continue
		}
		if vectors[i].Entity == "" { // it was withheld
			continue
		}
		if len(l.queue) == cap(l.queue) { // saves the work of a message that would be dropped
			l.dropped.Add(1)
			continue
		}
		if now.IsZero() {
			now = l.cfg.Now()
		}
		select {
		case l.queue <- messageOf(q, &vectors[i], at, now):
		default:
			l.dropped.Add(1)
		}
	}
}

// Written returns how many vectors were written.
func (l *Log) Written() int64 { return l.written.Load() }

// Dropped returns how many vectors of the sample were not written: because the queue was full, or
// because the brokers did not accept them.
func (l *Log) Dropped() int64 { return l.dropped.Load() }

// Run writes vectors until ctx ends, and then those that are in the queue. It connects, and creates the
// topic, once the sample is above 0.
func (l *Log) Run(ctx context.Context) error {
	defer func() { l.dropped.Add(int64(len(l.queue))) }() // what is left could not be written
	select {
	case <-l.wanted:
	case <-ctx.Done():
		return nil
	}
	w := &writer{Log: l}
	for ctx.Err() == nil {
		producer, err := w.open(ctx)
		if ctx.Err() != nil && err != nil {
			return nil
		}
		if err != nil {
			return err
		}
		w.drain(ctx, producer)
		producer.Close()
	}
	return nil
}

// writer is the state of Run.
type writer struct {
	*Log
	warned time.Time
}

// open creates the topic, unless it exists, and returns a producer.
func (w *writer) open(ctx context.Context) (*kafka.Producer, error) {
	topic := kafka.Topic{Name: Topic, Partitions: w.cfg.Partitions, Retention: Retention}
	for waits := backoff.Server.Start(); ; {
		err := kafka.EnsureTopics(ctx, w.cfg.Kafka, topic)
		if err == nil {
			return kafka.NewProducer(w.cfg.Kafka)
		}
		if ctx.Err() == nil {
			w.warn(err)
		}
		if !waits.Wait(ctx) {
			return nil, err
		}
	}
}

// drain writes until ctx ends, or the producer is unusable.
func (w *writer) drain(ctx context.Context, producer *kafka.Producer) {
	// What was begun is finished. Every write has a deadline of its own.
	writing := context.WithoutCancel(ctx)
	for {
		var err error
		select {
		case <-ctx.Done():
			for len(w.queue) > 0 && err == nil {
				err = w.write(writing, producer, <-w.queue)
			}
			return
		case first := <-w.queue:
			err = w.write(writing, producer, first)
		}
		if errors.Is(err, kafka.ErrFatal) {
			return
		}
	}
}

// write writes a vector and those that wait behind it.
func (w *writer) write(ctx context.Context, producer *kafka.Producer, first *featuresv1.ServedVector) error {
	records := make([]kafka.Record, 0, batchSize)
	for m := first; ; {
		r, err := record(m)
		if err != nil { // a text that is not UTF-8
			w.fail(1, err)
		} else {
			records = append(records, r)
		}
		if len(records) == batchSize || len(w.queue) == 0 {
			break
		}
		m = <-w.queue // this goroutine is the only reader
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := producer.ProduceAll(ctx, records)
	if err != nil {
		w.fail(len(records), err)
		return err
	}
	w.written.Add(int64(len(records)))
	return nil
}

// fail counts vectors as dropped.
func (w *writer) fail(n int, err error) {
	w.dropped.Add(int64(n))
	w.warn(err)
}

// warn logs an error, unless one was logged a moment ago.
func (w *writer) warn(err error) {
	if now := time.Now(); now.Sub(w.warned) > warnEvery {
		w.warned = now
		w.cfg.Logger.Warn("served vectors are not logged at present; they are served as before", "topic", Topic, "error", err)
	}
}
