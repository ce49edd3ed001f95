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

// repair asks the poll loop to continue reading from the sink's position.
type repair struct {
	cause error
	gap   *item         // the record that cannot be applied; nil if the positions were lost
	done  chan struct{} // closed when the repair has ended
}

// requestRepair passes a repair to the poll loop and blocks until it is done, or until ctx ends.
func (r *Runtime) requestRepair(ctx context.Context, cause error, gap *item) {
	ask := repair{cause, gap, make(chan struct{})}
	select {
	case r.repairs <- ask:
		<-ask.done
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
func (r *Runtime) repair(ctx context.Context, ask repair) error {
	defer close(ask.done)
	var gapAt kafka.TopicPartition
	if ask.gap != nil {
		gapAt = kafka.TopicPartition{Topic: ask.gap.record.Topic, Partition: ask.gap.record.Partition}
		if r.parts[gapAt] != ask.gap.partition {
			return nil // another repair has restarted that partition already
		}
	}
	gap := false // the partition is read again although its position is not lost
	// A lost position explains a gap, too, so look for those first.
	restart, err := r.lostPartitions(ctx)
	if err != nil {
		r.cfg.Logger.Warn("streams: cannot find out what the sink lost", "sink", r.cfg.Name, "cause", ask.cause, "error", err)
		return nil
	}
	if _, lost := restart[gapAt]; ask.gap != nil && !lost {
		p, stream := ask.gap.partition, ask.gap.record.Event.Stream
		// This assignment has read the log from its beginning up to here, and the gap is still
		// there.
		if p.broken[stream] || ask.gap.record.Offset < p.provenTo {
			p.broken[stream] = true
			ask.gap.deadLetter = deadLetterOf(r.cfg.Name, ask.gap.record, fmt.Errorf("the log lacks an event of this stream: %w", ask.cause))
			return nil
		}
		restart[gapAt] = start{saved: p.savedAt(), at: Applied{Topic: p.of()}}
		gap = true
	}
	if len(restart) > 0 {
		r.cfg.Watermarks.faults.Report(r.cfg.Logger, r.cfg.Name, "content", ask.cause.Error())
	}
	seek := map[kafka.TopicPartition]int64{}
	for tp, from := range restart {
		r.cfg.Logger.Warn("streams: the sink lost what it held; reading again", "sink", r.cfg.Name,
			"topic", tp.Topic, "partition", tp.Partition, "from", from.at.Next, "cause", ask.cause)
		// Drop records of the old assignment before the consumer seeks.
		old, p := r.restart(tp, from)
		if tp == gapAt && gap {
			// The gap came up before this offset. If it comes up again there, the log lacks the
			// event.
			p.provenTo = old.readTo()
		}
		seek[tp] = from.at.Next
	}
	waits := backoff.Server.Start()
	for tries := 1; len(seek) > 0; tries++ { // a partition that was just assigned cannot seek yet
		err := r.consumer.Seek(seek)
		if err == nil {
			break
		}
		if tries == seekTries {
			return fmt.Errorf("read again what the sink lost: %w", err)
		}
		if !waits.Wait(ctx) {
			return nil
		}
	}
	return nil
}

// seekTries allows for several seconds; see backoff.Server.
const seekTries = 8

// restart replaces a partition with one that starts at another position. It blocks until no record
// of the old one is inside the sink.
func (r *Runtime) restart(tp kafka.TopicPartition, from start) (old, p *partition) {
	old = r.parts[tp]
	old.drain()
	p = newPartition(tp.Topic, tp.Partition, from, r.cfg.Watermarks)
	// In a recreated topic, streams may be complete again.
	if !another(old.of(), from.at.Topic) {
		p.broken = old.broken
	}
	r.mu.Lock()
	r.parts[tp] = p
	r.mu.Unlock()
	return old, p
}

// lostPartitions returns the owned partitions whose position in the sink is not the saved one, or
// whose topic was recreated, with the position to restart at. It holds saving, because a save in
// progress would look like a loss.
func (r *Runtime) lostPartitions(ctx context.Context) (map[kafka.TopicPartition]start, error) {
	r.saving.Lock()
	defer r.saving.Unlock()
	starts, err := r.begin(ctx, slices.Collect(maps.Keys(r.parts)))
	if err != nil {
		return nil, err
	}
	lost := map[kafka.TopicPartition]start{}
	for tp, p := range r.parts {
		s, ours := starts[tp], p.savedAt()
		if !s.fresh && s.at.Next == s.saved.Next && s.saved.Next > ours.Next {
			s.at = ours // another process saved a position after records that this one has not applied
		}
		if s.fresh || s.saved.Next != ours.Next || another(p.of(), s.at.Topic) {
			lost[tp] = s
		}
	}
	return lost, nil
}

// gone runs on the poll loop when the log does not have the offset to read. If the topic was
// recreated, it restarts the partition and returns true. Otherwise the log lost records, and the
// consumer reports an error.
func (r *Runtime) gone(ctx context.Context, tp kafka.TopicPartition) (again bool) {
	r.saving.Lock()
	defer r.saving.Unlock()
	p := r.parts[tp]
	if p == nil {
		return false
	}
	starts, err := r.begin(ctx, []kafka.TopicPartition{tp})
	if err != nil || !another(p.of(), starts[tp].at.Topic) {
		return false
	}
	r.restart(tp, starts[tp])
	return true
}

// remedy returns what an operator can do about topics that cannot complete a sink.
func remedy(topics []string) string {
	for _, a := range event.Aggregates() {
		if slices.Contains(topics, a.Topic) {
			return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, which makes the topic, its views "+
				"and its tables from the event store", a.Service)
		}
	}
	return "restore the topic, or drop the sink with its positions to read the topic from its beginning"
}
