// Package landing brings topics into tables: each record once, whatever fails when. Run lands all
// tables of an open lake until its context is done.
//
// The word lander is ours: a lander brings partitions of one topic into one table. The landers of a
// table, in any number of processes, share the partitions as a consumer group. A lander reads
// records, lets the table's declaration make rows of them, and writes these to data files. A commit
// brings the files and the offsets up to which they reach, both at once.
//
// So a table holds the rows of exactly the records before its offsets. There is nothing else to
// remember: after any failure a lander continues from what the table says. Records that do not fit
// become dead letters; they go to Config.Park with the reason. What stops a single table is a
// faults.TableError, and the others land on.
package landing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
)

// lander brings partitions of one table's topic into the table: those that a consumer group gives it, whose members are
// all landers of the table, in this process and in others.
//
// What must hold: the table's rows are those of the records before the offsets in its properties, each once. Only
// commits change either, a commit changes both at once, and it is accepted only on the snapshot that it was computed
// from, and only where its partitions stand where it begins. So there is nothing else to remember: a lander that knows
// no more, because it starts, because anything failed, or because the group has gone on without it, goes on from what
// the table says. Landers of different partitions wait for each other's commits at most; of two at one partition, the
// slower one's work is thrown away.
type lander struct {
	lake   *lake.Lake
	table  declare.Table
	config Config
	number int // among those of the table in this process
	log    *slog.Logger
	// first counts those landers of the table in this process that read its topic's first partition: the process that
	// has one maintains the table. Two may think so for a moment, which costs work, not rows.
	first *atomic.Int32

	commits int // so far

	// sifts is where the search for records that cannot be written ends, by partition; empty where there is none.
	sifts map[int32]int64
	alone int // records in a row that could not be written, and had none beside them that could

	parked parkings
	toPark []Parked // by the end of add
}

// A lost file may be one that was replaced between two looks, and brokers that start know no topics. It is lost where
// it is missing so often.
const lostLooks = 3

// run lands until ctx is done, or the table cannot be landed as it is: then the error is a *TableError.
func (l *lander) run(ctx context.Context) error {
	waits := backoff.Server.Start()
	for failures := 0; ; failures++ {
		landed, err := l.session(ctx)
		if landed {
			failures = 0
			waits.Reset()
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was told to stop
		}
		seems := faults.Unreadable(err) || errors.Is(err, fetch.ErrNoTopic)
		if fault := faults.Of(l.table.DisplayName(), err); fault != nil && !faults.IsOfRows(err) && (!seems || failures+1 >= lostLooks) {
			return fault
		}
		l.log.Warn("landing is interrupted and goes on from what the table says", "error", err)
		if !waits.Wait(ctx) {
			return nil
		}
	}
}

// load reads the table as it is now.
func (l *lander) load(ctx context.Context) (*table.Table, error) {
	return l.lake.Load(ctx, l.table.Identifier())
}

// positions are where a session's partitions stand in the table. Partitions come while others are read.
type positions struct {
	mu      sync.Mutex
	next    map[int32]int64
	seen    map[int32]event.Sequence // nil for a table that is not made of events
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

func (p *positions) seenAt(partition int32) (s event.Sequence, kept bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[partition], p.seen != nil
}

func (p *positions) putSeen(seen map[int32]event.Sequence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != nil {
		maps.Copy(p.seen, seen)
	}
}

// session is a lander at work, from joining the group to the first failure.
type session struct {
	*lander
	at     *positions
	reader *fetch.Reader
	writer *datafile.Writer
	to     sink
	batch  *batch
	landed bool      // anything
	asked  time.Time // whether the table is told to be at fault; see works

	unwritable []unwritable // records that the next commit is to park; see sift.go
	proven     bool         // rows of records beside them were written
}

// session joins the group and lands until something fails. It reports whether anything landed.
func (l *lander) session(ctx context.Context) (landed bool, err error) {
	have, err := l.load(ctx)
	if err != nil {
		return false, err
	}
	s := &session{lander: l, at: &positions{next: map[int32]int64{}}}
	if l.table.OfEvents() {
		s.at.seen = map[int32]event.Sequence{}
	}
	if s.writer, s.to, err = l.writer(ctx, have); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.writer.Close()) }()

	topics, err := fetch.Open(l.source())
	if err != nil {
		return false, err
	}
	defer topics.Close()
	// Whom the brokers do not let in, and who asks for a topic that is not there, would wait for the group for ever.
	if _, err := topics.Describe(ctx); err != nil {
		return false, l.topicError(err, have)
	}
	reader, err := fetch.Join(l.source(), fetch.Group{
		// The table's own: one that is made anew has another.
		Refresh: l.config.refresh, Patience: l.config.patience, Instance: l.instance(),
		Name: "millrace.lake." + l.table.Name + "." + have.Metadata().TableUUID().String()[:8],
		Position: func(ctx context.Context, partitions []int32) (map[int32]int64, error) {
			return l.position(ctx, topics, s.at, partitions)
		},
	})
	if err != nil {
		return false, err
	}
	defer reader.Close()
	s.reader, s.batch = reader, newBatch(s.at, time.Time{})
	err = s.run(ctx)
	l.tellParked(true)
	if faults.IsOfRows(err) {
		maps.Copy(l.sifts, s.batch.progress.Next)
	}
	return s.landed, l.positionError(err)
}

