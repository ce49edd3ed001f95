package commands

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/tracing"
)

// Headers that a command may carry, in every protocol.
const (
	// HeaderIdempotencyKey replaces the field idempotency_key. If both are given, they must be
	// equal.
	HeaderIdempotencyKey = "Idempotency-Key"
	// HeaderCorrelationID identifies the conversation of the command. Every event carries it. A
	// command without one starts a conversation, named after the id of its first event.
	HeaderCorrelationID = "X-Correlation-Id"
	// HeaderTraceParent is the W3C trace context of every event. A malformed one is dropped, as W3C
	// requires.
	HeaderTraceParent = "Traceparent"
)

// call is the metadata of a request.
type call struct {
	key         string // idempotency key; may be empty
	fingerprint []byte // of procedure and request; nil without a key
	correlation string
	trace       string
	blank       Response // a stored answer is decoded into it
}

// newCall reads the metadata of a request. It rejects a key that the store could not keep
// unchanged.
func newCall(ctx context.Context, procedure string, header http.Header, request Request) (call, error) {
	inHeader, inField := header.Get(HeaderIdempotencyKey), request.GetIdempotencyKey()
	if inHeader != "" && inField != "" && inHeader != inField {
		return call{}, &RejectedError{Code: Invalid, Rule: "idempotency_key_ambiguous", Field: fieldKey,
			Reason: "the field and the header " + HeaderIdempotencyKey + " differ: set one of them"}
	}
	c := call{key: cmp.Or(inField, inHeader), correlation: header.Get(HeaderCorrelationID)}
	// A key is private to its caller, so that no caller gets the answer to another one's command.
	if caller := auth.CallerOf(ctx); caller != "" && c.key != "" {
		c.key = caller + ":" + c.key // names of callers contain no colon
	}
	// Headers lose spaces at their ends, and fields keep them.
	if !isName(c.key) || strings.TrimSpace(c.key) != c.key {
		return call{}, badName("idempotency_key_malformed", fieldKey)
	}
	if !isName(c.correlation) {
		return call{}, badName("correlation_id_malformed", HeaderCorrelationID)
	}
	// The span of the command is in the trace of the header, if it has one.
	if c.trace = tracing.Parent(ctx); c.trace == "" {
		if trace := header.Get(HeaderTraceParent); traceParent.MatchString(trace) {
			c.trace = trace
		}
	}
	if c.key != "" {
		var err error
		if c.fingerprint, err = fingerprint(procedure, request); err != nil {
			return call{}, err
		}
	}
	return c, nil
}

// matches reports whether a is the answer to this request.
func (c call) matches(a eventstore.Answer) bool { return bytes.Equal(c.fingerprint, a.Fingerprint) }

// fieldKey is the name of the field with the idempotency key in every request.
const fieldKey = "idempotency_key"

// traceParent is the form of a W3C trace context.
var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// isName reports whether every store, header and log line can carry s.
func isName(s string) bool {
	if len(s) > eventstore.MaxText || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// badName returns the rejection of a key or correlation id that isName rejects.
func badName(rule, field string) error {
	return &RejectedError{Code: Invalid, Rule: rule, Field: field,
		Reason: fmt.Sprintf("must have at most %d bytes of UTF-8, "+
			"no control characters and no surrounding spaces", eventstore.MaxText)}
}

// fingerprint returns the hash of the procedure and of the request without its key.
func fingerprint(procedure string, request Request) ([]byte, error) {
	m := request.ProtoReflect()
	// The key is not part of the request's content: it may be in the header or in the field.
	field := m.Descriptor().Fields().ByName(fieldKey)
	key := m.Get(field)
	m.Clear(field)
	body, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append([]byte(procedure), 0), request)
	m.Set(field, key)
	if err != nil {
		return nil, fmt.Errorf("marshal request of %s: %w", procedure, err)
	}
	sum := sha256.Sum256(body)
	return sum[:], nil
}
