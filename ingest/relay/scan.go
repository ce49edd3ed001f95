package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// scanResult is the content of the log from given floors to its end, compared with the store.
type scanResult struct {
	floors     []int64                  // offsets where the reading began, by partition
	partitions int32                    // number of partitions that keys are spread over
	events     []event.Position         // positions of events that the store has, sorted, without duplicates
	newest     event.Event              // the last of events
	lowest     map[int32]event.Position // lowest position of events, by partition
	highest    map[int32]event.Position // highest position of events, by partition
	unknown    []event.Event            // events that the store does not have; at most maxInvalid
	invalid    invalidRecords           // unknown events, copies, and records that are not events
}

// has reports whether the event at p is on the log and in the store.
func (f *scanResult) has(p event.Position) bool {
	_, ok := slices.BinarySearchFunc(f.events, p, event.Position.Compare)
	return ok
}

const (
	knownBatch = 1000 // events per call of Store.Known
	maxInvalid = 1000 // invalid records that are kept; more are only counted
)

// scan reads the log from floors to its end and asks the store about each event. partitions is the
// number of partitions that keys are spread over. If it is 0, scan infers it: it is the highest
// number that explains where all events are.
func (in *inspector) scan(ctx context.Context, floors []int64, partitions int32) (*scanResult, error) {
	f := &scanResult{
		floors: floors, partitions: partitions,
		lowest: map[int32]event.Position{}, highest: map[int32]event.Position{},
	}
	counts := partitionCounts{max: in.info.Partitions}
	type unclassified struct {
		event.Event
		at kafka.Message
	}
	var pending []unclassified
	// classify divides the events in pending into known, unknown and copied ones. They are collected
	// first, because one call of the store per event would be slow.
	classify := func() error {
		events := make([]event.Event, len(pending))
		for i, a := range pending {
			events[i] = a.Event
		}
		known, err := in.storeHas(ctx, events)
		if err != nil {
			return err
		}
		for i, a := range pending {
			e := a.Event
			switch {
			case !known[i]:
				if len(f.unknown) < maxInvalid {
					f.unknown = append(f.unknown, e)
				}
				f.invalid.add(a.at, errors.New("an event that the store does not have"))
				continue
			case partitions > 0 && kafka.Partition([]byte(e.Stream), partitions) != a.at.Partition:
				f.invalid.add(a.at, errors.New("a copy of an event in another partition than its key's"))
				continue
			}
			if partitions == 0 {
				counts.observe(e.Stream, a.at.Partition)
			}
			f.events = append(f.events, e.Position)
			if f.newest.Position.Compare(e.Position) < 0 {
				f.newest = e
			}
			if lowest, ok := f.lowest[a.at.Partition]; !ok || e.Position.Compare(lowest) < 0 {
				f.lowest[a.at.Partition] = e.Position
			}
			if e.Position.Compare(f.highest[a.at.Partition]) > 0 {
				f.highest[a.at.Partition] = e.Position
			}
		}
		pending = pending[:0]
		return nil
	}
	from := make(map[int32]int64, len(floors))
	for p, floor := range floors {
		from[int32(p)] = floor
	}
	err := kafka.ReadAll(ctx, in.cfg.Kafka, in.topic, from, in.end, func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err == nil && e.Aggregate != in.cfg.Aggregate.Name {
			err = fmt.Errorf("an event of aggregate %q on the topic of %q", e.Aggregate, in.cfg.Aggregate.Name)
		}
		if err != nil {
			f.invalid.add(m, err)
			return nil
		}
		e.Data = nil // the payload is not needed here
		if pending = append(pending, unclassified{e, m}); len(pending) < knownBatch {
			return nil
		}
		return classify()
	})
	if err == nil && len(pending) > 0 {
		err = classify()
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(f.events, event.Position.Compare)
	f.events = slices.Compact(f.events)
	if partitions == 0 {
		f.partitions = counts.highest()
	}
	return f, nil
}

// partitionCounts infers the number of partitions that keys are spread over. A topic that was widened
// has more partitions than its keys use.
type partitionCounts struct {
	max  int32          // the topic's number of partitions
	fits map[int32]bool // numbers that explain every key seen so far; nil before the first key
}

// observe excludes the numbers with which the key would be in another partition.
func (s *partitionCounts) observe(key string, partition int32) {
	if s.fits == nil {
		s.fits = make(map[int32]bool, s.max)
		for n := int32(1); n <= s.max; n++ {
			s.fits[n] = true
		}
	}
	for n := range s.fits {
		if kafka.Partition([]byte(key), n) != partition {
			delete(s.fits, n)
		}
	}
}

// highest returns the highest number that explains every key. It returns the topic's number of
// partitions if there was no key, or if no number explains them all.
func (s *partitionCounts) highest() int32 {
	for n := s.max; n > 0; n-- {
		if s.fits[n] {
			return n
		}
	}
	return s.max
}

// invalidRecord is a record that was not written by a relay of this store.
type invalidRecord struct {
	record kafka.Message
	reason error
}

// invalidRecords are the first maxInvalid of some invalid records, and the number of all.
type invalidRecords struct {
	first []invalidRecord
	count uint64
}

// add counts a record, and keeps it if there is room.
func (s *invalidRecords) add(m kafka.Message, reason error) {
	s.count++
	if len(s.first) < maxInvalid {
		s.first = append(s.first, invalidRecord{m, reason})
	}
}

// writeDeadLetters logs invalid records and passes them to Config.DeadLetter. If that fails, the
// relay continues, because the records are still on the log.
func (r *Relay) writeDeadLetters(ctx context.Context, s invalidRecords) {
	if s.count == 0 {
		return
	}
	first := s.first[0]
	// Without the reason, which can quote the record.
	r.log.Error("relay: skipping records that were not written by a relay; another producer writes to this topic, "+
		"`millrace dlq` shows the records",
		"records", s.count, "topic", first.record.Topic,
		"partition", first.record.Partition, "offset", first.record.Offset)
	if r.cfg.DeadLetter == nil {
		return
	}
	for _, s := range s.first {
		if err := r.cfg.DeadLetter(ctx, s.record, s.reason); err != nil {
			r.log.Warn("relay: cannot write invalid records to the dead letters", "error", err)
			return
		}
	}
}
