package history

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/tracing"
)

// keep runs sessions of a table until ctx is done. A session ends with an error only. After one that
// may pass, the next session begins after a pause that grows up to five seconds; after one of the
// table, after retry.
func (h *History) keep(ctx context.Context, table string, state *health, session func(context.Context, func()) error) error {
	waits := backoff.Server.Start()
	for {
		worked := func() { // called after each success
			waits.Reset()
			if state.set(nil, false) {
				h.cfg.Logger.Info("features: the table is being filled", "table", table)
			}
		}
		err := session(ctx, worked)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping is not an error
		}
		stopped := stops(err)
		if state.set(err, stopped) {
			switch {
			case errors.Is(err, fetch.ErrNoTopic): // it may be created later
				h.cfg.Logger.Info("features: waiting for the topic", "table", table, "error", err)
			case stopped:
				h.cfg.Logger.Error("features: a table cannot be filled; the others are", "table", table, "error", err)
			default:
				h.cfg.Logger.Warn("features: filling a table failed; trying again", "table", table, "error", err)
			}
		}
		if stopped && !backoff.Sleep(ctx, h.cfg.retry) || !stopped && !waits.Wait(ctx) {
			return nil
		}
	}
}

// stops reports whether an error stays until somebody changes something.
func stops(err error) bool {
	var gone *fetch.OutOfRangeError
	var refused *clickhouse.Error
	return clickhouse.IsSchema(err) || errors.Is(err, errDamaged) || errors.Is(err, errDefinition) ||
		errors.Is(err, errDropped) || errors.Is(err, errDifferent) ||
		errors.Is(err, feed.ErrRecreated) || errors.As(err, &gone) ||
		errors.As(err, &refused) && !clickhouse.Retryable(err)
}

// writer fills the table of a source's facts.
type writer struct {
	*History
	*source
	// The rest is of a session.
	feed    *feed.Feed
	topicID string
	last    uint64                  // batch that the table has
	before  map[int32]feed.Position // after the last batch
	pending map[int32]*pending      // by partition
	started time.Time               // when the first record in pending was read
	facts   int                     // in pending
	first   time.Time               // when the first of them was read
	latest  time.Time               // when the last record was read
	wrote   time.Time               // when the last batch was written
	trace   *tracing.Batch          // of the events in pending; nil if nothing is traced
	// Of the last full batch, to use their memory again.
	rows    *clickhouse.Batch
	columns factColumns
}

// pending is what was read of a partition, and is not in a batch yet.
type pending struct {
	facts [][]features.Fact // in the order of the log
	after feed.Position
}

func newWriter(h *History, s *source) *writer { return &writer{History: h, source: s} }

// describeEvery is the interval of looking for new partitions, and for batches of other writers.
const describeEvery = 10 * time.Second

// session writes batches until something fails.
func (w *writer) session(ctx context.Context, worked func()) error {
	for _, t := range []clickhouse.Table{w.source.facts, w.corrections, w.claims, w.positions} {
		if err := w.create(ctx, t); err != nil {
			return err
		}
	}
	if err := w.load(ctx); err != nil {
		return err
	}
	f, err := feed.Open(feed.Config{
		Brokers: w.cfg.Brokers, Security: w.cfg.Security, Decoder: w.cfg.Decoder, Topic: w.Topic,
		Sources: []features.Source{w.Source}, Sink: "features/" + w.source.facts.Name,
		WriteDeadLetters: w.cfg.WriteDeadLetters, Logger: w.cfg.Logger, Traced: w.cfg.Tracer != nil,
	})
	if err != nil {
		return err
	}
	defer f.Close()
	w.feed = f
	topic, err := f.Topic(ctx)
	if err != nil {
		return err
	}
	if err := w.catchUp(ctx, topic, worked); err != nil {
		return err
	}
	if topic, err = f.Start(ctx, w.topicID, w.before); err != nil {
		return err
	}
	w.topicID = topic.ID
	w.begin(topic)
	worked()
	described := time.Now()
	for {
		if err := w.read(ctx, w.wait()); err != nil {
			return err
		}
		if w.due() {
			if err := w.write(ctx); err != nil {
				return err
			}
			worked()
		}
		if time.Since(described) > describeEvery {
			if _, err := f.Describe(ctx); err != nil {
				return err
			}
			described = time.Now()
		}
	}
}

// load reads where the table is.
func (w *writer) load(ctx context.Context) error {
	last, err := w.position(ctx, w.source, w.source.facts)
	if err != nil {
		return err
	}
	c, err := w.positionsAt(ctx, w.source, last)
	if err != nil {
		return err
	}
	w.last, w.before, w.topicID = last, c.after, c.topicID
	w.pending, w.facts, w.trace = map[int32]*pending{}, 0, nil
	return nil
}

// begin notes where partitions begin whose first records are gone, so that a claim has it although
// they may have no records.
func (w *writer) begin(topic fetch.Topic) {
	for p, log := range topic.Partitions {
		if _, ok := w.before[p]; !ok && log.Start > 0 {
			w.pending[p] = &pending{after: w.feed.Positions()[p]}
			w.started, w.latest = time.Now(), time.Now()
		}
	}
}

