package tracing

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// FuzzParse compares with the SDK's reader of the header: what both accept, they read as the same. The
// SDK refuses flags that version 00 reserves, which W3C tells readers to ignore.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09", "00-4bf92f3577b34da6a3ce929d0e0e4736+00f067aa0ba902b7-01",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := parse(text)
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": text})
		want := trace.SpanContextFromContext(ctx)
		if ok && want.IsValid() &&
			(got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() || got.IsSampled() != want.IsSampled()) {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
		if !ok && len(text) == parentLength && text[:2] == "00" && text[flagsAt] == '0' && text[flagsAt+1] <= '1' &&
			want.IsValid() {
			t.Errorf("%q is not read, but valid", text)
		}
		// What was read is written as the same.
		if again, _ := parse(Parent(trace.ContextWithSpanContext(context.Background(), got))); ok &&
			again.TraceID() != got.TraceID() {
			t.Errorf("%q is written as the trace %v", text, again.TraceID())
		}
	})
}
