// Package tracing records traces of OpenTelemetry and sends them to a receiver of OTLP over HTTP. It
// is the only package that imports OpenTelemetry's SDK.
//
// Tracer is one per process. Its Interceptor starts the span of a call, and Start a child of the span
// in a context. An event carries the context of its command (event.Event.TraceParent), so every later
// hop can add to the trace of the command: a Batch is what one hop did to several events at once, and
// becomes one span in the trace of each event. LogHandler adds the ids of the span to log records.
//
// The first process of a trace decides whether it is sampled, and the decision travels in the flags of
// the context. Spans of other traces are recorded, too, and wait in a buffer. If a span of such a trace
// fails or is slow, the trace is kept: its waiting spans and all later ones of this process are sent.
// sampling.go has both rules.
//
// Invariants:
//
//   - A nil *Tracer, *Span or *Batch does nothing, so a process without traces pays for a comparison.
//   - Sending never blocks a caller. Queue, buffer and spans per batch have limits; Stats counts what
//     is over them.
//   - Attributes contain ids, positions, names from the code and types of errors. They contain no
//     content of a request or an event, and no error messages.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Config configures a Tracer.
type Config struct {
	// Endpoint is the URL of a receiver of OTLP over HTTP: "http://collector:4318". Its path is
	// /v1/traces unless the URL has one.
	Endpoint string
	Ratio    float64       // share of the traces that begin here and are sampled, from 0 to 1
	Slow     time.Duration // a span of at least this duration keeps its trace
	Logger   *slog.Logger  // nil means slog.Default()
}

// scope names this program as the origin of spans.
const scope = "github.com/millrace/millrace"

const (
	maxQueued     = 8192             // spans that wait to be sent
	maxPerRequest = 512              // spans of one request
	sendEvery     = time.Second      // how long a span waits for others
	sendTimeout   = 10 * time.Second // of one request with its retries
	stopTimeout   = 3 * time.Second  // how long Close waits for the receiver
)

// Tracer records the spans of a process.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	keeper   *keeper
	sender   *sender
	slow     time.Duration
}

// New returns a Tracer. It does not connect: a receiver that is unavailable stops nothing.
func New(ctx context.Context, c Config) (*Tracer, error) {
	if err := CheckEndpoint(c.Endpoint); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	endpoint, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, err
	}
	if endpoint.Path == "" || endpoint.Path == "/" {
		endpoint.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint.String()),
		otlptracehttp.WithTimeout(sendTimeout))
	if err != nil {
		return nil, fmt.Errorf("exporter of traces: %w", err)
	}
	t := &Tracer{slow: c.Slow}
	t.sender = &sender{to: exporter, log: c.Logger}
	// The queue of the SDK drops spans without a word, so the sender admits no more than fit.
	t.sender.queue = sdktrace.NewBatchSpanProcessor(t.sender, sdktrace.WithMaxQueueSize(2*maxQueued),
		sdktrace.WithMaxExportBatchSize(maxPerRequest), sdktrace.WithBatchTimeout(sendEvery),
		sdktrace.WithExportTimeout(sendTimeout))
	t.keeper = newKeeper(c.Slow, t.sender)
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(newSampler(c.Ratio)), sdktrace.WithSpanProcessor(t.keeper),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "millrace"))),
	)
	t.tracer = t.provider.Tracer(scope)
	return t, nil
}

// CheckEndpoint returns an error if a URL cannot be that of a receiver.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is not http(s)://host:port", endpoint)
	}
	return nil
}

// Close sends what is queued, as far as the receiver takes it within a few seconds.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	// A receiver that does not answer is not an error of the process. The sender has logged it.
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop traces: %w", err)
	}
	return nil
}

// Stats counts spans since the start.
type Stats struct {
	Sent     uint64 // the receiver has them
	Failed   uint64 // the receiver did not take them
	Dropped  uint64 // the queue was full
	Left     uint64 // not recorded: over the limit of a batch
	Buffered uint64 // of traces that are not sampled; waiting now
}

// Stats returns the counts.
func (t *Tracer) Stats() Stats {
	return Stats{Sent: t.sender.sent.Load(), Failed: t.sender.failed.Load(), Dropped: t.sender.dropped.Load(),
		Left: t.keeper.left.Load(), Buffered: uint64(t.keeper.size())}
}
