package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/backoff"
)

// ErrUnreachable is wrapped by the error of a call that failed for as long as the client retries.
var ErrUnreachable = errors.New("server cannot be reached")

const longestAttempt = 30 * time.Second // limit of one attempt

// retry is an interceptor that retries a call, with backoff, until it is answered, ctx ends, or it
// has failed for retryFor. The request is sent again unchanged. If the first attempt was executed,
// its idempotency key makes the server return the receipt of that attempt.
func retry(retryFor time.Duration) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
			start := time.Now()
			for waits := backoff.Call.Start(); ; {
				response, err := attempt(ctx, next, request)
				if err == nil || ctx.Err() != nil || !transient(err) {
					return response, err
				}
				if time.Since(start) >= retryFor {
					return nil, fmt.Errorf("%w: %s failed for %v: %w", ErrUnreachable, request.Spec().Procedure,
						retryFor, err)
				}
				if !waits.Wait(ctx) {
					return nil, ctx.Err()
				}
			}
		}
	}
}

// attempt makes one call within longestAttempt.
func attempt(ctx context.Context, next connect.UnaryFunc, request connect.AnyRequest) (connect.AnyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, longestAttempt)
	defer cancel()
	return next(ctx, request)
}

// transient reports whether a retry may succeed. The caller's context has not ended. So a cancelled
// call was cancelled by the server, and one that ran out of time exceeded the limit of an attempt.
func transient(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeAborted, connect.CodeResourceExhausted, connect.CodeCanceled,
		connect.CodeDeadlineExceeded:
		return true
	case connect.CodeUnknown, connect.CodeInternal:
		return !connect.IsWireError(err) // the connection broke during the response
	default:
		return false
	}
}
