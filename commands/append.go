package commands

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// envelopes wraps the decided events of all parts in their envelopes: ids, versions, times and trace
// context.
func (t Task[S, C, E]) envelopes(call call, parts []part[S, E]) error {
	recorded, correlation := t.now(), call.correlation
	for p := range parts {
		for _, message := range parts[p].decided {
			// UUIDv7 ids of one command ascend, so they sort in the order of the events.
			e, err := t.encode(message)
			if err != nil {
				return err
			}
			e.ID = uuid.Must(uuid.NewV7())
			e.RecordedAt = recorded
			// A command without a correlation id starts a conversation, which is named after its
			// first event.
			if correlation == "" {
				correlation = e.ID.String()
			}
			e.CorrelationID, e.CausationID, e.TraceParent = correlation, call.key, call.trace
			parts[p].events = append(parts[p].events, e)
		}
	}
	return nil
}

// batch returns what the command stores. The store commits all of it or nothing.
func (t Task[S, C, E]) batch(call call, parts []part[S, E], response Response) (eventstore.Batch, error) {
	// The stored answer does not contain the position of its events: only the store knows it, at
	// the commit. replay adds it.
	var b eventstore.Batch
	// The position of the batch is that of its last event. The first stream is the last one here,
	// so that the position in the token is that of an event of the token's stream.
	for _, p := range slices.Backward(parts) {
		if len(p.events) == 0 {
			continue
		}
		b.Streams = append(b.Streams, eventstore.StreamAppend{
			Stream: p.stream, ExpectedVersion: p.before.version, Events: p.events,
		})
		snapshots, err := t.dueSnapshot(p.stream, p.after)
		if err != nil {
			return b, err
		}
		b.Snapshots = append(b.Snapshots, snapshots...)
	}
	if call.key != "" {
		kept, err := proto.Marshal(response)
		if err != nil {
			return b, fmt.Errorf("marshal answer: %w", err)
		}
		b.Answer = eventstore.Answer{
			Key: call.key, Fingerprint: call.fingerprint, Response: kept, Stream: t.stream,
			Version: parts[0].after.version,
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
