// Package landing lands Kafka topics in Iceberg tables: exactly once, despite crashes and
// rebalances. Run lands all tables of an open lake until its context is done.
//
// A lander moves records from partitions of one topic into one table. The landers of a table, in
// any number of processes, share the partitions as a consumer group. A lander fetches records,
// converts them to rows as the table's declaration says (see package declare), and writes the rows
// to data files. One commit then adds the files and advances the offsets up to which they reach.
//
// Invariant: a table has the rows of exactly the records before its offsets. No other state exists,
// so after any failure a lander resumes from the table's offsets.
//
// Records that do not fit become dead letters, which are passed to Config.WriteDeadLetters with the
// reason. A fault that stops a single table is a faults.TableError; the other tables continue to
// land.
//
// lander.go has the main loop, commit.go the commit protocol, upsert.go tables with a row per key,
// grow.go new columns, and bisect.go the search for records that cannot be written.
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
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
)

// lander lands partitions of one table's topic: those that the table's consumer group assigns to
// it. The members of the group are the landers of the table in all processes.
//
// Invariant: the table has the rows of the records before the offsets in its properties, each once.
// Only commits change rows or offsets, and a commit changes both. The catalog accepts a commit only
// on the snapshot from which it was computed, and a lander commits only if the table's offsets are
// those at which its batch begins. So a lander that starts, fails, or has lost its partitions
// simply continues from the table's offsets.
//
// Landers of different partitions compete for commits, and the loser tries again on the new
// snapshot. If two landers have the same partition, the slower one's work is discarded.
type lander struct {
	lake   *lake.Lake
	table  declare.Table
	config Config
	number int // index among this table's landers in this process
	log    *slog.Logger
	// first counts this process's landers of the table that are assigned the topic's first
	// partition. The process that has that partition maintains the table. During a rebalance two
	// processes may believe so, which is safe but duplicates work.
	first *atomic.Int32

	commits int // number of commits so far

	// bisectUntil has the offset at which a search for unwritable records ends, by partition. See
	// bisect.go.
	bisectUntil map[int32]int64
	alone       int // consecutive unwritable records that had no writable record beside them

	// deadLetters counts dead letters that have not been logged yet.
	deadLetters    deadLetterSummary
	pendingLetters []DeadLetter // dead letters collected by add, written before it returns
}

// lostAttempts is the number of consecutive failures after which a missing file or topic counts as
// lost. A single failure proves nothing: maintenance may have replaced the file between two reads,
// and brokers that are starting know no topics.
const lostAttempts = 3

// run lands until ctx is done or the table cannot be landed. In the latter case the error is a
// *TableError.
func (l *lander) run(ctx context.Context) error {
	waits := backoff.Server.Start()
	for failures := 0; ; failures++ {
		landed, err := l.session(ctx)
		if landed {
			failures = 0
			waits.Reset()
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping is not an error
		}
		l.meter().Failed(l.table.Name, classOf(l.table.DisplayName(), err))
		// Faults of rows are handled by bisection in the next session. A missing file or topic must
		// be confirmed.
		seems := faults.Unreadable(err) || errors.Is(err, fetch.ErrNoTopic)
		confirmed := !seems || failures+1 >= lostAttempts
		if fault := faults.Of(l.table.DisplayName(), err); fault != nil && !faults.IsRowsError(err) && confirmed {
			return fault
		}
		l.log.Warn("landing failed; resuming from the table's offsets", "error", err)
		if !waits.Wait(ctx) {
			return nil
		}
	}
}

// load loads the table's current state.
func (l *lander) load(ctx context.Context) (*table.Table, error) {
	defer func(begun time.Time) { l.meter().Catalog("load", time.Since(begun)) }(time.Now())
	return l.lake.Load(ctx, l.table.Identifier())
}

// positions are the table's offsets of the partitions assigned to a session. A rebalance can add
// partitions at any time, hence the mutex.
type positions struct {
	mu sync.Mutex
	// seen has the sequences of the relay's events by partition, which identify copied records.
	next    map[int32]int64
	seen    map[int32]event.Sequence // nil for a table that is not made of events
	topicID string
	// backlog has, for partitions that the table had not begun, the end of the log at that time.
	backlog map[int32]int64
}

// at returns the table's offset of a partition, and the topic's id.
func (p *positions) at(partition int32) (next int64, topicID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next[partition], p.topicID
}

