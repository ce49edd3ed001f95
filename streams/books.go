package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/millrace/millrace/internal/failpoint"
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

// begin reads where the sink stands in partitions. Where it stands nowhere it is made to stand at the beginning, for what
// is lost is seen by the position that is gone; fresh are these.
func (r *Runtime) begin(ctx context.Context, ps []kafka.TopicPartition) (stored map[kafka.TopicPartition]Applied, fresh map[kafka.TopicPartition]bool, err error) {
	stored, fresh = map[kafka.TopicPartition]Applied{}, map[kafka.TopicPartition]bool{}
	for _, topic := range r.cfg.Topics {
		positions, err := r.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return nil, nil, fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		var first []Move
		for _, tp := range ps {
			if tp.Topic != topic {
				continue
			}
			at, there := positions[tp.Partition]
			if !there {
				first = append(first, Move{Partition: tp.Partition, First: true})
				fresh[tp] = true
			}
			stored[tp] = at
		}
		if len(first) > 0 {
			if err := r.cfg.Sink.SavePositions(ctx, topic, first); err != nil {
				return nil, nil, fmt.Errorf("save the sink's first positions in %s: %w", topic, err)
			}
		}
	}
	return stored, fresh, nil
}

// save tells the sink how far partitions are.
func (r *Runtime) save(parts map[kafka.TopicPartition]*partition) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	moves, offsets := map[string][]Move{}, map[kafka.TopicPartition]int64{}
	for tp, p := range parts {
		if m, ok := p.unsaved(); ok {
			moves[tp.Topic] = append(moves[tp.Topic], m)
			offsets[tp] = m.To.Next
		}
	}
	for topic, ms := range moves {
		err := failpoint.Hit("view." + r.cfg.Name + ".positions.before")
		if err == nil {
			err = r.cfg.Sink.SavePositions(ctx, topic, ms)
		}
		if err == nil {
			err = failpoint.Hit("view." + r.cfg.Name + ".positions.after")
		}
		if err != nil {
			return fmt.Errorf("save the sink's positions in %s: %w", topic, err)
		}
		for _, m := range ms {
			parts[kafka.TopicPartition{Topic: topic, Partition: m.Partition}].setSaved(m.To)
		}
	}
	if len(offsets) > 0 {
		if err := r.consumer.Store(offsets); err != nil { // for outside tools only
			r.cfg.Logger.Debug("streams: the group's offsets were not stored", "sink", r.cfg.Name, "error", err)
		}
	}
	return nil
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
