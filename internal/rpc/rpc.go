// Package rpc contains what all Connect services have in common. It bounds and validates requests,
// turns panics into errors, and hides internal errors from callers.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
)

// MaxRequestBytes is the size of the largest request message, decompressed.
const MaxRequestBytes = 4 << 20

// minCompressedBytes is the size from which an answer is worth compressing. A receipt is not.
const minCompressedBytes = 1024

// maxViolations is how many broken rules an error names: error details travel in HTTP trailers,
// which are small.
const maxViolations = 10

// HandlerOptions returns the options every handler is made with:
//   - a request above MaxRequestBytes is ResourceExhausted;
//   - one that cannot be read is InvalidArgument, and its message names the field where it is JSON;
//   - identifiers in it are brought to one form, so that handlers may compare them as they are (see identifiers.go);
//   - one that breaks a rule of buf.validate is InvalidArgument, its message names the fields, and a detail
//     buf.validate.Violations carries the rules; "now" in a rule is what now returns, and the leeway later;
//   - a panic, and an error that is not a *connect.Error, are logged and become Internal without saying why.
func HandlerOptions(logger *slog.Logger, now func() time.Time, opts ...Option) []connect.HandlerOption {
	d := door{logger: logger, clock: now}
	for _, opt := range opts {
		opt(&d)
	}
	return append(Codecs(d.strict),
		connect.WithReadMaxBytes(MaxRequestBytes),
		connect.WithCompressMinBytes(minCompressedBytes),
		connect.WithRecover(d.recovered),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(d.guard)),
	)
}

// OperationOptions returns the options of a service that those call who run the system. Requests
// are read as by HandlerOptions; an error that is not a *connect.Error is a store, a broker or a
// disk that did not answer, and whoever looks into that is told which and why.
func OperationOptions(logger *slog.Logger) []connect.HandlerOption {
	d := door{logger: logger, clock: time.Now, strict: true}
	return append(Codecs(d.strict), connect.WithReadMaxBytes(MaxRequestBytes), connect.WithRecover(d.recovered), connect.WithInterceptors(operations{d}))
}

type operations struct{ door }

func (o operations) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		err := o.validate(req.Any())
		if err != nil {
			return nil, o.told(ctx, req.Spec(), err)
		}
		res, err := next(ctx, req)
		if err != nil {
			return nil, o.told(ctx, req.Spec(), err)
		}
		return res, nil
	}
}

func (o operations) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return o.told(ctx, conn.Spec(), err)
		}
		return nil
	}
}

func (operations) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (o operations) told(ctx context.Context, spec connect.Spec, err error) error {
	var typed *connect.Error
	switch {
	case errors.As(err, &typed):
		return typed
	case ctx.Err() != nil:
		return o.public(ctx, spec, ctx.Err())
	}
	o.logger.WarnContext(ctx, "call failed", "procedure", spec.Procedure, "error", err)
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("something that this asks did not answer: %w", err))
}

// Option changes what a door takes.
type Option func(*door)

// Strict refuses fields and names of enums in JSON that the contract does not have. Whoever changes
// something must not be misunderstood; a question may be asked with words that only a newer server
// knows.
func Strict() Option { return func(d *door) { d.strict = true } }

// WithLeeway takes times that must not lie in the future also where they lie so far ahead of this
// server's clock: clients have clocks of their own.
func WithLeeway(leeway time.Duration) Option { return func(d *door) { d.leeway = leeway } }

// WithCurrencies takes amounts in currencies that ISO 4217 does not have, or with other decimals.
func WithCurrencies(c event.Currencies) Option { return func(d *door) { d.currencies = c } }

type door struct {
	logger *slog.Logger
	clock  func() time.Time
	strict bool
	leeway time.Duration

	currencies event.Currencies
}

func (d door) guard(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		err := d.validate(req.Any())
		if err != nil {
			return nil, d.public(ctx, req.Spec(), err)
		}
		res, err := next(ctx, req)
		if err != nil {
			return nil, d.public(ctx, req.Spec(), err)
		}
		return res, nil
	}
}

func (d door) validate(message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return nil
	}
	refused := identify(m, d.currencies)
	now := d.clock()
	latest := timestamppb.New(now.Add(d.leeway))
	err := protovalidate.Validate(m, protovalidate.WithNowFunc(func() *timestamppb.Timestamp { return latest }))
	var invalid *protovalidate.ValidationError
	if err != nil && !errors.As(err, &invalid) {
		return err // a rule that does not compile
	}
	all := d.violations(invalid, refused, now)
	if len(all) == 0 {
		return nil
	}
	var text []string
	detail := &validate.Violations{Violations: all[:min(len(all), maxViolations)]}
	for _, v := range detail.Violations {
		text = append(text, fmt.Sprintf("%s: %s", protovalidate.FieldPathString(v.GetField()), v.GetMessage()))
	}
	if more := len(all) - len(detail.Violations); more > 0 {
		text = append(text, fmt.Sprintf("and %d more", more))
	}
	return WithDetail(connect.NewError(connect.CodeInvalidArgument, errors.New(strings.Join(text, "; "))), detail)
}

// violations are those of the rules, and of identifiers whose field breaks no rule.
func (d door) violations(invalid *protovalidate.ValidationError, refused []*validate.Violation, now time.Time) []*validate.Violation {
	var all []*validate.Violation
	named := map[string]bool{}
	if invalid != nil {
		for _, v := range invalid.Violations {
			if v.Proto.GetRuleId() == ruleInTheFuture {
				v.Proto.Message = proto.String(d.ahead(now))
			}
			all = append(all, v.Proto)
			named[protovalidate.FieldPathString(v.Proto.GetField())] = true
		}
	}
	for _, v := range refused {
		if !named[protovalidate.FieldPathString(v.GetField())] {
			all = append(all, v)
		}
	}
	return all
}

// ruleInTheFuture is the rule of times that must not lie in the future.
const ruleInTheFuture = "timestamp.lt_now"

// ahead tells a client whose clock runs ahead what the time is here.
func (d door) ahead(now time.Time) string {
	text := "must not lie in the future: this server's time is " + now.UTC().Format(time.RFC3339Nano)
	if d.leeway > 0 {
		text += fmt.Sprintf(", and a client's clock may run %v ahead of it", d.leeway)
	}
	return text
}

// public returns what a caller may see of an error.
func (d door) public(ctx context.Context, spec connect.Spec, err error) error {
	var typed *connect.Error
	switch {
	case errors.As(err, &typed):
		return typed
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's deadline has passed"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("the call was cancelled"))
	}
	d.logger.ErrorContext(ctx, "call failed", "procedure", spec.Procedure, "error", err)
	return errInternal()
}

func (d door) recovered(ctx context.Context, spec connect.Spec, _ http.Header, reason any) error {
	d.logger.ErrorContext(ctx, "call panicked", "procedure", spec.Procedure, "panic", reason, "stack", string(debug.Stack()))
	return errInternal()
}

func errInternal() error {
	return connect.NewError(connect.CodeInternal, errors.New("internal error; the server's log says more"))
}

// WithDetail adds a typed detail to an error.
func WithDetail(err *connect.Error, detail proto.Message) *connect.Error {
	d, bad := connect.NewErrorDetail(detail)
	if bad != nil { // detail cannot be marshalled: the error says enough without it
		return err
	}
	err.AddDetail(d)
	return err
}
