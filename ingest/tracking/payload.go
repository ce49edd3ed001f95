package tracking

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/internal/kafka"
)

// Limits of Segment's API, which its clients observe.
const (
	maxBody   = 500 << 10 // bytes of a body, decompressed
	maxEvent  = 32 << 10  // bytes of one event
	maxEvents = 2500      // events of a batch
)

// Limits in bytes of single fields.
const (
	maxID   = 256
	maxName = 1024
)

// FieldError says what is wrong with a field of an event. Field is its path in the event.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// payload is one event as a client sent it.
type payload struct {
	raw []byte // its text in the body
	bad *FieldError

	messageID, kind, event, name, category   string
	userID, anonymousID, groupID, previousID string
	writeKey                                 string
	timestamp, sentAt                        time.Time
	// JSON objects without whitespace. They are empty if absent.
	properties, traits, context string
}

// batch is a body as a client sent it.
type batch struct {
	events   []payload
	sentAt   time.Time
	writeKey string
	context  string // of all events that have none
	bad      *FieldError
}

// memory is what the intake needs for one request. It is used again for later requests.
type memory struct {
	body    []byte
	events  []payload
	message behaviorv1.BehaviorEvent
	data    []byte // of the records
	ids     []uuid.UUID
	records []kafka.Record
}

// memories has the memory of requests that are answered.
var memories = sync.Pool{New: func() any { return &memory{body: make([]byte, 0, 8<<10)} }}

// reader reads bodies.
type reader struct {
	scanner
	*memory
}

// readBody reads the body in m. kind is the type of the only event, or empty for a batch. The error
// is a *syntaxError; other mistakes are in the batch and its events. The batch refers to m.
func readBody(m *memory, kind string) (batch, error) {
	r := &reader{scanner: newScanner(m.body), memory: m}
	m.events = m.events[:0]
	var b batch
	var err error
	if kind != "" {
		var p payload
		p, err = r.event()
		m.events = append(m.events, p)
		b.sentAt, b.writeKey = p.sentAt, p.writeKey
	} else {
		b, err = r.batch()
	}
	b.events = m.events
	if err == nil {
		err = r.end()
	}
	return b, err
}

// batch reads {batch: […], sentAt, writeKey, context}.
func (r *reader) batch() (b batch, err error) {
	seen := false
	err = r.fields(&b.bad, func(key string) (bad *FieldError, err error) {
		switch key {
		case "batch":
			if seen = true; r.peek() != '[' {
				return &FieldError{key, "want an array of events"}, r.value()
			}
			err = r.array(func() error {
				if len(r.events) == maxEvents {
					bad = &FieldError{key, fmt.Sprintf("has more than %d events", maxEvents)}
					return r.value()
				}
				p, err := r.event()
				r.events = append(r.events, p)
				return err
			})
		case "sentAt":
			b.sentAt, bad, err = r.time(key)
		case "writeKey":
			b.writeKey, bad, err = r.text(key, maxName)
		case "context":
			b.context, bad, err = r.json(key)
		default:
			err = r.value()
		}
		return bad, err
	})
	if b.bad == nil && !seen {
		b.bad = &FieldError{"batch", "is missing"}
	}
	if b.bad == nil && len(r.events) == 0 {
		b.bad = &FieldError{"batch", "is empty"}
	}
	return b, err
}

// event reads one event. A mistake in a field does not end it, because other events may follow.
func (r *reader) event() (p payload, err error) {
	if r.peek() != '{' {
		if r.at < len(r.b) {
			p.bad = &FieldError{"event", "want an object"}
		}
		err = r.value()
		r.repeated = "" // nothing of it is read
		return p, err
	}
	start := r.at
	err = r.fields(&p.bad, func(key string) (bad *FieldError, err error) {
		switch key {
		case "messageId":
			p.messageID, bad, err = r.text(key, maxID)
		case "type":
			p.kind, bad, err = r.text(key, maxID)
		case "event":
			p.event, bad, err = r.text(key, maxName)
		case "name":
			p.name, bad, err = r.text(key, maxName)
		case "category":
			p.category, bad, err = r.text(key, maxName)
		case "userId":
			p.userID, bad, err = r.id(key)
		case "anonymousId":
			p.anonymousID, bad, err = r.id(key)
		case "groupId":
			p.groupID, bad, err = r.id(key)
		case "previousId":
			p.previousID, bad, err = r.id(key)
		case "writeKey":
			p.writeKey, bad, err = r.text(key, maxName)
		case "timestamp":
			p.timestamp, bad, err = r.time(key)
		case "sentAt":
			p.sentAt, bad, err = r.time(key)
		case "properties":
			p.properties, bad, err = r.json(key)
		case "traits":
			p.traits, bad, err = r.json(key)
		case "context":
			p.context, bad, err = r.json(key)
		default:
			err = r.value()
		}
		return bad, err
	})
	p.raw = r.b[start:r.at]
	if len(p.raw) > maxEvent {
		p.bad = &FieldError{"event", fmt.Sprintf("has %d bytes, more than %d", len(p.raw), maxEvent)}
	}
	return p, err
}

