package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
)

// trackPositions saves positions and refreshes the watermarks every SaveEvery, until ctx ends. It
// requests a repair if the sink has lost data.
func (r *Runtime) trackPositions(ctx context.Context) {
	tick := time.NewTicker(r.cfg.SaveEvery)
	defer tick.Stop()
	var failed string
	for {
		r.mu.Lock()
		partitions := maps.Clone(r.partitions)
		r.mu.Unlock()
		begun := time.Now()
		err := errors.Join(r.save(partitions), r.refresh(ctx))
		if errors.Is(err, ErrLost) {
			r.requestRepair(ctx, err, nil)
		}
		r.deadLetterLog.flush(false)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed = ""
			r.cfg.Watermarks.clearFaults(r.cfg.Logger, r.cfg.Name, r.cfg.Topics, begun)
		case err.Error() != failed: // log an error once, not at every tick
			failed = err.Error()
			r.cfg.Logger.Warn("streams: updating positions and lag failed; retrying", "sink", r.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// refresh updates the watermarks with the ends of the topics and with the positions that other
// members have saved. It returns ErrLost if the sink's position in an owned partition is not the
// one that this process saved.
func (r *Runtime) refresh(ctx context.Context) (lost error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	// The client reconnects silently, and would continue in a recreated topic. So check its id now
	// and then.
	identify := time.Since(r.identified) >= identifyEvery
	found, err := r.describe(ctx, r.cfg.Topics, identify)
	if err != nil {
		return err
	}
	if identify {
		r.identified = time.Now()
	}
	for _, topic := range r.cfg.Topics {
		now, ends := found[topic].info, found[topic].ends
		r.mu.Lock()
		before := maps.Clone(r.partitions)
		r.mu.Unlock()
		stored, err := r.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		r.mu.Lock()
		for id := range ends {
			// p is nil if another member reads the partition.
			tp := kafka.TopicPartition{Topic: topic, Partition: id}
			p, at := r.partitions[tp], stored[id]
			if _, there := stored[id]; p == nil {
				if differentTopic(at.Topic, now.ID) {
					at = Applied{}
				}
				r.cfg.Watermarks.set(topic, id, at)
			} else if p != before[tp] {
				// It was assigned in the meantime, perhaps after its first position was looked for here.
				continue
			} else if differentTopic(p.topicID(), now.ID) {
				lost = fmt.Errorf("topic %s was deleted and created again (its id was %s and is %s): %w",
					topic, p.topicID(), now.ID, ErrLost)
			} else if !there || p.savedAt().Next != at.Next {
				lost = fmt.Errorf("partition %d of %s: %w", id, topic, ErrLost)
			}
		}
		r.cfg.Watermarks.setEnds(topic, ends)
		r.mu.Unlock()
	}
	return lost
}

// start is where the reading of a partition begins.
type start struct {
	saved Applied // position that the sink has stored
	at    Applied // position to read from: the same, unless it is void
	fresh bool    // the sink had no position
	end   int64   // end of the log
}

// startPositions reads the sink's positions in partitions. If there is none, it saves a first one,
// so that a missing position later means a loss. A position in a topic that was recreated is void.
// So is an offset that the log does not have. Then the topic is read from its beginning, which is a
// no-op for everything that the sink has.
func (r *Runtime) startPositions(
	ctx context.Context, ps []kafka.TopicPartition,
) (map[kafka.TopicPartition]start, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	starts := map[kafka.TopicPartition]start{}
	topics := slices.DeleteFunc(slices.Clone(r.cfg.Topics), func(topic string) bool {
		return !slices.ContainsFunc(ps, func(tp kafka.TopicPartition) bool { return tp.Topic == topic })
	})
	found, err := r.describe(ctx, topics, true)
	if err != nil {
		return nil, err
	}
	for _, topic := range topics {
		info, ends := found[topic].info, found[topic].ends
		positions, err := r.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return nil, fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		var first []Move
		for _, tp := range ps {
			if tp.Topic != topic {
				continue
			}
			at, there := positions[tp.Partition]
			s := start{saved: at, at: at, fresh: !there, end: ends[tp.Partition]}
			switch {
			case !there:
				s.at.Topic = info.ID
				s.saved = s.at
				first = append(first, Move{Partition: tp.Partition, First: true, To: s.at})
			case differentTopic(at.Topic, info.ID):
				s.at = Applied{Topic: info.ID}
				r.cfg.Logger.Error("streams: topic was deleted and created again; reading it from its beginning. "+
					"If `millrace verify` finds a difference afterwards, "+remedy([]string{topic}),
					"sink", r.cfg.Name, "topic", topic, "partition", tp.Partition,
					"old_id", at.Topic, "new_id", info.ID, "old_offset", at.Next)
			case at.Next < 0 || at.Next > ends[tp.Partition]:
				s.at = Applied{Topic: info.ID}
				r.cfg.Watermarks.faults.Report(r.cfg.Logger, r.cfg.Name, "positions", fmt.Sprintf(
					"offset %d of partition %d of %s is out of range: the log ends at %d",
					at.Next, tp.Partition, topic, ends[tp.Partition]))
			default: // the usual case, also for positions of earlier versions, which have no id
				s.at.Topic = info.ID
			}
			starts[tp] = s
		}
		if len(first) > 0 {
			if err := r.cfg.Sink.SavePositions(ctx, topic, first); err != nil {
				return nil, fmt.Errorf("save the sink's first positions in %s: %w", topic, err)
			}
		}
	}
	return starts, nil
}

// differentTopic reports whether two ids are of different topics. Unknown ids are never different.
func differentTopic(a, b string) bool { return a != "" && b != "" && a != b }

// save stores the positions of partitions in the sink, and commits them to the consumer group.
func (r *Runtime) save(partitions map[kafka.TopicPartition]*partition) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	ctx, cancel := context.WithTimeout(r.attempts, attemptTimeout)
	defer cancel()
	// Group the moves by topic: the sink makes all moves of a topic or none.
	moves, offsets := map[string][]Move{}, map[kafka.TopicPartition]int64{}
	for tp, p := range partitions {
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
			partitions[kafka.TopicPartition{Topic: topic, Partition: m.Partition}].setSaved(m.To)
		}
	}
	if len(offsets) > 0 {
		// The sink's positions count; the group's are for external tools.
		if err := r.consumer.Store(offsets); err != nil {
			r.cfg.Logger.Debug("streams: committing offsets to the group failed", "sink", r.cfg.Name, "error", err)
		}
	}
	return nil
}

// CatchUp blocks until the sink has applied everything that was on the topics when it was called.
// It blocks until Run has started.
func (r *Runtime) CatchUp(ctx context.Context) error {
	select {
	case <-r.running:
	case <-ctx.Done():
		return fmt.Errorf("streams %s: wait for the start: %w", r.cfg.Name, context.Cause(ctx))
	}
	found, err := r.describe(ctx, r.cfg.Topics, false)
	for topic, t := range found {
		if err == nil {
			err = r.cfg.Watermarks.WaitFor(ctx, topic, t.ends)
		}
	}
	if err != nil {
		return fmt.Errorf("streams %s: %w", r.cfg.Name, err)
	}
	return nil
}

// described is what a broker says of a topic.
type described struct {
	info kafka.TopicInfo // zero unless it was asked for
	ends map[int32]int64
}

// describe returns the ends of topics, and their infos with identify. All requests are sent at once,
// because each waits behind the consumer's fetch, which the broker may hold for half a second.
func (r *Runtime) describe(ctx context.Context, topics []string, identify bool) (map[string]described, error) {
	all := make([]described, len(topics))
	requests, ctx := errgroup.WithContext(ctx)
	for i, topic := range topics {
		requests.Go(func() (err error) {
			all[i].ends, err = r.ends(ctx, topic)
			return err
		})
		if identify {
			requests.Go(func() (err error) {
				all[i].info, err = r.topic(ctx, topic)
				return err
			})
		}
	}
	if err := requests.Wait(); err != nil {
		return nil, err
	}
	found := make(map[string]described, len(topics))
	for i, topic := range topics {
		found[topic] = all[i]
	}
	return found, nil
}

// ends returns the end offsets of a topic's partitions.
func (r *Runtime) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	r.closing.RLock()
	defer r.closing.RUnlock()
	if r.consumer == nil {
		return nil, errors.New("stopped")
	}
	return r.consumer.Ends(ctx, topic)
}

// topic returns the id of a topic. A rebalance may call it while the consumer is being closed.
func (r *Runtime) topic(ctx context.Context, name string) (kafka.TopicInfo, error) {
	r.closing.RLock()
	defer r.closing.RUnlock()
	if r.consumer == nil {
		return kafka.TopicInfo{}, errors.New("stopped")
	}
	return r.consumer.Topic(ctx, name)
}
