package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// keepBooks saves positions and looks how far the log is, now and then, until ctx ends.
func (r *Runtime) keepBooks(ctx context.Context) {
	tick := time.NewTicker(r.cfg.SaveEvery)
	defer tick.Stop()
	var failed string
	for {
		r.mu.Lock()
		parts := maps.Clone(r.parts)
		r.mu.Unlock()
		err := errors.Join(r.save(parts), r.look(ctx))
		if errors.Is(err, ErrLost) {
			r.askRepair(ctx, err, nil)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed = ""
		case err.Error() != failed: // once, not at every tick
			failed = err.Error()
			r.cfg.Logger.Warn("streams: positions or lag are not current", "sink", r.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look brings the watermarks up to date with the ends of the topics and with what other members have saved, and sees
// whether the sink still stands where we saved it.
func (r *Runtime) look(ctx context.Context) (lost error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	for _, topic := range r.cfg.Topics {
		ends, err := r.ends(ctx, topic)
		if err != nil {
			return err
		}
		stored, err := r.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		r.mu.Lock()
		for id := range ends {
			p, at := r.parts[kafka.TopicPartition{Topic: topic, Partition: id}], stored[id]
			if _, there := stored[id]; p == nil {
				r.cfg.Watermarks.set(topic, id, at)
			} else if !there || p.savedAt().Next != at.Next {
				lost = fmt.Errorf("partition %d of %s: %w", id, topic, ErrLost)
			}
		}
		r.cfg.Watermarks.look(topic, ends)
		r.mu.Unlock()
	}
	return lost
}

// CatchUp returns nil once the sink has applied everything that stood on the topics when it was called. It waits for Run
// to begin.
func (r *Runtime) CatchUp(ctx context.Context) error {
	select {
	case <-r.running:
	case <-ctx.Done():
		return fmt.Errorf("streams %s: wait for the start: %w", r.cfg.Name, context.Cause(ctx))
	}
	for _, topic := range r.cfg.Topics {
		ends, err := r.ends(ctx, topic)
		if err == nil {
			err = r.cfg.Watermarks.WaitFor(ctx, topic, ends)
		}
		if err != nil {
			return fmt.Errorf("streams %s: %w", r.cfg.Name, err)
		}
	}
	return nil
}

func (r *Runtime) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	r.closing.RLock()
	defer r.closing.RUnlock()
	if r.consumer == nil {
		return nil, errors.New("stopped")
	}
	return r.consumer.Ends(ctx, topic)
}

// askRepair has the poll loop repair, and waits for it. It is false where ctx ended first.
func (r *Runtime) askRepair(ctx context.Context, cause error, gap *item) bool {
	ask := repair{cause, gap, make(chan struct{})}
	select {
	case r.repairs <- ask:
		<-ask.done
		return true
	case <-ctx.Done():
		return false
	}
}

// repair finds out what a sink that reported a loss still holds, and reads the rest again. It runs on the poll loop.
//
// Partitions whose stored position is not the saved one go back to the stored one. Where a gap came up though the position
// is as it was saved, either the sink lost single documents or the log never had the missing event: the partition is read
// from its beginning, which is a no-op for all that is there. If the gap comes up again on that way, the log lacks the
// event, nothing will ever complete the stream, and its events are parked so that all others go on.
// An error means that it stands elsewhere than we believe, and must not go on.
func (r *Runtime) repair(ctx context.Context, ask repair) error {
	defer close(ask.done)
	var gapAt kafka.TopicPartition
	if ask.gap != nil {
		gapAt = kafka.TopicPartition{Topic: ask.gap.record.Topic, Partition: ask.gap.record.Partition}
		if r.parts[gapAt] != ask.gap.part {
			return nil // another repair has sent that partition back already
		}
	}
	restart, err := r.lostPartitions(ctx)
	if err != nil {
		r.cfg.Logger.Warn("streams: cannot find out what the sink lost", "sink", r.cfg.Name, "cause", ask.cause, "error", err)
		return nil
	}
	if _, lost := restart[gapAt]; ask.gap != nil && !lost {
		p, stream := ask.gap.part, ask.gap.record.Event.Stream
		if p.broken[stream] || ask.gap.record.Offset < p.provenTo {
			p.broken[stream] = true
			ask.gap.park = parkedEvent(r.cfg.Name, ask.gap.record, fmt.Errorf("the log lacks an event of this stream: %w", ask.cause))
			return nil
		}
		restart[gapAt] = Applied{}
	}
	seek := map[kafka.TopicPartition]int64{}
	for tp, from := range restart {
		r.cfg.Logger.Warn("streams: the sink lost what it held; reading again", "sink", r.cfg.Name,
			"topic", tp.Topic, "partition", tp.Partition, "from", from.Next, "cause", ask.cause)
		old := r.parts[tp]
		old.drain()
		p := newPartition(tp.Topic, tp.Partition, from, r.cfg.Watermarks)
		p.broken = old.broken
		if tp == gapAt && from.Next == 0 {
			p.saved, p.provenTo = old.savedAt(), old.readTo()
		}
		r.mu.Lock()
		r.parts[tp] = p
		r.mu.Unlock()
		seek[tp] = from.Next
	}
	for wait := minBackoff; len(seek) > 0; wait *= 2 { // a partition that was assigned this moment cannot seek yet
		err := r.consumer.Seek(seek)
		if err == nil {
			break
		}
		if wait > maxBackoff {
			return fmt.Errorf("read again what the sink lost: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// lostPartitions are those of ours that the sink does not have where we saved them, and where it has them.
func (r *Runtime) lostPartitions(ctx context.Context) (map[kafka.TopicPartition]Applied, error) {
	r.saving.Lock()
	defer r.saving.Unlock()
	stored, fresh, err := r.begin(ctx, slices.Collect(maps.Keys(r.parts)))
	if err != nil {
		return nil, err
	}
	lost := map[kafka.TopicPartition]Applied{}
	for tp, p := range r.parts {
		if fresh[tp] || stored[tp].Next != p.savedAt().Next {
			lost[tp] = stored[tp]
		}
	}
	return lost, nil
}
