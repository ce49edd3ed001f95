package event

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Behavior is what visitors do, as tracking clients report it. Its topic has the same envelope as
// those of aggregates, so the same readers can consume it. But it is not event-sourced: it has no
// store, and its events have neither a version nor a position. So Aggregates does not include it.
// The key of a record is the user's id, or the anonymous id of a visitor who is not known.
//
// Package event/behavior encodes and decodes its events.
var Behavior = Aggregate{
	Name: "behavior", Service: "tracking", Topic: "millrace.behavior",
	Message: "millrace.behavior.v1.BehaviorEvent",
}

// BehaviorID returns the id of a behaviour event: a hash of the name of its source and of the id
// that the client gave it. So all copies of an event that a client sends have the same id.
func BehaviorID(source, messageID string) uuid.UUID {
	buf := make([]byte, 0, 128)
	buf = append(append(append(buf, source...), 0), messageID...)
	hash := sha256.Sum256(buf)
	id := uuid.UUID(hash[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8: any content
	id[8] = id[8]&0x3f | 0x80 // RFC 9562
	return id
}

// The fields of BehaviorEvent that the check reads.
const (
	behaviorMessageID   protowire.Number = 1
	behaviorType        protowire.Number = 2
	behaviorUserID      protowire.Number = 6
	behaviorAnonymousID protowire.Number = 7
	behaviorTimestamp   protowire.Number = 10
	behaviorReceivedAt  protowire.Number = 13
	behaviorProperties  protowire.Number = 14
	behaviorTraits      protowire.Number = 15
	behaviorContext     protowire.Number = 16
	behaviorSource      protowire.Number = 17
)

// behaviorMessage describes BehaviorEvent. The message must be linked in.
var behaviorMessage = sync.OnceValues(func() (*message, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(Behavior.Message))
	if err != nil {
		return nil, fmt.Errorf("%s is not linked in: %w", Behavior.Message, err)
	}
	return compile(d.(protoreflect.MessageDescriptor), map[protoreflect.FullName]*message{}), nil
})

// checkBehavior is the part of check for Behavior: the payload is a BehaviorEvent, with the same id,
// key and times as the envelope, and its JSON can be parsed.
func checkBehavior(e Event) error {
	if e.Type != Behavior.Message {
		return fmt.Errorf("type is %q, want %s", e.Type, Behavior.Message)
	}
	if e.Version != 0 || !e.Position.IsZero() {
		return errors.New("behaviour has no versions and no positions")
	}
	m, err := behaviorMessage()
	if err != nil {
		return err
	}
	w := walker{}
	if err := w.message(m, e.Data, maxDepth); err != nil {
		return fmt.Errorf("payload of %s: %w", e.Type, err)
	}
	// The walk has checked the wire format, so the fields can be read without checking it again.
	// If a scalar occurs twice, the last value counts, as in every decoder.
	var fields [behaviorSource + 1][]byte
	for b := e.Data; len(b) > 0; {
		v, size := consume(b)
		b = b[size:]
		if int(v.number) < len(fields) {
			fields[v.number] = v.content
		}
	}
	key := fields[behaviorUserID]
	if len(key) == 0 {
		key = fields[behaviorAnonymousID]
	}
	switch {
	case len(fields[behaviorMessageID]) == 0, len(fields[behaviorType]) == 0, len(fields[behaviorSource]) == 0:
		return errors.New("message_id, type or source is empty")
	case e.Stream == "":
		return errors.New("neither user_id nor anonymous_id is set")
	case e.Stream != string(key):
		return fmt.Errorf("the key is %q, but the user or visitor is %q", e.Stream, key)
	case e.ID != BehaviorID(string(fields[behaviorSource]), string(fields[behaviorMessageID])):
		return errors.New("the id is not that of the source and the message id")
	case !e.OccurredAt.Equal(stampOf(fields[behaviorTimestamp])):
		return errors.New("the time differs from that of the payload")
	case !e.RecordedAt.Equal(stampOf(fields[behaviorReceivedAt])):
		return errors.New("the recording time differs from that of the payload")
	}
	for _, n := range [...]protowire.Number{behaviorProperties, behaviorTraits, behaviorContext} {
		if b := fields[n]; len(b) > 0 && (b[0] != '{' || !json.Valid(b)) {
			return fmt.Errorf("%s is not a JSON object", m.fields[n].name)
		}
	}
	return nil
}

// stampOf decodes a google.protobuf.Timestamp whose wire format has been checked, with the precision
// of events.
func stampOf(b []byte) time.Time {
	var seconds, nanos int64
	for len(b) > 0 {
		v, size := consume(b)
		b = b[size:]
		switch v.number {
		case 1:
			seconds = int64(v.varint)
		case 2:
			nanos = int64(int32(v.varint))
		}
	}
	return Time(time.Unix(seconds, nanos))
}

// BehaviorHeaderID returns the id in the headers of a record of the topic of Behavior, without
// reading the rest. ok is false if there is none.
func BehaviorHeaderID(headers []Header) (id uuid.UUID, ok bool) {
	for i := range headers {
		if headers[i].Key == headerID {
			id, err := uuid.ParseBytes(headers[i].Value)
			return id, err == nil
		}
	}
	return uuid.UUID{}, false
}