func (s *session) run(ctx context.Context) error {
	var hasFirst bool
	defer func() { s.noteFirst(&hasFirst, false) }()
	for {
		if !s.batch.moved() {
			s.reader.Yield()
			s.noteFirst(&hasFirst, slices.Contains(s.reader.Assigned(), 0))
		}
		fetched, err := s.reader.Poll(ctx, s.batch.wait(s.config))
		if err != nil {
			return err
		}
		var waits error // what a partition waits for; the others land
		for _, f := range fetched {
			take := s.take
			if _, sifts := s.sifts[f.Partition]; sifts {
				take = s.sift
			}
			held, err := take(ctx, f)
			if err != nil {
				return err
			}
			if held != nil {
				waits = errors.Join(waits, held.err)
			}
		}
		if waits == nil && (!s.batch.moved() || s.batch.wait(s.config) > 0 && !s.reader.Wanted()) {
			if len(fetched) == 0 && !s.batch.moved() && len(s.reader.Assigned()) > 0 {
				s.works(ctx)
				s.tellParked(false)
			}
			continue
		}
		if err := errors.Join(s.land(ctx), waits); err != nil {
			return err
		}
	}
}

// take puts a partition's records into the batch, and lands what comes before one that wants more columns. What is held
// back waits for something else.
func (s *session) take(ctx context.Context, f fetch.Batch) (*held, error) {
	held, err := s.add(ctx, s.batch, s.to, s.writer, f)
	for grown := int64(-1); err == nil && held.grows() && held.at > grown; {
		if err = s.land(ctx); err != nil { // with the columns that there are
			break
		}
		f, grown = f.From(held.at), held.at
		if s.writer, s.to, err = s.grow(ctx, s.writer, s.to, f); err == nil {
			held, err = s.add(ctx, s.batch, s.to, s.writer, f)
		}
	}
	return held, err
}

// land commits the batch and begins the next.
func (s *session) land(ctx context.Context) error {
	b := s.batch
	if !b.moved() {
		return nil
	}
	if err := s.settle(ctx, b, s.to, s.writer); err != nil {
		return err
	}
	b.unwritable = s.unwritable
	if err := s.lander.land(ctx, b, s.writer); err != nil {
		return err
	}
	if s.to.upserts != nil {
		s.to.upserts.Landed(b.progress.Next)
	}
	if b.rows {
		s.proven, s.alone = true, 0
	}
	s.landed, s.unwritable = true, nil
	s.works(ctx)
	s.tellParked(false)
	s.at.put(b.progress.Next, b.progress.TopicID)
	s.at.putSeen(b.progress.Seen)
	s.report(ctx, s.reader, b.progress.Next)
	s.batch = newBatch(s.at, time.Now())
	s.thin(ctx)
	return nil
}

// works notes that the table is landed.
func (s *session) works(ctx context.Context) {
	written := false
	if time.Since(s.asked) >= askFaults { // it may be another process's, or one's that was here before
		s.asked, written = time.Now(), s.lake.HasFault(ctx, s.table)
	}
	if written || s.lake.Fault(s.table) != nil {
		s.lake.LandsAgain(ctx, s.table)
	}
}

