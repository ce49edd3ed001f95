// Package backoff waits between tries.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pause waits before the next try, longer with every failure in a row; it is false when ctx is done.
func Pause(ctx context.Context, failures int) bool {
	d := 50 * time.Millisecond << min(failures, 6)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
