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

// repair asks the poll loop to bring the reading back to where the sink stands.
type repair struct {
	cause error
	gap   *item // the record that cannot be applied; nil if the positions were lost
	done  chan struct{}
}

// requestRepair has the poll loop repair, and waits for it, unless ctx ends first.
func (r *Runtime) requestRepair(ctx context.Context, cause error, gap *item) {
	ask := repair{cause, gap, make(chan struct{})}
	select {
	case r.repairs <- ask:
		<-ask.done
	case <-ctx.Done():
	}
}

// repair determines what a sink that reported a loss still holds, and reads the rest again. It runs
// on the poll loop.
//
// Partitions whose stored position is not the saved one go back to the stored one. Where a gap came
// up though the position is as it was saved, either the sink lost single documents or the log never
// had the missing event: the partition is read from its beginning, which is a no-op for all that is
// there. If the gap comes up again on that way, the log lacks the event, nothing will ever complete
// the stream, and its events are parked so that all others continue.
//
// An error means that reading continues elsewhere than it should, and must end.
func (r *Runtime) repair(ctx context.Context, ask repair) error {
	defer close(ask.done)
	var gapAt kafka.TopicPartition
	if ask.gap != nil {
		gapAt = kafka.TopicPartition{Topic: ask.gap.record.Topic, Partition: ask.gap.record.Partition}
		if r.parts[gapAt] != ask.gap.partition {
			return nil // another repair has sent that partition back already
		}
	}
	gap := false // nothing is lost, and all is read again
	restart, err := r.lostPartitions(ctx)
	if err != nil {
		r.cfg.Logger.Warn("streams: cannot find out what the sink lost", "sink", r.cfg.Name, "cause", ask.cause, "error", err)
		return nil
	}
	if _, lost := restart[gapAt]; ask.gap != nil && !lost {
		p, stream := ask.gap.partition, ask.gap.record.Event.Stream
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
		old, p := r.restart(tp, from)
		if tp == gapAt && gap {
			p.provenTo = old.readTo()
		}
		seek[tp] = from.at.Next
	}
	waits := backoff.Server.Start()
	for tries := 1; len(seek) > 0; tries++ { // a partition that was assigned this moment cannot seek yet
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

// seekTries takes several seconds; see backoff.Server.
const seekTries = 8

// restart replaces a partition by one that starts elsewhere. It waits for the records that are
// inside the sink.
func (r *Runtime) restart(tp kafka.TopicPartition, from start) (old, p *partition) {
	old = r.parts[tp]
	old.drain()
	p = newPartition(tp.Topic, tp.Partition, from, r.cfg.Watermarks)
	if !another(old.of(), from.at.Topic) {
		p.broken = old.broken
	}
	r.mu.Lock()
	r.parts[tp] = p
	r.mu.Unlock()
	return old, p
}

// lostPartitions returns the owned partitions whose position in the sink is not the saved one, or
// whose topic was recreated, and where to restart them.
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
			s.at = ours // another process moved the position past records that this one has not applied
		}
		if s.fresh || s.saved.Next != ours.Next || another(p.of(), s.at.Topic) {
			lost[tp] = s
		}
	}
	return lost, nil
}

// gone is called on the poll loop when the log does not have the offset to read. It restarts the
// partition and returns true if the topic was recreated.
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

// remedy reports how to repair a sink that its topics cannot complete.
func remedy(topics []string) string {
	for _, a := range event.Aggregates() {
		if slices.Contains(topics, a.Topic) {
			return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, which makes the topic, its views "+
				"and its tables from the event store", a.Service)
		}
	}
	return "restore the topic, or drop the sink with its positions to read the topic from its beginning"
}
