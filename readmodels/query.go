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
	// DefaultWait bounds the wait for a token if the caller sets no deadline.
	DefaultWait = 5 * time.Second
	// A share of the deadline is reserved for the answer to travel. Otherwise the caller would see
	// its own timeout instead of the answer.
	marginDivisor = 5 // a fifth of the deadline, but at most
	maxMargin     = 250 * time.Millisecond
)

// Watermarks is the part of *streams.Watermarks that queries use.
type Watermarks interface {
	Wait(ctx context.Context, topic, key string, position event.Position) error
	Lag(topics ...string) (events uint64, ok bool)
	AsOf(topics ...string) time.Time
}

// Freshness implements the promises of one view's queries.
type Freshness struct {
	View       string // with its version: "orderstatus/v2"
	Aggregate  event.Aggregate
	Watermarks Watermarks
}

// Of returns the freshness of an answer. If the answer shows one stream, version is that stream's
// version. asOf is the time of the newest event in the answer.
func (f Freshness) Of(version uint64, asOf *timestamppb.Timestamp) *eventv1.Freshness {
	lag, _ := f.Watermarks.Lag(f.Aggregate.Topic)
	return &eventv1.Freshness{View: f.View, Version: version, AsOf: asOf, LagEvents: lag}
}

// AsOf returns when the newest event that the view has applied was recorded, or nil before the
// first.
func (f Freshness) AsOf() *timestamppb.Timestamp {
	if t := f.Watermarks.AsOf(f.Aggregate.Topic); !t.IsZero() {
		return timestamppb.New(t)
	}
	return nil
}

// Status summarises a view.
type Status struct {
	Documents uint64
	AsOf      time.Time // when the newest applied event was recorded; zero before the first
	Lag       uint64    // events on the log that are not applied yet
	Known     bool      // false until the view has read the ends of the log; Lag is 0 until then
}

// Status returns the status of a view with this many documents.
func (f Freshness) Status(documents uint64) Status {
	lag, known := f.Watermarks.Lag(f.Aggregate.Topic)
	return Status{documents, f.Watermarks.AsOf(f.Aggregate.Topic), lag, known}
}

// AwaitVersion returns nil once the view shows the token's stream at the token's version or a later
// one. It waits for that stream whichever one the query asks for: a token names a state of the
// service, and any answer may depend on it. current returns the version that the view shows of a
// stream, 0 if none. An empty token requires nothing.
//
// It returns InvalidArgument if the token is not one of this view's service. If the view does not
// get there within the caller's deadline, or DefaultWait, it returns DeadlineExceeded with an
// eventv1.Stale as its detail, which distinguishes this from other timeouts. The code is not
// Unavailable, because a load balancer must not take the view out of service; and not
// FailedPrecondition, because the caller can simply retry. Kubernetes answers a read at an unseen
// resourceVersion in the same way.
func (f Freshness) AwaitVersion(
	ctx context.Context, request proto.Message, token string,
	current func(ctx context.Context, stream string) (uint64, error),
) error {
	t, given, err := f.parse(request, token)
	if err != nil || !given {
		return err
	}
	ctx, cancel := withMargin(ctx)
	defer cancel()
	var have uint64
	// The watermark has reached the position, so it no longer blocks.
	passed := false
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		version, err := current(ctx, t.Stream)
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
		// If this process feeds the view, the watermark wakes the query at once. If another process
		// does, the watermark may lag, so the view is polled with growing pauses.
		pause, stop := context.WithTimeout(ctx, wait)
		if !passed {
			passed = f.Watermarks.Wait(pause, f.Aggregate.Topic, t.Stream, t.Position) == nil
		} else {
			<-pause.Done()
		}
		stop()
	}
}

// AwaitPosition is AwaitVersion for an answer that shows many streams. It returns nil once the
// watermark of the partition with the token's stream has reached the token's position.
func (f Freshness) AwaitPosition(ctx context.Context, request proto.Message, token string) error {
	t, given, err := f.parse(request, token)
	if err != nil || !given {
		return err
	}
	ctx, cancel := withMargin(ctx)
	defer cancel()
	if err := f.Watermarks.Wait(ctx, f.Aggregate.Topic, t.Stream, t.Position); err != nil {
		return f.stale(t, 0)
	}
	return nil
}

// parse returns the token, and whether there is one.
func (f Freshness) parse(request proto.Message, token string) (t event.Token, given bool, err error) {
	if token == "" {
		return event.Token{}, false, nil
	}
	if t, err = event.ParseToken(token); err != nil {
		return event.Token{}, false, InvalidField(request, "token", "not a token from a command's receipt")
	}
	if t.Service != f.Aggregate.Service {
		return event.Token{}, false, InvalidField(request, "token",
			fmt.Sprintf("a token of the service %q, but this view shows the service %q", t.Service,
				f.Aggregate.Service))
	}
	return t, true, nil
}

// stale returns the error of a view that has not reached a token in time. have is 0 if unknown.
func (f Freshness) stale(t event.Token, have uint64) error {
	return rpc.WithDetail(
		connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("view %s has not applied version %d of %q yet",
			f.View, t.Version, t.Stream)),
		&eventv1.Stale{View: f.View, Stream: t.Stream, WantVersion: t.Version, HaveVersion: have})
}

// Rebuilding turns the error of a view that has lost data into Unavailable: the view is being
// rebuilt from the log, and the caller should retry. It returns other errors unchanged.
func (f Freshness) Rebuilding(err error) error {
	if !errors.Is(err, streams.ErrLost) {
		return err
	}
	return connect.NewError(connect.CodeUnavailable,
		fmt.Errorf("a part of view %s is damaged and being rebuilt from the log; try again", f.View))
}

// withMargin returns a context that ends a little before the caller's deadline.
func withMargin(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, DefaultWait)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/marginDivisor, maxMargin)))
}

// InvalidField returns an error that names a field of the request with a wrong value, in the same
// form as the errors of buf.validate.
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
