package tracing

import (
	"context"
	"log/slog"
	"sync/atomic"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// sender counts the spans on their way to the receiver. It stands on both sides of the SDK's queue: it
// admits spans, and it is the exporter to which the queue passes them.
type sender struct {
	queue sdktrace.SpanProcessor
	to    sdktrace.SpanExporter
	log   *slog.Logger

	queued                atomic.Int64
	sent, failed, dropped atomic.Uint64
	down                  atomic.Bool // the last request failed
}

// send queues a span, or drops it if the queue is full.
func (s *sender) send(span sdktrace.ReadOnlySpan) {
	if s.queued.Add(1) > maxQueued {
		s.queued.Add(-1)
		s.dropped.Add(1)
		return
	}
	s.queue.OnEnd(span)
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the SDK would print it.
func (s *sender) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := s.to.ExportSpans(ctx, spans)
	s.queued.Add(-int64(len(spans)))
	if err == nil {
		s.sent.Add(uint64(len(spans)))
		if s.down.Swap(false) {
			s.log.Info("traces: the receiver takes spans again")
		}
		return nil
	}
	s.failed.Add(uint64(len(spans)))
	if !s.down.Swap(true) { // an outage is logged once
		s.log.Warn("traces: the receiver does not take spans; check telemetry.traces.endpoint and the receiver. "+
			"Further failures are counted in millrace_trace_spans_total only", "error", err)
	}
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (s *sender) Shutdown(ctx context.Context) error { return s.to.Shutdown(ctx) }
