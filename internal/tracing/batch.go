package tracing

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/event"
)

const (
	// Spans of one batch: of events whose trace is sampled, and of others.
	maxSampled = 256
	maxOthers  = 64
	// An event that was recorded longer ago is read again, by a rebuild or a replay. Its trace was
	// complete long before.
	maxAge = time.Hour
)

// Hop describes what a Batch does to events.
type Hop struct {
	Name string // of the spans: "publish", "apply", "commit"
	Sink string // name of the topic, view, table or feature group
	// Writes means that the hop puts the events on the log. Otherwise it has read them from there.
	Writes bool
}

// Batch is what one hop does to several events at once. Each event gets a span in its own trace with
// the time of the whole batch, so that one trace shows every hop. The nil Batch does nothing.
type Batch struct {
	tracer          *Tracer
	hop             Hop
	begun           time.Time
	events          []batched
	sampled, others int
	all             int // events that were added, with and without a trace
}

// batched is an event of a batch.
type batched struct {
	parent    trace.SpanContext
	stream    string
	version   uint64
	partition int32
	offset    int64
	failed    error
}

// Entry is an event of a batch and its location on the log.
type Entry struct {
	TraceParent string // event.Event.TraceParent
	RecordedAt  time.Time
	Stream      string
	Version     uint64
	Partition   int32
	Offset      int64 // -1 if it is not known
	Failed      error // of this event alone; nil if it went the way of the batch
}

// Of returns the entry of an event.
func Of(e *event.Event, partition int32, offset int64) Entry {
	return Entry{TraceParent: e.TraceParent, RecordedAt: e.RecordedAt, Stream: e.Stream,
		Version: e.Version, Partition: partition, Offset: offset}
}

// Batch begins a batch. It returns nil if t is nil.
func (t *Tracer) Batch(hop Hop) *Batch {
	if t == nil {
		return nil
	}
	return &Batch{tracer: t, hop: hop, begun: time.Now()}
}

// Begin sets the beginning of the spans to now, for a hop that collects events before it works.
func (b *Batch) Begin() {
	if b != nil {
		b.begun = time.Now()
	}
}

// Add adds events. Events without a trace, old ones, and those over the limits of a batch get no
// span.
func (b *Batch) Add(entries ...Entry) {
	if b == nil {
		return
	}
	for i := range entries {
		b.add(entries[i])
	}
}

func (b *Batch) add(e Entry) {
	b.all++
	if e.TraceParent == "" || b.begun.Sub(e.RecordedAt) > maxAge {
		return
	}
	parent, ok := parse(e.TraceParent)
	if !ok {
		return
	}
	count, limit := &b.others, maxOthers
	if parent.IsSampled() {
		count, limit = &b.sampled, maxSampled
	}
	if *count == limit {
		b.tracer.keeper.left.Add(1)
		return
	}
	*count++
	b.events = append(b.events, batched{parent: parent, stream: e.Stream, version: e.Version,
		partition: e.Partition, offset: e.Offset, failed: e.Failed})
}

// End records the spans. err is nil unless the batch failed. A batch can be ended again, for another
// attempt.
func (b *Batch) End(err error) {
	if b == nil || len(b.events) == 0 || errors.Is(err, context.Canceled) {
		return
	}
	ended := time.Now()
	kind := trace.SpanKindConsumer
	if b.hop.Writes {
		kind = trace.SpanKindProducer
	}
	name := b.hop.Name + " " + b.hop.Sink
	for i := range b.events {
		e := &b.events[i]
		attributes := []attribute.KeyValue{
			attribute.String("messaging.system", "kafka"),
			attribute.String("millrace.sink", b.hop.Sink),
			attribute.Int("messaging.batch.message_count", b.all),
			attribute.Int("messaging.destination.partition.id", int(e.partition)),
		}
		if isID(e.stream) {
			attributes = append(attributes, attribute.String(keyStream, e.stream))
		}
		if e.version > 0 {
			attributes = append(attributes, attribute.Int64("millrace.version", int64(e.version)))
		}
		if e.offset >= 0 {
			attributes = append(attributes, attribute.Int64("messaging.kafka.offset", e.offset))
		}
		_, span := b.tracer.tracer.Start(trace.ContextWithRemoteSpanContext(context.Background(), e.parent), name,
			trace.WithTimestamp(b.begun), trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
		failed := err
		if e.failed != nil {
			failed = e.failed
		}
		setError(span, failed)
		span.End(trace.WithTimestamp(ended))
	}
}
