package lake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/kafka/fetch"
)

// lander brings partitions of one table's topic into the table: those that a consumer group gives it, whose members are all
// landers of the table, in this process and in others.
//
// What must hold: the table's rows are those of the records before the offsets in its properties, each once. Only commits
// change either, a commit changes both at once, and it is accepted only on the snapshot that it was computed from, and only
// where its partitions stand where it begins. So there is nothing else to remember: a lander that knows no more, because it
// starts, because anything failed, or because the group has gone on without it, goes on from what the table says. Landers of
// different partitions wait for each other's commits at most; of two at one partition, the slower one's work is thrown away.
type lander struct {
	lake   *Lake
	table  Table
	config RunConfig
	number int // among those of the table in this process
	log    *slog.Logger
	// first counts those landers of the table in this process that read its topic's first partition: the process that has one
	// maintains the table. Two may think so for a moment, which costs work, not rows.
	first *atomic.Int32

	commits int // so far
}

// run lands until ctx is done or the table does not fit the topic.
func (l *lander) run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		landed, err := l.session(ctx)
		if position := (*PositionError)(nil); errors.As(err, &position) {
			return err
		}
		if landed {
			failures = 0
		}
		if ctx.Err() == nil {
			l.log.Warn("landing is interrupted and goes on from what the table says", "error", err)
		}
		if !pause(ctx, failures) {
			return nil
		}
	}
}

// positions are where a session's partitions stand in the table. Partitions come while others are read.
type positions struct {
	mu      sync.Mutex
	next    map[int32]int64
	topicID string
}

func (p *positions) at(partition int32) (next int64, topicID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next[partition], p.topicID
}

func (p *positions) put(next map[int32]int64, topicID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.next, next)
	p.topicID = topicID
}

// session joins the group and lands until something fails. It tells whether anything landed.
func (l *lander) session(ctx context.Context) (landed bool, err error) {
	have, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return false, err
	}
	writer, rows, err := l.writer(ctx, have)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, writer.close()) }()

	at := &positions{next: map[int32]int64{}}
	topics, err := fetch.Open(l.source())
	if err != nil {
		return false, err
	}
	defer topics.Close()
	// Whom the brokers do not let in, and who asks for a topic that is not there, would wait for the group for ever.
	if _, err := topics.Describe(ctx); err != nil {
		return false, err
	}
	reader, err := fetch.Join(l.source(), fetch.Group{
		// The table's own: one that is made anew has another.
		Refresh: l.config.refresh, Patience: l.config.patience, Instance: l.instance(),
		Name: "millrace.lake." + l.table.Name + "." + have.Metadata().TableUUID().String()[:8],
		Position: func(ctx context.Context, partitions []int32) (map[int32]int64, error) {
			return l.position(ctx, topics, at, partitions)
		},
	})
	if err != nil {
		return false, err
	}
	defer reader.Close()

	var hasFirst bool
	defer func() { l.noteFirst(&hasFirst, false) }()
	b := newBatch(at, time.Time{})
	for {
		if !b.moved() {
			reader.Yield()
			l.noteFirst(&hasFirst, slices.Contains(reader.Assigned(), 0))
		}
		fetched, err := reader.Poll(ctx, b.wait(l.config))
		if err != nil {
			return landed, l.positionError(err)
		}
		land := func() error {
			if !b.moved() {
				return nil
			}
			if err := l.settle(ctx, b, rows, writer); err != nil {
				return err
			}
			if err := l.land(ctx, b, writer); err != nil {
				return err
			}
			if upserts, ok := rows.(upserts); ok {
				upserts.landed(b.progress.next)
			}
			landed = true
			at.put(b.progress.next, b.progress.topicID)
			l.report(ctx, reader, b.progress.next)
			b = newBatch(at, time.Now())
			l.thin(ctx)
			return nil
		}
		var waits error // what a partition waits for; the others land
		for _, f := range fetched {
			held, err := l.add(ctx, b, rows, writer, f)
			for grown := int64(-1); err == nil && held.grows() && held.at > grown; {
				if err = land(); err != nil { // with the columns that there are
					break
				}
				f, grown = f.From(held.at), held.at
				if writer, rows, err = l.grow(ctx, writer, rows, f); err == nil {
					held, err = l.add(ctx, b, rows, writer, f)
				}
			}
			if err != nil {
				return landed, err
			}
			if held != nil {
				waits = errors.Join(waits, held.err)
			}
		}
		if waits == nil && (!b.moved() || b.wait(l.config) > 0 && !reader.Wanted()) {
			continue
		}
		if err := errors.Join(land(), waits); err != nil {
			return landed, err
		}
	}
}

func (l *lander) instance() string {
	if l.config.Instance == "" {
		return ""
	}
	return fmt.Sprintf("%s-%d", l.config.Instance, l.number)
}

func (l *lander) noteFirst(had *bool, has bool) {
	switch {
	case l.first == nil || has == *had:
	case has:
		l.first.Add(1)
	default:
		l.first.Add(-1)
	}
	*had = has
}

