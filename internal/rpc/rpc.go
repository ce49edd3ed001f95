// Package rpc contains what all Connect services have in common. It bounds and validates requests,
// turns panics into errors, and hides internal errors from callers.
//
// HandlerOptions returns the options of a service for callers, and OperationOptions those of a
// service for operators. Intake is the HTTP handler in front of both. identifiers.go converts
// identifiers to one form, codec.go and explain.go produce errors that name the wrong field.
//
// Invariants: a handler receives valid requests only, with canonical identifiers. A faulty request
// is never reported as a fault of the server. Errors without a Connect code are internal, and only
// the log has their text.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
)

// MaxRequestBytes is the maximum size of a request message after decompression.
const MaxRequestBytes = 4 << 20

// minCompressedBytes is the size from which responses are compressed. Receipts are smaller.
const minCompressedBytes = 1024

// maxViolations is the maximum number of violations in an error. Error details are sent in HTTP
// trailers, which must be small.
const maxViolations = 10

// HandlerOptions returns the options of every handler:
//
//   - A request above MaxRequestBytes is ResourceExhausted.
//   - A request that cannot be decoded is InvalidArgument. For JSON, the message names the field.
//   - Identifiers are converted to one form, so that handlers can compare them directly; see
//     identifiers.go.
//   - A request that violates a rule of buf.validate is InvalidArgument. The message names the
//     fields, and a detail buf.validate.Violations contains the rules. "now" in a rule is the time
//     that now returns, plus the leeway.
//   - A panic, and an error that is not a *connect.Error, is logged and becomes Internal without
//     the reason.
func HandlerOptions(logger *slog.Logger, now func() time.Time, opts ...Option) []connect.HandlerOption {
	c := handlerConfig{logger: logger, clock: now}
	for _, opt := range opts {
		opt(&c)
	}
	return append(Codecs(c.strict),
		connect.WithReadMaxBytes(MaxRequestBytes),
		connect.WithCompressMinBytes(minCompressedBytes),
		connect.WithRecover(c.recovered),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(c.guard)),
	)
}

// OperationOptions returns the options of a service for operators. Requests are decoded and
// validated as with HandlerOptions. An error that is not a *connect.Error means that a store, a
// broker or a disk did not answer. Operators get its text.
func OperationOptions(logger *slog.Logger) []connect.HandlerOption {
	c := handlerConfig{logger: logger, clock: time.Now, strict: true}
	return append(Codecs(c.strict), connect.WithReadMaxBytes(MaxRequestBytes), connect.WithRecover(c.recovered),
		connect.WithInterceptors(operations{c}))
}

// operations is the interceptor of services for operators.
type operations struct{ handlerConfig }

// WrapUnary implements connect.Interceptor.
func (o operations) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		err := o.validate(req.Any())
		if err != nil {
			return nil, o.operatorError(ctx, req.Spec(), err)
		}
		res, err := next(ctx, req)
		if err != nil {
			return nil, o.operatorError(ctx, req.Spec(), err)
		}
		return res, nil
	}
}

// WrapStreamingHandler implements connect.Interceptor. Requests of streams are not validated.
func (o operations) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return o.operatorError(ctx, conn.Spec(), err)
		}
		return nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (operations) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// operatorError returns the error that an operator gets. Unavailable means that the call may be
// tried again.
func (o operations) operatorError(ctx context.Context, spec connect.Spec, err error) error {
	var typed *connect.Error
	switch {
	case errors.As(err, &typed):
		return typed
	case ctx.Err() != nil:
		return o.publicError(ctx, spec, ctx.Err())
	}
	o.logger.WarnContext(ctx, "call failed", "procedure", spec.Procedure, "error", err)
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("a dependency of this call failed: %w", err))
}

// Option configures a service's handlers.
type Option func(*handlerConfig)

// Strict rejects JSON fields and enum values that the contract does not have. A command must not be
// misunderstood. A query may contain fields that only a newer server knows.
func Strict() Option { return func(c *handlerConfig) { c.strict = true } }

// WithLeeway accepts times up to leeway ahead of this server's clock where a rule forbids the
// future, because clients have their own clocks.
func WithLeeway(leeway time.Duration) Option { return func(c *handlerConfig) { c.leeway = leeway } }

// WithCurrencies accepts currencies that ISO 4217 does not have, or that have other decimals.
func WithCurrencies(c event.Currencies) Option { return func(h *handlerConfig) { h.currencies = c } }

