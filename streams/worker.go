package streams

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// item is a record on its way through a worker.
type item struct {
	record Record
	part   *partition
	number uint64        // in its partition
	park   *kafka.Record // goes to ParkTopic instead of the sink, where not nil

	// encoded is the message as it came, where its value is yet to be decoded. That is left to the worker, for it may have to wait for a
	// schema, and the poll loop must not.
	encoded *kafka.Message
}

// newItem reads a message. One that is no event of ours becomes an item to be parked.
func (r *Runtime) newItem(p *partition, m *kafka.Message) *item {
	e, err := event.FromRecord(m.Key, m.Value, m.Headers)
	it := &item{record: Record{Event: e, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset}, part: p}
	if err != nil {
		it.record.Event.Data = m.Value
		it.park = parkedRecord(r.cfg.Name, it.record, string(m.Key), m.Headers, err)
	}
	if err == nil && registry.IsFramed(m.Value) {
		it.encoded = m
	}
	it.number = p.add(m.Offset, e)
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

// deliver hands a batch to the sink until the sink has taken it, or ctx ends. Records of partitions that were taken away
// meanwhile fall out: whoever has them now reads them again.
func (r *Runtime) deliver(ctx context.Context, batch []*item) {
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		batch = slices.DeleteFunc(batch, func(it *item) bool { return !it.part.enter() })
		if len(batch) == 0 {
			return
		}
		err := r.attempt(batch)
		for _, it := range batch {
			it.part.leave(it.number, err == nil)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		r.cfg.Logger.Warn("streams: the sink did not take a batch, which will be handed over again", "sink", r.cfg.Name,
			"records", len(batch), "in", wait, "error", err)
		if errors.Is(err, ErrLost) {
			gap := gapIn(batch, err)
			r.askRepair(ctx, err, gap)
			if gap != nil && gap.park != nil {
				continue // the rest can go on at once
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
	}
}

// gapIn finds the record that err says cannot be applied; nil where it names none.
func gapIn(batch []*item, err error) *item {
	var gap *GapError
	if !errors.As(err, &gap) {
		return nil
	}
	at := slices.IndexFunc(batch, func(it *item) bool {
		return it.record.Topic == gap.Record.Topic && it.record.Partition == gap.Record.Partition && it.record.Offset == gap.Record.Offset
	})
	if at < 0 {
		return nil
	}
	return batch[at]
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// apply is the sink's Apply with a failpoint on each side.
func (r *Runtime) apply(ctx context.Context, records []Record) error {
	if err := failpoint.Hit("view." + r.cfg.Name + ".apply.before"); err != nil {
		return err
	}
	if err := r.cfg.Sink.Apply(ctx, records); err != nil {
		return err
	}
	return failpoint.Hit("view." + r.cfg.Name + ".apply.after")
}

// decode completes an item whose value is yet to be decoded, once. Its error means that this can be tried again.
func (r *Runtime) decode(ctx context.Context, it *item) error {
	if it.encoded == nil {
		return nil
	}
	m := it.encoded
	data, err := r.cfg.Decoder.Decode(ctx, m.Topic, m.Value)
	switch {
	case errors.Is(err, registry.ErrUnavailable):
		return err
	case err != nil: // parked as it came
		it.park = parkedRecord(r.cfg.Name, it.record, string(m.Key), m.Headers, err)
	default:
		it.record.Event.Data = data
	}
	it.encoded = nil
	return nil
}

// attempt hands a batch to the sink once, and parks what cannot be read.
func (r *Runtime) attempt(batch []*item) error {
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	var records []Record
	var park []kafka.Record
	for _, it := range batch {
		if err := r.decode(ctx, it); err != nil {
			return err
		}
		if it.park != nil {
			park = append(park, *it.park)
		} else {
			records = append(records, it.record)
		}
	}
	if len(records) > 0 {
		err := r.apply(ctx, records)
		var unreadable *UnreadableError
		if errors.As(err, &unreadable) {
			for i, rec := range unreadable.Records {
				park = append(park, *parkedEvent(r.cfg.Name, rec, unreadable.Reasons[i]))
			}
		} else if err != nil {
			return err
		}
	}
	if len(park) == 0 {
		return nil
	}
	if err := r.parking.put(ctx, park); err != nil {
		return err
	}
	r.cfg.Logger.Error("streams: parked records", "sink", r.cfg.Name, "records", len(park), "first", string(park[0].Key), "topic", ParkTopic)
	return nil
}
