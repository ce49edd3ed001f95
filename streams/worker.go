package streams

import (
	"context"
	"errors"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// item is a record on its way through a worker.
type item struct {
	record    Record
	partition *partition
	number    uint64 // number in its partition; see partition.add
	// If not nil, it is written to DeadLetterTopic and the sink does not get the record.
	deadLetter *kafka.Record
	reason     string // class of the reason of deadLetter; "" means ReasonNotAnEvent

	// message is the record as it is on the log. If unread is set, only its envelope has been read.
	// The worker reads the rest, because it may have to wait for a schema, and the poll loop must
	// not block.
	message *kafka.Message
	unread  bool

	sealed  bool // the relay of its topic published it
	refused bool // the sink could not read it; see UnreadableError

	// retried is not nil if the item is a dead letter that is applied again. It has no number.
	retried *retry
}

// isEvent reports whether the sink has taken the item as an event. A dead letter moves no
// watermark, because the sink does not have its event.
func (it *item) isEvent() bool { return it.deadLetter == nil && !it.refused }

// stream identifies the stream of an item's event in all partitions.
func (it *item) stream() streamOf { return streamOf{it.partition, it.record.Event.Stream} }

// streamOf is a stream of a partition.
type streamOf struct {
	partition *partition
	name      string
}

// newItem reads the envelope of a message. A message that is not an event becomes a dead letter.
func (r *Runtime) newItem(p *partition, m *kafka.Message) *item {
	e, err := event.FromRecord(m.Key, m.Value, m.Headers)
	it := &item{
		record:    Record{Event: e, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset},
		partition: p, message: m, unread: err == nil,
	}
	if err != nil {
		it.record.Event.Data = m.Value
		it.deadLetter = r.deadLetterOf(it, err)
	}
	it.number = p.add(m.Offset, e, kafka.PartitionsOf(m.Headers))
	return it
}

// work delivers the items of one lane in batches until ctx ends. It does not wait for a batch to
// fill up. A dead letter that is applied again is a batch of its own.
func (r *Runtime) work(ctx context.Context, lane <-chan *item) {
	batch := make([]*item, 0, r.cfg.Batch)
	var again *item
	for {
		select {
		case <-ctx.Done():
			return
		case it := <-lane:
			batch = append(batch[:0], it)
		}
		// Take what is waiting now, without waiting for more.
		for more := batch[0].retried == nil; more && len(batch) < r.cfg.Batch; {
			select {
			case it := <-lane:
				if it.retried != nil {
					again, more = it, false
				} else {
					batch = append(batch, it)
				}
			default:
				more = false
			}
		}
		if batch[0].retried != nil {
			again, batch = batch[0], batch[:0]
		}
		r.deliver(ctx, batch)
		if again != nil {
			r.deliver(ctx, []*item{again})
			close(again.retried.done)
			again = nil
		}
	}
}

// deliver passes a batch to the sink until the sink takes it, or until ctx ends. Records of revoked
// partitions are dropped, because the new owner reads them.
func (r *Runtime) deliver(ctx context.Context, batch []*item) {
	for waits := backoff.Server.Start(); ; {
		batch = slices.DeleteFunc(batch, func(it *item) bool { return !it.partition.enter() })
		if len(batch) == 0 {
			return
		}
		err := r.attempt(batch)
		for _, it := range batch {
			if it.retried != nil {
				it.partition.leaveRetried()
			} else {
				it.partition.leave(it.number, err == nil, it.isEvent())
			}
		}
		if err == nil {
			r.measureApplied(batch)
			return
		}
		if ctx.Err() != nil {
			return
		}
		r.meter.Failed(classOf(err))
		// One record is at fault. Find out which: deliver them one by one.
		if panicked := (*panicError)(nil); errors.As(err, &panicked) && len(batch) > 1 {
			for _, it := range slices.Clone(batch) {
				r.deliver(ctx, []*item{it})
			}
			return
		}
		wait := waits.Next()
		r.cfg.Logger.Warn("streams: applying a batch failed; retrying",
			"sink", r.cfg.Name, "records", len(batch), "retry_in", wait, "error", err)
		if errors.Is(err, ErrLost) {
			// Lost data cannot come back by a retry alone. The poll loop reads it again.
			gap := gapItem(batch, err)
			r.requestRepair(ctx, err, gap)
			if gap != nil && gap.deadLetter != nil {
				continue // the gap is a dead letter now, so the rest can be applied at once
			}
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// gapItem returns the item that a GapError in err names, or nil.
func gapItem(batch []*item, err error) *item {
	var gap *GapError
	if !errors.As(err, &gap) {
		return nil
	}
	return findItem(batch, gap.Record)
}

// findItem returns the item of a record, or nil if the batch does not have it.
func findItem(batch []*item, rec Record) *item {
	at := slices.IndexFunc(batch, func(it *item) bool {
		return it.record.Topic == rec.Topic && it.record.Partition == rec.Partition && it.record.Offset == rec.Offset
	})
	if at < 0 {
		return nil
	}
	return batch[at]
}

// apply calls the sink's Apply between two failpoints.
func (r *Runtime) apply(ctx context.Context, records []Record) (err error) {
	if err := failpoint.Hit("view." + r.cfg.Name + ".apply.before"); err != nil {
		return err
	}
	defer Recovered(&err)
	if err := r.cfg.Sink.Apply(ctx, records); err != nil {
		return err
	}
	return failpoint.Hit("view." + r.cfg.Name + ".apply.after")
}

// read completes an item of which only the envelope has been read. It returns an error only if the
// caller should retry; other errors make the item a dead letter.
func (r *Runtime) read(ctx context.Context, it *item) error {
	if !it.unread {
		return nil
	}
	m := it.message
	e, sealed, err := r.cfg.Decoder.Complete(ctx, registry.Record{
		Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Headers: m.Headers,
	}, it.record.Event)
	switch {
	case errors.Is(err, registry.ErrUnavailable):
		return err
	case err != nil: // becomes a dead letter with the original value
		it.deadLetter = r.deadLetterOf(it, err)
	default:
		it.record.Event, it.sealed = e, sealed
	}
	it.unread = false
	return nil
}
