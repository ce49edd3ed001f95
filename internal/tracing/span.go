package tracing

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Span is an operation of this process. The nil Span does nothing.
type Span struct{ span trace.Span }

// Start starts a child of ctx's span. Without one, it returns ctx and nil.
func Start(ctx context.Context, name string) (context.Context, *Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, nil
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, &Span{span}
}

// Set adds an attribute. The value must not be content of a request or an event.
func (s *Span) Set(key, value string) {
	if s != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// keyStream is the attribute with the id of a stream.
const keyStream = "millrace.stream"

// SetStream adds the stream of an event, if its name is a UUID. People choose other names, such as
// those of nodes of the identity graph, so they can be anything.
func (s *Span) SetStream(name string) {
	if s != nil && isID(name) {
		s.Set(keyStream, name)
	}
}

// isID reports whether the name of a stream is a UUID.
func isID(stream string) bool { return len(stream) == 36 && uuid.Validate(stream) == nil }

// SetInt adds an attribute.
func (s *Span) SetInt(key string, value int64) {
	if s != nil {
		s.span.SetAttributes(attribute.Int64(key, value))
	}
}

// End ends the span. err is nil unless the operation failed.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	setError(s.span, err)
	s.span.End()
}

// setError marks a span as failed. It records the type of the error only, because messages can
// contain what a caller has sent.
func setError(span trace.Span, err error) {
	if err == nil {
		return
	}
	span.SetStatus(codes.Error, "")
	span.SetAttributes(attribute.String("error.type", errorType(err)))
}

// errorType returns the type of the innermost error, or the code of a Connect error.
func errorType(err error) string {
	if connected := (*connect.Error)(nil); errors.As(err, &connected) {
		return connected.Code().String()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
		}
		err = inner
	}
}

// Interceptor returns an interceptor that records each call as a span. It continues the trace of the
// header traceparent, or begins one.
func (t *Tracer) Interceptor() connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		if t == nil {
			return next
		}
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if parent, ok := parse(req.Header().Get("Traceparent")); ok {
				ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
			}
			procedure := strings.TrimPrefix(req.Spec().Procedure, "/")
			service, method, _ := strings.Cut(procedure, "/")
			ctx, span := t.tracer.Start(ctx, procedure, trace.WithSpanKind(trace.SpanKindServer),
				trace.WithAttributes(attribute.String("rpc.system", "connect_rpc"),
					attribute.String("rpc.service", service), attribute.String("rpc.method", method)))
			defer span.End()
			res, err := next(ctx, req)
			if err == nil {
				return res, nil
			}
			code := connect.CodeOf(err)
			span.SetAttributes(attribute.String("rpc.connect_rpc.error_code", code.String()))
			// The other codes are the caller's: a rejection is not a failure of the system.
			switch code {
			case connect.CodeUnknown, connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss,
				connect.CodeDeadlineExceeded, connect.CodeUnimplemented:
				setError(span, err)
			}
			return res, err
		}
	})
}
