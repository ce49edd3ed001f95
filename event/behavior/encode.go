package behavior

import (
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// appendMessage appends a message as proto.Marshal writes it, with maps in order. The intake encodes every
// event, and reflection costs more than all the rest of the encoding. TestEncoding compares both for every
// field of the contract.
func appendMessage(b []byte, m *behaviorv1.BehaviorEvent) ([]byte, error) {
	e := encoder{b: b}
	for i, s := range [...]string{m.GetMessageId(), m.GetType(), m.GetEvent(), m.GetName(), m.GetCategory(), m.GetUserId(),
		m.GetAnonymousId(), m.GetGroupId(), m.GetPreviousId()} {
		e.text(protowire.Number(i+1), s)
	}
	for i, t := range [...]*timestamppb.Timestamp{m.GetTimestamp(), m.GetOriginalTimestamp(), m.GetSentAt(),
		m.GetReceivedAt()} {
		e.time(protowire.Number(i+firstTime), t)
	}
	for i, s := range [...]string{m.GetProperties(), m.GetTraits(), m.GetContext(), m.GetSource()} {
		e.text(protowire.Number(i+firstJSON), s)
	}
	if granted := m.GetConsent(); len(granted) > 0 {
		for _, purpose := range slices.Sorted(maps.Keys(granted)) {
			e.consent(purpose, granted[purpose])
		}
	}
	for _, purpose := range m.GetReducedFor() {
		e.element(reducedFor, purpose)
	}
	e.b = append(e.b, m.ProtoReflect().GetUnknown()...)
	return e.b, e.err
}

// The numbers of fields. Those of one kind follow each other.
const (
	firstTime  = 10
	firstJSON  = 14
	consent    = 18
	reducedFor = 19
)

// encoder appends fields.
type encoder struct {
	b   []byte
	err error // the first
}

// text appends a string, unless it is empty.
func (e *encoder) text(number protowire.Number, s string) {
	if s != "" {
		e.element(number, s)
	}
}

// element appends a string, also an empty one.
func (e *encoder) element(number protowire.Number, s string) {
	if !utf8.ValidString(s) && e.err == nil {
		e.err = fmt.Errorf("field %d is not UTF-8", number)
	}
	e.b = protowire.AppendString(protowire.AppendTag(e.b, number, protowire.BytesType), s)
}

// time appends a time, unless it is absent.
func (e *encoder) time(number protowire.Number, t *timestamppb.Timestamp) {
	if t == nil {
		return
	}
	unknown := t.ProtoReflect().GetUnknown()
	seconds, nanos, size := uint64(t.GetSeconds()), uint64(t.GetNanos()), len(unknown)
	if seconds != 0 {
		size += 1 + protowire.SizeVarint(seconds)
	}
	if nanos != 0 {
		size += 1 + protowire.SizeVarint(nanos)
	}
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, number, protowire.BytesType), uint64(size))
	if seconds != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, 1, protowire.VarintType), seconds)
	}
	if nanos != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, 2, protowire.VarintType), nanos)
	}
	e.b = append(e.b, unknown...)
}

// consent appends an entry of the map.
func (e *encoder) consent(purpose string, granted bool) {
	const value = 2 // bytes
	size := 1 + protowire.SizeBytes(len(purpose)) + value
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, consent, protowire.BytesType), uint64(size))
	e.element(1, purpose)
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, 2, protowire.VarintType), protowire.EncodeBool(granted))
}
