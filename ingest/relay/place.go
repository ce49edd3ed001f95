package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// place is where the relay stands.
type place struct {
	after      event.Position // every event up to here is on the log
	partitions int32          // of the events' topic
	tails      []event.Position
	highest    event.Position // of tails
}

// published tells whether a partition has its events up to a position. Along a partition the position only rises, so its
// last event decides.
func (p *place) published(partition int32, at event.Position) bool {
	return at.Compare(p.tails[partition]) <= 0
}

// has tells whether every event of a batch is on the log.
func (p *place) has(batch []event.Event) bool {
	if batch[0].Position.Compare(p.highest) > 0 {
		return false
	}
	for _, e := range batch {
		if !p.published(kafka.Partition([]byte(e.Stream), p.partitions), e.Position) {
			return false
		}
	}
	return true
}

// mark is the position record of a transaction: it carries the events after from, up to and with to, which was recorded then.
type mark struct {
	from, to event.Position
	recorded time.Time
}

const fromHeader = "from"

func (m mark) record(service string) kafka.Record {
	return kafka.Record{
		Topic: PositionsTopic, Partition: kafka.AnyPartition, Key: []byte(service), Value: []byte(m.to.String()),
		Headers: []event.Header{
			{Key: fromHeader, Value: []byte(m.from.String())},
			{Key: recordedHeader, Value: m.recorded.UTC().AppendFormat(nil, time.RFC3339Nano)},
		},
	}
}

func parseMark(m kafka.Message) (mark, error) {
	var out mark
	var err error
	if out.to, err = event.ParsePosition(string(m.Value)); err != nil {
		return mark{}, err
	}
	out.recorded = recordedAt(m.Headers)
	for _, h := range m.Headers {
		if h.Key == fromHeader {
			out.from, err = event.ParsePosition(string(h.Value))
			return out, err
		}
	}
	return mark{}, fmt.Errorf("no header %q", fromHeader)
}

// resume asks the log where to go on. Only after Init: no transaction of this relay is open then.
//
// The last mark tells that every event before its transaction is on the log. Kafka shows a transaction whole or not at
// all, so its own events are there, too. The embedded broker writes one partition's outcome after the other, and a kill in
// between leaves the transaction in some partitions only. So what the partitions themselves have decides about the events
// from there on; an older mark, or none, only means that more of them are compared.
func (r *Relay) resume(ctx context.Context) (*place, error) {
	a, err := kafka.NewAdmin(r.cfg.Kafka)
	if err != nil {
		return nil, err
	}
	defer a.Close()

	p := &place{}
	var newestMark mark
	// Not up to the high watermark: another relay's open transaction, which may outlive it by half a minute, hides what is
	// behind it. An older mark will do.
	visible, err := a.EndOffsets(ctx, PositionsTopic)
	if err != nil {
		return nil, err
	}
	marks, err := r.last(ctx, a, PositionsTopic, visible, func(m kafka.Message) error {
		if string(m.Key) != r.cfg.Aggregate.Service {
			return errNotWanted
		}
		_, err := parseMark(m)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, m := range marks {
		found, err := parseMark(m)
		if err != nil {
			return nil, err
		}
		if found.to.Compare(newestMark.to) > 0 {
			newestMark = found
		}
	}
	p.after = newestMark.from

	var newest event.Event
	end, err := a.HighWatermarks(ctx, r.cfg.Aggregate.Topic)
	if err != nil {
		return nil, err
	}
	tails, err := r.last(ctx, a, r.cfg.Aggregate.Topic, end, func(m kafka.Message) error {
		_, err := event.FromRecord(m.Key, m.Value, m.Headers)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.partitions = int32(len(end))
	p.tails = make([]event.Position, p.partitions)
	for partition, m := range tails {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err != nil {
			return nil, err
		}
		p.tails[partition] = e.Position
		if e.Position.Compare(p.highest) > 0 {
			p.highest, newest = e.Position, e
		}
	}

	head, err := r.cfg.Store.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the head of the store: %w", err)
	}
	if p.highest.Compare(head) > 0 || newestMark.to.Compare(head) > 0 {
		return nil, fmt.Errorf("%w: topic %s has events up to %s, position %s is marked, but the store ends at %s: bring the store back, or start with an empty log",
			ErrStoreBehind, r.cfg.Aggregate.Topic, p.highest, newestMark.to, head)
	}
	r.report(func(p *Progress) { p.Position, p.RecordedAt, p.Live = newest.Position, newest.RecordedAt, true })
	return p, nil
}

var errNotWanted = errors.New("not wanted")

// last finds the last record of each partition, before end, that check has nothing against.
func (r *Relay) last(ctx context.Context, a *kafka.Admin, topic string, end map[int32]int64, check func(kafka.Message) error) (map[int32]kafka.Message, error) {
	begin, err := a.StartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	found := map[int32]kafka.Message{}
	search := maps.Clone(end)
	for window := int64(100); len(search) > 0; window *= 10 {
		from := map[int32]int64{}
		for p := range search {
			from[p] = max(begin[p], end[p]-window)
		}
		err := kafka.ReadAll(ctx, r.cfg.Kafka, topic, from, search, func(m kafka.Message) error {
			switch err := check(m); {
			case err == nil:
				found[m.Partition] = m
			case !errors.Is(err, errNotWanted):
				r.log.Error("relay: a record that cannot be read is passed over", "topic", topic, "partition", m.Partition, "offset", m.Offset, "error", err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for p := range search {
			if _, ok := found[p]; ok || from[p] <= begin[p] {
				delete(search, p)
			}
		}
	}
	return found, nil
}
