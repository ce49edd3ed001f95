package event

import (
	"errors"
	"fmt"
	"strings"
)

// ErrDuplicate is wrapped by the errors about copies of an event that its partition already contains.
// It wraps ErrNotEvent.
var ErrDuplicate = fmt.Errorf("%w: a copy of an earlier event of this partition", ErrNotEvent)

// Sequence distinguishes the events of one partition from copies of them, as a mirror or a replay
// tool may produce them. The relay publishes in store order, so positions only increase along a
// partition. An event at or before the highest position so far is a copy, unless its header marks it
// as late.
//
// Readers pass every sealed event of the partition to Next, in log order. Events without a seal may
// not come from the relay, so their positions do not count. The zero Sequence has seen no event.
type Sequence struct {
	last Position // the highest position so far
	late Position // the position of the last event if that was late, otherwise zero
}

// headerLate marks events that the relay publishes behind later ones, because the log lost them or
// because a tool copied the later ones before the relay's transaction was complete. Its value is the
// highest position of the partition when the event was published.
const headerLate = "millrace-late"

// LateHeader returns the header of an event that is published behind later ones, the last of which
// is at position last.
func LateHeader(last Position) Header { return Header{headerLate, []byte(last.String())} }

// Next returns the Sequence after an event. The error wraps ErrDuplicate if the event is a copy.
func (s Sequence) Next(p Position, headers []Header) (Sequence, error) {
	if p.Compare(s.last) > 0 {
		next := Sequence{last: p}
		if _, ok := lateAfter(headers); ok {
			next.late = p
		}
		return next, nil
	}
	// A late event is accepted once: its copy follows it, or follows an event published in order
	// since. In the first case p equals late; in the second, the header's position is lower than
	// last.
	if last, ok := lateAfter(headers); ok && last.Compare(s.last) >= 0 && p.Compare(s.late) > 0 {
		s.late = p
		return s, nil
	}
	return s, fmt.Errorf("%w: position %s is not after the last position %s", ErrDuplicate, p, s.last)
}

// lateAfter returns the position in a late event's header.
func lateAfter(headers []Header) (p Position, ok bool) {
	for i := range headers {
		if headers[i].Key == headerLate {
			p, err := ParsePosition(string(headers[i].Value))
			return p, err == nil
		}
	}
	return Position{}, false
}

// String returns the form that ParseSequence reads.
func (s Sequence) String() string {
	if s.late.IsZero() {
		return s.last.String()
	}
	return s.last.String() + "/" + s.late.String()
}

// ParseSequence reads the form that String returns.
func ParseSequence(text string) (s Sequence, err error) {
	last, late, ok := strings.Cut(text, "/")
	if s.last, err = ParsePosition(last); err != nil {
		return Sequence{}, err
	}
	if ok {
		if s.late, err = ParsePosition(late); err != nil {
			return Sequence{}, err
		}
		if s.late.IsZero() || s.late.Compare(s.last) > 0 {
			return Sequence{}, errors.New("the late position must not be zero or after the last one")
		}
	}
	return s, nil
}