// How often a lander that lands asks whether others are told that its table is not landed.
const askFaults = 10 * time.Second

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
func (l *lander) writer(ctx context.Context, have *table.Table) (*datafile.Writer, sink, error) {
	misfit := func(err error) (*datafile.Writer, sink, error) {
		return nil, sink{}, &faults.TableError{Table: l.table.DisplayName(), Remedy: faults.RemedyFit, Err: err}
	}
	step, err := l.table.Step(have.Metadata())
	if err != nil {
		return misfit(err)
	}
	if err := datafile.Writable(ctx, have.Metadata(), step.Columns); err != nil {
		return nil, sink{}, &faults.UnwritableError{Table: l.table.DisplayName(), Err: err}
	}
	w, err := datafile.New(ctx, step.Columns, have)
	if err != nil {
		return misfit(err)
	}
	to, err := newSink(l.table, w.Columns, l.config.Decoder)
	if err != nil {
		return misfit(err)
	}
	return w, to, nil
}

// sink is what records go to: one of both.
type sink struct {
	rows    declare.Rows
	upserts declare.Upserts
}

func newSink(t declare.Table, columns *columnar.Columns, values *registry.Decoder) (to sink, err error) {
	if t.Keyed() {
		to.upserts, err = t.Upserts(columns, values)
	} else {
		to.rows, err = t.Rows(columns, values)
	}
	return to, err
}

// put appends the rows of a record, or holds it back.
func (s sink) put(ctx context.Context, w *datafile.Writer, r declare.Record) (declare.Appended, error) {
	if s.upserts != nil {
		return s.upserts.Take(ctx, r)
	}
	return w.Append(ctx, s.rows, r)
}

func (l *lander) source() fetch.Config {
	return fetch.Config{
		Brokers: l.config.Brokers, Security: l.config.Security, Logger: l.log,
		Topic: l.table.Topic, ClientID: "millrace-lake-" + l.table.Name,
	}
}

// position tells the group where to read partitions from: where the table stands. Nothing that anybody does to the
// group's own offsets changes that.
func (l *lander) position(ctx context.Context, topics *fetch.Reader, at *positions, partitions []int32) (map[int32]int64, error) {
	have, err := l.load(ctx)
	if err != nil {
		return nil, err
	}
	stands, err := progress.Read(l.table.Topic, have.Properties())
	if err == nil {
		err = progress.CheckOwner(l.table, have.Properties())
	}
	if err != nil {
		return nil, &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	topic, err := topics.Describe(ctx)
	if err != nil {
		return nil, err
	}
	if stands.TopicID != "" && topic.ID != "" && stands.TopicID != topic.ID {
		return nil, &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic,
			Err: fmt.Errorf("the table's offsets are of a topic with id %s, and the topic has id %s", stands.TopicID, topic.ID)}
	}
	for partition, next := range stands.Next {
		log, ok := topic.Partitions[partition]
		if !ok || next < log.Start || next > log.End {
			return nil, l.positionError(&fetch.OutOfRangeError{Topic: l.table.Topic, Partition: partition, Offset: next, Log: log})
		}
	}
	from, ours, seen := map[int32]int64{}, map[int32]int64{}, map[int32]event.Sequence{}
	for _, partition := range partitions {
		log := topic.Partitions[partition]
		next, ok := stands.Next[partition]
		ours[partition], seen[partition] = next, stands.Seen[partition]
		if !ok && log.Start > 0 {
			l.log.Warn("the topic has lost its first records, the table begins after them",
				"topic", l.table.Topic, "partition", partition, "first", log.Start)
		}
		from[partition] = max(next, log.Start)
	}
	at.put(ours, topic.ID)
	at.putSeen(seen)
	return from, nil
}