// handlerConfig is the configuration of a service's handlers.
type handlerConfig struct {
	logger *slog.Logger
	clock  func() time.Time
	strict bool          // reject unknown JSON fields and enum values
	leeway time.Duration // of clients' clocks

	currencies event.Currencies // in addition to ISO 4217
}

// guard validates a request before its handler, and hides internal errors after it. An error of
// validation passes through publicError as well, because a rule that does not compile is internal.
func (c handlerConfig) guard(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		err := c.validate(req.Any())
		if err != nil {
			return nil, c.publicError(ctx, req.Spec(), err)
		}
		res, err := next(ctx, req)
		if err != nil {
			return nil, c.publicError(ctx, req.Spec(), err)
		}
		return res, nil
	}
}

// validate converts identifiers and checks the rules of a request.
func (c handlerConfig) validate(message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return nil
	}
	// Convert before validating, so that the rules apply to the canonical form.
	refused := normalize(m, c.currencies)
	now := c.clock()
	// Rules compare times with now. Moving now allows for clients' clocks.
	latest := timestamppb.New(now.Add(c.leeway))
	err := protovalidate.Validate(m, protovalidate.WithNowFunc(func() *timestamppb.Timestamp { return latest }))
	var invalid *protovalidate.ValidationError
	if err != nil && !errors.As(err, &invalid) {
		return err // a rule that does not compile
	}
	all := c.violations(invalid, refused, now)
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

// violations returns the violated rules, and the refused identifiers in fields that violate no
// rule.
func (c handlerConfig) violations(
	invalid *protovalidate.ValidationError, refused []*validate.Violation, now time.Time,
) []*validate.Violation {
	var all []*validate.Violation
	named := map[string]bool{}
	if invalid != nil {
		for _, v := range invalid.Violations {
			if v.Proto.GetRuleId() == ruleInTheFuture {
				v.Proto.Message = proto.String(c.futureMessage(now))
			}
			all = append(all, v.Proto)
			named[protovalidate.FieldPathString(v.Proto.GetField())] = true
		}
	}
	for _, v := range refused {
		// One message per field is enough.
		if !named[protovalidate.FieldPathString(v.GetField())] {
			all = append(all, v)
		}
	}
	return all
}

// ruleInTheFuture is the rule for times that must not be in the future.
const ruleInTheFuture = "timestamp.lt_now"

// futureMessage returns a message with this server's time, for a client whose clock is ahead.
func (c handlerConfig) futureMessage(now time.Time) string {
	// The rule's own message has no time, and the client needs it to find its error.
	text := "must not be in the future: the server's time is " + now.UTC().Format(time.RFC3339Nano)
	if c.leeway > 0 {
		text += fmt.Sprintf(", and a client's clock may be up to %v ahead", c.leeway)
	}
	return text
}

// publicError returns the part of an error that a caller may see. It logs the rest. An error with a
// Connect code was made for callers, so it is returned unchanged.
func (c handlerConfig) publicError(ctx context.Context, spec connect.Spec, err error) error {
	var typed *connect.Error
	switch {
	case errors.As(err, &typed):
		return typed
	// Stores wrap the context's error, with details that are internal.
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's deadline has passed"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("the call was cancelled"))
	}
	c.logger.ErrorContext(ctx, "call failed", "procedure", spec.Procedure, "error", err)
	if unreachable(err) {
		return connect.NewError(
			connect.CodeUnavailable,
			errors.New("a server that this call needs does not answer; try again"),
		)
	}
	return errInternal()
}

// unreachable reports whether an error is one of a connection: the call may be tried again.
func unreachable(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// recovered turns a panic of a handler into an internal error.
func (c handlerConfig) recovered(ctx context.Context, spec connect.Spec, _ http.Header, reason any) error {
	c.logger.ErrorContext(ctx, "call panicked", "procedure", spec.Procedure, "panic", reason, "stack",
		string(debug.Stack()))
	return errInternal()
}

// errInternal is all that callers learn of an internal error.
func errInternal() error {
	return connect.NewError(connect.CodeInternal, errors.New("internal error; see the server's log"))
}

// WithDetail adds a typed detail to an error.
func WithDetail(err *connect.Error, detail proto.Message) *connect.Error {
	// Details are marshalled here, so a fault shows now and not when the response is sent.
	c, bad := connect.NewErrorDetail(detail)
	if bad != nil { // it cannot be marshalled; the error is useful without it
		return err
	}
	err.AddDetail(c)
	return err
}
