package streams

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
)

// repair is a request to the poll loop: continue reading from the sink's positions, or elsewhere.
type repair struct {
	cause error
	gap   *item         // the record that cannot be applied; nil if the positions were lost
	done  chan struct{} // closed when the repair has ended

	handOver *partition // nothing was lost, but this partition has been read from the archive …
	at       int64      // … and continues on the log at this offset
}

// requestRepair passes a repair to the poll loop and blocks until it is done, or until ctx ends.
func (r *Runtime) requestRepair(ctx context.Context, cause error, gap *item) {
	req := repair{cause: cause, gap: gap, done: make(chan struct{})}
	select {
	case r.repairs <- req:
		<-req.done
	case <-ctx.Done():
	}
}

// repair finds out what a sink that reported a loss still has, and reads the rest again. It runs on
// the poll loop.
//
// Partitions whose stored position is not the saved one restart at the stored one. A gap can come
// up although the position is as it was saved. Then either the sink lost single documents, or the
// log never had the missing event. So the partition is read from its beginning, which is a no-op
// for everything that the sink has. If the gap comes up again in that part of the log, the log
// lacks the event. Nothing will ever complete the stream, so its events become dead letters and all
// other streams continue.
//
// An error means that the consumer reads from a wrong offset, so Run must end.
func (r *Runtime) repair(ctx context.Context, req repair) error {
	defer close(req.done)
	if req.handOver != nil {
		return r.handOver(ctx, req.handOver, req.at)
	}
	var gapAt kafka.TopicPartition
	if req.gap != nil {
		gapAt = kafka.TopicPartition{Topic: req.gap.record.Topic, Partition: req.gap.record.Partition}
		if r.partitions[gapAt] != req.gap.partition {
			return nil // another repair has restarted that partition already
		}
	}
	gap := false // the partition is read again although its position is not lost
	// A lost position explains a gap, too, so look for those first.
	restart, err := r.lostPartitions(ctx)
	if err != nil {
		r.cfg.Logger.Warn("streams: finding the sink's lost positions failed; retrying",
			"sink", r.cfg.Name, "cause", req.cause, "error", err)
		return nil
	}
	if _, lost := restart[gapAt]; req.gap != nil && !lost {
		p, stream := req.gap.partition, req.gap.record.Event.Stream
		// This assignment has read the log from its beginning up to here, and the gap is still
		// there.
		if p.broken[stream] || req.gap.record.Offset < p.provenTo {
			p.broken[stream] = true
			reason := fmt.Errorf("the log lacks an earlier event of this stream: %w", req.cause)
			req.gap.deadLetter, req.gap.reason = r.deadLetterOf(req.gap, reason), ReasonGap
			return nil
		}
		restart[gapAt] = start{saved: p.savedAt(), at: Applied{Topic: p.topicID()}, end: p.readTo()}
		gap = true
	}
	if len(restart) > 0 {
		r.cfg.Watermarks.faults.Report(r.cfg.Logger, r.cfg.Name, "content", req.cause.Error())
	}
	seek, archived, err := r.fromArchive(ctx, restart)
	if err != nil {
		r.cfg.Logger.Warn("streams: finding where to read lost data again failed; retrying",
			"sink", r.cfg.Name, "cause", req.cause, "error", err)
		return nil
	}
	for tp, from := range restart {
		r.cfg.Logger.Warn("streams: sink lost data; reading the log again", "sink", r.cfg.Name,
			"topic", tp.Topic, "partition", tp.Partition, "from", from.at.Next, "cause", req.cause)
		// Drop records of the old assignment before the consumer seeks.
		old, p := r.restart(tp, from)
		if tp == gapAt && gap {
			// The gap came up before this offset. If it comes up again there, the log lacks the
			// event.
			p.provenTo = old.readTo()
		}
	}
	r.mu.Lock()
	r.beginInArchive(archived)
	r.mu.Unlock()
	return r.seek(ctx, seek)
}

// seek makes the consumer continue at other offsets.
func (r *Runtime) seek(ctx context.Context, offsets map[kafka.TopicPartition]int64) error {
	waits := backoff.Server.Start()
	for tries := 1; len(offsets) > 0; tries++ { // a partition that was just assigned cannot seek yet
		err := r.consumer.Seek(offsets)
		if err == nil {
			break
		}
		if tries == seekTries {
			return fmt.Errorf("seek to the sink's positions: %w", err)
		}
		if !waits.Wait(ctx) {
			return nil
		}
	}
	return nil
}

// seekTries is the maximum number of seeks. The waits in between add up to several seconds; see
// backoff.Server.
const seekTries = 8

// restart replaces a partition with one that starts at another position. It blocks until no record
// of the old one is inside the sink.
func (r *Runtime) restart(tp kafka.TopicPartition, from start) (old, p *partition) {
	old = r.partitions[tp]
	old.drain()
	p = newPartition(tp.Topic, tp.Partition, from, r.cfg.Watermarks)
	// In a recreated topic, streams may be complete again.
	if !differentTopic(old.topicID(), from.at.Topic) {
		p.broken, p.parking = old.broken, old.parking
	}
	r.mu.Lock()
	r.partitions[tp] = p
	r.mu.Unlock()
	return old, p
}

// lostPartitions returns the owned partitions whose position in the sink is not the saved one, or
// whose topic was recreated, with the position to restart at. It holds saving, because a save in
// progress would look like a loss.
func (r *Runtime) lostPartitions(ctx context.Context) (map[kafka.TopicPartition]start, error) {
	r.saving.Lock()
	defer r.saving.Unlock()
	starts, err := r.startPositions(ctx, slices.Collect(maps.Keys(r.partitions)))
	if err != nil {
		return nil, err
	}
	lost := map[kafka.TopicPartition]start{}
	for tp, p := range r.partitions {
		s, ours := starts[tp], p.savedAt()
		if !s.fresh && s.at.Next == s.saved.Next && s.saved.Next > ours.Next {
			s.at = ours // another process saved a position after records that this one has not applied
		}
		if s.fresh || s.saved.Next != ours.Next || differentTopic(p.topicID(), s.at.Topic) {
			lost[tp] = s
		}
	}
	return lost, nil
}

// onOutOfRange runs on the poll loop when the log does not have the offset to read. If the topic
// was recreated, or if the archive has what the log has deleted, it restarts the partition and returns
// true. Otherwise the log lost records, and the consumer reports an error.
func (r *Runtime) onOutOfRange(ctx context.Context, tp kafka.TopicPartition) (again bool) {
	r.saving.Lock()
	defer r.saving.Unlock()
	p := r.partitions[tp]
	if p == nil {
		return false
	}
	starts, err := r.startPositions(ctx, []kafka.TopicPartition{tp})
	if err != nil {
		return false
	}
	// A seek there would be to the beginning of the log, which is where the consumer continues.
	_, archived, err := r.fromArchive(ctx, starts)
	if err != nil || !differentTopic(p.topicID(), starts[tp].at.Topic) && !archived[tp] {
		return false
	}
	r.restart(tp, starts[tp])
	r.mu.Lock()
	r.beginInArchive(archived)
	r.mu.Unlock()
	return true
}

// remedy returns what an operator can do about topics that cannot complete a sink.
func remedy(topics []string) string {
	for _, a := range event.Aggregates() {
		if slices.Contains(topics, a.Topic) {
			return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, "+
				"which rebuilds the topic, its views and its tables from the event store", a.Service)
		}
	}
	return "restore the topic, or drop the sink with its positions to read the topic from its beginning"
}
