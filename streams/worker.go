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
	record     Record
	partition  *partition
	number     uint64        // in its partition
	deadLetter *kafka.Record // goes to DeadLetterTopic instead of the sink, where not nil

	// unread is the message as it came, where only its envelope has been read so far. The rest is
	// left to the worker, for it may have to wait for a schema, and the poll loop must not.
	unread *kafka.Message

	refused bool // by the sink, which could not read it
}

// isEvent reports whether the item is one that the sink takes. What is parked moves no watermark:
// the sink does not hold it.
func (it *item) isEvent() bool { return it.deadLetter == nil && !it.refused }

// newItem reads a message. One that is not an event of ours becomes an item to be parked.
func (r *Runtime) newItem(p *partition, m *kafka.Message) *item {
	e, err := event.FromRecord(m.Key, m.Value, m.Headers)
	it := &item{record: Record{Event: e, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset}, partition: p}
	if err != nil {
		it.record.Event.Data = m.Value
		it.deadLetter = newDeadLetter(r.cfg.Name, it.record, string(m.Key), m.Headers, err)
	} else {
		it.unread = m
	}
	it.number = p.add(m.Offset, e, kafka.PartitionsOf(m.Headers))
	return it
}

// work takes what waits on one lane, as much as a batch holds, and delivers it, until ctx ends.
func (r *Runtime) work(ctx context.Context, lane <-chan *item) {
	batch := make([]*item, 0, r.cfg.Batch)
	for {
		select {
		case <-ctx.Done():
			return
		case it := <-lane:
			batch = append(batch[:0], it)
		}
		for more := true; more && len(batch) < r.cfg.Batch; {
			select {
			case it := <-lane:
				batch = append(batch, it)
			default:
				more = false
			}
		}
		r.deliver(ctx, batch)
	}
}

// deliver hands a batch to the sink until the sink has taken it, or ctx ends. Records of partitions
// that were taken away meanwhile fall out: whoever has them now reads them again.
func (r *Runtime) deliver(ctx context.Context, batch []*item) {
	for waits := backoff.Server.Start(); ; {
		batch = slices.DeleteFunc(batch, func(it *item) bool { return !it.partition.enter() })
		if len(batch) == 0 {
			return
		}
		err := r.attempt(batch)
		for _, it := range batch {
			it.partition.leave(it.number, err == nil, it.isEvent())
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		wait := waits.Next()
		r.cfg.Logger.Warn("streams: the sink did not take a batch, which will be handed over again", "sink", r.cfg.Name,
			"records", len(batch), "in", wait, "error", err)
		if errors.Is(err, ErrLost) {
			gap := gapIn(batch, err)
			r.requestRepair(ctx, err, gap)
			if gap != nil && gap.deadLetter != nil {
				continue // the rest can continue at once
			}
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// gapIn finds the record that err says cannot be applied; nil if it names none.
func gapIn(batch []*item, err error) *item {
	var gap *GapError
	if !errors.As(err, &gap) {
		return nil
	}
	return find(batch, gap.Record)
}

// find returns the item of a record; nil if the batch has none.
func find(batch []*item, rec Record) *item {
	at := slices.IndexFunc(batch, func(it *item) bool {
		return it.record.Topic == rec.Topic && it.record.Partition == rec.Partition && it.record.Offset == rec.Offset
	})
	if at < 0 {
		return nil
	}
	return batch[at]
}

// apply returns the sink's Apply with a failpoint on each side.
func (r *Runtime) apply(ctx context.Context, records []Record) error {
	if err := failpoint.Hit("view." + r.cfg.Name + ".apply.before"); err != nil {
		return err
	}
	if err := r.cfg.Sink.Apply(ctx, records); err != nil {
		return err
	}
	return failpoint.Hit("view." + r.cfg.Name + ".apply.after")
}

// read completes an item of which only the envelope has been read, once. Its error means that this
// can be tried again.
func (r *Runtime) read(ctx context.Context, it *item) error {
	if it.unread == nil {
		return nil
	}
	m := it.unread
	e, _, err := r.cfg.Decoder.Complete(ctx, registry.Record{
		Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Headers: m.Headers,
	}, it.record.Event)
	switch {
	case errors.Is(err, registry.ErrUnavailable):
		return err
	case err != nil: // parked as it came
		it.deadLetter = newDeadLetter(r.cfg.Name, it.record, string(m.Key), m.Headers, err)
	default:
		it.record.Event = e
	}
	it.unread = nil
	return nil
}

// attempt hands a batch to the sink once, and parks what cannot be read.
func (r *Runtime) attempt(batch []*item) error {
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	var records []Record
	var letters []kafka.Record
	for _, it := range batch {
		if err := r.read(ctx, it); err != nil {
			return err
		}
		if it.deadLetter != nil {
			letters = append(letters, *it.deadLetter)
		} else {
			records = append(records, it.record)
		}
	}
	if len(records) > 0 {
		err := r.apply(ctx, records)
		var unreadable *UnreadableError
		if errors.As(err, &unreadable) {
			for i, rec := range unreadable.Records {
				letters = append(letters, *deadLetterOf(r.cfg.Name, rec, unreadable.Reasons[i]))
				if it := find(batch, rec); it != nil {
					it.refused = true
				}
			}
		} else if err != nil {
			return err
		}
	}
	if len(letters) == 0 {
		return nil
	}
	if err := r.deadLetters.put(ctx, letters); err != nil {
		return err
	}
	r.deadLetterLog.add(letters)
	return nil
}
