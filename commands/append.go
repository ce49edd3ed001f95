package commands

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// envelopes wraps decided events in their envelopes: ids, versions, times and trace context.
func (t Task[S, C, E]) envelopes(call call, decided []E) ([]event.Event, error) {
	events := make([]event.Event, len(decided))
	recorded := t.now()
	for i, message := range decided {
		// UUIDv7 ids of one command ascend, so they sort in the order of the events.
		e, err := t.encode(message)
		if err != nil {
			return nil, err
		}
		e.ID = uuid.Must(uuid.NewV7())
		e.RecordedAt = recorded
		e.CorrelationID, e.CausationID, e.TraceParent = call.correlation, call.key, call.trace
		events[i] = e
	}
	// A command without a correlation id starts a conversation, which is named after its first
	// event.
	if call.correlation == "" {
		for i := range events {
			events[i].CorrelationID = events[0].ID.String()
		}
	}
	return events, nil
}

// batch returns what the command stores. The store commits all of it or nothing.
func (t Task[S, C, E]) batch(
	call call, expected uint64, events []event.Event, after loaded[S], response Response,
) (eventstore.Batch, error) {
	// The stored answer does not contain the position of its events: only the store knows it, at
	// the commit. replay adds it.
	var b eventstore.Batch
	var err error
	if len(events) > 0 {
		b.Streams = []eventstore.StreamAppend{{Stream: t.stream, ExpectedVersion: expected, Events: events}}
		if b.Snapshots, err = t.dueSnapshot(t.stream, after); err != nil {
			return b, err
		}
	}
	if call.key != "" {
		kept, err := proto.Marshal(response)
		if err != nil {
			return b, fmt.Errorf("marshal answer: %w", err)
		}
		b.Answer = eventstore.Answer{
			Key: call.key, Fingerprint: call.fingerprint, Response: kept, Stream: t.stream, Version: after.version,
		}
	}
	return b, nil
}

// replayOr returns the first answer if the command is rejected only because it was accepted before.
// Only rejected commands need this lookup: if the domain accepts, Append detects the repetition.
func (t Task[S, C, E]) replayOr(ctx context.Context, call call, refused *RejectedError) (Response, error) {
	first, ok, err := t.store.LoadAnswer(ctx, call.key)
	if err != nil {
		return nil, t.storeError(ctx, "load stored answer", t.stream, err)
	}
	if !ok {
		return nil, refused
	}
	return t.replay(call, first, refused)
}

// replay returns the first answer again. refused is the domain's current verdict, nil if it would
// accept the command.
func (t Task[S, C, E]) replay(call call, first eventstore.Answer, refused *RejectedError) (Response, error) {
	// The same key with another request is a bug of the client. Returning the first answer would
	// hide it.
	if !call.matches(first) {
		reused := &RejectedError{Code: Invalid, Rule: "idempotency_key_reused", Field: fieldKey,
			Reason: "the key was already used with a different request",
			Facts:  map[string]string{"stream": first.Stream, "version": strconv.FormatUint(first.Version, 10)}}
		if refused != nil { // the facts let the caller continue from the current state
			maps.Copy(reused.Facts, refused.Facts)
		}
		return nil, reused
	}
	response := call.blank
	if err := proto.Unmarshal(first.Response, response); err != nil {
		return nil, fmt.Errorf("unmarshal the stored answer of an idempotency key: %w", err)
	}
	receipt := response.GetReceipt()
	// The answer was stored together with its events, before their position was known.
	if receipt.Token == "" {
		receipt.Token = t.token(first.Stream, first.Version, first.Position)
	}
	receipt.Replayed = true
	return response, nil
}

// token returns the token of a version of a stream, for the receipt.
func (r *Runner[S, C, E]) token(stream string, version uint64, p event.Position) string {
	return event.Token{Service: r.agg.Service, Stream: stream, Version: version, Position: p}.String()
}
