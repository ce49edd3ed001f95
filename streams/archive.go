package streams

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
)

// Archive keeps the events of topics for longer than the log does. A Runtime reads there what the log
// has deleted. It must be safe for concurrent use.
type Archive interface {
	// Extent returns what the archive has of a topic. It returns ErrNotArchived if it has nothing.
	Extent(ctx context.Context, topic string) (Extent, error)
	// Events returns the events in ranges of a topic's partitions. Those of a partition are in the order
	// of their offsets.
	Events(ctx context.Context, topic string, ranges map[int32]Range) ([]Record, error)
	// Seal returns the header by which readers of the log recognise an event of the archive.
	Seal(ctx context.Context, topic string, e event.Event) (event.Header, error)
}

// Extent is how far an archive reaches.
type Extent struct {
	Topic string          // id of the topic that was archived, as in Applied
	Next  map[int32]int64 // by partition: the first offset that may be missing; all before were archived
}

// Range is a range of offsets. To is excluded.
type Range struct{ From, To int64 }

// ErrNotArchived means that an archive has nothing of a topic.
var ErrNotArchived = errors.New("the topic is not archived")

const (
	// archiveSlice is how many offsets are read at once, over all partitions of a topic. Their events
	// are in memory together.
	archiveSlice = 100_000
	// archiveTimeout bounds the reading of a slice. It may read large files over a slow network.
	archiveTimeout = 10 * time.Minute
)

// fromArchive decides which partitions begin in the archive, and returns from which offset the consumer
// reads each partition. A partition whose position the log does not have any more begins in the
// archive. Meanwhile, messages of the log are ignored; see next. If the archive does not reach up to the
// log, the partition continues on the log all the same: streams that miss an event become dead letters,
// and the others are complete. The poll loop calls it.
func (r *Runtime) fromArchive(ctx context.Context, starts map[kafka.TopicPartition]start) (
	offsets map[kafka.TopicPartition]int64, archived map[kafka.TopicPartition]bool, err error,
) {
	offsets, archived = map[kafka.TopicPartition]int64{}, map[kafka.TopicPartition]bool{}
	for tp, s := range starts {
		offsets[tp] = s.at.Next
	}
	if r.archive == nil {
		return offsets, archived, nil
	}
	firsts := map[string]map[int32]int64{}
	for tp, s := range starts {
		if firsts[tp.Topic] == nil {
			if firsts[tp.Topic], err = r.firstOffsets(ctx, tp.Topic); err != nil {
				return nil, nil, err
			}
		}
		first := firsts[tp.Topic][tp.Partition]
		if s.at.Next >= first {
			continue
		}
		extent, err := r.extent(ctx, tp.Topic, s.at.Topic)
		if err != nil {
			return nil, nil, err
		}
		if len(extent.Next) > 0 {
			offsets[tp], archived[tp] = first, true
		}
	}
	return offsets, archived, nil
}

// extent returns what the archive has of the topic with an id. It is empty if the archive has nothing,
// or the events of another topic of that name.
func (r *Runtime) extent(ctx context.Context, topic, id string) (Extent, error) {
	extent, err := r.archive.Extent(ctx, topic)
	switch {
	case errors.Is(err, ErrNotArchived):
		return Extent{}, nil
	case err != nil:
		return Extent{}, fmt.Errorf("read how far the archive of %s reaches: %w", topic, err)
	case differentTopic(extent.Topic, id):
		r.cfg.Logger.Warn("streams: the archive is of an earlier topic of the same name; not reading it",
			"sink", r.cfg.Name, "topic", topic, "id", id, "archived_id", extent.Topic)
		return Extent{}, nil
	}
	return extent, nil
}

// firstOffsets returns the first offsets that the log has of a topic's partitions.
func (r *Runtime) firstOffsets(ctx context.Context, topic string) (map[int32]int64, error) {
	r.closing.RLock()
	defer r.closing.RUnlock()
	if r.consumer == nil {
		return nil, errors.New("stopped")
	}
	return r.consumer.Starts(ctx, topic)
}

// readArchive reads the partitions that begin in the archive, until ctx ends.
func (r *Runtime) readArchive(ctx context.Context) {
	for {
		select {
		case <-r.archived:
		case <-ctx.Done():
			return
		}
		for waits := backoff.Server.Start(); ; {
			more, err := r.readSlices(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				if !more {
					break
				}
				waits.Reset()
				continue
			}
			wait := waits.Next()
			r.cfg.Logger.Warn("streams: reading the archive failed; retrying", "sink", r.cfg.Name,
				"retry_in", wait, "error", err)
			if !backoff.Sleep(ctx, wait) {
				return
			}
		}
	}
}

// readSlices reads the next slice of each topic. It reports whether any partition is in the archive.
func (r *Runtime) readSlices(ctx context.Context) (more bool, err error) {
	for _, topic := range r.cfg.Topics {
		reading := map[int32]*partition{}
		r.mu.Lock()
		for tp, p := range r.partitions {
			if tp.Topic == topic && p.archived {
				reading[tp.Partition] = p
			}
		}
		r.mu.Unlock()
		if len(reading) == 0 {
			continue
		}
		more = true
		if err := r.readSlice(ctx, topic, reading); err != nil {
			return true, fmt.Errorf("topic %s: %w", topic, err)
		}
	}
	return more, nil
}

