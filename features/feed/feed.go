// Package feed reads a topic as facts: the one way in which facts get from the log into the history
// in ClickHouse and into the online vectors.
//
// A Feed reads the partitions of a topic from given positions, with read_committed. It decodes each
// record by the definition of an event that all readers share (registry.Decoder), passes the event
// to the sources of the topic, and returns their facts in batches. The reader of the facts stores
// the Position after a batch beside them, and starts from it again.
//
// Invariants:
//
//   - The facts of a range of offsets depend on the records and on the position before the range
//     only. So two readers that start at the same position get the same facts, however their batches
//     are cut.
//   - A record that is not an event, that is a copy of an earlier one, or that a source cannot read
//     stops nothing. It is a dead letter before Poll returns the batch that passes it.
//   - Facts are valid: they have an entity and a key, a time that every store can keep, and a value
//     of the right kind for each column.
//   - A Poll returns at most 10,000 records, and one fetch per partition is read ahead.
package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/streams"
)

// Config configures a Feed.
type Config struct {
	Brokers  []string // host:port
	Security security.Config
	Decoder  *registry.Decoder // nil: plain values only
	Topic    string
	Sources  []features.Source // those of the topic; at least one
	// Sink is the name of the reader, under which dead letters are written: "features/history/orders".
	Sink string
	// WriteDeadLetters makes dead letters durable. It may be called again for the same records.
	WriteDeadLetters func(context.Context, ...streams.DeadLetter) error
	ClientID         string       // shown in the brokers' logs; empty means Sink
	Logger           *slog.Logger // required
	// Traced fills Batch.Traced.
	Traced bool
}

// Feed reads the facts of a topic. It is not safe for concurrent use.
type Feed struct {
	cfg    Config
	reader *fetch.Reader
	at     map[int32]Position // after the last batch, by partition
	begins map[int32]bool     // partitions without a stored position, before their first batch
	id     string             // of the topic
	member *member            // nil without a group
	// Of the current batch: its dead letters, and the facts of each event, by source.
	letters []streams.DeadLetter
	facts   [][][]features.Fact
}

// Position is how far a reader has read a partition. The zero Position is before the first record
// ever.
type Position struct {
	Next      int64          // offset to read next
	Watermark event.Position // store position of the last event before Next
	AsOf      time.Time      // when that event was recorded; zero before the first event
	// Sequence recognises copies of earlier events.
	Sequence event.Sequence
	// Archived means that the last records before Next were read from elsewhere, where copies are left
	// out already, so that Sequence is not known. The log cannot be read from here.
	Archived bool
}

// ErrRecreated means that the topic was deleted and created again, so the positions are those of
// other records.
var ErrRecreated = errors.New("the topic was recreated")

// ErrArchived means that a position is in the middle of records that were read from elsewhere.
var ErrArchived = errors.New("the log cannot be read from the middle of archived records")

