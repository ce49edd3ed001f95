package event

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRepeat marks a copy of an event that its partition already contains. It wraps ErrNotEvent.
var ErrRepeat = fmt.Errorf("%w: a copy of an earlier event of this partition", ErrNotEvent)

// Sequence distinguishes the events of one partition from copies of them, as a mirror or a replay
// tool may produce them. The relay publishes in store order, so positions rise along a partition,
// and an event at a position that was passed is a copy.
//
// Readers pass every sealed event of the partition to Next, in log order. Events without a seal may
// not come from the relay, so their positions do not count. The zero Sequence has seen no event.
type Sequence struct {
	last Position // the highest position so far
	late Position // the position of the last event if that was late, otherwise zero
}

// headerLate marks events that the relay publishes behind later ones, because the log lost them or
// because somebody copied the later ones before the relay's transaction was complete. Its value is
// the highest position of the partition.
const headerLate = "millrace-late"

// LateHeader returns the header of an event that is published behind a later one at position
// passed.
func LateHeader(passed Position) Header { return Header{headerLate, []byte(passed.String())} }

// Next returns the Sequence after an event. The error wraps ErrRepeat if the event is a copy.
func (s Sequence) Next(p Position, headers []Header) (Sequence, error) {
	if p.Compare(s.last) > 0 {
		next := Sequence{last: p}
		if _, ok := passed(headers); ok {
			next.late = p
		}
		return next, nil
	}
	// A late event is accepted once: its copy follows it, or follows an event published in order
	// since. In the first case p equals late; in the second, the header's position is lower than
	// last.
	if passed, ok := passed(headers); ok && passed.Compare(s.last) >= 0 && p.Compare(s.late) > 0 {
		s.late = p
		return s, nil
	}
	return s, fmt.Errorf("%w: its position is %s, and the last one was %s", ErrRepeat, p, s.last)
}

// passed returns the position in a late event's header.
func passed(headers []Header) (p Position, ok bool) {
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
			return Sequence{}, errors.New("a late event must be before the last one")
		}
	}
	return s, nil
}