// read reads records for at most wait.
func (w *writer) read(ctx context.Context, wait time.Duration) error {
	batches, err := w.feed.Poll(ctx, wait)
	if err != nil {
		return err
	}
	for _, b := range batches {
		if len(w.pending) == 0 {
			w.started = time.Now()
		}
		p := w.pending[b.Partition]
		if p == nil {
			p = &pending{}
			w.pending[b.Partition] = p
		}
		if w.latest = time.Now(); w.facts == 0 {
			w.first = w.latest
		}
		p.facts, p.after = append(p.facts, b.Facts[w.Name]), b.After
		w.facts += len(b.Facts[w.Name])
		if w.trace == nil {
			w.trace = w.cfg.Tracer.Batch(tracing.Hop{Name: "apply", Sink: "features/" + w.source.facts.Name})
		}
		w.trace.Add(b.Traced...)
	}
	if len(batches) == 0 {
		return nil
	}
	return w.at(ctx, w.source.facts.Name, stepFetched)
}

// idleDelay is how long a topic must be idle before a batch is written early.
const idleDelay = 250 * time.Millisecond

// wait returns how long to wait for more records. It is not positive if a batch is due. Records
// without facts only move positions: they go with the next facts, once the topic has been idle for
// an interval, or after ten intervals.
func (w *writer) wait() time.Duration {
	switch {
	case len(w.pending) == 0:
		return time.Second
	case w.facts >= w.cfg.CommitFacts:
		return 0
	case w.facts == 0:
		idle, late := w.latest.Add(w.cfg.CommitInterval), w.started.Add(10*w.cfg.CommitInterval)
		return min(time.Until(idle), time.Until(late), time.Second)
	}
	due := w.first.Add(w.cfg.CommitInterval)
	soon := w.latest.Add(min(idleDelay, w.cfg.CommitInterval/2))
	if earliest := w.wrote.Add(w.cfg.CommitInterval / 2); soon.Before(earliest) {
		soon = earliest
	}
	if soon.Before(due) {
		due = soon
	}
	return time.Until(due)
}

func (w *writer) due() bool { return len(w.pending) > 0 && w.wait() <= 0 }

// write claims the next batch for what was read, and writes the one that counts.
func (w *writer) write(ctx context.Context) (err error) {
	w.trace.Begin()
	trace := w.trace
	defer func() { trace.End(err) }()
	w.trace = nil
	after := map[int32]feed.Position{}
	for p, read := range w.pending {
		after[p] = read.after
	}
	c, mine, err := w.claim(ctx, merged(w.before, after))
	if err != nil {
		return err
	}
	facts, err := w.take(ctx, c)
	if err != nil {
		return err
	}
	return w.commit(ctx, c, mine, facts)
}

// claim claims the next batch, up to some positions, and returns the claim that counts.
func (w *writer) claim(ctx context.Context, after map[int32]feed.Position) (c claim, mine bool, err error) {
	if err := w.at(ctx, w.source.facts.Name, stepClaim); err != nil {
		return claim{}, false, err
	}
	if c, mine, err = w.propose(ctx, w.source, w.last+1, w.topicID, after); err != nil {
		return claim{}, false, err
	}
	if err := w.at(ctx, w.source.facts.Name, stepClaimed); err != nil {
		return claim{}, false, err
	}
	if c.topicID != w.topicID {
		return claim{}, false, fmt.Errorf("%s: %w: its id is %s, batch %d belongs to %s", w.Topic, feed.ErrRecreated,
			w.topicID, c.batch, c.topicID)
	}
	return c, mine, nil
}

// commit writes a claimed batch, unless the process that has claimed it does.
func (w *writer) commit(ctx context.Context, c claim, mine bool, facts []features.Fact) error {
	done := false
	if !mine {
		var err error
		if done, err = w.leave(ctx, c); err != nil {
			return err
		}
	}
	if !done {
		if err := w.insert(ctx, c, facts); err != nil {
			return err
		}
	}
	w.last, w.before, w.wrote = c.batch, c.after, time.Now()
	w.recent.put(c.batch, facts)
	for _, t := range w.source.tiles {
		t.notify()
	}
	return nil
}

// take reads on until everything in the claim was read, and returns its facts.
func (w *writer) take(ctx context.Context, c claim) ([]features.Fact, error) {
	complete := func() bool {
		at := w.feed.Positions()
		for p, after := range c.after {
			if at[p].Next < after.Next {
				return false
			}
		}
		return true
	}
	for described := time.Now(); !complete(); {
		if err := w.read(ctx, time.Second); err != nil {
			return nil, err
		}
		if time.Since(described) > time.Second { // the claim may have a new partition
			if _, err := w.feed.Describe(ctx); err != nil {
				return nil, err
			}
			described = time.Now()
		}
	}
	facts := make([]features.Fact, 0, w.facts)
	w.facts = 0
	// In the order of the log, by partition, so that every writer writes the same batch.
	for _, p := range slices.Sorted(maps.Keys(w.pending)) {
		read, next := w.pending[p], c.after[p].Next
		var rest [][]features.Fact
		for _, part := range read.facts {
			n, _ := slices.BinarySearchFunc(part, next, func(f features.Fact, next int64) int {
				if f.Origin.Offset < next {
					return -1
				}
				return 1
			})
			if facts = append(facts, part[:n]...); n < len(part) {
				rest = append(rest, part[n:])
				w.facts += len(part) - n
			}
		}
		if read.facts = rest; read.after.Next <= next {
			delete(w.pending, p)
		}
	}
	return facts, nil
}

