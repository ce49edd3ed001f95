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

var (
	// ErrFenced means that a newer producer has this one's transactional id, or that the broker
	// aborted a transaction that was open too long. This producer cannot commit anything any more.
	// Only a new one can continue.
	ErrFenced = errors.New("fenced by a newer producer with the same transactional id")

	// ErrMustAbort means that the transaction cannot be committed. After Abort, the producer can
	// begin another one.
	ErrMustAbort = errors.New("the transaction must be aborted")

	// ErrFatal means that the producer is unusable: close it, and open a new one.
	ErrFatal = errors.New("the producer cannot go on")

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

// classify wraps the error of a transactional call in the sentinel that callers distinguish.
func classify(p *kafka.Producer, doing string, err error) error {
	if err == nil {
		return nil
	}
	if isCode(err, kafka.ErrFatal) { // it says only that an earlier error was fatal
		if cause := p.GetFatalError(); cause != nil {
			err = cause
		}
	}
	var e kafka.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("kafka: %s: %w", doing, err)
	}
	switch {
	case isCode(e, kafka.ErrAuthentication, kafka.ErrSsl):
		return fmt.Errorf("kafka: %s: %w: %w", doing, ErrRefused, e)
	// Another process ended the transaction. For the last two codes, librdkafka can recover by
	// requesting a new epoch. That is right if the broker aborted the transaction. But a fenced
	// producer would take the id back from its successor, so the caller decides.
	case isCode(e, kafka.ErrFenced, kafka.ErrProducerFenced, kafka.ErrInvalidProducerEpoch, kafka.ErrInvalidTxnState):
		return fmt.Errorf("kafka: %s: %w: %w", doing, ErrFenced, e)
	case e.IsFatal():
		return fmt.Errorf("kafka: %s: %w: %w", doing, ErrFatal, e)
	case isCode(e, kafka.ErrMsgSizeTooLarge, kafka.ErrInvalidMsgSize):
		return fmt.Errorf("kafka: %s: %w: %w", doing, ErrTooLarge, e)
	case e.TxnRequiresAbort():
		return fmt.Errorf("kafka: %s: %w: %w", doing, ErrMustAbort, e)
	}
	return fmt.Errorf("kafka: %s: %w", doing, e)
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

// slice bounds one blocking call of librdkafka, which observes a context's deadline but not its
// cancellation.
const slice = 200 * time.Millisecond

// refusal remembers that brokers refused this client. librdkafka reports it outside of the calls
// that are affected, retries forever, and lets the calls time out.
type refusal struct{ last atomic.Pointer[kafka.Error] }

// note records an error if it is a refusal.
func (r *refusal) note(e kafka.Error) {
	if isCode(e, kafka.ErrAuthentication, kafka.ErrSsl) {
		r.last.Store(&e)
	}
}

// err returns ErrRefused if the last attempt to connect was refused.
func (r *refusal) err() error {
	if e := r.last.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrRefused, *e)
	}
	return nil
}

// resumed repeats a call that can be resumed after a timeout. It returns when the call ends, when
// ctx ends, or when the brokers refuse this client.
func resumed(ctx context.Context, refused *refusal, call func(context.Context) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		short, cancel := context.WithTimeout(ctx, slice)
		err := call(short)
		cancel()
		if err == nil {
			refused.last.Store(nil) // a refusal before is obsolete
			return nil
		}
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
