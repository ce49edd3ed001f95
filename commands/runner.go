package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/tracing"
)

// maxAttempts is how often a command is tried while other processes append to its stream.
const maxAttempts = 12

// Request is a command's request message.
type Request interface {
	proto.Message
	GetIdempotencyKey() string
}

// Response is a command's response message.
type Response interface {
	proto.Message
	GetReceipt() *eventv1.Receipt
}

// Runner runs the commands of one aggregate on one store. It is safe for concurrent use.
type Runner[S, C any, E proto.Message] struct {
	options
	store   eventstore.Store
	agg     event.Aggregate
	decider Decider[S, C, E]
	oneof   protoreflect.OneofDescriptor
	times   map[protoreflect.FieldNumber]protoreflect.FieldDescriptor // from member of the oneof to its time
	locks   streamLocks
}

// NewRunner returns a runner. It panics if E does not meet the requirements of Decider.
func NewRunner[S, C any, E proto.Message](
	store eventstore.Store, agg event.Aggregate, d Decider[S, C, E], opts ...Option,
) *Runner[S, C, E] {
	var zero E
	oneof, times := contract(zero.ProtoReflect().Descriptor())
	return &Runner[S, C, E]{
		options: newOptions(opts), store: store, agg: agg, decider: d, oneof: oneof, times: times,
	}
}

// Time returns the time of a command: the business time of the request, or now if it has none. The
// result is in UTC and whole microseconds.
func (r *Runner[S, C, E]) Time(business *timestamppb.Timestamp) time.Time {
	if business == nil {
		return r.now()
	}
	return event.Time(business.AsTime())
}

// ID returns the id that the client chose, or a new UUIDv7.
func ID(chosen string) string {
	if chosen == "" {
		return uuid.Must(uuid.NewV7()).String()
	}
	return event.CanonicalID(chosen)
}

// Load returns the state and the version of a stream. Version 0 means that it does not exist.
func (r *Runner[S, C, E]) Load(ctx context.Context, stream string) (S, uint64, error) {
	l, err := r.load(ctx, stream)
	return l.state, l.version, err
}

// Task is a command and its stream, or its streams.
type Task[S, C any, E proto.Message] struct {
	*Runner[S, C, E]
	stream  string // the receipt is of this one
	command C
	joint   *joint[S, C, E] // nil for a command on one stream
}

// On returns the command as a task on a stream, for Do.
func (r *Runner[S, C, E]) On(stream string, command C) Task[S, C, E] {
	return Task[S, C, E]{r, stream, command, nil}
}