// fields reads an object with the function, which must read the value of a field and returns what is
// wrong with it. first becomes the first mistake. A key that an object has twice is one, at any depth:
// of two values, some readers of JSON see the first and others the last.
func (r *reader) fields(first **FieldError, field func(key string) (*FieldError, error)) error {
	return r.object(func(key string) error {
		var again, inside *FieldError
		if r.repeated != "" {
			again, r.repeated = &FieldError{short(key), "occurs twice"}, ""
		}
		bad, err := field(key)
		if r.repeated != "" {
			inside, r.repeated = &FieldError{short(key), "has the key " + r.repeated + " twice"}, ""
		}
		*first = cmp.Or(*first, again, bad, inside)
		return err
	})
}

// null reads null. It returns false if something else follows.
func (r *reader) null() (bool, error) {
	if r.peek() != 'n' {
		return false, nil
	}
	return true, r.value()
}

// text reads a string of at most limit bytes. Null is the same as no value.
func (r *reader) text(field string, limit int) (string, *FieldError, error) {
	if null, err := r.null(); null {
		return "", nil, err
	}
	if r.peek() != '"' {
		return "", &FieldError{field, "want a string"}, r.value()
	}
	raw, err := r.token()
	if err != nil {
		return "", nil, err
	}
	if len(raw)-2 > 6*limit { // an escape has up to six bytes for one
		return "", tooLong(field, limit), nil
	}
	text := r.meaning(raw)
	if len(text) > limit {
		return "", tooLong(field, limit), nil
	}
	return text, nil, nil
}

func tooLong(field string, limit int) *FieldError {
	return &FieldError{field, fmt.Sprintf("is longer than %d bytes", limit)}
}

// id reads an id: a string without control characters, or a number, as some clients send it. Spaces alone
// are the same as no value, or all who send them would be one user.
func (r *reader) id(field string) (string, *FieldError, error) {
	if c := r.peek(); c == '-' || c >= '0' && c <= '9' {
		raw, err := r.number()
		if err == nil && len(raw) > maxID {
			return "", tooLong(field, maxID), nil
		}
		return string(raw), nil, err
	}
	text, bad, err := r.text(field, maxID)
	if strings.ContainsFunc(text, unicode.IsControl) {
		return "", &FieldError{field, "contains a control character"}, err
	}
	if strings.TrimSpace(text) == "" {
		text = ""
	}
	return text, bad, err
}

// json reads an object, without whitespace. Null is the same as no value.
func (r *reader) json(field string) (string, *FieldError, error) {
	if null, err := r.null(); null {
		return "", nil, err
	}
	if r.peek() != '{' {
		return "", &FieldError{field, "want an object"}, r.value()
	}
	r.overflow = false
	object, err := r.compact()
	if r.overflow {
		return "", &FieldError{field, "has a number beyond the range of 64-bit floating point"}, err
	}
	return object, nil, err
}

// Layouts of times: ISO 8601 with a zone, and without one, which is then UTC. Apple's and Java's formatters
// write zones without a colon, Python writes a space before the time, and some omit seconds of zero.
var layouts = func() []string {
	all := []string{time.RFC3339Nano}                                 // the most frequent
	for _, at := range []string{"T15:04:05", " 15:04:05", "T15:04"} { // a fraction may follow the seconds
		for _, zone := range []string{"", "Z07:00", "Z0700", "Z07"} {
			if layout := time.DateOnly + at + zone; layout != time.RFC3339 {
				all = append(all, layout)
			}
		}
	}
	return append(all, time.DateOnly)
}()

// time reads a time. Null is the same as no value.
func (r *reader) time(field string) (time.Time, *FieldError, error) {
	text, bad, err := r.text(field, maxID)
	if bad != nil || err != nil || text == "" {
		return time.Time{}, bad, err
	}
	for _, layout := range layouts {
		if t, wrong := time.Parse(layout, text); wrong == nil {
			// The range and precision of events.
			if t = event.Time(t); t.Year() < 1 || t.Year() > 9999 || t.IsZero() {
				break
			}
			return t, nil, nil
		}
	}
	return time.Time{}, &FieldError{field, fmt.Sprintf("%q is not a time, such as 2026-01-31T12:00:00Z", short(text))}, nil
}

