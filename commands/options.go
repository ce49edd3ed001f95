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

type options struct {
	clock         func() time.Time
	logger        *slog.Logger
	snapshotEvery uint64
	leeway        time.Duration
	currencies    event.Currencies
	interceptors  []connect.Interceptor
}

func newOptions(opts []Option) options {
	o := options{clock: time.Now, logger: slog.New(slog.DiscardHandler), snapshotEvery: 100}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

func (o options) now() time.Time { return event.Time(o.clock()) }

// WithClock replaces time.Now.
func WithClock(clock func() time.Time) Option { return func(o *options) { o.clock = clock } }

// WithLogger gives a place to say what callers are not told: failures of the store, panics. Default: nowhere.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithSnapshotEvery keeps the state of a stream once n events have come since the last time. Default: 100.
func WithSnapshotEvery(n uint64) Option { return func(o *options) { o.snapshotEvery = max(n, 1) } }

// WithClockLeeway takes business times that lie so far ahead of the service's clock, for clients whose clocks run ahead.
// Default: none.
func WithClockLeeway(d time.Duration) Option { return func(o *options) { o.leeway = d } }

// WithCurrencies takes amounts in currencies that ISO 4217 does not have, or with other decimals than it gives them.
func WithCurrencies(c event.Currencies) Option { return func(o *options) { o.currencies = c } }

// WithInterceptors adds what is to see every call first, and its answer last, as the caller sees it.
func WithInterceptors(i ...connect.Interceptor) Option {
	return func(o *options) { o.interceptors = append(o.interceptors, i...) }
}

// HandlerOptions are what a service's Connect handler is to be made with: those of rpc.HandlerOptions, strict, and a *Rejected
// becomes a Connect error of its code with a detail eventv1.Rejection.
func HandlerOptions(opts ...Option) []connect.HandlerOption {
	o := newOptions(opts)
	return slices.Concat([]connect.HandlerOption{connect.WithInterceptors(o.interceptors...)},
		rpc.HandlerOptions(o.logger, o.now, rpc.Strict(), rpc.WithLeeway(o.leeway), rpc.WithCurrencies(o.currencies)),
		[]connect.HandlerOption{connect.WithInterceptors(connect.UnaryInterceptorFunc(showRejected))})
}

func showRejected(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		var r *Rejected
		if !errors.As(err, &r) {
			return res, err
		}
		detail := &eventv1.Rejection{Rule: r.Rule, Field: r.Field, Reason: r.Reason, Facts: r.Facts}
		return nil, rpc.WithDetail(connect.NewError(r.Code.connect(), r), detail)
	}
}
