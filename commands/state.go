package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// loaded is the state of a stream as read from the store.
type loaded[S any] struct {
	state    S
	version  uint64
	position event.Position // position of the event of that version
	snapshot uint64         // version of the snapshot in use; 0 if there is none
}

// load folds the newest usable snapshot and the events after it.
func (r *Runner[S, C, E]) load(ctx context.Context, stream string) (loaded[S], error) {
	var l loaded[S]
	after := uint64(0)
	snap, ok, err := r.store.LoadSnapshot(ctx, stream)
	if err != nil {
		return l, r.storeError(ctx, "load snapshot", stream, err)
	}
	// Not an error of the command: the events contain everything, and the next snapshot replaces
	// this one.
	damaged := func(err error) {
		r.logger.ErrorContext(ctx, "snapshot damaged; reading all events of the stream",
			"aggregate", r.agg.Name, "stream", stream, "version", snap.Version, "error", err)
	}
	if ok && snap.Schema == r.decider.Schema && snap.Version > 0 {
		var state S
		content, err := unseal(stream, snap)
		if err == nil {
			err = json.Unmarshal(content, &state)
		}
		if err == nil {
			l.state, l.version, l.snapshot = state, snap.Version, snap.Version
			// Read the snapshot's own event as well, for its position.
			after = snap.Version - 1
		} else {
			damaged(err)
		}
	}
	events, err := r.store.Load(ctx, stream, after)
	// The snapshot's own event is missing, so the snapshot is not of this stream's history.
	if err == nil && len(events) == 0 && l.version > 0 {
		damaged(errors.New("its version is higher than the stream's"))
		l, after = loaded[S]{}, 0
		events, err = r.store.Load(ctx, stream, after)
	}
	if err != nil {
		return l, r.storeError(ctx, "load events", stream, err)
	}
	// Gaps would lead to wrong decisions.
	for i, e := range events {
		if want := after + uint64(i) + 1; e.Version != want {
			return l, fmt.Errorf("%s %q: found event %d, want event %d", r.agg.Name, stream, e.Version, want)
		}
		if l.position = e.Position; e.Version <= l.version {
			continue
		}
		message, err := r.decode(e)
		if err != nil {
			return l, err
		}
		l.state, l.version = r.decider.Evolve(l.state, message), e.Version
	}
	return l, nil
}

// dueSnapshot returns a snapshot to append if enough events have come since the last one.
func (r *Runner[S, C, E]) dueSnapshot(stream string, l loaded[S]) ([]eventstore.Snapshot, error) {
	if l.version-l.snapshot < r.snapshotEvery {
		return nil, nil
	}
	state, err := json.Marshal(l.state)
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s %q: %w", r.agg.Name, stream, err)
	}
	return []eventstore.Snapshot{{
		Stream: stream, Version: l.version, Schema: r.decider.Schema, State: seal(stream, l.version, state),
	}}, nil
}

var checksums = crc32.MakeTable(crc32.Castagnoli)

// sealSize is the length of a checksum in hexadecimal, plus the line break before it.
const sealSize = 9

// seal adds a checksum to a snapshot's state, because a damaged state would lead to wrong
// decisions.
func seal(stream string, version uint64, state []byte) []byte {
	sum := crc32.Checksum(fmt.Appendf(nil, "%q %d %s", stream, version, state), checksums)
	return fmt.Appendf(state, "\n%08x", sum)
}

// unseal returns the state that seal was given. Snapshots of earlier versions have no checksum and
// are trusted.
func unseal(stream string, snap eventstore.Snapshot) ([]byte, error) {
	at := len(snap.State) - sealSize
	if at < 0 || snap.State[at] != '\n' {
		if bytes.IndexByte(snap.State, '\n') >= 0 { // JSON contains no line break
			return nil, errors.New("its checksum is truncated")
		}
		return snap.State, nil
	}
	state := snap.State[:at:at]
	if !bytes.Equal(seal(stream, snap.Version, state), snap.State) {
		return nil, errors.New("its checksum does not match")
	}
	return state, nil
}

// decode returns the events message of a stored event. It rejects types that this version does not
// know: skipping one would decide on a wrong state.
func (r *Runner[S, C, E]) decode(e event.Event) (E, error) {
	var zero E
	m := zero.ProtoReflect().Type().New()
	if err := proto.Unmarshal(e.Data, m.Interface()); err != nil {
		return zero, fmt.Errorf("%s %q, event %d: %w", r.agg.Name, e.Stream, e.Version, err)
	}
	if m.WhichOneof(r.oneof) == nil {
		return zero, fmt.Errorf("%s %q, event %d: unknown event type %s: start a newer version of the service",
			r.agg.Name, e.Stream, e.Version, e.Type)
	}
	return m.Interface().(E), nil
}

// encode fills type, business time and data of an event from its message.
func (r *Runner[S, C, E]) encode(message E) (event.Event, error) {
	m := message.ProtoReflect()
	member := m.WhichOneof(r.oneof)
	if member == nil {
		return event.Event{}, fmt.Errorf("decider of %s returned an empty event", r.agg.Name)
	}
	inner := m.Get(member).Message()
	at, ok := inner.Get(r.times[member.Number()]).Message().Interface().(*timestamppb.Timestamp)
	if !ok || at == nil {
		return event.Event{}, fmt.Errorf("%s has no business time", inner.Descriptor().FullName())
	}
	data, err := proto.Marshal(message)
	if err != nil {
		return event.Event{}, fmt.Errorf("marshal %s: %w", inner.Descriptor().FullName(), err)
	}
	if len(data) > eventstore.MaxData {
		return event.Event{}, &RejectedError{Code: Invalid, Rule: "event_too_large",
			Reason: fmt.Sprintf("the event has %d bytes, the limit is %d: split the command",
				len(data), eventstore.MaxData)}
	}
	return event.Event{
		Aggregate: r.agg.Name, Type: string(inner.Descriptor().FullName()), Data: data,
		OccurredAt: event.Time(at.AsTime()),
	}, nil
}

// contract returns the oneof "event" of an events message and, for each member, its first
// timestamp. It panics if the message has another form: that is a bug in the contract, and it
// should not wait for the first command.
func contract(
	d protoreflect.MessageDescriptor,
) (protoreflect.OneofDescriptor, map[protoreflect.FieldNumber]protoreflect.FieldDescriptor) {
	oneof := d.Oneofs().ByName("event")
	if oneof == nil {
		panic(fmt.Sprintf("%s has no oneof named event", d.FullName()))
	}
	stamp := (*timestamppb.Timestamp)(nil).ProtoReflect().Descriptor().FullName()
	times := map[protoreflect.FieldNumber]protoreflect.FieldDescriptor{}
	for i := range oneof.Fields().Len() {
		member := oneof.Fields().Get(i)
		fields := member.Message().Fields()
		for j := range fields.Len() {
			if f := fields.Get(j); f.Message() != nil && f.Message().FullName() == stamp {
				times[member.Number()] = f
				break
			}
		}
		if times[member.Number()] == nil {
			panic(fmt.Sprintf("%s has no timestamp for its business time", member.Message().FullName()))
		}
	}
	return oneof, times
}
