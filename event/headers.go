package event

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Header is a Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Header keys: CloudEvents 1.0 binary mode over Kafka, with our attributes as extensions, and W3C trace context.
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

// ContentType is that of a record whose value is an event's Data as it is.
const ContentType = "application/protobuf"

// Headers is the envelope as CloudEvents headers. With the stream as the record's key and Data as its value it is the
// whole event: FromRecord gives it back.
func (e Event) Headers() []Header { return e.HeadersOf(ContentType) }

// HeadersOf is Headers for a record whose value is Data in another form, which the content type names.
func (e Event) HeadersOf(contentType string) []Header {
	h := []Header{
		{headerSpec, []byte(specVersion)},
		{headerID, []byte(e.ID.String())},
		{headerType, []byte(e.Type)},
		{headerSource, []byte(sourcePrefix + e.Aggregate)},
		{headerSubject, []byte(e.Stream)},
		{headerTime, e.OccurredAt.UTC().AppendFormat(nil, time.RFC3339Nano)},
		{headerRecorded, e.RecordedAt.UTC().AppendFormat(nil, time.RFC3339Nano)},
		{headerVersion, strconv.AppendUint(nil, e.Version, 10)},
		{headerPosition, []byte(e.Position.String())},
		{headerContent, []byte(contentType)},
	}
	for _, opt := range []struct{ key, value string }{
		{headerCorrelation, e.CorrelationID}, {headerCausation, e.CausationID}, {headerTrace, e.TraceParent},
	} {
		if opt.value != "" {
			h = append(h, Header{opt.key, []byte(opt.value)})
		}
	}
	return h
}

// ErrNotEvent is what FromRecord's errors wrap: the record is not one of ours, or is damaged.
var ErrNotEvent = errors.New("record is not an event")

// FromRecord reads an event from a record's key, value and headers. Data aliases value. Unknown headers are ignored.
func FromRecord(key, value []byte, headers []Header) (Event, error) {
	e := Event{Stream: string(key), Data: value}
	var err error
	var subject, spec string
	for _, h := range headers {
		v := string(h.Value)
		var bad error
		switch h.Key {
		case headerSpec:
			spec = v
		case headerID:
			e.ID, bad = uuid.ParseBytes(h.Value)
		case headerType:
			e.Type = v
		case headerSource:
			if len(v) <= len(sourcePrefix) || v[:len(sourcePrefix)] != sourcePrefix {
				bad = fmt.Errorf("want %s<aggregate>", sourcePrefix)
			} else {
				e.Aggregate = v[len(sourcePrefix):]
			}
		case headerSubject:
			subject = v
		case headerTime:
			e.OccurredAt, bad = parseTime(v)
		case headerRecorded:
			e.RecordedAt, bad = parseTime(v)
		case headerVersion:
			e.Version, bad = strconv.ParseUint(v, 10, 64)
		case headerPosition:
			e.Position, bad = ParsePosition(v)
		case headerCorrelation:
			e.CorrelationID = v
		case headerCausation:
			e.CausationID = v
		case headerTrace:
			e.TraceParent = v
		}
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("header %s: %w", h.Key, bad))
		}
	}
	switch {
	case err != nil:
	case spec != specVersion:
		err = fmt.Errorf("header %s is %q, want %q", headerSpec, spec, specVersion)
	case e.ID == uuid.Nil, e.Type == "", e.Aggregate == "", e.Version == 0, e.OccurredAt.IsZero(), e.RecordedAt.IsZero():
		err = errors.New("a required header is missing or zero: id, type, source, streamversion, time, recordedtime")
	case e.Stream == "" || e.Stream != subject:
		err = fmt.Errorf("key %q is not the subject %q", e.Stream, subject)
	}
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	return e, nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if y := t.UTC().Year(); err == nil && (y < 1 || y > 9999) { // an offset led out of what RFC 3339 can write
		err = fmt.Errorf("year %d is out of range", y)
	}
	return Time(t), err
}
