package eventstore

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
)

// Limits of a store, in bytes. They are the same in every adapter, and low enough that Kafka
// accepts every stored event: an event larger than a Kafka message (1 MiB by default) would block
// the relay.
const (
	MaxText  = 200       // stream id, idempotency key, and an event's type, correlation, causation and trace
	MaxData  = 512 << 10 // an event's data, and an answer's response
	MaxState = 16 << 20  // a snapshot's state
)

// ErrInvalid is wrapped by the errors of Batch.Validate. Nothing was stored, and a retry fails with
// the same error.
var ErrInvalid = errors.New("invalid batch")

// Validate returns an error that wraps ErrInvalid unless a store can store the batch and every
// later stage can transport it. Append calls it.
func (b Batch) Validate() error {
	seen := make(map[string]struct{}, len(b.Streams))
	for _, s := range b.Streams {
		if err := s.validate(); err != nil {
			return fmt.Errorf("%w: stream %q: %w", ErrInvalid, s.Stream, err)
		}
		if _, twice := seen[s.Stream]; twice {
			return fmt.Errorf("%w: stream %q appears twice", ErrInvalid, s.Stream)
		}
		seen[s.Stream] = struct{}{}
	}
	if err := b.Answer.validate(); err != nil {
		return fmt.Errorf("%w: answer %q: %w", ErrInvalid, b.Answer.Key, err)
	}
	// A stream may be appended to and have a snapshot in the same batch, but not twice either.
	clear(seen)
	for _, s := range b.Snapshots {
		if err := s.validate(); err != nil {
			return fmt.Errorf("%w: snapshot of %q: %w", ErrInvalid, s.Stream, err)
		}
		if _, twice := seen[s.Stream]; twice {
			return fmt.Errorf("%w: snapshot of %q appears twice", ErrInvalid, s.Stream)
		}
		seen[s.Stream] = struct{}{}
	}
	return nil
}

// validate checks the stream's id, the versions and each event.
func (s StreamAppend) validate() error {
	if err := ValidateStream(s.Stream); err != nil {
		return err
	}
	if len(s.Events) == 0 {
		return errors.New("no events")
	}
	// Versions are signed 64-bit integers in the databases.
	if s.ExpectedVersion > math.MaxInt64-uint64(len(s.Events)) {
		return fmt.Errorf("version %d is out of range", s.ExpectedVersion)
	}
	for i, e := range s.Events {
		if err := validateEvent(e); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	return nil
}

// validateEvent checks what every adapter can store and what the log can transport.
func validateEvent(e event.Event) error {
	switch {
	case e.ID == uuid.Nil:
		return errors.New("id is missing")
	case e.Type == "":
		return errors.New("type is missing")
	case len(e.Data) > MaxData:
		return fmt.Errorf("data has %d bytes, limit is %d", len(e.Data), MaxData)
	}
	if err := validateTime(e.OccurredAt); err != nil {
		return fmt.Errorf("occurred_at: %w", err)
	}
	if err := validateTime(e.RecordedAt); err != nil {
		return fmt.Errorf("recorded_at: %w", err)
	}
	for _, text := range [...]string{e.Type, e.CorrelationID, e.CausationID, e.TraceParent} {
		if err := validateText(text); err != nil {
			return err
		}
	}
	return nil
}

// validateTime accepts the years that RFC 3339 can represent, because the event's headers contain
// its times in that format.
func validateTime(t time.Time) error {
	if y := t.UTC().Year(); t.IsZero() || y < 1 || y > 9999 {
		return fmt.Errorf("%v is missing or out of range", t)
	}
	return nil
}

// validate checks an answer. An empty one is valid.
func (a Answer) validate() error {
	if len(a.Response) > MaxData {
		return fmt.Errorf("response has %d bytes, limit is %d", len(a.Response), MaxData)
	}
	if a.Version > math.MaxInt64 {
		return fmt.Errorf("version %d is out of range", a.Version)
	}
	return errors.Join(validateText(a.Key), validateText(a.Stream))
}

// validate checks a snapshot. Its version is that of the stream after the folded events, so it is
// not 0.
func (s Snapshot) validate() error {
	if err := ValidateStream(s.Stream); err != nil {
		return err
	}
	if s.Version == 0 || s.Version > math.MaxInt64 {
		return fmt.Errorf("version %d is out of range", s.Version)
	}
	if s.Schema < 0 || s.Schema > math.MaxInt32 {
		return fmt.Errorf("schema %d is out of range", s.Schema)
	}
	if len(s.State) > MaxState {
		return fmt.Errorf("state has %d bytes, limit is %d", len(s.State), MaxState)
	}
	return nil
}

// ValidateStream returns an error unless id is valid as a stream id.
func ValidateStream(id string) error {
	if id == "" {
		return errors.New("stream id is empty")
	}
	return validateText(id)
}

// validateText rejects strings that PostgreSQL's text type cannot store. It does so in every
// adapter, so that services can switch adapters.
func validateText(s string) error {
	switch {
	case len(s) > MaxText:
		return fmt.Errorf("text %.20q… has %d bytes, limit is %d", s, len(s), MaxText)
	case !utf8.ValidString(s):
		return fmt.Errorf("text %q is not valid UTF-8", s)
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("text %q contains a zero byte", s)
	}
	return nil
}