// put updates offsets after a commit or a rebalance.
func (p *positions) put(next map[int32]int64, topicID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.next, next)
	p.topicID = topicID
}

// setBacklog records where the log ended when the table began a partition.
func (p *positions) setBacklog(partition int32, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.backlog == nil {
		p.backlog = map[int32]int64{}
	}
	p.backlog[partition] = end
}

// backlogOf returns the offset before which the records of a partition are older than the table.
func (p *positions) backlogOf(partition int32) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.backlog[partition]
}

// seenAt returns a partition's sequence. kept is false for tables that have no sequences.
func (p *positions) seenAt(partition int32) (s event.Sequence, kept bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[partition], p.seen != nil
}

// putSeen updates sequences, if the table has any.
func (p *positions) putSeen(seen map[int32]event.Sequence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != nil {
		maps.Copy(p.seen, seen)
	}
}

// session is one membership in the group, from joining it to the first failure.
type session struct {
	*lander
	at            *positions
	reader        *fetch.Reader
	writer        *datafile.Writer
	to            sink
	batch         *batch
	landed        bool      // anything was committed
	faultsChecked time.Time // when recorded faults were last read; see clearFaults

	unwritable []unwritable // dead letters for the next commit; see bisect.go
	proven     bool         // other rows of the same fetch were written
}

// session joins the group and lands until something fails. It reports whether anything was
// committed.
func (l *lander) session(ctx context.Context) (landed bool, err error) {
	have, err := l.load(ctx)
	if err != nil {
		return false, err
	}
	s := &session{lander: l, at: &positions{next: map[int32]int64{}}}
	if l.table.OfEvents() {
		s.at.seen = map[int32]event.Sequence{}
	}
	// Check that the table can be written before joining the group, so that an unwritable one does
	// not cause rebalances.
	if s.writer, s.to, err = l.writer(ctx, have); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.writer.Close()) }()

	topics, err := fetch.Open(l.source())
	if err != nil {
		return false, err
	}
	defer topics.Close()
	// Fail fast: without access, or with a missing topic, joining the group blocks forever.
	if _, err := topics.Describe(ctx); err != nil {
		return false, l.topicError(err, have)
	}
	reader, err := fetch.Join(l.source(), fetch.Group{
		// The group's name includes the table's UUID, so a recreated table has a new group.
		Refresh: l.config.refresh, RebalanceTimeout: l.config.rebalanceTimeout, Instance: l.instance(),
		Name: "millrace.lake." + l.table.Name + "." + have.Metadata().TableUUID().String()[:8],
		Position: func(ctx context.Context, partitions []int32) (map[int32]int64, error) {
			return l.position(ctx, topics, s.at, partitions)
		},
	})
	if err != nil {
		return false, err
	}
	defer reader.Close()
	s.reader, s.batch = reader, l.newBatch(s.at, time.Time{})
	err = s.run(ctx)
	l.logDeadLetters(true)
	// Remember up to where the failed batch reached. The next session bisects these offsets.
	if faults.IsRowsError(err) {
		maps.Copy(l.bisectUntil, s.batch.progress.Next)
	}
	return s.landed, l.positionError(err)
}

// run fetches records and commits batches until an error ends the session. A rebalance is only
// allowed while the batch is empty: a batch that outlives its partitions could not be committed.
func (s *session) run(ctx context.Context) error {
	var hasFirst bool
	defer func() { s.updateFirst(&hasFirst, false) }()
	for {
		if !s.batch.moved() {
			s.reader.Yield()
			s.updateFirst(&hasFirst, slices.Contains(s.reader.Assigned(), 0))
		}
		// Poll blocks at most until the batch is due.
		fetched, err := s.reader.Poll(ctx, s.batch.wait(s.config))
		if err != nil {
			return err
		}
		var waits error // partitions held back; the others land
		for _, f := range fetched {
			take := s.take
			if _, failed := s.bisectUntil[f.Partition]; failed {
				take = s.bisect
			}
			held, err := take(ctx, f)
			if err != nil {
				return err
			}
			if held != nil {
				waits = errors.Join(waits, held.err)
			}
		}
		// Continue to collect unless the batch is due, another member wants partitions, or a
		// partition has to wait.
		if waits == nil && (!s.batch.moved() || s.batch.wait(s.config) > 0 && !s.reader.RebalancePending()) {
			if len(fetched) == 0 && !s.batch.moved() && len(s.reader.Assigned()) > 0 {
				s.clearFaults(ctx)
				s.logDeadLetters(false)
			}
			continue
		}
		// Land what came before a waiting record. Then end the session, and retry after a pause.
		if err := errors.Join(s.land(ctx), waits); err != nil {
			return err
		}
	}
}