// readSlice reads the next slice of partitions of a topic. A partition that has reached the first
// offset of the log continues there.
func (r *Runtime) readSlice(ctx context.Context, topic string, reading map[int32]*partition) error {
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	// The log deletes more meanwhile, so the goal is determined again for each slice.
	firsts, err := r.firstOffsets(ctx, topic)
	if err != nil {
		return err
	}
	extents := map[string]Extent{} // by the topic's id
	todo, total := map[int32]Range{}, int64(0)
	for id, p := range reading {
		at := p.topicID()
		if _, known := extents[at]; !known {
			if extents[at], err = r.extent(ctx, topic, at); err != nil {
				return err
			}
		}
		from, to := p.readTo(), min(firsts[id], extents[at].Next[id])
		if from >= to {
			if from < firsts[id] {
				r.cfg.Logger.Error("streams: events are neither in the archive nor on the log any more. "+remedy([]string{topic}),
					"sink", r.cfg.Name, "topic", topic, "partition", id, "from", from, "to", firsts[id])
			}
			r.requestHandOver(ctx, p, max(from, firsts[id]))
			continue
		}
		todo[id], total = Range{from, to}, total+to-from
	}
	if len(todo) == 0 {
		return nil
	}
	// Partitions advance together, because files have the events of all partitions of some time.
	for id, all := range todo {
		if share := (all.To-all.From)*archiveSlice/total + 1; total > archiveSlice {
			all.To = min(all.To, all.From+share)
		}
		todo[id] = all
	}
	records, err := r.archive.Events(ctx, topic, todo)
	if err != nil {
		return err
	}
	for i := range records {
		rec := &records[i]
		p, want := reading[rec.Partition], todo[rec.Partition]
		if p == nil || rec.Offset < want.From || rec.Offset >= want.To || rec.Offset < p.readTo() {
			return fmt.Errorf("the archive returned offset %d of partition %d, which was not asked for, or out of order",
				rec.Offset, rec.Partition)
		}
		if !r.enqueueArchived(ctx, p, rec) {
			return nil
		}
	}
	for id, done := range todo {
		reading[id].end(done.To)
	}
	return nil
}

// enqueueArchived puts an event on the lane of its key. It returns false if ctx has ended. Events of a
// partition that was revoked meanwhile are dropped.
func (r *Runtime) enqueueArchived(ctx context.Context, p *partition, rec *Record) bool {
	for r.awaitPace(time.Now(), ctx.Done()) {
		if ctx.Err() != nil {
			return false
		}
	}
	it := &item{record: *rec, partition: p, sealed: true}
	it.number = p.add(rec.Offset, rec.Event, 0)
	r.pace.passed(time.Now())
	select {
	case r.lane(it) <- it:
		return true
	case <-ctx.Done():
		return false
	}
}

// requestHandOver asks the poll loop to continue a partition on the log, and blocks until it does.
func (r *Runtime) requestHandOver(ctx context.Context, p *partition, at int64) {
	req := repair{handOver: p, at: at, done: make(chan struct{})}
	select {
	case r.repairs <- req:
		<-req.done
	case <-ctx.Done():
	}
}

// handOver continues a partition on the log, where the archive has ended. It runs on the poll loop.
func (r *Runtime) handOver(ctx context.Context, p *partition, at int64) error {
	tp := p.topicPartition()
	if r.partitions[tp] != p {
		return nil // it was revoked, or another repair has restarted it
	}
	if err := failpoint.Hit("view." + r.cfg.Name + ".archive.before"); err != nil {
		r.cfg.Logger.Warn("streams: leaving the archive failed; retrying", "sink", r.cfg.Name, "error", err)
		return nil // the partition is still in the archive, so it is handed over again
	}
	if err := r.consumer.Resume([]kafka.TopicPartition{tp}); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if err := r.seek(ctx, map[kafka.TopicPartition]int64{tp: at}); err != nil {
		return err
	}
	p.end(at)
	r.mu.Lock()
	p.archived = false
	r.mu.Unlock()
	r.cfg.Logger.Info("streams: the archive is read; continuing on the log", "sink", r.cfg.Name,
		"topic", tp.Topic, "partition", tp.Partition, "offset", at)
	return failpoint.Hit("view." + r.cfg.Name + ".archive.after")
}

// beginInArchive makes partitions begin in the archive. r.mu is held, and r.partitions has them.
func (r *Runtime) beginInArchive(archived map[kafka.TopicPartition]bool) {
	for tp := range archived {
		p := r.partitions[tp]
		p.archived = true
		r.cfg.Logger.Info("streams: the log begins later; reading the archive", "sink", r.cfg.Name,
			"topic", tp.Topic, "partition", tp.Partition, "from", p.readTo())
	}
	if len(archived) == 0 {
		return
	}
	select {
	case r.archived <- struct{}{}:
	default:
	}
}

// archivedMessage returns the message that an event of the archive was, for its dead letter. Without a
// seal, the dead letter cannot be applied again; then a replay does.
func (r *Runtime) archivedMessage(rec Record) *kafka.Message {
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	headers := rec.Event.Headers()
	seal, err := r.archive.Seal(ctx, rec.Topic, rec.Event)
	if err == nil {
		headers = append(headers, seal)
	} else {
		r.cfg.Logger.Warn("streams: the dead letter of an archived event has no seal", "sink", r.cfg.Name, "error", err)
	}
	return &kafka.Message{
		TopicPartition: kafka.TopicPartition{Topic: rec.Topic, Partition: rec.Partition}, Offset: rec.Offset,
		Key: []byte(rec.Event.Stream), Value: rec.Event.Data, Headers: headers,
	}
}
