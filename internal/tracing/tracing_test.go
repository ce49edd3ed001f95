package tracing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/tracing/tracingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Contexts of a caller.
const (
	callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callersSpan  = "00f067aa0ba902b7"
	sampled      = "00-" + callersTrace + "-" + callersSpan + "-01"
	orderID      = "0193e2a4-7b1c-7def-8a11-1234567890ab"
	unsampled    = "00-" + callersTrace + "-" + callersSpan + "-00"
)

// newTracer returns a tracer that samples no trace of its own, with its receiver.
func newTracer(t *testing.T, c Config) (*Tracer, *tracingtest.Receiver) {
	t.Helper()
	to := tracingtest.NewReceiver(t)
	c.Endpoint, c.Logger = to.URL, slog.New(slog.DiscardHandler)
	if c.Slow == 0 {
		c.Slow = time.Hour
	}
	tracer, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return tracer, to
}

// call calls a service through the interceptor. It returns the context that the handler got.
func call(t *testing.T, tracer *Tracer, parent string, handle func(context.Context) error) (seen context.Context) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/shop.Orders/Place", connect.NewUnaryHandler("/shop.Orders/Place",
		func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[emptypb.Empty], error) {
			seen = ctx
			return connect.NewResponse(&emptypb.Empty{}), handle(ctx)
		}, connect.WithInterceptors(tracer.Interceptor())))
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/shop.Orders/Place", strings.NewReader("{}"))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Traceparent", parent)
	mux.ServeHTTP(httptest.NewRecorder(), req)
	return seen
}

// entry returns an event of the trace of a context.
func entry(parent string) Entry {
	return Entry{TraceParent: parent, RecordedAt: time.Now(), Stream: orderID, Version: 2,
		Partition: 3, Offset: 4}
}

// names returns the sorted names of the spans.
func names(spans []tracingtest.Span) []string {
	all := make([]string, len(spans))
	for i, s := range spans {
		all[i] = s.Name
	}
	return all
}

// TestOneTrace: a call continues the caller's trace, and its children and the hops of its event
// continue it further, with their parents.
func TestOneTrace(t *testing.T) {
	tracer, to := newTracer(t, Config{})
	var parent string
	call(t, tracer, sampled, func(ctx context.Context) error {
		parent = Parent(ctx)
		_, span := Start(ctx, "store append")
		span.SetStream(orderID)
		span.SetInt("millrace.version", 2)
		span.End(nil)
		return nil
	})
	batch := tracer.Batch(Hop{Name: "publish", Sink: "millrace.orders", Writes: true})
	batch.Add(entry(parent), entry(""), entry("not a context"))
	batch.End(nil)
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	spans := to.Spans(callersTrace)
	if want := []string{"publish millrace.orders", "shop.Orders/Place", "store append"}; !slices.Equal(names(spans), want) ||
		len(to.Spans("")) != len(want) {
		t.Fatalf("received %q, want %q in one trace", names(to.Spans("")), want)
	}
	publish, place, appended := spans[0], spans[1], spans[2]
	if place.Parent != callersSpan || appended.Parent != place.ID || publish.Parent != place.ID {
		t.Errorf("parents %q, %q, %q: want %q and the call twice", place.Parent, appended.Parent, publish.Parent, callersSpan)
	}
	if a := publish.Attributes; a["millrace.stream"] != orderID || a["messaging.kafka.offset"] != "4" ||
		a["messaging.destination.partition.id"] != "3" || a["messaging.batch.message_count"] != "3" {
		t.Errorf("attributes of the hop: %v", a)
	}
	if publish.Kind.String() != "SPAN_KIND_PRODUCER" || place.Kind.String() != "SPAN_KIND_SERVER" {
		t.Errorf("kinds %v and %v", publish.Kind, place.Kind)
	}
	if s := tracer.Stats(); s != (Stats{Sent: 3}) {
		t.Errorf("stats %+v", s)
	}
}

