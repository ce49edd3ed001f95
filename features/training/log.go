package training

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
)

// Log is Facts on the log itself. It is read once, from its beginning, into temporary files.
type Log struct {
	Brokers  []string // host:port
	Security security.Config
	Decoder  *registry.Decoder // nil: plain values only
	Logger   *slog.Logger      // required
	// Stall is how long the log may deliver nothing. 0 means logStall.
	Stall time.Duration
}

// logStall is the default of Log.Stall.
const logStall = time.Minute

// Positions implements Facts. A topic that does not exist has no facts.
func (l *Log) Positions(ctx context.Context, sources []*features.Source) (Positions, error) {
	p := Positions{}
	for _, s := range sources {
		if p[s.Topic] != nil {
			continue
		}
		p[s.Topic] = map[int32]int64{}
		topic, err := l.describe(ctx, s.Topic)
		if errors.Is(err, fetch.ErrNoTopic) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for partition, log := range topic.Partitions {
			p[s.Topic][partition] = log.End
		}
	}
	return p, nil
}

// describe returns the ranges of a topic.
func (l *Log) describe(ctx context.Context, topic string) (fetch.Topic, error) {
	r, err := fetch.Open(fetch.Config{Brokers: l.Brokers, Security: l.Security, Topic: topic, ClientID: clientID, Logger: l.Logger})
	if err != nil {
		return fetch.Topic{}, err
	}
	defer r.Close()
	return r.Describe(ctx)
}

const clientID = "features/training"

// Count implements Facts. How many facts an event has is not known; two is more than most.
func (l *Log) Count(_ context.Context, r Request) (int64, error) {
	n := int64(0)
	for _, next := range r.Upto {
		n += next
	}
	return 2 * n, nil
}

// Read implements Facts. It is not called, because split is.
func (l *Log) Read(context.Context, Request, func(*Batch) error) error {
	return errors.New("the log is not read by ranges")
}

// split implements splitter.
func (l *Log) split(ctx context.Context, dir string, requests []dividedRequest,
	progress func(n, of int64)) (_ *spilled, err error) {
	to, err := newSpilled(dir, requests)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.close())
		}
	}()
	topics := map[string][]Request{}
	var order []string
	total, done := int64(0), int64(0)
	for _, r := range requests {
		if topics[r.Source.Topic] == nil {
			order = append(order, r.Source.Topic)
			for _, next := range r.Upto {
				total += next
			}
		}
		topics[r.Source.Topic] = append(topics[r.Source.Topic], r.Request)
	}
	for _, topic := range order {
		err := l.read(ctx, topic, topics[topic], to, func(records int) {
			done += int64(records)
			progress(min(done, total), total)
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
	}
	return to, nil
}

// read reads the facts of a topic up to the positions of the requests, which are the same.
func (l *Log) read(ctx context.Context, topic string, requests []Request, to *spilled, progress func(records int)) error {
	left := map[int32]int64{} // positions that are not reached
	for partition, next := range requests[0].Upto {
		if next > 0 {
			left[partition] = next
		}
	}
	if len(left) == 0 {
		return nil
	}
	// Dead letters are written by those who follow the log. Here the same records are left out.
	unreadable := 0
	c := feed.Config{
		Brokers: l.Brokers, Security: l.Security, Decoder: l.Decoder, Topic: topic, Sink: clientID, Logger: l.Logger,
		WriteDeadLetters: func(_ context.Context, letters ...streams.DeadLetter) error {
			unreadable += len(letters)
			return nil
		},
	}
	for _, r := range requests {
		c.Sources = append(c.Sources, *r.Source)
	}
	f, err := feed.Open(c)
	if err != nil {
		return err
	}
	defer f.Close()
	log, err := f.Start(ctx, "", nil)
	if err != nil {
		return err
	}
	for partition, next := range left {
		at, ok := log.Partitions[partition]
		if !ok || at.End < next {
			return fmt.Errorf("partition %d ends at offset %d, before the position %d: it is another log",
				partition, at.End, next)
		}
		if at.Start >= next {
			delete(left, partition) // the facts are gone; the manifest's numbers show it
		}
	}
	stall := l.Stall
	if stall == 0 {
		stall = logStall
	}
	for len(left) > 0 {
		batches, err := f.Poll(ctx, stall)
		if err != nil {
			return err
		}
		if len(batches) == 0 {
			return fmt.Errorf("the log delivered nothing for %v, with %d partitions left", stall, len(left))
		}
		for _, b := range batches {
			for i := range requests {
				facts := b.Facts[requests[i].Source.Name]
				for j := range facts {
					if requests[i].wants(&facts[j]) {
						if err := to.add(requests[i], &facts[j]); err != nil {
							return err
						}
					}
				}
			}
			if next, ok := left[b.Partition]; ok && b.After.Next >= next {
				delete(left, b.Partition)
			}
			progress(b.Records)
		}
	}
	if unreadable > 0 {
		l.Logger.Warn("records without facts were left out; they are not events, or a source cannot read them",
			"topic", topic, "records", unreadable)
	}
	return nil
}
