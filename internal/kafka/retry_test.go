package kafka

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// A call that a busy broker answers only after a while gets that time, and no call gets more than the
// maximum. Asked again after the same time, the broker would never answer.
func TestRetryWaitsLonger(t *testing.T) {
	t.Parallel()
	for _, needed := range []time.Duration{0, 2 * callTimeout, maxCallTimeout / 2} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		calls := 0
		err := retry(ctx, &refusalTracker{}, func(ctx context.Context) error {
			calls++
			left := time.Duration(millisLeft(ctx)) * time.Millisecond
			if left > maxCallTimeout {
				t.Errorf("call %d has %v", calls, left)
			}
			if left < needed-50*time.Millisecond { // some of it has passed
				return kafka.NewError(kafka.ErrTimedOut, "no answer yet", false)
			}
			return nil
		})
		if err != nil {
			t.Errorf("a call that needs %v: %v after %d calls", needed, err, calls)
		}
		cancel()
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := errors.New("ended")
	err := retry(ctx, &refusalTracker{}, func(context.Context) error {
		cancel(ended)
		return kafka.NewError(kafka.ErrTimedOut, "no answer", false)
	})
	if !errors.Is(err, ended) {
		t.Errorf("after the end of the context: %v", err)
	}
}
