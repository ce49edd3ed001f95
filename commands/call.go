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
)

// Headers that a command may carry, in every protocol.
const (
	// HeaderIdempotencyKey stands in for the field idempotency_key. Where both are given they must agree.
	HeaderIdempotencyKey = "Idempotency-Key"
	// HeaderCorrelationID names the conversation the command belongs to. Every event carries it; a command without one starts
	// a conversation, which is named after the id of its first event.
	HeaderCorrelationID = "X-Correlation-Id"
	// HeaderTraceParent is the W3C trace context, passed on with every event. A malformed one is left out, as W3C wants.
	HeaderTraceParent = "Traceparent"
)

// call is what a request says beside its command.
type call struct {
	key         string // idempotency key; may be empty
	fingerprint []byte // of procedure and request; nil without a key
	correlation string
	trace       string
	blank       Response // to read a kept answer into
}

func newCall(ctx context.Context, procedure string, header http.Header, request Request) (call, error) {
	inHeader, inField := header.Get(HeaderIdempotencyKey), request.GetIdempotencyKey()
	if inHeader != "" && inField != "" && inHeader != inField {
		return call{}, &Rejected{Code: Invalid, Rule: "idempotency_key_ambiguous", Field: fieldKey,
			Reason: "the field and the header " + HeaderIdempotencyKey + " differ"}
	}
	c := call{key: cmp.Or(inField, inHeader), correlation: header.Get(HeaderCorrelationID)}
	if caller := auth.CallerOf(ctx); caller != "" && c.key != "" { // nobody is given the answer to another's command
		c.key = caller + ":" + c.key // the name of a caller has no colon
	}
	if !isName(c.key) || strings.TrimSpace(c.key) != c.key { // headers lose the spaces at their ends, fields do not
		return call{}, badName("idempotency_key_malformed", fieldKey)
	}
	if !isName(c.correlation) {
		return call{}, badName("correlation_id_malformed", HeaderCorrelationID)
	}
	if trace := header.Get(HeaderTraceParent); traceParent.MatchString(trace) {
		c.trace = trace
	}
	if c.key != "" {
		var err error
		if c.fingerprint, err = fingerprint(procedure, request); err != nil {
			return call{}, err
		}
	}
	return c, nil
}

// asks tells whether it is the request that a was the answer to.
func (c call) asks(a eventstore.Answer) bool { return bytes.Equal(c.fingerprint, a.Fingerprint) }

const fieldKey = "idempotency_key"

var traceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// isName says whether every store, header and log line can carry s.
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

func badName(rule, field string) error {
	return &Rejected{Code: Invalid, Rule: rule, Field: field,
		Reason: fmt.Sprintf("want at most %d bytes of UTF-8, without control characters and without spaces at the ends", eventstore.MaxText)}
}

// fingerprint is the hash of what is asked for: the procedure and the request without its key.
func fingerprint(procedure string, request Request) ([]byte, error) {
	m := request.ProtoReflect()
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