// topicError is of a topic that is not there: where the table has rows of it, it has been deleted, and else it may
// come.
func (l *lander) topicError(err error, have *table.Table) error {
	if stands, readErr := progress.Read(l.table.Topic, have.Properties()); errors.Is(err, fetch.ErrNoTopic) && readErr == nil && len(stands.Next) > 0 {
		return &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	return err
}

func (l *lander) positionError(err error) error {
	if already := (*faults.PositionError)(nil); errors.As(err, &already) {
		return err
	}
	if gone := (*fetch.OutOfRangeError)(nil); errors.As(err, &gone) {
		return &faults.PositionError{Table: l.table.Name, Topic: gone.Topic, Err: err}
	}
	return err
}

// add puts a partition's records into the batch, and into the data file as they become many. It may go only as far as a
// record that has to wait. Records that are no events are parked by the time it returns.
func (l *lander) add(ctx context.Context, b *batch, to sink, w *datafile.Writer, f fetch.Batch) (*held, error) {
	l.toPark = l.toPark[:0]
	held, err := l.addRecords(ctx, b, to, w, f)
	if err != nil {
		return nil, err
	}
	return held, l.parkAll(ctx)
}

func (l *lander) addRecords(ctx context.Context, b *batch, to sink, w *datafile.Writer, f fetch.Batch) (*held, error) {
	seen := b.seen(f.Partition)
	for record := range l.records(f) {
		record.Before = seen
		r := &record
		appended, err := to.put(ctx, w, record)
		if err != nil {
			if holds(err) && (!errors.Is(err, columnar.ErrFull) || w.Columns.Rows() > 0) { // which no more room would help
				b.rows = b.rows || w.HasRows()
				if stands, _ := b.positions.at(f.Partition); r.Offset > stands {
					b.move(f.Partition, r.Offset)
					b.saw(f.Partition, seen)
				}
				return &held{r.Offset, fmt.Errorf("record %d of %s/%d: %w", r.Offset, r.Topic, r.Partition, err)}, nil
			}
			if failpoint.On("lake.unnamed") {
				b.move(f.Partition, f.Next)
				return nil, &faults.RowsError{Err: err}
			}
			if err := l.park(ctx, record, err); err != nil {
				return nil, err
			}
			continue
		}
		if appended.Sealed {
			seen = appended.After
		}
		b.add(len(r.Value), appended.AsOf)
		if err := w.Flush(b.id, datafile.ChunkRows); err != nil {
			b.move(f.Partition, f.Next) // the error may be of any of them
			return nil, err
		}
	}
	b.rows = b.rows || w.HasRows() || to.upserts != nil && to.upserts.Held()
	b.move(f.Partition, f.Next)
	b.saw(f.Partition, seen)
	return nil, l.config.at(ctx, l.table.Name, stepFetched)
}

// mostToPark is how many records are parked at once: as many as hide the brokers' round trip.
const mostToPark = 1000

// park parks a record once there are many, or parkAll is called.
func (l *lander) park(ctx context.Context, r declare.Record, reason error) error {
	l.toPark = append(l.toPark, Parked{
		Sink: "lake/" + l.table.Name, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: slices.Clone(r.Headers), Reason: reason,
	})
	if len(l.toPark) < mostToPark {
		return nil
	}
	return l.parkAll(ctx)
}

func (l *lander) parkAll(ctx context.Context) error {
	if len(l.toPark) == 0 {
		return nil
	}
	first := l.toPark[0]
	if err := l.config.at(ctx, l.table.Name, stepPark); err != nil {
		return err
	}
	if err := l.config.Park(ctx, l.toPark); err != nil {
		return fmt.Errorf("park %d records, the first of which is %d of %s/%d: %w",
			len(l.toPark), first.Offset, first.Topic, first.Partition, err)
	}
	if err := l.config.at(ctx, l.table.Name, stepParked); err != nil {
		return err
	}
	if l.parked.count == 0 {
		l.parked.partition, l.parked.offset, l.parked.reason = first.Partition, first.Offset, first.Reason
	}
	l.parked.count += len(l.toPark)
	clear(l.toPark) // lets go of the records
	l.toPark = l.toPark[:0]
	return nil
}

// parkings are the records that were parked since that was last told, and the first of them.
type parkings struct {
	count     int
	partition int32
	offset    int64
	reason    error
	told      time.Time
}

// Of records that are parked one after the other, it is told so often.
const tellEvery = 10 * time.Second

// tellParked logs what was parked, once for many.
func (l *lander) tellParked(now bool) {
	if l.parked.count == 0 || !now && time.Since(l.parked.told) < tellEvery {
		return
	}
	l.log.Error("records do not fit the table and are parked", "records", l.parked.count, "topic", l.table.Topic,
		"first_partition", l.parked.partition, "first_offset", l.parked.offset, "first_error", l.parked.reason)
	l.parked = parkings{told: time.Now()}
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
