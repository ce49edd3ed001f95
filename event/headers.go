package event

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Header is a Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// The header keys: CloudEvents 1.0 in binary mode for Kafka, Millrace's own attributes as
// extensions, and the W3C trace context.
const (
	headerSpec        = "ce_specversion"
	headerID          = "ce_id"
	headerType        = "ce_type"
	headerSource      = "ce_source" // "/millrace/<aggregate>"
	headerSubject     = "ce_subject"
	headerTime        = "ce_time"
	headerRecorded    = "ce_recordedtime"
	headerVersion     = "ce_streamversion"
	headerPosition    = "ce_storeposition"
	headerCorrelation = "ce_correlationid"
	headerCausation   = "ce_causationid"
	headerTrace       = "traceparent"
	headerContent     = "content-type"

	specVersion  = "1.0"
	sourcePrefix = "/millrace/"
)

// ContentType is the content type of a record whose value is an event's Data, unchanged.
const ContentType = "application/protobuf"

// Headers returns the envelope as CloudEvents headers. Together with the stream as key and Data as
// value it is the whole event, which FromRecord restores.
func (e Event) Headers() []Header { return e.HeadersOf(ContentType) }

// HeadersOf is Headers for a record whose value is Data in another encoding, named by contentType.
func (e Event) HeadersOf(contentType string) []Header {
	n := 13
	if e.Aggregate == Behavior.Name {
		n = 8 // without a version, and mostly without the optional ones
	}
	h := make([]Header, 0, n)
	// One allocation has all values: this runs for every event that is written.
	buf := make([]byte, 0, 256+len(e.Stream))
	from := 0
	add := func(key string) {
		h = append(h, Header{key, buf[from:len(buf):len(buf)]})
		from = len(buf)
	}
	text := func(key, value string) {
		buf = append(buf, value...)
		add(key)
	}
	text(headerSpec, specVersion)
	text(headerID, e.ID.String())
	text(headerType, e.Type)
	buf = append(buf, sourcePrefix...)
	text(headerSource, e.Aggregate)
	text(headerSubject, e.Stream)
	buf = e.OccurredAt.UTC().AppendFormat(buf, time.RFC3339Nano)
	add(headerTime)
	buf = e.RecordedAt.UTC().AppendFormat(buf, time.RFC3339Nano)
	add(headerRecorded)
	if e.Aggregate != Behavior.Name { // which has no store
		buf = strconv.AppendUint(buf, e.Version, 10)
		add(headerVersion)
		text(headerPosition, e.Position.String())
	}
	text(headerContent, contentType)
	for _, opt := range [...]struct{ key, value string }{
		{headerCorrelation, e.CorrelationID}, {headerCausation, e.CausationID}, {headerTrace, e.TraceParent},
	} {
		if opt.value != "" {
			text(opt.key, opt.value)
		}
	}
	return h
}

// TraceParentOf returns the trace context of a record, or "". It does not check that the record is an
// event.
func TraceParentOf(headers []Header) string {
	for _, h := range headers {
		if h.Key == headerTrace {
			return string(h.Value)
		}
	}
	return ""
}

// ErrNotEvent is wrapped by every error of FromRecord: the record was not written as an event, or it
// is damaged.
var ErrNotEvent = errors.New("record is not an event")

// FromRecord reads an event from a record's key, value and headers. Data aliases value. Unknown
// headers are ignored.
func FromRecord(key, value []byte, headers []Header) (Event, error) {
	e := Event{Stream: string(key), Data: value}
	var err error
	var subject, spec []byte
	for _, h := range headers {
		var bad error
		switch h.Key { // these conversions do not allocate
		case headerSpec:
			spec = h.Value
		case headerID:
			e.ID, bad = uuid.ParseBytes(h.Value)
		case headerType:
			e.Type = intern(h.Value)
		case headerSource:
			if name, ok := bytes.CutPrefix(h.Value, []byte(sourcePrefix)); !ok || len(name) == 0 {
				bad = fmt.Errorf("want %s<aggregate>", sourcePrefix)
			} else {
				e.Aggregate = intern(name)
			}
		case headerSubject:
			subject = h.Value
		case headerTime:
			e.OccurredAt, bad = parseTime(h.Value)
		case headerRecorded:
			e.RecordedAt, bad = parseTime(h.Value)
		case headerVersion:
			e.Version, bad = strconv.ParseUint(string(h.Value), 10, 64)
		case headerPosition:
			e.Position, bad = ParsePosition(string(h.Value))
		case headerCorrelation:
			e.CorrelationID = string(h.Value)
		case headerCausation:
			e.CausationID = string(h.Value)
		case headerTrace:
			e.TraceParent = string(h.Value)
		}
		if bad != nil {
			// Without bad, which quotes the value: errors are logged, and the value can be personal.
			err = errors.Join(err, fmt.Errorf("header %s is malformed", h.Key))
		}
	}
	switch {
	case err != nil:
	case string(spec) != specVersion:
		err = fmt.Errorf("header %s is not %s", headerSpec, specVersion)
	case e.Aggregate == Behavior.Name && (e.Version != 0 || !e.Position.IsZero()):
		err = errors.New("behaviour has no versions and no positions")
	case e.ID == uuid.Nil, e.Type == "", e.Aggregate == "", e.Version == 0 && e.Aggregate != Behavior.Name,
		e.OccurredAt.IsZero(), e.RecordedAt.IsZero():
		err = errors.New("a required header is missing or zero: id, type, source, streamversion, time, recordedtime")
	case e.Stream == "" || e.Stream != string(subject):
		err = fmt.Errorf("the key differs from the header %s", headerSubject)
	}
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	return e, nil
}

// intern returns b as a string. It does not allocate for known types and aggregates.
func intern(b []byte) string {
	if s, ok := interned()[string(b)]; ok {
		return s
	}
	return string(b)
}

// interned contains the known names. Descriptors are registered before the first record is read.
var interned = sync.OnceValue(func() map[string]string {
	names := map[string]string{Behavior.Name: Behavior.Name, Behavior.Message: Behavior.Message}
	for _, a := range aggregates {
		names[a.Name] = a.Name
		if c, err := contractOf(a.Message); err == nil {
			for name := range c.types {
				names[name] = name
			}
		}
	}
	return names
})

// parseTime accepts RFC 3339, also in the forms that only time.Parse accepts.
func parseTime(b []byte) (t time.Time, err error) {
	if t.UnmarshalText(b) != nil { // stricter than Parse, but does not allocate
		t, err = time.Parse(time.RFC3339Nano, string(b))
	}
	// An offset can lead to a year outside the range of RFC 3339.
	if y := t.UTC().Year(); err == nil && (y < 1 || y > 9999) {
		err = fmt.Errorf("year %d is out of range", y)
	}
	return Time(t), err
}