// Do runs a command and answers its request. answer builds the response from the state after the
// command and the receipt.
//
// With an idempotency key (see HeaderIdempotencyKey), a repeated request returns the first answer
// with receipt.replayed set. Another request under the same key is rejected by the rule
// "idempotency_key_reused". A rejection is not stored: a request may be sent again under its key
// and is then decided again. A command that changes nothing is accepted: it stores no event, and
// its receipt has the current version.
//
// Do returns a *RejectedError, or a Connect error. Aborted means that others kept appending to the
// stream. Unavailable means that the store failed. The store may still have accepted the command,
// so it is safe to send it again only under its key. All other errors are internal. HandlerOptions
// turns each error into what the caller gets.
func Do[S, C any, E proto.Message, Q, A any, PQ interface {
	*Q
	Request
}, PA interface {
	*A
	Response
}](
	ctx context.Context, req *connect.Request[Q], task Task[S, C, E], answer func(S, *eventv1.Receipt) PA,
) (*connect.Response[A], error) {
	call, err := newCall(ctx, req.Spec().Procedure, req.Header(), PQ(req.Msg))
	if err != nil {
		return nil, err
	}
	call.blank = PA(new(A))
	response, err := task.run(ctx, call, func(s S, r *eventv1.Receipt) Response { return answer(s, r) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse((*A)(response.(PA))), nil
}

// run retries until the command is stored, was answered before, or is rejected.
func (t Task[S, C, E]) run(
	ctx context.Context, call call, answer func(S, *eventv1.Receipt) Response,
) (Response, error) {
	// A new stream needs neither the lock nor a read. If the assumption is wrong, nothing is
	// stored, and the command runs as any other.
	if t.joint == nil && t.decider.Opens != nil && t.decider.Opens(t.command) {
		response, err := t.try(ctx, call, true, answer)
		var answered *eventstore.AnsweredError
		if errors.As(err, &answered) && call.matches(answered.Answer) {
			return t.replay(call, answered.Answer, nil)
		}
		if !isRefusal(err) {
			return response, err
		} // otherwise the stream exists, or the rejection needs to know whether it does
	}
	done, err := t.lock(ctx)
	if err != nil {
		return nil, t.busy(err)
	}
	defer done()
	waits := backoff.Append.Start()
	for attempt := 1; ; attempt++ {
		response, err := t.try(ctx, call, false, answer)
		var answered *eventstore.AnsweredError
		var conflict *eventstore.ConflictError
		var rejected *RejectedError
		switch {
		case errors.As(err, &answered):
			return t.replay(call, answered.Answer, nil)
		case errors.As(err, &rejected) && call.key != "":
			return t.replayOr(ctx, call, rejected)
		// The rest returns, except for a conflict: another process has appended first, so decide
		// again on the new state.
		case !errors.As(err, &conflict):
			return response, err
		case attempt == maxAttempts:
			return nil, t.busy(conflict)
		}
		if !waits.Wait(ctx) {
			return nil, ctx.Err()
		}
	}
}

// isRefusal reports whether the domain or the store has rejected a command.
func isRefusal(err error) bool {
	var rejected *RejectedError
	var conflict *eventstore.ConflictError
	var answered *eventstore.AnsweredError
	return errors.As(err, &rejected) || errors.As(err, &conflict) || errors.As(err, &answered)
}

// busy returns an Aborted error if other commands kept this one from its stream.
func (t Task[S, C, E]) busy(err error) error {
	var conflict *eventstore.ConflictError
	if errors.As(err, &conflict) || errors.Is(err, errTooManyWaiting) {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("%s %q is busy, retry: %w", t.agg.Name, t.stream, err))
	}
	return err
}

// try loads, decides and appends once. If unread is true, it assumes a new stream without reading
// it, and Append detects the opposite. It returns the store's ConflictError and AnsweredError
// unchanged.
func (t Task[S, C, E]) try(
	ctx context.Context, call call, unread bool, answer func(S, *eventv1.Receipt) Response,
) (Response, error) {
	parts, err := t.decide(ctx, unread)
	if err != nil {
		return nil, err
	}
	if err := t.envelopes(call, parts); err != nil {
		return nil, err
	}
	lead := parts[0]

	// The receipt is a pointer in the response. The token is set below, once the position is known.
	receipt := &eventv1.Receipt{Version: lead.after.version}
	response := answer(lead.after.state, receipt)
	// Without events, the token is known now: it has the position of the stream's newest event.
	if len(lead.events) == 0 {
		receipt.Token = t.token(t.stream, lead.after.version, lead.before.position)
		if call.key == "" {
			return response, nil
		}
	}
	batch, err := t.batch(call, parts, response)
	if err != nil {
		return nil, err
	}
	appended, err := t.append(ctx, batch)
	if err != nil {
		return nil, t.storeError(ctx, "append", t.stream, err)
	}
	if len(lead.events) > 0 {
		receipt.Token = t.token(t.stream, lead.after.version, appended.Position)
	}
	return response, nil
}

// append calls the store's Append between two failpoints, as a span of the command.
func (r *Runner[S, C, E]) append(ctx context.Context, b eventstore.Batch) (appended eventstore.Appended, err error) {
	ctx, span := tracing.Start(ctx, "store append")
	defer func() { r.endAppend(span, b, appended, err) }()
	if err := failpoint.Hit("commands.append.before"); err != nil {
		return eventstore.Appended{}, err
	}
	appended, err = r.store.Append(ctx, b)
	if err == nil {
		err = failpoint.Hit("commands.append.after")
	}
	return appended, err
}

// endAppend ends the span of an append. A conflict or a repeated key is not a failure of the store.
func (r *Runner[S, C, E]) endAppend(span *tracing.Span, b eventstore.Batch, appended eventstore.Appended, err error) {
	if span == nil {
		return
	}
	span.Set("millrace.sink", "store "+r.agg.Service)
	if n := len(b.Streams); n > 0 {
		lead := b.Streams[n-1] // the stream of the receipt
		span.SetStream(lead.Stream)
		span.SetInt("millrace.version", int64(lead.ExpectedVersion)+int64(len(lead.Events)))
	}
	if isRefusal(err) {
		span.Set("millrace.refused", "true")
		err = nil
	}
	if err == nil {
		span.Set("millrace.position", appended.Position.String())
	}
	span.End(err)
}

// storeError returns errors that callers handle, and internal errors, unchanged. It logs all others
// and hides their details.
func (r *Runner[S, C, E]) storeError(ctx context.Context, operation, stream string, err error) error {
	if isRefusal(err) || errors.Is(err, eventstore.ErrInvalid) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s of %s %q: %w", operation, r.agg.Name, stream, ctx.Err())
	}
	if errors.Is(err, eventstore.ErrFull) {
		r.logger.ErrorContext(ctx, "event store's disk is full",
			"operation", operation, "aggregate", r.agg.Name, "stream", stream, "error", err)
		return connect.NewError(connect.CodeResourceExhausted, errors.New("nothing was stored: "+
			"the event store's disk is full; retry later with the same idempotency key"))
	}
	// The store has logged it.
	if errors.Is(err, eventstore.ErrReplaced) {
		return connect.NewError(connect.CodeUnavailable, errors.New("nothing was stored: "+
			"the event store lost events; retry later with the same idempotency key"))
	}
	r.logger.ErrorContext(ctx, "event store failed",
		"operation", operation, "aggregate", r.agg.Name, "stream", stream, "error", err)
	return connect.NewError(connect.CodeUnavailable,
		errors.New("the event store failed; retry with the same idempotency key"))
}
