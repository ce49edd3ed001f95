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
	times   map[protoreflect.FieldNumber]protoreflect.FieldDescriptor // of business times, by member of the oneof
	turns   turns
}

// NewRunner makes a runner. It panics where E is not made as Decider wants it.
func NewRunner[S, C any, E proto.Message](store eventstore.Store, agg event.Aggregate, d Decider[S, C, E], opts ...Option) *Runner[S, C, E] {
	var zero E
	oneof, times := contract(zero.ProtoReflect().Descriptor())
	return &Runner[S, C, E]{options: newOptions(opts), store: store, agg: agg, decider: d, oneof: oneof, times: times}
}

// Time is the time a command is given: its business time where the request names one, else now. UTC, whole
// microseconds.
func (r *Runner[S, C, E]) Time(business *timestamppb.Timestamp) time.Time {
	if business == nil {
		return r.now()
	}
	return event.Time(business.AsTime())
}

// ID is the id a command is given: the one the client chose, or a new UUIDv7 where it chose none.
func ID(chosen string) string {
	if chosen == "" {
		return uuid.Must(uuid.NewV7()).String()
	}
	return event.CanonicalID(chosen)
}

// Load reads the state of a stream and its version; version 0 means that it does not exist.
func (r *Runner[S, C, E]) Load(ctx context.Context, stream string) (S, uint64, error) {
	l, err := r.load(ctx, stream)
	return l.state, l.version, err
}

// Task is a command on the stream it is meant for.
type Task[S, C any, E proto.Message] struct {
	*Runner[S, C, E]
	stream  string
	command C
}

// On says which stream a command is meant for. Do runs it.
func (r *Runner[S, C, E]) On(stream string, command C) Task[S, C, E] {
	return Task[S, C, E]{r, stream, command}
}

// Do runs a command and answers the request it came in. answer makes the response out of the state after the command
// and the receipt.
//
// With an idempotency key (see HeaderIdempotencyKey) the same request again gives the first answer again, with
// receipt.replayed set; another request under that key is rejected by rule "idempotency_key_reused". A rejection is not
// kept: the request may be sent again under its key, and is decided anew. A command that changes nothing is accepted:
// it stores no event, and its receipt names the version that is there.
//
// Errors: a *Rejected; a Connect error Aborted where others kept appending to the stream, or Unavailable where the
// store failed: then the command may be sent again, under its key, as the store may have taken it; others are for
// nobody outside. HandlerOptions makes of each what the caller gets.
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

// run tries until the command is stored, was answered before, or is refused.
func (t Task[S, C, E]) run(ctx context.Context, call call, answer func(S, *eventv1.Receipt) Response) (Response, error) {
	if t.decider.Opens != nil && t.decider.Opens(t.command) {
		response, err := t.try(ctx, call, true, answer)
		var answered *eventstore.AnsweredError
		if errors.As(err, &answered) && call.asks(answered.Answer) {
			return t.replay(call, answered.Answer, nil)
		}
		if !isRefusal(err) {
			return response, err
		} // else the stream exists, or the refusal should know whether it does
	}
	done, err := t.turns.take(ctx, t.stream)
	if err != nil {
		return nil, t.busy(err)
	}
	defer done()
	waits := backoff.Append.Start()
	for attempt := 1; ; attempt++ {
		response, err := t.try(ctx, call, false, answer)
		var answered *eventstore.AnsweredError
		var conflict *eventstore.ConflictError
		var rejected *Rejected
		switch {
		case errors.As(err, &answered):
			return t.replay(call, answered.Answer, nil)
		case errors.As(err, &rejected) && call.key != "":
			return t.replayOr(ctx, call, rejected)
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

// isRefusal tells whether somebody who decides, the domain or the store, has refused a command.
func isRefusal(err error) bool {
	var rejected *Rejected
	var conflict *eventstore.ConflictError
	var answered *eventstore.AnsweredError
	return errors.As(err, &rejected) || errors.As(err, &conflict) || errors.As(err, &answered)
}

// busy says that others kept a command from its stream.
func (t Task[S, C, E]) busy(err error) error {
	var conflict *eventstore.ConflictError
	if errors.As(err, &conflict) || errors.Is(err, errTooManyWaiting) {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("%s %q is busy, try again: %w", t.agg.Name, t.stream, err))
	}
	return err
}

// try loads, decides and appends, once. Unread, it takes the stream to be new, and Append will tell. It returns the
// store's ConflictError and AnsweredError as they are.
func (t Task[S, C, E]) try(ctx context.Context, call call, unread bool, answer func(S, *eventv1.Receipt) Response) (Response, error) {
	var before loaded[S]
	var err error
	if !unread {
		if before, err = t.load(ctx, t.stream); err != nil {
			return nil, err
		}
	}
	decided, err := t.decider.Decide(before.state, t.command)
	if err != nil {
		return nil, err
	}
	events, err := t.envelopes(call, decided)
	if err != nil {
		return nil, err
	}
	after := before
	for _, e := range decided {
		after.state, after.version = t.decider.Evolve(after.state, e), after.version+1
	}

	receipt := &eventv1.Receipt{Version: after.version}
	response := answer(after.state, receipt)
	if len(events) == 0 { // then the position is that of the newest event there is, and belongs to the answer that is kept
		receipt.Token = t.token(t.stream, after.version, before.position)
		if call.key == "" {
			return response, nil
		}
	}
	batch, err := t.batch(call, before.version, events, after, response)
	if err != nil {
		return nil, err
	}
	appended, err := t.append(ctx, batch)
	if err != nil {
		return nil, t.storeError(ctx, "append", t.stream, err)
	}
	if len(events) > 0 {
		receipt.Token = t.token(t.stream, after.version, appended.Position)
	}
	return response, nil
}

// append is the store's Append with a failpoint on each side.
func (r *Runner[S, C, E]) append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := failpoint.Hit("commands.append.before"); err != nil {
		return eventstore.Appended{}, err
	}
	appended, err := r.store.Append(ctx, b)
	if err == nil {
		err = failpoint.Hit("commands.append.after")
	}
	return appended, err
}

// storeError passes on what somebody here decides by and what is our own mistake, and logs and hides the rest.
func (r *Runner[S, C, E]) storeError(ctx context.Context, doing, stream string, err error) error {
	if isRefusal(err) || errors.Is(err, eventstore.ErrInvalid) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s of %s %q: %w", doing, r.agg.Name, stream, ctx.Err())
	}
	if errors.Is(err, eventstore.ErrFull) {
		r.logger.ErrorContext(ctx, "event store is full", "doing", doing, "aggregate", r.agg.Name, "stream", stream, "error", err)
		return connect.NewError(connect.CodeResourceExhausted,
			errors.New("nothing was stored: the event store's disk is full; when there is room again, send the command again, under the same idempotency key"))
	}
	if errors.Is(err, eventstore.ErrReplaced) { // the store has logged it
		return connect.NewError(connect.CodeUnavailable,
			errors.New("nothing was stored: the event store lacks events that it had; send the command again later, under the same idempotency key"))
	}
	r.logger.ErrorContext(ctx, "event store failed", "doing", doing, "aggregate", r.agg.Name, "stream", stream, "error", err)
	return connect.NewError(connect.CodeUnavailable, errors.New("the event store failed; try again, under the same idempotency key"))
}
