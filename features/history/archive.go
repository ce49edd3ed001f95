package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/kafka/fetch"
)

// A topic keeps its records for a limited time. Facts of earlier ones come from an archive of its
// events: where a table is not filled up to what the log has, ranges of offsets are read from there
// until it is. They are batches like those from the log: claimed, and written under their tokens.

// Archive has events that the log may not have any more.
type Archive interface {
	// Topic returns the archived events of a topic. The error wraps ErrNotArchived if it has none.
	Topic(ctx context.Context, topic string) (Archived, error)
}

// Archived is the archived events of a topic. Events that are archived later are not in Next, but
// Events may return them.
type Archived struct {
	TopicID string                   // Kafka's id of the topic
	Next    map[int32]int64          // by partition: the offset before which the archive has all events
	Seen    map[int32]event.Sequence // by partition: up to that offset
	// Events calls each for the events of a partition from one offset up to another, which is excluded,
	// in any order. An event is valid until each returns.
	Events func(ctx context.Context, partition int32, from, to int64, each func(e event.Event, offset int64) error) error
	Close  func() error
}

// ErrNotArchived means that a topic is not archived.
var ErrNotArchived = errors.New("the topic's events are not archived")

// errArchiveBehind means that records are neither on the log nor, so far, in the archive.
var errArchiveBehind = errors.New("the archive does not reach up to the log yet")

// Limits of one batch from the archive. There is a second limit because an event can have many facts.
const (
	archiveOffsets = 100_000 // at first
	archiveFacts   = 100_000
)

// missing returns the partitions whose log does not reach back to where the table is, in order.
func (w *writer) missing(topic fetch.Topic) []int32 {
	var all []int32
	for p, log := range topic.Partitions {
		if at := w.before[p]; at.Archived || at.Next < log.Start {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all
}

// catchUp fills the table from the archive up to what the log has.
func (w *writer) catchUp(ctx context.Context, topic fetch.Topic, worked func()) (err error) {
	missing := w.missing(topic)
	if len(missing) == 0 || w.cfg.Archive == nil || w.topicID != "" && w.topicID != topic.ID {
		return nil
	}
	a, err := w.cfg.Archive.Topic(ctx, w.Topic)
	if errors.Is(err, ErrNotArchived) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("archive of %s: %w", w.Topic, err)
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	if a.TopicID != topic.ID {
		w.cfg.Logger.Warn("features: the archive is of another topic of this name", "topic", w.Topic, "id", topic.ID,
			"archive_id", a.TopicID)
		return nil
	}
	w.topicID = topic.ID
	for _, p := range missing {
		next, ok := a.Next[p]
		if !ok { // it begins where the log does
			continue
		}
		if start := topic.Partitions[p].Start; next < start {
			return fmt.Errorf("%w: %s/%d: the log begins at offset %d, the archive ends before %d: "+
				"does a process land the topic?", errArchiveBehind, w.Topic, p, start, next)
		}
		w.cfg.Logger.Info("features: the log does not have these records any more; reading them from the archive",
			"table", w.source.facts.Name, "topic", w.Topic, "partition", p, "from", w.before[p].Next, "to", next)
		if err := w.readArchive(ctx, &a, p, worked); err != nil {
			return err
		}
	}
	return nil
}

// readArchive writes the batches of a partition that the archive has.
func (w *writer) readArchive(ctx context.Context, a *Archived, partition int32, worked func()) error {
	from, step := w.before[partition].Next, w.cfg.offsets
	for from < a.Next[partition] {
		to := min(from+step, a.Next[partition])
		facts, after, err := w.archived(ctx, a, partition, from, to, archiveFacts)
		switch {
		case errors.Is(err, errManyFacts) && to-from > 1:
			step = (to - from + 1) / 2
			continue
		case errors.Is(err, errManyFacts): // one event
			if facts, after, err = w.archived(ctx, a, partition, from, to, 0); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		if err := w.at(ctx, w.source.facts.Name, stepFetched); err != nil {
			return err
		}
		if len(facts) == 0 { // an archive may begin late
			step *= 2
		}
		if from = to; len(facts) == 0 && from < a.Next[partition] {
			continue
		}
		if err := w.writeArchived(ctx, a, partition, facts, after); err != nil {
			return err
		}
		worked()
		from = w.before[partition].Next // another writer may have claimed another range
	}
	return nil
}

// errManyFacts means that a range has more facts than one batch should have.
var errManyFacts = errors.New("too many facts")

// archived returns the facts of a range of offsets, in the order of the log, and the position after it.
// The range follows the table's position, but for records without facts. limit is the greatest number
// of facts; 0 means any.
func (w *writer) archived(ctx context.Context, a *Archived, partition int32, from, to int64, limit int) (
	facts []features.Fact, after feed.Position, err error) {
	after = w.before[partition]
	var refused int
	var first string
	err = a.Events(ctx, partition, from, to, func(e event.Event, offset int64) error {
		if e.Position.Compare(after.Watermark) > 0 {
			after.Watermark = e.Position
		}
		if e.RecordedAt.After(after.AsOf) {
			after.AsOf = e.RecordedAt
		}
		more, err := feed.Project(&w.Source, e, features.Origin{Topic: w.Topic, Partition: partition, Offset: offset})
		if err != nil { // a dead letter, while it was on the log
			if refused++; first == "" { // without the reason, which can quote the event
				first = fmt.Sprintf("%s/%d@%d: event %s", w.Topic, partition, offset, e.ID)
			}
			return nil
		}
		if facts = append(facts, more...); limit > 0 && len(facts) > limit {
			return errManyFacts
		}
		return nil
	})
	if err != nil {
		return nil, feed.Position{}, fmt.Errorf("archive of %s: %w", w.Topic, err)
	}
	if refused > 0 {
		w.cfg.Logger.Error("features: archived events have no facts, because the source cannot read them",
			"table", w.source.facts.Name, "events", refused, "first", first)
	}
	if after.Next, after.Archived = to, true; to == a.Next[partition] {
		after.Sequence, after.Archived = a.Seen[partition], false
	}
	sortFacts(facts)
	return facts, after, nil
}

// writeArchived claims the next batch for a range of a partition, and writes the one that counts.
func (w *writer) writeArchived(ctx context.Context, a *Archived, partition int32, facts []features.Fact,
	after feed.Position) error {
	positions := maps.Clone(w.before)
	positions[partition] = after
	c, mine, err := w.claim(ctx, positions)
	if err != nil {
		return err
	}
	if !mine {
		facts = nil
		for p, at := range c.after {
			from := w.before[p].Next
			if at.Next <= from {
				continue
			}
			if at.Next > a.Next[p] {
				return fmt.Errorf("%w: %s/%d: another process has claimed the records before offset %d",
					errArchiveBehind, w.Topic, p, at.Next)
			}
			more, _, err := w.archived(ctx, a, p, from, at.Next, 0)
			if err != nil {
				return err
			}
			facts = append(facts, more...)
		}
		sortFacts(facts)
	}
	return w.commit(ctx, c, mine, facts)
}

// sortFacts sorts facts of a topic by their places on the log.
func sortFacts(facts []features.Fact) {
	slices.SortFunc(facts, func(a, b features.Fact) int {
		return cmp.Or(cmp.Compare(a.Origin.Partition, b.Origin.Partition), cmp.Compare(a.Origin.Offset, b.Origin.Offset),
			cmp.Compare(a.Origin.Index, b.Origin.Index))
	})
}