// take adds the records of a partition to the batch. If a record needs new columns, the batch
// before it is landed and the columns are added. The record returned, if any, is held back for
// another reason.
func (s *session) take(ctx context.Context, f fetch.Batch) (*heldRecord, error) {
	held, err := s.add(ctx, s.batch, s.to, s.writer, f)
	for grown := int64(-1); err == nil && held.grows() && held.at > grown; {
		if err = s.land(ctx); err != nil { // with the existing columns
			break
		}
		f, grown = f.From(held.at), held.at
		if s.writer, s.to, err = s.grow(ctx, s.writer, s.to, f); err == nil {
			held, err = s.add(ctx, s.batch, s.to, s.writer, f)
		}
	}
	return held, err
}

// newBatch returns an empty batch of this table.
func (l *lander) newBatch(at *positions, after time.Time) *batch {
	b := newBatch(at, after)
	b.trace = l.config.Tracer.Batch(tracing.Hop{Name: "commit", Sink: "lake/" + l.table.Name})
	return b
}

// land commits the batch and starts the next one.
func (s *session) land(ctx context.Context) (err error) {
	b := s.batch
	if !b.moved() {
		return nil
	}
	b.trace.Begin()
	defer func() { b.trace.End(err) }()
	// Keyed tables: turn the collected records into rows.
	if err := s.flushUpserts(ctx, b, s.to, s.writer); err != nil {
		return err
	}
	b.unwritable = s.unwritable
	begun := time.Now()
	if err := s.lander.land(ctx, b, s.writer); err != nil {
		return err
	}
	s.meter().Committed(s.table.Name, time.Since(begun))
	s.measureLanded(b)
	if s.to.upserts != nil {
		s.to.upserts.Landed(b.progress.Next)
	}
	// Rows were written, so the table is not to blame for unwritable records.
	if b.rows {
		s.proven, s.alone = true, 0
	}
	s.landed, s.unwritable = true, nil
	s.clearFaults(ctx)
	s.logDeadLetters(false)
	s.at.put(b.progress.Next, b.progress.TopicID)
	s.at.putSeen(b.progress.Seen)
	s.report(ctx, s.reader, b.progress.Next)
	s.batch = s.newBatch(s.at, time.Now())
	s.thin(ctx)
	return nil
}

// clearFaults clears recorded faults after a successful landing.
func (s *session) clearFaults(ctx context.Context) {
	written := false
	if time.Since(s.faultsChecked) >= faultCheckInterval { // by another process, or by this one before a restart
		s.faultsChecked, written = time.Now(), s.lake.HasFault(ctx, s.table)
	}
	if written || s.lake.Fault(s.table) != nil {
		s.lake.ClearFault(ctx, s.table)
	}
}

// faultCheckInterval is the interval at which a working lander checks for recorded faults of its
// table.
const faultCheckInterval = 10 * time.Second

// instance returns the static group membership id, or "" for dynamic membership.
func (l *lander) instance() string {
	if l.config.Instance == "" {
		return ""
	}
	return fmt.Sprintf("%s-%d", l.config.Instance, l.number)
}

// updateFirst updates first when the assignment of the first partition changes.
func (l *lander) updateFirst(had *bool, has bool) {
	switch {
	case l.first == nil || has == *had:
	case has:
		l.first.Add(1)
	default:
		l.first.Add(-1)
	}
	*had = has
}

// writer returns a file writer for the table's current schema, and the sink that fills its columns.
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

// sink takes records: rows, or upserts for a keyed table. Exactly one is set.
type sink struct {
	rows    declare.Rows
	upserts declare.Upserts
}

// newSink creates the sink for a table's columns.
func newSink(t declare.Table, columns *columnar.Columns, values *registry.Decoder) (to sink, err error) {
	if t.Keyed() {
		to.upserts, err = t.Upserts(columns, values)
	} else {
		to.rows, err = t.Rows(columns, values)
	}
	return to, err
}

