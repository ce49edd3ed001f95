package tracing

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// The W3C form of a context: version, trace, span and flags, in hexadecimal.
const (
	traceAt, spanAt, flagsAt = 3, 36, 53
	parentLength             = 55
)

// Parent returns the context of ctx's span in the W3C form, or "" without a span.
func Parent(ctx context.Context) string {
	c := trace.SpanContextFromContext(ctx)
	if !c.IsValid() {
		return ""
	}
	text := make([]byte, 0, parentLength)
	text = append(text, "00-"...)
	id, span := c.TraceID(), c.SpanID()
	text = hex.AppendEncode(text, id[:])
	text = append(text, '-')
	text = hex.AppendEncode(text, span[:])
	text = append(text, '-')
	return string(hex.AppendEncode(text, []byte{byte(c.TraceFlags() & trace.FlagsSampled)}))
}

// parse reads a context. ok is false if the text is not one, as in events without a trace.
func parse(text string) (c trace.SpanContext, ok bool) {
	if len(text) != parentLength || text[traceAt-1] != '-' || text[spanAt-1] != '-' || text[flagsAt-1] != '-' {
		return c, false
	}
	var raw [1 + 16 + 8 + 1]byte
	for _, part := range [...]struct {
		text string
		to   []byte
	}{
		{text[:traceAt-1], raw[:1]}, {text[traceAt : spanAt-1], raw[1:17]},
		{text[spanAt : flagsAt-1], raw[17:25]}, {text[flagsAt:], raw[25:]},
	} {
		if !lowerHex(part.text) {
			return c, false
		}
		if _, err := hex.Decode(part.to, []byte(part.text)); err != nil {
			return c, false
		}
	}
	if raw[0] == 0xff { // W3C reserves this version
		return c, false
	}
	c = trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(raw[1:17]), SpanID: trace.SpanID(raw[17:25]),
		TraceFlags: trace.TraceFlags(raw[25]) & trace.FlagsSampled, Remote: true,
	})
	return c, c.IsValid()
}

// lowerHex reports whether a text has digits and lower-case letters up to f only, as W3C requires.
func lowerHex(text string) bool {
	for _, c := range []byte(text) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