// writer makes what turns records into rows, and rows into files.
func (l *lander) writer(ctx context.Context, have *table.Table) (*fileWriter, Rows, error) {
	step, err := l.table.step(have.Metadata())
	if err != nil {
		return nil, nil, err
	}
	if err := writable(ctx, have.Metadata(), step.Columns); err != nil {
		return nil, nil, &UnwritableError{l.table.called(), err}
	}
	w, err := newFileWriter(ctx, step.Columns, have)
	if err != nil {
		return nil, nil, fmt.Errorf("table %s: %w", l.table.Name, err)
	}
	rows, err := l.table.Rows(w.columns, l.config.Decoder)
	if err != nil {
		return nil, nil, fmt.Errorf("table %s: %w", l.table.Name, err)
	}
	return w, rows, nil
}

func (l *lander) source() fetch.Config {
	return fetch.Config{
		Brokers: l.config.Brokers, Security: l.config.Security, Logger: l.log,
		Topic: l.table.Topic, ClientID: "millrace-lake-" + l.table.Name,
	}
}

// position tells the group where to read partitions from: where the table stands. Nothing that anybody does to the group's own
// offsets changes that.
func (l *lander) position(ctx context.Context, topics *fetch.Reader, at *positions, partitions []int32) (map[int32]int64, error) {
	have, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return nil, err
	}
	stands, err := readProgress(l.table.Topic, have.Properties())
	if err == nil {
		err = l.table.owned(have.Properties())
	}
	if err != nil {
		return nil, &PositionError{l.table.Name, l.table.Topic, err}
	}
	topic, err := topics.Describe(ctx)
	if err != nil {
		return nil, err
	}
	if stands.topicID != "" && topic.ID != "" && stands.topicID != topic.ID {
		return nil, &PositionError{l.table.Name, l.table.Topic,
			fmt.Errorf("the table's offsets are of a topic with id %s, and the topic has id %s", stands.topicID, topic.ID)}
	}
	for partition, next := range stands.next {
		log, ok := topic.Partitions[partition]
		if !ok || next < log.Start || next > log.End {
			return nil, l.positionError(&fetch.OutOfRangeError{Topic: l.table.Topic, Partition: partition, Offset: next, Log: log})
		}
	}
	from, ours := map[int32]int64{}, map[int32]int64{}
	for _, partition := range partitions {
		log := topic.Partitions[partition]
		next, ok := stands.next[partition]
		ours[partition] = next
		if !ok && log.Start > 0 {
			l.log.Warn("the topic has lost its first records, the table begins after them",
				"topic", l.table.Topic, "partition", partition, "first", log.Start)
		}
		from[partition] = max(next, log.Start)
	}
	at.put(ours, topic.ID)
	return from, nil
}

func (l *lander) positionError(err error) error {
	if gone := (*fetch.OutOfRangeError)(nil); errors.As(err, &gone) {
		return &PositionError{l.table.Name, gone.Topic, err}
	}
	return err
}

// add puts a partition's records into the batch, and into the data file as they become many. It may go only as far as a record
// that has to wait.
func (l *lander) add(ctx context.Context, b *batch, rows Rows, w *fileWriter, f fetch.Batch) (*held, error) {
	for record := range l.records(f) {
		r := &record
		appended, err := w.append(ctx, rows, record)
		if err != nil {
			if holds(err) {
				b.rows = b.rows || w.rows()
				if stands, _ := b.positions.at(f.Partition); r.Offset > stands {
					b.move(f.Partition, r.Offset)
				}
				return &held{r.Offset, fmt.Errorf("record %d of %s/%d: %w", r.Offset, r.Topic, r.Partition, err)}, nil
			}
			if err := l.park(ctx, record, err); err != nil {
				return nil, err
			}
			continue
		}
		b.add(len(r.Value), appended.AsOf)
		if err := w.flush(b.id, chunkRows); err != nil {
			return nil, err
		}
	}
	upserts, ok := rows.(upserts)
	b.rows = b.rows || w.rows() || ok && upserts.held()
	b.move(f.Partition, f.Next)
	return nil, l.config.at(ctx, l.table.Name, stepFetched)
}

func (l *lander) park(ctx context.Context, r Record, reason error) error {
	p := Parked{
		Sink: "lake/" + l.table.Name, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: reason,
	}
	l.log.Error("a record does not fit the table and is parked", "topic", p.Topic, "partition", p.Partition, "offset", r.Offset, "error", reason)
	if err := l.config.Park(ctx, p); err != nil {
		return fmt.Errorf("park record %d of %s/%d: %w", r.Offset, p.Topic, p.Partition, err)
	}
	return nil
}

// How long the group may take to hear how far we are.
const reportTimeout = 2 * time.Second

// report tells the group how far the table is, for tools that show lag.
func (l *lander) report(ctx context.Context, reader *fetch.Reader, next map[int32]int64) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if err := reader.Commit(ctx, next); err != nil {
		l.log.Debug("the group was not told how far the table is", "error", err)
	}
}

// pause waits before the next try, longer with every failure in a row; it is false when ctx is done.
func pause(ctx context.Context, failures int) bool {
	d := 50 * time.Millisecond << min(failures, 6)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