// fill sets m to the event as it travels on the log. kind is the type that the path names, or empty.
func (p *payload) fill(m *behaviorv1.BehaviorEvent, b *batch, kind string, source *Source, received time.Time) *FieldError {
	if p.bad != nil {
		return p.bad
	}
	if bad := p.complete(kind, source); bad != nil {
		return bad
	}
	if p.context == "" {
		p.context = b.context
	}
	sent := p.sentAt
	if sent.IsZero() {
		sent = b.sentAt
	}
	m.Reset()
	m.MessageId, m.Type, m.Source = p.messageID, p.kind, source.Name
	m.UserId, m.AnonymousId = userID(p.userID), p.anonymousID
	m.Properties, m.Traits, m.Context = p.properties, p.traits, p.context
	times := make([]timestamppb.Timestamp, 0, 4) // one piece of memory
	stamp := func(at time.Time) *timestamppb.Timestamp {
		times = append(times, timestamppb.Timestamp{Seconds: at.Unix(), Nanos: int32(at.Nanosecond())})
		return &times[len(times)-1]
	}
	m.ReceivedAt, m.Timestamp = stamp(received), stamp(corrected(p.timestamp, sent, received))
	if !p.timestamp.IsZero() {
		m.OriginalTimestamp = stamp(p.timestamp)
	}
	if !sent.IsZero() {
		m.SentAt = stamp(sent)
	}
	switch p.kind {
	case behavior.Track:
		m.Event = p.event
	case behavior.Page, behavior.Screen:
		m.Name, m.Category = p.name, p.category
	case behavior.Group:
		m.GroupId = p.groupID
	case behavior.Alias:
		m.PreviousId = userID(p.previousID)
	}
	if mayHaveConsent(m.GetContext()) {
		consent, bad := preferences([]byte(p.context))
		if bad != nil {
			return bad
		}
		m.Consent = consent
	}
	return nil
}

// mayHaveConsent reports whether a context may have the member consent, whose name may be written with
// escapes.
func mayHaveConsent(context string) bool {
	return strings.Contains(context, `"consent"`) || strings.Contains(context, `\`)
}

// userID returns the id of a user as it is stored. That of a customer has the form of all stores, without
// spaces around it: Apple's programs write UUIDs in upper case, and their events would be somebody else's.
func userID(id string) string {
	if trimmed := strings.TrimSpace(id); len(trimmed) == 36 && uuid.Validate(trimmed) == nil {
		return event.CanonicalID(trimmed)
	}
	return id
}

// complete checks the fields that an event of its type needs, and makes up a missing message id.
func (p *payload) complete(kind string, source *Source) *FieldError {
	switch {
	case kind == "":
	case p.kind == "":
		p.kind = kind
	case p.kind != kind:
		return &FieldError{"type", fmt.Sprintf("%q, but the path is for %s", short(p.kind), kind)}
	}
	switch {
	case p.kind == "":
		return &FieldError{"type", "is missing"}
	case !slices.Contains(types, p.kind):
		return &FieldError{"type", fmt.Sprintf("%q is none of %s", short(p.kind), strings.Join(types, ", "))}
	case len(source.Types) > 0 && !slices.Contains(source.Types, p.kind):
		return &FieldError{"type", fmt.Sprintf("the write key of %s may not send %s", source.Name, p.kind)}
	case p.kind == behavior.Track && p.event == "":
		return &FieldError{"event", "is missing: the name of what happened"}
	case p.kind == behavior.Group && p.groupID == "":
		return &FieldError{"groupId", "is missing"}
	case p.kind == behavior.Alias && p.userID == "":
		return &FieldError{"userId", "is missing: the new id"}
	case p.kind == behavior.Alias && p.previousID == "":
		return &FieldError{"previousId", "is missing: the id that userId replaces"}
	case p.userID == "" && p.anonymousID == "":
		return &FieldError{"userId", "is missing, and so is anonymousId: one of them is needed"}
	}
	if p.messageID == "" {
		p.messageID = uuid.NewString() // copies of this event cannot be recognised
	}
	return nil
}

// corrected returns when an event happened by the server's clock, as Segment computes it: the
// client's time plus the difference between the clocks, which is that of reception and sending.
func corrected(timestamp, sent, received time.Time) time.Time {
	if timestamp.IsZero() {
		return received
	}
	if sent.IsZero() {
		return timestamp
	}
	// In microseconds, because a Duration has only 292 years.
	at := time.UnixMicro(timestamp.UnixMicro() + received.UnixMicro() - sent.UnixMicro()).UTC()
	if at.Year() < 1 || at.Year() > 9999 || at.IsZero() {
		return received
	}
	return at
}
