package readmodels

import (
	"context"
	"errors"
	"fmt"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/streams"
)

const (
	// DefaultWait bounds the wait for a token where the caller sets no deadline.
	DefaultWait = 5 * time.Second
	// The share of a deadline that is kept for the answer to travel, so that the caller sees it and not its own
	// timeout.
	answerShare = 5 // a fifth, but
	answerMax   = 250 * time.Millisecond
)

// Watermarks is what queries ask of *streams.Watermarks.
type Watermarks interface {
	Wait(ctx context.Context, topic, key string, position event.Position) error
	Lag(topics ...string) (events uint64, ok bool)
	AsOf(topics ...string) time.Time
}

// Freshness keeps the promises that the queries of one view make.
type Freshness struct {
	View       string // and its version: "orderstatus/v2"
	Aggregate  event.Aggregate
	Watermarks Watermarks
}

// Of says how fresh an answer is. Where it shows one stream, version is that stream's; asOf is the time of the newest
// event in the answer.
func (f Freshness) Of(version uint64, asOf *timestamppb.Timestamp) *eventv1.Freshness {
	lag, _ := f.Watermarks.Lag(f.Aggregate.Topic)
	return &eventv1.Freshness{View: f.View, Version: version, AsOf: asOf, LagEvents: lag}
}

// AsOf is when the newest event that the view has applied was recorded; nil before the first.
func (f Freshness) AsOf() *timestamppb.Timestamp {
	if t := f.Watermarks.AsOf(f.Aggregate.Topic); !t.IsZero() {
		return timestamppb.New(t)
	}
	return nil
}

// Status is what there is to say of a view in one line.
type Status struct {
	Documents uint64
	AsOf      time.Time // when the newest applied event was recorded; zero before the first
	Lag       uint64    // events that stand on the log and are not applied
	Known     bool      // false until the view has looked at the log for the first time; Lag is 0 then
}

// Status says how fresh a view of so many documents is.
func (f Freshness) Status(documents uint64) Status {
	lag, known := f.Watermarks.Lag(f.Aggregate.Topic)
	return Status{documents, f.Watermarks.AsOf(f.Aggregate.Topic), lag, known}
}

// AwaitVersion returns nil once the view shows the stream that the token names at the token's version or a later one,
// whichever stream the query asks for: a token names a state of the view's service, and any answer may depend on it.
// shown reads the version that the view shows of a stream, 0 where it has none. An empty token names nothing.
//
// The errors are InvalidArgument where the token is not one of this view's service, and DeadlineExceeded with a detail
// eventv1.Stale where the view did not get there in the caller's time, or DefaultWait. It is no Unavailable, for the
// view is well and a load balancer must not think otherwise; and no FailedPrecondition, for the caller need change
// nothing but its patience. The detail tells it from a deadline that passed for another reason. Kubernetes answers a
// read at a resourceVersion that it has not seen in the same way.
func (f Freshness) AwaitVersion(ctx context.Context, request proto.Message, token string, shown func(ctx context.Context, stream string) (uint64, error)) error {
	t, given, err := f.parse(request, token)
	if err != nil || !given {
		return err
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	var have uint64
	passed := false // the watermark has: it will not wake us again
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		version, err := shown(ctx, t.Stream)
		if err == nil {
			have = version
		}
		switch {
		case err == nil && have >= t.Version:
			return nil
		case ctx.Err() != nil:
			return f.stale(t, have)
		case err != nil:
			return err
		}
		// The watermark tells at once where this process feeds the view; where another does, it takes a look now and
		// then.
		pause, stop := context.WithTimeout(ctx, wait)
		if !passed {
			passed = f.Watermarks.Wait(pause, f.Aggregate.Topic, t.Stream, t.Position) == nil
		} else {
			<-pause.Done()
		}
		stop()
	}
}

// AwaitPosition is AwaitVersion for an answer that shows many streams: it returns nil once the watermark of the
// partition that the token's stream lies in has reached the token's position.
func (f Freshness) AwaitPosition(ctx context.Context, request proto.Message, token string) error {
	t, given, err := f.parse(request, token)
	if err != nil || !given {
		return err
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	if err := f.Watermarks.Wait(ctx, f.Aggregate.Topic, t.Stream, t.Position); err != nil {
		return f.stale(t, 0)
	}
	return nil
}

func (f Freshness) parse(request proto.Message, token string) (t event.Token, given bool, err error) {
	if token == "" {
		return event.Token{}, false, nil
	}
	if t, err = event.ParseToken(token); err != nil {
		return event.Token{}, false, InvalidField(request, "token", "not a token of a command's receipt")
	}
	if t.Service != f.Aggregate.Service {
		return event.Token{}, false, InvalidField(request, "token",
			fmt.Sprintf("a token of the service %q, but this view shows the service %q", t.Service, f.Aggregate.Service))
	}
	return t, true, nil
}

func (f Freshness) stale(t event.Token, have uint64) error {
	return rpc.WithDetail(
		connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("view %s has not applied version %d of %q yet", f.View, t.Version, t.Stream)),
		&eventv1.Stale{View: f.View, Stream: t.Stream, WantVersion: t.Version, HaveVersion: have})
}

// Rebuilding turns the error of a view that has lost data into Unavailable: the view is being rebuilt from the log, and
// the caller should retry. Other errors are returned as they are.
func (f Freshness) Rebuilding(err error) error {
	if !errors.Is(err, streams.ErrLost) {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("a part of view %s is damaged and being rebuilt from the log; try again", f.View))
}

// inTime ends somewhat before the caller's deadline.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, DefaultWait)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/answerShare, answerMax)))
}

// InvalidField is the error that names a field of the request whose value is wrong, in the form in which the rules of
// buf.validate are reported.
func InvalidField(request proto.Message, field, message string) error {
	element := &validate.FieldPathElement{FieldName: proto.String(field)}
	if fd := request.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)); fd != nil {
		element.FieldNumber = proto.Int32(int32(fd.Number()))
	}
	return rpc.WithDetail(
		connect.NewError(connect.CodeInvalidArgument, errors.New(field+": "+message)),
		&validate.Violations{Violations: []*validate.Violation{{
			Field: &validate.FieldPath{Elements: []*validate.FieldPathElement{element}}, Message: proto.String(message),
		}}})
}
