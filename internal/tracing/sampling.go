package tracing

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	maxTraces   = 4096 // traces with spans in the buffer, and as many that are kept
	maxPerTrace = 32   // spans in the buffer of one trace
)

// sampler is the first rule: a trace is sampled as the caller decided, or by the ratio if it begins
// here. Spans of other traces are recorded for the second rule.
type sampler struct{ ratio sdktrace.Sampler }

// newSampler returns a sampler.
func newSampler(ratio float64) sampler { return sampler{sdktrace.TraceIDRatioBased(ratio)} }

// ShouldSample implements sdktrace.Sampler.
func (s sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	result := sdktrace.SamplingResult{Decision: sdktrace.RecordOnly, Tracestate: parent.TraceState()}
	if parent.IsSampled() || !parent.IsValid() && s.ratio.ShouldSample(p).Decision == sdktrace.RecordAndSample {
		result.Decision = sdktrace.RecordAndSample
	}
	return result
}

// Description implements sdktrace.Sampler.
func (s sampler) Description() string { return "MillraceRules{" + s.ratio.Description() + "}" }

// keeper is the second rule: the traces of failed and of slow spans are kept. It implements
// sdktrace.SpanProcessor.
type keeper struct {
	slow time.Duration
	to   *sender
	left atomic.Uint64 // spans that batches did not record

	mu sync.Mutex
	// waiting are the spans of traces that are not sampled, and kept the traces of the rule. Both
	// forget the trace that was used least recently.
	waiting *lru.Cache[trace.TraceID, []sdktrace.ReadOnlySpan]
	kept    *lru.Cache[trace.TraceID, struct{}]
	spans   int // in waiting
}

// newKeeper returns a keeper that passes spans to a sender.
func newKeeper(slow time.Duration, to *sender) *keeper {
	k := &keeper{slow: slow, to: to}
	var err error
	k.waiting, err = lru.NewWithEvict(maxTraces, func(_ trace.TraceID, spans []sdktrace.ReadOnlySpan) {
		k.spans -= len(spans)
	})
	if err != nil {
		panic(err) // the size is positive
	}
	if k.kept, err = lru.New[trace.TraceID, struct{}](maxTraces); err != nil {
		panic(err)
	}
	return k
}

// OnStart implements sdktrace.SpanProcessor.
func (k *keeper) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (k *keeper) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		k.to.send(s)
		return
	}
	id := s.SpanContext().TraceID()
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, kept := k.kept.Get(id); kept {
		k.to.send(sampledSpan{s})
		return
	}
	spans, _ := k.waiting.Get(id)
	if s.Status().Code != codes.Error && s.EndTime().Sub(s.StartTime()) < k.slow {
		if len(spans) == maxPerTrace {
			k.left.Add(1)
			return
		}
		k.waiting.Add(id, append(spans, s))
		k.spans++
		return
	}
	k.kept.Add(id, struct{}{})
	for _, earlier := range spans {
		k.to.send(sampledSpan{earlier})
	}
	k.waiting.Remove(id) // it calls the function of NewWithEvict
	k.to.send(sampledSpan{s})
}

// size returns the number of waiting spans.
func (k *keeper) size() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spans
}

// Shutdown implements sdktrace.SpanProcessor.
func (k *keeper) Shutdown(ctx context.Context) error { return k.to.queue.Shutdown(ctx) }

// ForceFlush implements sdktrace.SpanProcessor.
func (k *keeper) ForceFlush(ctx context.Context) error { return k.to.queue.ForceFlush(ctx) }

// sampledSpan is a span of a kept trace. The SDK sends spans only whose context is sampled.
type sampledSpan struct{ sdktrace.ReadOnlySpan }

// SpanContext implements sdktrace.ReadOnlySpan.
func (s sampledSpan) SpanContext() trace.SpanContext {
	c := s.ReadOnlySpan.SpanContext()
	return c.WithTraceFlags(c.TraceFlags().WithSampled(true))
}