// TestRules: which traces are sent.
func TestRules(t *testing.T) {
	failed := errors.New("disk full")
	for name, c := range map[string]struct {
		ratio  float64
		parent string
		do     func(*Tracer, string) // after a call in the trace
		call   error
		want   []string
	}{
		"none of its own":       {want: nil},
		"all of its own":        {ratio: 1, want: []string{"shop.Orders/Place"}},
		"the caller samples":    {parent: sampled, want: []string{"shop.Orders/Place"}},
		"the caller does not":   {ratio: 1, parent: unsampled, want: nil},
		"a call that fails":     {call: failed, want: []string{"shop.Orders/Place"}},
		"a call that is denied": {call: connect.NewError(connect.CodePermissionDenied, failed), want: nil},
		"a hop that fails": {want: []string{"apply v", "shop.Orders/Place"}, do: func(t *Tracer, parent string) {
			b := t.Batch(Hop{Name: "apply", Sink: "v"})
			b.Add(entry(parent))
			b.End(failed)
		}},
		"an event of a hop that fails": {want: []string{"apply v", "shop.Orders/Place"}, do: func(t *Tracer, parent string) {
			b := t.Batch(Hop{Name: "apply", Sink: "v"})
			bad := entry(parent)
			bad.Failed = failed
			b.Add(bad, entry("00-11111111111111111111111111111111-2222222222222222-00"))
			b.End(nil)
		}},
		"a hop that is slow": {want: []string{"apply v", "apply w", "shop.Orders/Place"}, do: func(t *Tracer, parent string) {
			for _, sink := range []string{"v", "w"} { // the second one is fast, and its trace is kept already
				b := t.Batch(Hop{Name: "apply", Sink: sink})
				b.Add(entry(parent))
				if sink == "v" {
					b.begun = b.begun.Add(-2 * time.Hour)
				}
				b.End(nil)
			}
		}},
		"a hop that is stopped": {want: nil, do: func(t *Tracer, parent string) {
			b := t.Batch(Hop{Name: "apply", Sink: "v"})
			b.Add(entry(parent))
			b.End(fmt.Errorf("read: %w", context.Canceled))
		}},
		"an event that is read again": {ratio: 1, want: []string{"shop.Orders/Place"}, do: func(t *Tracer, parent string) {
			b := t.Batch(Hop{Name: "apply", Sink: "v"})
			old := entry(parent)
			old.RecordedAt = time.Now().Add(-2 * maxAge)
			b.Add(old)
			b.End(failed)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			tracer, to := newTracer(t, Config{Ratio: c.ratio})
			var parent string
			call(t, tracer, c.parent, func(ctx context.Context) error {
				parent = Parent(ctx)
				return c.call
			})
			if c.do != nil {
				c.do(tracer, parent)
			}
			if err := tracer.Close(); err != nil {
				t.Fatal(err)
			}
			if got := names(to.Spans("")); !slices.Equal(got, c.want) {
				t.Errorf("received %q, want %q", got, c.want)
			}
		})
	}
}

// TestNoContentInSpans: neither messages of errors nor identifiers of people are attributes.
func TestNoContentInSpans(t *testing.T) {
	const secret = "ada@example.com"
	tracer, to := newTracer(t, Config{Ratio: 1})
	call(t, tracer, "", func(ctx context.Context) error {
		_, span := Start(ctx, "store append")
		span.SetStream(secret)
		span.End(fmt.Errorf("duplicate key %s: %w", secret, errors.New(secret)))
		return errors.New(secret)
	})
	b := tracer.Batch(Hop{Name: "apply", Sink: "v"})
	person := entry(sampled)
	person.Stream = secret
	b.Add(person)
	b.End(errors.New(secret))
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(to.Spans("")); got != 3 {
		t.Fatalf("received %d spans, want 3", got)
	}
	for _, s := range to.Spans("") {
		if !s.Failed || s.Attributes["error.type"] == "" {
			t.Errorf("%s: failed %v, attributes %v; want the type of the error", s.Name, s.Failed, s.Attributes)
		}
	}
	for _, request := range to.Raw() {
		if bytes.Contains(request, []byte(secret)) {
			t.Errorf("a request contains %q", secret)
		}
	}
}

// TestBounds: a batch records a limited number of spans, and the buffer keeps a limited number of
// traces and of spans of one.
func TestBounds(t *testing.T) {
	tracer, to := newTracer(t, Config{})
	b := tracer.Batch(Hop{Name: "apply", Sink: "v"})
	for range maxSampled + 5 {
		b.Add(entry(sampled))
	}
	for i := range maxOthers + 7 {
		b.Add(entry(fmt.Sprintf("00-%032x-%016x-00", i+1, i+1)))
	}
	b.End(nil)
	if s := tracer.Stats(); s.Left != 12 || s.Buffered != maxOthers {
		t.Errorf("left %d, buffered %d; want 12 and %d", s.Left, s.Buffered, maxOthers)
	}
	for i := range maxTraces + maxPerTrace + 9 {
		id := min(i, maxTraces) + 1_000_000 // the last trace has many spans
		b := tracer.Batch(Hop{Name: "apply", Sink: "v"})
		b.Add(entry(fmt.Sprintf("00-%032x-%016x-00", id, i+1)))
		b.End(nil)
	}
	if s := tracer.Stats(); s.Left != 12+9 || s.Buffered != maxTraces-1+maxPerTrace {
		t.Errorf("left %d, buffered %d; want %d and %d", s.Left, s.Buffered, 12+9, maxTraces-1+maxPerTrace)
	}
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(to.Spans("")); got != maxSampled {
		t.Errorf("received %d spans, want %d", got, maxSampled)
	}
}

