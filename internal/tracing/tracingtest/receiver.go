// Package tracingtest has a receiver of OTLP over HTTP for tests. Receiver decodes the requests of the
// protocol and keeps the spans, as a collector does.
package tracingtest

import (
	"cmp"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a received span.
type Span struct {
	Trace, ID, Parent string // in hexadecimal; Parent is empty for the first span of a trace
	Name              string
	Kind              otlp.Span_SpanKind
	Failed            bool
	Begun, Ended      time.Time
	Attributes        map[string]string
}

// Receiver keeps what it receives.
type Receiver struct {
	URL string

	mu    sync.Mutex
	spans []Span
	raw   [][]byte
}

// NewReceiver starts a receiver that stops with the test.
func NewReceiver(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{}
	server := httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

func (r *Receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var sent collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &sent)
	}
	if err != nil || req.URL.Path != "/v1/traces" {
		http.Error(w, "not a request of OTLP", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw = append(r.raw, body)
	for _, resource := range sent.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				r.spans = append(r.spans, spanOf(s))
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func spanOf(s *otlp.Span) Span {
	span := Span{Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()),
		Parent: hex.EncodeToString(s.GetParentSpanId()), Name: s.GetName(), Kind: s.GetKind(),
		Failed: s.GetStatus().GetCode() == otlp.Status_STATUS_CODE_ERROR,
		Begun:  time.Unix(0, int64(s.GetStartTimeUnixNano())), Ended: time.Unix(0, int64(s.GetEndTimeUnixNano())),
		Attributes: map[string]string{}}
	for _, a := range s.GetAttributes() {
		span.Attributes[a.GetKey()] = text(a.GetValue())
	}
	return span
}

// text returns an attribute's value as text.
func text(v *common.AnyValue) string {
	if i, ok := v.GetValue().(*common.AnyValue_IntValue); ok {
		return strconv.FormatInt(i.IntValue, 10)
	}
	return v.GetStringValue()
}

// Spans returns the spans of a trace in the order of their names, or all spans if trace is empty.
func (r *Receiver) Spans(trace string) []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	var of []Span
	for _, s := range r.spans {
		if trace == "" || s.Trace == trace {
			of = append(of, s)
		}
	}
	slices.SortStableFunc(of, func(a, b Span) int { return cmp.Compare(a.Name, b.Name) })
	return of
}

// Raw returns the requests as they were received.
func (r *Receiver) Raw() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.raw)
}
