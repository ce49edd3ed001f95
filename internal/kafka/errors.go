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
	// ErrFenced says that a newer producer has this one's transactional id, or that the broker gave
	// up on a transaction that was open too long. Nothing this producer does will ever be
	// committed; only a new one can continue.
	ErrFenced = errors.New("fenced by a newer producer with the same transactional id")

	// ErrMustAbort says that the transaction cannot be committed. After Abort the producer is good
	// for the next one.
	ErrMustAbort = errors.New("the transaction must be aborted")

	// ErrFatal says that the producer is of no more use: close it, and make a new one.
	ErrFatal = errors.New("the producer cannot go on")

	// ErrUnknownTopic says that the topic does not exist.
	ErrUnknownTopic = errors.New("unknown topic")

	// ErrOutOfRange says that the log does not hold the offset to read from: what was there was
	// deleted, or the topic was truncated or made anew.
	ErrOutOfRange = errors.New("the offset is not in the log")

	// ErrStalled says that a reading came no further: no broker answers, or a transaction stays
	// open that hides what is behind it.
	ErrStalled = errors.New("no progress")

	// ErrTooLarge says that a record has more bytes than the producer or the topic takes. It never
	// gets there as it is.
	ErrTooLarge = errors.New("the record is too large for the topic")

	// ErrRefused says that the brokers do not let us in, or that we do not trust them. A call that
	// cannot get through returns it at once, while one that nobody answers waits.
	ErrRefused = security.ErrRefused
)

// classify wraps a transactional call's error in the sentinel that the caller decides by.
func classify(p *kafka.Producer, doing string, err error) error {
	if err == nil {
		return nil
	}
	if isCode(err, kafka.ErrFatal) { // says only that an earlier error was fatal
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
	// Somebody else ended the transaction. librdkafka offers to recover from the last two by asking
	// for a new epoch. That is right where the broker did it by itself, but would let a fenced
	// producer take the id back from its successor, so we leave it to the caller.
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

// slice bounds one blocking call into librdkafka, which sees a context's deadline but not its
// cancellation.
const slice = 200 * time.Millisecond

// refusal remembers that brokers refused us. librdkafka tells it beside the calls that suffer from
// it, tries again for ever, and lets them time out.
type refusal struct{ last atomic.Pointer[kafka.Error] }

func (r *refusal) note(e kafka.Error) {
	if isCode(e, kafka.ErrAuthentication, kafka.ErrSsl) {
		r.last.Store(&e)
	}
}

func (r *refusal) err() error {
	if e := r.last.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrRefused, *e)
	}
	return nil
}

// resumed repeats a call that may be resumed after a timeout, until it ends, ctx does, or the
// brokers refuse us.
func resumed(ctx context.Context, refused *refusal, call func(context.Context) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		short, cancel := context.WithTimeout(ctx, slice)
		err := call(short)
		cancel()
		if err == nil {
			refused.last.Store(nil) // what was refused before is over
			return nil
		}
		var e kafka.Error
		if !errors.As(err, &e) || e.IsFatal() || e.TxnRequiresAbort() {
			return err
		}
		// "Transport" also means that a client that has just been opened is not connected yet.
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

// sleep waits for d and reports whether ctx still lives.
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
