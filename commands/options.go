package commands

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	"github.com/millrace/millrace/internal/rpc"
)

// Option changes how a service runs its commands.
type Option func(*options)

// options are common to the runner and the handler of a service.
type options struct {
	clock         func() time.Time
	logger        *slog.Logger
	snapshotEvery uint64
	leeway        time.Duration
	currencies    event.Currencies
	interceptors  []connect.Interceptor
}

// newOptions returns the defaults with the given options applied.
func newOptions(opts []Option) options {
	o := options{clock: time.Now, logger: slog.New(slog.DiscardHandler), snapshotEvery: 100}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// now returns the current time in the precision of events.
func (o options) now() time.Time { return event.Time(o.clock()) }

// WithClock replaces time.Now.
func WithClock(clock func() time.Time) Option { return func(o *options) { o.clock = clock } }

// WithLogger logs what callers must not see: failures of the store, panics. Default: no log.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithSnapshotEvery stores a snapshot of a stream after every n events. Default: 100.
func WithSnapshotEvery(n uint64) Option { return func(o *options) { o.snapshotEvery = max(n, 1) } }

// WithClockLeeway accepts business times up to d ahead of the service's clock, for clients with
// fast clocks. Default: none.
func WithClockLeeway(d time.Duration) Option { return func(o *options) { o.leeway = d } }

// WithCurrencies accepts currencies that ISO 4217 does not have, or other numbers of decimals.
func WithCurrencies(c event.Currencies) Option { return func(o *options) { o.currencies = c } }

// WithInterceptors adds the outermost interceptors: they see each call first, and its answer as the
// caller gets it.
func WithInterceptors(i ...connect.Interceptor) Option {
	return func(o *options) { o.interceptors = append(o.interceptors, i...) }
}

// HandlerOptions returns the options for a service's Connect handler. They are those of
// rpc.HandlerOptions in strict mode. They also turn a *RejectedError into a Connect error with its
// code and the detail eventv1.Rejection.
func HandlerOptions(opts ...Option) []connect.HandlerOption {
	o := newOptions(opts)
	return slices.Concat([]connect.HandlerOption{connect.WithInterceptors(o.interceptors...)},
		rpc.HandlerOptions(o.logger, o.now, rpc.Strict(), rpc.WithLeeway(o.leeway), rpc.WithCurrencies(o.currencies)),
		[]connect.HandlerOption{connect.WithInterceptors(connect.UnaryInterceptorFunc(showRejected))})
}

// showRejected is the interceptor that turns a *RejectedError into a Connect error.
func showRejected(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		var r *RejectedError
		if !errors.As(err, &r) {
			return res, err
		}
		detail := &eventv1.Rejection{Rule: r.Rule, Field: r.Field, Reason: r.Reason, Facts: r.Facts}
		return nil, rpc.WithDetail(connect.NewError(r.Code.connect(), r), detail)
	}
}
