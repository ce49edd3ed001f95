// Package behavior encodes and decodes the events of the topic millrace.behavior: what visitors do,
// as tracking clients report it.
//
// Event is a decoded event: the message BehaviorEvent with its envelope. Record makes the record of
// a message, and Decode reads one back. Both sides check the same rules, which are those of
// event.Behavior.Check. So the intake never writes what a reader refuses, and all readers agree on
// what an event is.
//
// A client that gets no answer sends an event again, with the same message id. The intake drops
// such copies. But two processes may receive copies at the same time, and then both are on the
// log, in the same partition, because they have the same key. Readers that must not count an event
// twice drop the later copy: its id is that of the first. Recent remembers the ids of a day in
// bounded memory.
//
// The package has no I/O and no clock.
package behavior

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// Types of events.
const (
	Track    = "track"
	Identify = "identify"
	Page     = "page"
	Screen   = "screen"
	Group    = "group"
	Alias    = "alias"
)

// Key returns the key of an event's record: the user, or the visitor who is not known.
func Key(m *behaviorv1.BehaviorEvent) string {
	if m.GetUserId() != "" {
		return m.GetUserId()
	}
	return m.GetAnonymousId()
}

// Envelope returns the event of a message, as it travels on the log. The error wraps
// event.ErrNotEvent if readers would refuse it.
func Envelope(m *behaviorv1.BehaviorEvent) (event.Event, error) {
	e, _, err := Encode(nil, m)
	if err != nil {
		return event.Event{}, err
	}
	return e, event.Behavior.Check(e)
}

// Encode is Envelope for a message that is known to be valid: it does not parse the JSON of the
// message again. It appends the event's data to buf and returns the extended buffer.
func Encode(buf []byte, m *behaviorv1.BehaviorEvent) (event.Event, []byte, error) {
	from := len(buf)
	buf, err := appendMessage(buf, m)
	if err != nil {
		return event.Event{}, buf, fmt.Errorf("%w: encode: %w", event.ErrNotEvent, err)
	}
	return event.Event{
		ID:        event.BehaviorID(m.GetSource(), m.GetMessageId()),
		Aggregate: event.Behavior.Name, Type: event.Behavior.Message, Stream: Key(m), Data: buf[from:len(buf):len(buf)],
		OccurredAt: event.Time(m.GetTimestamp().AsTime()), RecordedAt: event.Time(m.GetReceivedAt().AsTime()),
	}, buf, nil
}

// Decode returns the message of an event that a reader of the log got from event.FromRecord, or as
// streams.Record.Event. The error wraps event.ErrNotEvent if it is not a behaviour event.
func Decode(e event.Event) (*behaviorv1.BehaviorEvent, error) {
	if err := event.Behavior.Check(e); err != nil {
		return nil, err
	}
	m := &behaviorv1.BehaviorEvent{}
	if err := proto.Unmarshal(e.Data, m); err != nil {
		return nil, fmt.Errorf("%w: decode payload: %w", event.ErrNotEvent, err)
	}
	return m, nil
}

// FromRecord is event.FromRecord followed by Decode.
func FromRecord(key, value []byte, headers []event.Header) (event.Event, *behaviorv1.BehaviorEvent, error) {
	e, err := event.FromRecord(key, value, headers)
	if err != nil {
		return event.Event{}, nil, err
	}
	m, err := Decode(e)
	if err != nil {
		return event.Event{}, nil, err
	}
	return e, m, nil
}