// Open returns a Feed of all partitions. It connects at Start.
func Open(c Config) (*Feed, error) {
	f, err := newFeed(c)
	if err != nil {
		return nil, err
	}
	f.reader, err = fetch.Open(fetch.Config{Brokers: f.cfg.Brokers, Security: f.cfg.Security, Topic: f.cfg.Topic,
		ClientID: f.cfg.ClientID, Logger: f.cfg.Logger})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// newFeed returns a Feed without its reader.
func newFeed(c Config) (*Feed, error) {
	if len(c.Sources) == 0 || c.WriteDeadLetters == nil || c.Sink == "" {
		return nil, errors.New("feed: Sources, Sink and WriteDeadLetters are required")
	}
	if i := slices.IndexFunc(c.Sources, func(s features.Source) bool { return s.Topic != c.Topic }); i >= 0 {
		return nil, fmt.Errorf("feed of %s: source %s reads %s", c.Topic, c.Sources[i].Name, c.Sources[i].Topic)
	}
	if c.ClientID == "" {
		c.ClientID = c.Sink
	}
	return &Feed{cfg: c, at: map[int32]Position{}, begins: map[int32]bool{},
		facts: make([][][]features.Fact, len(c.Sources))}, nil
}

// Close stops reading, and leaves the group.
func (f *Feed) Close() {
	f.reader.Close()
	if f.member != nil {
		f.member.describe.Close()
	}
}

// Topic returns the topic's id and the ranges of its partitions, before Start.
func (f *Feed) Topic(ctx context.Context) (fetch.Topic, error) { return f.describe(ctx) }

// Start assigns all partitions of the topic, each from its position. A partition without a position
// is read from its first record. topicID is the id of the topic to which the positions belong, or
// empty if there are none. Start must be called once, before Poll.
//
// It returns fetch.ErrNoTopic if the topic does not exist (yet), ErrRecreated, ErrArchived, or a
// *fetch.OutOfRangeError if the log does not have a position.
func (f *Feed) Start(ctx context.Context, topicID string, from map[int32]Position) (fetch.Topic, error) {
	topic, err := f.describe(ctx)
	if err != nil {
		return fetch.Topic{}, err
	}
	if err := f.check(topic, topicID, from); err != nil {
		return fetch.Topic{}, err
	}
	f.id = topic.ID
	f.assign(topic, from)
	return topic, nil
}

// describe describes the topic.
func (f *Feed) describe(ctx context.Context) (fetch.Topic, error) {
	if f.member != nil {
		return f.member.describe.Describe(ctx)
	}
	return f.reader.Describe(ctx)
}

// check returns an error if positions are not those of a topic's records.
func (f *Feed) check(topic fetch.Topic, topicID string, stored map[int32]Position) error {
	if topicID != "" && topic.ID != "" && topicID != topic.ID {
		return fmt.Errorf("%s: %w: its id is %s, the positions belong to %s", f.cfg.Topic, ErrRecreated, topic.ID, topicID)
	}
	for p, at := range stored {
		if at.Archived {
			return fmt.Errorf("%s/%d@%d: %w", f.cfg.Topic, p, at.Next, ErrArchived)
		}
		if log, ok := topic.Partitions[p]; !ok || at.Next < log.Start || at.Next > log.End {
			return &fetch.OutOfRangeError{Topic: f.cfg.Topic, Partition: p, Offset: at.Next, Log: log}
		}
	}
	if f.member == nil {
		return nil
	}
	for p, log := range topic.Partitions {
		if _, ok := stored[p]; !ok && log.Start > 0 {
			return &fetch.OutOfRangeError{Topic: f.cfg.Topic, Partition: p, Log: log}
		}
	}
	return nil
}

// assign adds the partitions that are not read yet. In a group, others decide about them.
func (f *Feed) assign(topic fetch.Topic, stored map[int32]Position) {
	if f.member != nil {
		return
	}
	from := map[int32]int64{}
	for p, log := range topic.Partitions {
		if _, ok := f.at[p]; !ok {
			f.at[p] = f.start(p, log, stored)
		}
		from[p] = f.at[p].Next
	}
	f.reader.Assign(from)
}

// start returns the position from which a partition is read: its first record if none is stored. With a
// group, check makes sure that its offset is 0.
func (f *Feed) start(partition int32, log fetch.Range, stored map[int32]Position) Position {
	at, ok := stored[partition]
	if f.begins[partition] = !ok; ok {
		return at
	}
	if at.Next = log.Start; log.Start > 0 {
		f.cfg.Logger.Warn("the topic's first records are gone; the facts begin after them",
			"sink", f.cfg.Sink, "topic", f.cfg.Topic, "partition", partition, "first", log.Start)
	}
	return at
}

// Describe returns the topic's id and the ranges of its partitions, and starts to read partitions
// that were added to it. Call it at intervals. A reader whose positions have reached the ends has
// caught up.
func (f *Feed) Describe(ctx context.Context) (fetch.Topic, error) {
	topic, err := f.describe(ctx)
	if err != nil {
		return fetch.Topic{}, err
	}
	if f.id != topic.ID {
		return fetch.Topic{}, fmt.Errorf("%s: %w: its id is %s, it was %s", f.cfg.Topic, ErrRecreated, topic.ID, f.id)
	}
	f.assign(topic, nil)
	return topic, nil
}

// Positions returns the positions after the last batches, by partition.
func (f *Feed) Positions() map[int32]Position {
	defer f.lock()()
	all := make(map[int32]Position, len(f.at))
	for p, at := range f.at {
		all[p] = at
	}
	return all
}

// Batch is the facts of consecutive records of one partition.
type Batch struct {
	Topic     string
	Partition int32
	First     int64 // offset at which the batch begins
	// Facts are those of the records from First to After.Next, by the name of the source, in the
	// order of the log.
	Facts   map[string][]features.Fact
	After   Position // of the partition after the batch
	Begins  bool     // no position of the partition was stored before this batch
	Records int
	// Traced are the events whose command was traced.
	Traced []tracing.Entry
}

// Poll blocks until there are records, for at most wait, and returns their facts. It returns none
// after that time. After an error the Feed is unusable. *fetch.OutOfRangeError means that records
// were lost before they were read.
func (f *Feed) Poll(ctx context.Context, wait time.Duration) ([]Batch, error) {
	fetched, err := f.reader.Poll(ctx, wait)
	if err != nil {
		return nil, err
	}
	batches := make([]Batch, 0, len(fetched))
	for _, b := range fetched {
		batch, err := f.read(ctx, b)
		if err != nil {
			return nil, err
		}
		batches = append(batches, batch)
	}
	return batches, nil
}

// read returns the facts of fetched records, whose memory the next Poll reuses.
func (f *Feed) read(ctx context.Context, b fetch.Batch) (Batch, error) {
	at := f.position(b.Partition)
	out := Batch{Topic: f.cfg.Topic, Partition: b.Partition, First: at.Next,
		Facts: make(map[string][]features.Fact, len(f.cfg.Sources))}
	f.letters = f.letters[:0]
	for r := range b.Records() {
		out.Records++
		record := registry.Record{Topic: f.cfg.Topic, Partition: b.Partition, Offset: r.Offset,
			Key: r.Key, Value: r.Value, Headers: r.Headers}
		e, err := f.event(ctx, record, &at)
		if ctx.Err() != nil {
			return Batch{}, ctx.Err()
		}
		if err != nil {
			f.refuse(record, err)
			continue
		}
		if e.RecordedAt.After(at.AsOf) {
			at.AsOf = e.RecordedAt
		}
		if f.cfg.Traced && e.TraceParent != "" {
			out.Traced = append(out.Traced, tracing.Of(&e, record.Partition, record.Offset))
		}
		origin := features.Origin{Topic: record.Topic, Partition: record.Partition, Offset: record.Offset}
		var failed error // of any source: a record is one dead letter
		for i := range f.cfg.Sources {
			source := &f.cfg.Sources[i]
			facts, err := Project(source, e, origin)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("event %s: source %s: %w", e.ID, source.Name, err))
				continue
			}
			f.facts[i] = append(f.facts[i], facts)
		}
		if failed != nil {
			f.refuse(record, failed)
		}
	}
	for i := range f.facts {
		out.Facts[f.cfg.Sources[i].Name] = slices.Concat(f.facts[i]...)
		clear(f.facts[i]) // release the facts' memory
		f.facts[i] = f.facts[i][:0]
	}
	at.Next = b.Next
	if err := f.writeLetters(ctx); err != nil {
		return Batch{}, err
	}
	defer f.lock()()
	f.at[b.Partition], out.After, out.Begins = at, at, f.begins[b.Partition]
	f.begins[b.Partition] = false
	return out, nil
}