// leave waits a while for the batch of another process, which saves the work of writing it twice. It
// reports whether the other process has written it.
func (w *writer) leave(ctx context.Context, c claim) (done bool, err error) {
	for deadline := time.Now().Add(w.cfg.takeover - c.age); ; {
		last, err := w.position(ctx, w.source, w.source.facts)
		if err != nil || last >= c.batch {
			return last >= c.batch, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		if !backoff.Sleep(ctx, min(w.cfg.takeover/10, 200*time.Millisecond)) {
			return false, ctx.Err()
		}
	}
}

// insert writes a batch. Every step may have happened before.
func (w *writer) insert(ctx context.Context, c claim, facts []features.Fact) error {
	if err := w.insertFacts(ctx, c.batch, facts); err != nil {
		return err
	}
	if err := w.at(ctx, w.source.facts.Name, stepInserted); err != nil {
		return err
	}
	if err := w.insertCorrections(ctx, w.source, c.batch, facts); err != nil {
		return err
	}
	if err := w.at(ctx, w.source.facts.Name, stepCorrected); err != nil {
		return err
	}
	if err := w.setPosition(ctx, w.source, w.source.facts, c.batch); err != nil {
		return err
	}
	return w.at(ctx, w.source.facts.Name, stepPositioned)
}

// correctionRange is how much the times of two versions of a fact may differ. They should be equal,
// but copies of behaviour events are stamped by the clocks of two processes.
const correctionRange = int64(24 * time.Hour / time.Microsecond)

// factKey names a fact of a source.
type factKey struct{ entity, key string }

// insertCorrections inserts those facts of a batch that have earlier versions, or are retractions.
// The facts of the batch are in the table already.
func (h *History) insertCorrections(ctx context.Context, s *source, batch uint64, facts []features.Fact) error {
	times, err := h.corrected(ctx, s, batch, facts)
	if err != nil || len(times) == 0 {
		return err
	}
	b, err := h.cfg.Store.Batch(s.corrections, strconv.FormatUint(batch, 10))
	if err != nil {
		return err
	}
	for fact, ats := range times {
		slices.Sort(ats)
		for _, at := range slices.Compact(ats) {
			if err := b.Append(fact.entity, fact.key, time.UnixMicro(at).UTC()); err != nil {
				return err
			}
		}
	}
	if err := b.Send(ctx); err != nil {
		return fmt.Errorf("insert corrections: %w", err)
	}
	return nil
}

// corrected returns the facts of a batch that have several versions or a retraction, each with the
// times of its versions.
func (h *History) corrected(ctx context.Context, s *source, batch uint64, facts []features.Fact) (map[factKey][]int64, error) {
	if len(facts) == 0 {
		return nil, nil
	}
	// Reading only the months of the batch bounds the work.
	from, to := facts[0].At.UnixMicro(), facts[0].At.UnixMicro()
	mine := make(map[factKey]bool, len(facts)) // whether it has several versions, or a retraction
	for i := range facts {
		f := &facts[i]
		from, to = min(from, f.At.UnixMicro()), max(to, f.At.UnixMicro())
		key := factKey{f.Entity, f.Key}
		_, again := mine[key]
		mine[key] = again || f.Retracted
	}
	// Most facts have no earlier version. Looking for hashes, in facts of other batches only, costs a
	// fraction of grouping the versions of all facts. Facts of another key with the same hash are
	// recognised below.
	const hash = "cityHash64(entity, fact_key)"
	table := s.facts.FullName()
	rows, err := h.cfg.Store.Query(ctx, fmt.Sprintf("SELECT entity, fact_key, toUnixTimestamp64Micro(at) FROM %s "+
		"WHERE at >= %s AND at <= %s AND batch != %d AND %s IN (SELECT %s FROM %s WHERE at >= %s AND at <= %s AND batch = %d)",
		table, instantOf(from-correctionRange), instantOf(to+correctionRange), batch,
		hash, hash, table, instantOf(from), instantOf(to), batch))
	if err != nil {
		return nil, fmt.Errorf("look up corrected facts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	times := map[factKey][]int64{}
	for rows.Next() {
		var key factKey
		var at int64
		if err := rows.Scan(&key.entity, &key.key, &at); err != nil {
			return nil, fmt.Errorf("look up corrected facts: %w", err)
		}
		if _, ok := mine[key]; ok {
			mine[key], times[key] = true, append(times[key], at)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look up corrected facts: %w", err)
	}
	for i := range facts {
		f := &facts[i]
		if key := (factKey{f.Entity, f.Key}); mine[key] {
			times[key] = append(times[key], f.At.UnixMicro())
		}
	}
	return times, nil
}
