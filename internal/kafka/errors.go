package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/kafka/security"
)

// Errors that callers distinguish. All others are temporary or unexpected, and are returned with
// the client's text.
var (
	// ErrFenced means that a newer producer has this one's transactional id, or that the broker
	// aborted a transaction that was open too long. This producer cannot commit anything any more.
	// Only a new one can continue.
	ErrFenced = errors.New("fenced by a newer producer with the same transactional id")

	// ErrMustAbort means that the transaction cannot be committed. After Abort, the producer can
	// begin another one.
	ErrMustAbort = errors.New("the transaction must be aborted")

	// ErrFatal means that the producer is unusable: close it, and open a new one.
	ErrFatal = errors.New("the producer is unusable: open a new one")

	// ErrUnknownTopic means that the topic does not exist.
	ErrUnknownTopic = errors.New("unknown topic")

	// ErrOutOfRange means that the log does not have the offset to read from: records were deleted,
	// or the topic was truncated or recreated.
	ErrOutOfRange = errors.New("the offset is not in the log")

	// ErrStalled means that a read made no progress: no broker answers, or an open transaction
	// hides the records behind it.
	ErrStalled = errors.New("no progress")

	// ErrTooLarge means that a record has more bytes than the producer or the topic accepts. A
	// retry cannot succeed.
	ErrTooLarge = errors.New("the record is too large for the topic")

	// ErrRefused means that the brokers refuse this client, or that it does not trust them. Calls
	// return it at once, whereas they wait for brokers that do not answer.
	ErrRefused = security.ErrRefused
)

// classify wraps the error of a call in the sentinel that callers distinguish. action is what the
// call does, for the error's text.
func classify(p *kafka.Producer, action string, err error) error {
	if err == nil {
		return nil
	}
	if isCode(err, kafka.ErrFatal) { // it only means that an earlier error was fatal
		if cause := p.GetFatalError(); cause != nil {
			err = cause
		}
	}
	var e kafka.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("kafka: %s: %w", action, err)
	}
	switch {
	case isCode(e, kafka.ErrAuthentication, kafka.ErrSsl):
		return fmt.Errorf("kafka: %s: %w: %w", action, ErrRefused, e)
	// Another process ended the transaction. For the last two codes, librdkafka can recover by
	// requesting a new epoch. That is right if the broker aborted the transaction. But a fenced
	// producer would take the id back from its successor, so the caller decides.
	case isCode(e, kafka.ErrFenced, kafka.ErrProducerFenced, kafka.ErrInvalidProducerEpoch, kafka.ErrInvalidTxnState):
		return fmt.Errorf("kafka: %s: %w: %w", action, ErrFenced, e)
	case e.IsFatal():
		return fmt.Errorf("kafka: %s: %w: %w", action, ErrFatal, e)
	case isCode(e, kafka.ErrMsgSizeTooLarge, kafka.ErrInvalidMsgSize):
		return fmt.Errorf("kafka: %s: %w: %w", action, ErrTooLarge, e)
	case e.TxnRequiresAbort():
		return fmt.Errorf("kafka: %s: %w: %w", action, ErrMustAbort, e)
	}
	return fmt.Errorf("kafka: %s: %w", action, e)
}

// isCode reports whether err is a Kafka error with one of the codes.
func isCode(err error, codes ...kafka.ErrorCode) bool {
	var e kafka.Error
	if errors.As(err, &e) {
		for _, c := range codes {
			if e.Code() == c {
				return true
			}
		}
	}
	return false
}

// callTimeout bounds one blocking call of librdkafka, which observes a context's deadline but not
// its cancellation. retry repeats it.
const callTimeout = 200 * time.Millisecond

// maxCallTimeout is up to where retry lets the time of a call grow.
const maxCallTimeout = 5 * time.Second

// millisLeft returns the time until the deadline of one call of retry, as librdkafka wants it.
func millisLeft(ctx context.Context) int {
	deadline, ok := ctx.Deadline()
	if !ok {
		return int(callTimeout.Milliseconds())
	}
	return int(max(1, time.Until(deadline).Milliseconds()))
}

// refusalTracker remembers that brokers refused this client. librdkafka reports it outside of the
// calls that are affected, retries forever, and lets the calls time out.
type refusalTracker struct{ last atomic.Pointer[kafka.Error] }

// note records an error if it is a refusal.
func (r *refusalTracker) note(e kafka.Error) {
	if isCode(e, kafka.ErrAuthentication, kafka.ErrSsl) {
		r.last.Store(&e)
	}
}

// err returns ErrRefused if the last attempt to connect was refused.
func (r *refusalTracker) err() error {
	if e := r.last.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrRefused, *e)
	}
	return nil
}

// retry repeats a call that can be resumed after a timeout. It returns when the call ends, when
// ctx ends, or when the brokers refuse this client.
func retry(ctx context.Context, refused *refusalTracker, call func(context.Context) error) error {
	for wait := callTimeout; ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		short, cancel := context.WithTimeout(ctx, wait)
		err := call(short)
		cancel()
		if err == nil {
			refused.last.Store(nil) // an earlier refusal is obsolete
			return nil
		}
		// After these errors, another call cannot succeed.
		var e kafka.Error
		if !errors.As(err, &e) || e.IsFatal() || e.TxnRequiresAbort() {
			return err
		}
		// ErrTransport also means that a new client is not connected yet.
		if !e.IsRetriable() && !e.IsTimeout() && !isCode(e, kafka.ErrTransport) {
			return err
		}
		if err := refused.err(); err != nil {
			return err
		}
		// A busy broker needs longer. Asking again after the same time would never get its answer.
		if e.IsTimeout() {
			wait = min(2*wait, maxCallTimeout)
		}
		if !e.IsTimeout() && !sleep(ctx, 20*time.Millisecond) { // a timeout has waited already
			return context.Cause(ctx)
		}
	}
}

// sleep waits for d. It returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