// position returns the position of a partition.
func (f *Feed) position(partition int32) Position {
	defer f.lock()()
	return f.at[partition]
}

// lock protects the positions from the group's goroutine, and returns the function that ends that.
func (f *Feed) lock() (unlock func()) {
	if f.member == nil {
		return func() {}
	}
	f.member.mu.Lock()
	return f.member.mu.Unlock
}

// event decodes a record and moves the position's watermark and sequence past it. While the schema
// registry is unavailable, it retries until ctx ends.
func (f *Feed) event(ctx context.Context, r registry.Record, at *Position) (event.Event, error) {
	waits := backoff.Server.Start()
	for attempt := 0; ; attempt++ {
		e, sealed, err := f.cfg.Decoder.Sealed(ctx, r)
		if err == nil && sealed {
			var next event.Sequence
			if next, err = at.Sequence.Next(e.Position, r.Headers); err == nil {
				at.Sequence = next
			}
		}
		if err == nil && e.Position.Compare(at.Watermark) > 0 {
			at.Watermark = e.Position
		}
		if !errors.Is(err, registry.ErrUnavailable) {
			return e, err
		}
		if attempt == 0 {
			f.cfg.Logger.Warn("waiting for what decides about a record", "sink", f.cfg.Sink,
				"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		}
		if !waits.Wait(ctx) {
			return event.Event{}, err
		}
	}
}

// refuse makes a record a dead letter.
func (f *Feed) refuse(r registry.Record, reason error) {
	f.letters = append(f.letters, streams.DeadLetter{Sink: f.cfg.Sink, Topic: r.Topic, Partition: r.Partition,
		Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: slices.Clone(r.Headers), Reason: reason})
}

// writeLetters makes the dead letters durable.
func (f *Feed) writeLetters(ctx context.Context) error {
	if len(f.letters) == 0 {
		return nil
	}
	first := f.letters[0]
	if err := f.cfg.WriteDeadLetters(ctx, f.letters...); err != nil {
		return fmt.Errorf("write %d dead letters of %s: %w", len(f.letters), f.cfg.Sink, err)
	}
	// Without the reason of the first, which can quote the record.
	f.cfg.Logger.Error("records without facts became dead letters; `millrace dlq` shows why", "sink", f.cfg.Sink,
		"records", len(f.letters), "topic", first.Topic, "first_partition", first.Partition, "first_offset", first.Offset)
	clear(f.letters) // release the records' memory
	return nil
}

// position is the stored form of a Position.
type position struct {
	Next      int64  `json:"next"`
	Watermark string `json:"watermark"`
	AsOf      int64  `json:"as_of"` // microseconds since 1970; 0 before the first event
	Sequence  string `json:"sequence"`
	Archived  bool   `json:"archived,omitempty"`
}

// String returns a form that ParsePosition reads.
func (p Position) String() string {
	s := position{Next: p.Next, Watermark: p.Watermark.String(), Sequence: p.Sequence.String(), Archived: p.Archived}
	if !p.AsOf.IsZero() {
		s.AsOf = p.AsOf.UnixMicro()
	}
	text, _ := json.Marshal(s) // which cannot fail: there are only strings and integers
	return string(text)
}

// ParsePosition reads what String returned.
func ParsePosition(text string) (Position, error) {
	var s position
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Position{}, fmt.Errorf("position %q: %w", text, err)
	}
	p := Position{Next: s.Next, Archived: s.Archived}
	var errs [2]error
	p.Watermark, errs[0] = event.ParsePosition(s.Watermark)
	p.Sequence, errs[1] = event.ParseSequence(s.Sequence)
	if err := errors.Join(errs[:]...); err != nil {
		return Position{}, fmt.Errorf("position %q: %w", text, err)
	}
	if s.Next < 0 {
		return Position{}, fmt.Errorf("position %q: the offset is negative", text)
	}
	if s.AsOf != 0 {
		p.AsOf = time.UnixMicro(s.AsOf).UTC()
	}
	return p, nil
}