// put appends the rows of a record, or collects it if the table is keyed.
func (s sink) put(ctx context.Context, w *datafile.Writer, r declare.Record) (declare.Appended, error) {
	if s.upserts != nil {
		return s.upserts.Take(ctx, r)
	}
	return w.Append(ctx, s.rows, r)
}

// source returns the settings of the topic's consumers.
func (l *lander) source() fetch.Config {
	return fetch.Config{
		Brokers: l.config.Brokers, Security: l.config.Security, Logger: l.log,
		Topic: l.table.Topic, ClientID: "millrace-lake-" + l.table.Name,
	}
}

// position returns the offsets from which the group reads newly assigned partitions: those of the
// table. The group's own committed offsets are ignored, so resetting them has no effect. It fails
// if table and topic do not belong together.
func (l *lander) position(
	ctx context.Context, topics *fetch.Reader, at *positions, partitions []int32,
) (map[int32]int64, error) {
	have, err := l.load(ctx)
	if err != nil {
		return nil, err
	}
	committed, err := progress.Read(l.table.Topic, have.Properties())
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
	// A recreated topic has a new id. Its offsets mean other records.
	if committed.TopicID != "" && topic.ID != "" && committed.TopicID != topic.ID {
		err := fmt.Errorf("the table's offsets belong to topic id %s, but the topic's id is %s",
			committed.TopicID, topic.ID)
		return nil, &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	// Check all partitions of the table, not only the assigned ones, so that every lander notices a
	// truncated topic.
	for partition, next := range committed.Next {
		log, ok := topic.Partitions[partition]
		if !ok || next < log.Start || next > log.End {
			return nil, l.positionError(&fetch.OutOfRangeError{
				Topic: l.table.Topic, Partition: partition, Offset: next, Log: log,
			})
		}
	}
	from, ours, seen := map[int32]int64{}, map[int32]int64{}, map[int32]event.Sequence{}
	for _, partition := range partitions {
		log := topic.Partitions[partition]
		next, ok := committed.Next[partition]
		ours[partition], seen[partition] = next, committed.Seen[partition]
		if !ok {
			at.setBacklog(partition, log.End)
		}
		if !ok && log.Start > 0 {
			l.log.Warn("the topic's first records are gone; the table begins after them",
				"topic", l.table.Topic, "partition", partition, "first", log.Start)
		}
		// Only a table that has nothing of the partition may start after lost records. All others
		// were checked above.
		from[partition] = max(next, log.Start)
	}
	at.put(ours, topic.ID)
	at.putSeen(seen)
	return from, nil
}

// topicError classifies the error of a missing topic. If the table has landed it before, it was
// deleted, which is a fault. Otherwise it may still be created.
func (l *lander) topicError(err error, have *table.Table) error {
	committed, readErr := progress.Read(l.table.Topic, have.Properties())
	if errors.Is(err, fetch.ErrNoTopic) && readErr == nil && len(committed.Next) > 0 {
		return &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	return err
}

// positionError marks out-of-range offsets as a fault of the table.
func (l *lander) positionError(err error) error {
	if already := (*faults.PositionError)(nil); errors.As(err, &already) {
		return err
	}
	if gone := (*fetch.OutOfRangeError)(nil); errors.As(err, &gone) {
		return &faults.PositionError{Table: l.table.Name, Topic: gone.Topic, Err: err}
	}
	return err
}

// add adds the records of a partition to the batch, and writes them to the data file when there are
// many. It stops before a record that must wait, and returns it. Dead letters are durable when add
// returns.
func (l *lander) add(ctx context.Context, b *batch, to sink, w *datafile.Writer, f fetch.Batch) (*heldRecord, error) {
	l.pendingLetters = l.pendingLetters[:0]
	held, err := l.addRecords(ctx, b, to, w, f)
	if err != nil {
		return nil, err
	}
	return held, l.writeDeadLetters(ctx)
}

// addRecords is add without the last write of dead letters.
func (l *lander) addRecords(
	ctx context.Context, b *batch, to sink, w *datafile.Writer, f fetch.Batch,
) (*heldRecord, error) {
	seen, backlog := b.seen(f.Partition), b.positions.backlogOf(f.Partition)
	for record := range l.records(f) {
		record.Before = seen
		r := &record
		appended, err := to.put(ctx, w, record)
		if err != nil {
			// The record must wait, unless it does not even fit into empty columns.
			if mustWait(err) && (!errors.Is(err, columnar.ErrFull) || w.Columns.Rows() > 0) {
				b.rows = b.rows || w.HasRows()
				if committed, _ := b.positions.at(f.Partition); r.Offset > committed {
					b.move(f.Partition, r.Offset)
					b.saw(f.Partition, seen)
				}
				err = fmt.Errorf("record %d of %s/%d: %w", r.Offset, r.Topic, r.Partition, err)
				return &heldRecord{r.Offset, err}, nil
			}
			// Pretend that the error does not identify the record, to test bisection.
			if failpoint.On("lake.unnamed") {
				b.move(f.Partition, f.Next)
				return nil, &faults.RowsError{Err: err}
			}
			if err := l.addDeadLetter(ctx, record, err); err != nil {
				return nil, err
			}
			continue
		}
		if appended.Sealed {
			seen = appended.After
		}
		b.add(r, appended.AsOf, r.Offset >= backlog)
		if err := w.Flush(b.id, datafile.ChunkRows); err != nil {
			b.move(f.Partition, f.Next) // any of the records may have caused the error
			return nil, err
		}
	}
	b.rows = b.rows || w.HasRows() || to.upserts != nil && to.upserts.Pending()
	b.move(f.Partition, f.Next)
	b.saw(f.Partition, seen)
	return nil, l.config.at(ctx, l.table.Name, stepFetched)
}

// deadLetterBatch is the number of dead letters written at once. It is large enough to hide the
// latency of the brokers.
const deadLetterBatch = 1000

// addDeadLetter collects a dead letter and writes the collected ones when there are
// deadLetterBatch.
func (l *lander) addDeadLetter(ctx context.Context, r declare.Record, reason error) error {
	l.pendingLetters = append(l.pendingLetters, DeadLetter{
		Sink: "lake/" + l.table.Name, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: slices.Clone(r.Headers), Reason: reason,
	})
	if len(l.pendingLetters) < deadLetterBatch {
		return nil
	}
	return l.writeDeadLetters(ctx)
}

// writeDeadLetters writes the collected dead letters. They must be durable before a commit moves
// the offsets past them.
func (l *lander) writeDeadLetters(ctx context.Context) error {
	if len(l.pendingLetters) == 0 {
		return nil
	}
	first := l.pendingLetters[0]
	if err := l.config.at(ctx, l.table.Name, stepDeadLetters); err != nil {
		return err
	}
	if err := l.config.WriteDeadLetters(ctx, l.pendingLetters); err != nil {
		return fmt.Errorf("write %d dead letters, the first for record %d of %s/%d: %w",
			len(l.pendingLetters), first.Offset, first.Topic, first.Partition, err)
	}
	if err := l.config.at(ctx, l.table.Name, stepDeadLettersWritten); err != nil {
		return err
	}
	if l.deadLetters.count == 0 {
		l.deadLetters.partition, l.deadLetters.offset = first.Partition, first.Offset
	}
	l.deadLetters.count += len(l.pendingLetters)
	clear(l.pendingLetters) // release the records' memory
	l.pendingLetters = l.pendingLetters[:0]
	return nil
}

// deadLetterSummary summarises the dead letters since the last log line.
type deadLetterSummary struct {
	count     int
	partition int32
	offset    int64
	logged    time.Time // time of the last log line
}

// deadLetterLogInterval is the minimum interval between log lines about dead letters.
const deadLetterLogInterval = 10 * time.Second

// logDeadLetters logs the dead letters since the last log line. now skips the interval.
func (l *lander) logDeadLetters(now bool) {
	if l.deadLetters.count == 0 || !now && time.Since(l.deadLetters.logged) < deadLetterLogInterval {
		return
	}
	// Without the reason of the first, which can quote the record.
	l.log.Error("records that do not fit the table became dead letters; `millrace dlq` shows why",
		"records", l.deadLetters.count, "topic", l.table.Topic, "first_partition", l.deadLetters.partition,
		"first_offset", l.deadLetters.offset)
	l.deadLetters = deadLetterSummary{logged: time.Now()}
}

// reportTimeout limits the report to the group.
const reportTimeout = 2 * time.Second

// report commits the table's offsets to the group, so that tools can show the lag. Nothing reads
// them back, so a failure is harmless.
func (l *lander) report(ctx context.Context, reader *fetch.Reader, next map[int32]int64) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if err := reader.Commit(ctx, next); err != nil {
		l.log.Debug("cannot commit the table's offsets to the group", "error", err)
	}
}