// TestReceiverFails: a receiver that hangs or refuses stops nothing. Spans over the queue are counted
// and dropped.
func TestReceiverFails(t *testing.T) {
	release := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(http.StatusBadRequest)
	}))
	defer hung.Close()
	var log bytes.Buffer
	tracer, err := New(
		t.Context(),
		Config{Endpoint: hung.URL, Slow: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))},
	)
	if err != nil {
		t.Fatal(err)
	}
	const batches = 2*maxQueued/maxSampled + 1
	for range batches {
		b := tracer.Batch(Hop{Name: "apply", Sink: "v"})
		for range maxSampled {
			b.Add(entry(sampled))
		}
		b.End(nil) // does not block, although nothing is sent
	}
	if s := tracer.Stats(); s.Dropped != batches*maxSampled-maxQueued || s.Sent != 0 {
		t.Errorf("stats %+v: want %d dropped", s, batches*maxSampled-maxQueued)
	}
	close(release)
	polltest.Until(t, "the queue is empty", func() bool { return tracer.Stats().Failed == maxQueued })
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "does not take spans"); n != 1 {
		t.Errorf("the outage was logged %d times: %s", n, log.String())
	}
}

// TestOff: without a tracer, nothing happens, and a hop allocates nothing.
func TestOff(t *testing.T) {
	var tracer *Tracer
	seen := call(t, tracer, sampled, func(context.Context) error { return nil })
	if Parent(seen) != "" {
		t.Errorf("the handler got the context %q", Parent(seen))
	}
	ctx := t.Context()
	allocations := testing.AllocsPerRun(100, func() {
		_, span := Start(ctx, "store append")
		span.Set("k", "v")
		span.End(nil)
		b := tracer.Batch(Hop{Name: "apply", Sink: "v"})
		b.Begin()
		b.Add()
		b.End(nil)
	})
	if allocations != 0 {
		t.Errorf("%v allocations, want none", allocations)
	}
	if err := tracer.Close(); err != nil {
		t.Error(err)
	}
}

// TestEndpoint: an address without a scheme is refused before anything starts.
func TestEndpoint(t *testing.T) {
	for endpoint, ok := range map[string]bool{"http://collector:4318": true, "https://c/custom/path": true,
		"collector:4318": false, "": false, "grpc://c:4317": false, "http://": false} {
		if err := CheckEndpoint(endpoint); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

// TestLogHandler: records of a traced call have its ids, also through With and groups.
func TestLogHandler(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(LogHandler(slog.NewTextHandler(&out, nil))).With("part", "store")
	c, _ := parse(sampled)
	log.InfoContext(trace.ContextWithSpanContext(t.Context(), c), "traced")
	log.InfoContext(t.Context(), "not traced")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if want := "part=store trace_id=" + callersTrace + " span_id=" + callersSpan; len(lines) != 2 ||
		!strings.HasSuffix(lines[0], want) || strings.Contains(lines[1], "trace_id") {
		t.Errorf("log: %q, want the first line to end with %q", lines, want)
	}
}

// BenchmarkBatch measures what a hop of 500 events costs.
func BenchmarkBatch(b *testing.B) {
	entries := make([]Entry, 500)
	for i := range entries {
		entries[i] = entry(fmt.Sprintf("00-%032x-%016x-00", i+1, i+1))
	}
	tracer, err := New(
		b.Context(),
		Config{Endpoint: "http://127.0.0.1:1", Slow: time.Hour, Logger: slog.New(slog.DiscardHandler)},
	)
	if err != nil {
		b.Fatal(err)
	}
	defer tracer.Close() //nolint:errcheck // nothing was sent
	for name, t := range map[string]*Tracer{"off": nil, "unsampled": tracer} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				batch := t.Batch(Hop{Name: "apply", Sink: "v"})
				if batch != nil {
					batch.Add(entries...)
				}
				batch.End(nil)
			}
		})
	}
}
