package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/backoff"
)

// ErrUnreachable is wrapped by the error of a call whose patience ended before the server answered.
var ErrUnreachable = errors.New("server cannot be reached")

const longestAttempt = 30 * time.Second

// retry sends a call again, at growing intervals, until it is answered, ctx ends, or it has failed
// for as long as patience.
func retry(patience time.Duration) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
			start := time.Now()
			for waits := backoff.Call.Start(); ; {
				response, err := attempt(ctx, next, request)
				if err == nil || ctx.Err() != nil || !transient(err) {
					return response, err
				}
				if time.Since(start) >= patience {
					return nil, fmt.Errorf("%w: %s failed for %v: %w", ErrUnreachable, request.Spec().Procedure, patience, err)
				}
				if !waits.Wait(ctx) {
					return nil, ctx.Err()
				}
			}
		}
	}
}

func attempt(ctx context.Context, next connect.UnaryFunc, request connect.AnyRequest) (connect.AnyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, longestAttempt)
	defer cancel()
	return next(ctx, request)
}

// transient reports whether the same call may succeed later. The caller's own context is known to
// be alive, so a call that was cancelled or ran out of time was so by the server or by the limit of
// one attempt.
func transient(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeAborted, connect.CodeResourceExhausted, connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return true
	case connect.CodeUnknown, connect.CodeInternal:
		return !connect.IsWireError(err) // the connection broke in the middle of an answer
	default:
		return false
	}
}
