package lake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/registry"
)

// lander brings one table's topic into the table.
//
// What must hold: the table's rows are those of the records before the offsets in its properties, each once. Only commits
// change either, a commit changes both at once, and it is accepted only on the snapshot that it was computed from. So
// there is nothing else to remember: a lander that knows no more, because it starts or because anything failed, goes on
// from what the table says. Two landers at one table cost work, never rows; and little work, for the one whose commit was
// refused stands by, see standby.go.
type lander struct {
	lake   *Lake
	table  Table
	config RunConfig
	log    *slog.Logger

	commits int // so far
}

// run lands until ctx is done or the table does not fit the topic.
func (l *lander) run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		landed, err := l.session(ctx)
		if errors.Is(err, errFenced) && ctx.Err() == nil {
			failures = 0
			err = l.standBy(ctx, err)
			if err == nil {
				continue
			}
		}
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

// session reads on from the table's offsets and lands until something fails. It tells whether anything landed.
func (l *lander) session(ctx context.Context) (landed bool, err error) {
	reader, err := l.reader()
	if err != nil {
		return false, err
	}
	defer reader.Close()

	have, err := l.lake.load(ctx, l.table.Name)
	if err != nil {
		return false, err
	}
	at, err := readProgress(l.table.Aggregate.Topic, have.Properties())
	if err != nil {
		return false, &PositionError{l.table.Name, l.table.Aggregate.Topic, err}
	}
	if err := l.assign(ctx, reader, &at); err != nil {
		return false, err
	}
	assigned := time.Now()

	writer, err := newFileWriter(ctx, l.table, have)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, writer.close()) }()

	decoder := l.table.decoder()
	b := newBatch(at)
	for {
		fetched, err := reader.Poll(ctx, b.wait(l.config))
		if err != nil {
			return landed, l.positionError(err)
		}
		for _, f := range fetched {
			if err := l.add(ctx, b, decoder, writer, f); err != nil {
				return landed, err
			}
		}
		if b.moved() && b.wait(l.config) <= 0 {
			if err := l.land(ctx, b, writer); err != nil {
				return landed, err
			}
			landed = true
			at.merge(b.progress)
			b = newBatch(at)
			b.after = time.Now()
			l.expire(ctx)
		}
		if time.Since(assigned) > l.config.assignEvery {
			if err := l.assign(ctx, reader, &at); err != nil {
				return landed, err
			}
			assigned = time.Now()
		}
	}
}

func (l *lander) reader() (*fetch.Reader, error) {
	return fetch.Open(fetch.Config{
		Brokers: l.config.Brokers, Security: l.config.Security,
		Topic: l.table.Aggregate.Topic, ClientID: "millrace-lake-" + l.table.Name, Logger: l.log,
	})
}

// assign makes the reader read all partitions of the topic, each from where the table stands.
func (l *lander) assign(ctx context.Context, reader *fetch.Reader, at *progress) error {
	topic, err := reader.Describe(ctx)
	if err != nil {
		return err
	}
	if at.topicID != "" && topic.ID != "" && at.topicID != topic.ID {
		return &PositionError{l.table.Name, l.table.Aggregate.Topic,
			fmt.Errorf("the table's offsets are of a topic with id %s, and the topic has id %s", at.topicID, topic.ID)}
	}
	at.topicID = topic.ID
	for partition, next := range at.next {
		log, ok := topic.Partitions[partition]
		if !ok || next < log.Start || next > log.End {
			return l.positionError(&fetch.OutOfRangeError{Topic: l.table.Aggregate.Topic, Partition: partition, Offset: next, Log: log})
		}
	}
	from := map[int32]int64{}
	for partition, log := range topic.Partitions {
		next, ok := at.next[partition]
		if !ok && log.Start > 0 {
			l.log.Warn("the topic has lost its first records, the table begins after them",
				"topic", l.table.Aggregate.Topic, "partition", partition, "first", log.Start)
		}
		from[partition] = max(next, log.Start)
	}
	reader.Assign(from)
	return nil
}

func (l *lander) positionError(err error) error {
	if gone := (*fetch.OutOfRangeError)(nil); errors.As(err, &gone) {
		return &PositionError{l.table.Name, gone.Topic, err}
	}
	return err
}

// add puts a partition's records into the batch, and into the data file as they become many.
func (l *lander) add(ctx context.Context, b *batch, d decoder, w *fileWriter, f fetch.Batch) error {
	for r := range f.Records() {
		e, err := l.config.Decoder.Event(ctx, l.table.Aggregate.Topic, r.Key, r.Value, r.Headers)
		if errors.Is(err, registry.ErrUnavailable) {
			return err
		}
		if err == nil {
			err = d.append(&w.columns, origin{l.table.Aggregate.Topic, f.Partition, r.Offset}, e)
		}
		if err != nil {
			if err := l.park(ctx, f.Partition, r, err); err != nil {
				return err
			}
			continue
		}
		b.add(e)
		if err := w.flush(b.id, chunkRows); err != nil {
			return err
		}
	}
	b.rows = b.rows || w.parquet != nil || w.columns.rows > 0
	b.move(f.Partition, f.Next)
	return l.config.at(ctx, l.table.Name, stepFetched)
}

func (l *lander) park(ctx context.Context, partition int32, r fetch.Record, reason error) error {
	p := Parked{
		Sink: "lake/" + l.table.Name, Topic: l.table.Aggregate.Topic, Partition: partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: reason,
	}
	l.log.Error("a record is no event and is parked", "topic", p.Topic, "partition", partition, "offset", r.Offset, "error", reason)
	if err := l.config.Park(ctx, p); err != nil {
		return fmt.Errorf("park record %d of %s/%d: %w", r.Offset, p.Topic, partition, err)
	}
	return nil
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
