package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// found is the content of the log from given floors to its end.
type found struct {
	floors     []int64                  // offsets where the reading began, by partition
	partitions int32                    // number of partitions that keys are spread over
	events     []event.Position         // positions of events that the store has, sorted, without duplicates
	newest     event.Event              // the last of events
	lowest     map[int32]event.Position // lowest position of events, by partition
	highest    map[int32]event.Position // highest position of events, by partition
	unknown    []event.Event            // events that the store does not have; at most mostStrays
	strays     strays                   // unknown events, copies, and records that are not events
}

// has reports whether the event at p is on the log and in the store.
func (f *found) has(p event.Position) bool {
	_, ok := slices.BinarySearchFunc(f.events, p, event.Position.Compare)
	return ok
}

const (
	knownAtOnce = 1000 // events per call of Store.Known
	mostStrays  = 1000 // strays that are remembered; more are only counted
)

// scan reads the log from floors to its end and asks the store about each event. partitions is the
// number of partitions that keys are spread over. If it is 0, scan infers it: it is the highest
// number that explains where all events are.
func (l *lookout) scan(ctx context.Context, floors []int64, partitions int32) (*found, error) {
	f := &found{floors: floors, partitions: partitions, lowest: map[int32]event.Position{}, highest: map[int32]event.Position{}}
	spread := spread{most: l.info.Partitions}
	type asked struct {
		event.Event
		at kafka.Message
	}
	var asking []asked
	// ask classifies the events in asking. They are collected first, because one call of the store
	// per event would be slow.
	ask := func() error {
		events := make([]event.Event, len(asking))
		for i, a := range asking {
			events[i] = a.Event
		}
		known, err := l.known(ctx, events)
		if err != nil {
			return err
		}
		for i, a := range asking {
			e := a.Event
			switch {
			case !known[i]:
				if len(f.unknown) < mostStrays {
					f.unknown = append(f.unknown, e)
				}
				f.strays.add(a.at, errors.New("an event that the store does not have"))
				continue
			case partitions > 0 && kafka.Partition([]byte(e.Stream), partitions) != a.at.Partition:
				f.strays.add(a.at, errors.New("a copy of an event on a partition that is not its key's"))
				continue
			}
			if partitions == 0 {
				spread.saw(e.Stream, a.at.Partition)
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
		asking = asking[:0]
		return nil
	}
	from := make(map[int32]int64, len(floors))
	for p, floor := range floors {
		from[int32(p)] = floor
	}
	err := kafka.ReadAll(ctx, l.cfg.Kafka, l.topic, from, l.end, func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err == nil && e.Aggregate != l.cfg.Aggregate.Name {
			err = fmt.Errorf("an event of %q on the topic of %q", e.Aggregate, l.cfg.Aggregate.Name)
		}
		if err != nil {
			f.strays.add(m, err)
			return nil
		}
		e.Data = nil // the payload is not needed here
		if asking = append(asking, asked{e, m}); len(asking) < knownAtOnce {
			return nil
		}
		return ask()
	})
	if err == nil && len(asking) > 0 {
		err = ask()
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(f.events, event.Position.Compare)
	f.events = slices.Compact(f.events)
	if partitions == 0 {
		f.partitions = spread.partitions()
	}
	return f, nil
}

// spread infers the number of partitions that keys are spread over. A topic that was widened has
// more partitions than its keys use.
type spread struct {
	most int32          // the topic's number of partitions
	fits map[int32]bool // numbers that explain every key seen so far; nil before the first key
}

// saw excludes the numbers with which the key would be in another partition.
func (s *spread) saw(key string, partition int32) {
	if s.fits == nil {
		s.fits = make(map[int32]bool, s.most)
		for n := int32(1); n <= s.most; n++ {
			s.fits[n] = true
		}
	}
	for n := range s.fits {
		if kafka.Partition([]byte(key), n) != partition {
			delete(s.fits, n)
		}
	}
}

// partitions returns the highest number that explains every key. It returns the topic's number of
// partitions if there was no key, or if no number explains them all.
func (s *spread) partitions() int32 {
	for n := s.most; n > 0; n-- {
		if s.fits[n] {
			return n
		}
	}
	return s.most
}

// stray is a record that no relay of this store has written.
type stray struct {
	record kafka.Message
	reason error
}

// strays are the first mostStrays of some strays, and the number of all.
type strays struct {
	first []stray
	count uint64
}

// add counts a stray and remembers it if there is room.
func (s *strays) add(m kafka.Message, reason error) {
	s.count++
	if len(s.first) < mostStrays {
		s.first = append(s.first, stray{m, reason})
	}
}

// putAside logs strays and passes them to Config.PutAside. If that fails, the relay continues,
// because the records are still on the log.
func (r *Relay) putAside(ctx context.Context, s strays) {
	if s.count == 0 {
		return
	}
	first := s.first[0]
	r.log.Error("relay: records that no relay has written are passed over; somebody else writes to this topic", "records", s.count,
		"topic", first.record.Topic, "partition", first.record.Partition, "offset", first.record.Offset, "reason", first.reason)
	if r.cfg.PutAside == nil {
		return
	}
	for _, s := range s.first {
		if err := r.cfg.PutAside(ctx, s.record, s.reason); err != nil {
			r.log.Warn("relay: stray records are not put aside", "error", err)
			return
		}
	}
}
