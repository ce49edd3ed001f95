package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// resume determines where to continue, and checks that log and store belong together. It must run
// after Init: then no transaction of this relay is open.
//
// It takes four steps:
//
//   - Find the last mark (checkpoint) that is signed with the store's secret and whose event the
//     store has.
//   - Check that the log is the mark's: the same topic, and no shorter than it was. A topic with
//     another id also passes if it has every event.
//   - Read the log since the mark's base and compare it with the store, event by event. A record is
//     an event if the store knows it. Anything else is a stray, which is put aside. So a stray
//     record or mark changes nothing.
//   - Check that the log has every event of the transactions before the last one.
//
// Kafka makes a transaction visible completely or not at all. The embedded broker writes the
// outcome to one partition after the other, so a kill can leave a transaction in some partitions
// only. Therefore events of the last transaction that the log lacks are published again. Earlier
// transactions were acknowledged as a whole. If the log lacks any of their events, it has lost
// them.
func (r *Relay) resume(ctx context.Context, a *kafka.Admin) (p *place, err error) {
	l := &lookout{Relay: r, admin: a, topic: r.cfg.Aggregate.Topic}
	if err := l.look(ctx); err != nil {
		return nil, err
	}
	m, doubted, err := l.findMark(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := l.readFrom(ctx, m)
	if l.hides && (errors.Is(err, ErrLogChanged) || err == nil && !l.suffices(m, seen)) {
		if err := l.awaitMarks(ctx); err != nil {
			return nil, err
		}
		if m, doubted, err = l.findMark(ctx); err != nil {
			return nil, err
		}
		seen, err = l.readFrom(ctx, m)
	}
	if errors.Is(err, ErrLogChanged) {
		seen, err = l.readWhole(ctx, m, err)
		m = nil
	}
	if err != nil {
		return nil, err
	}
	if m != nil && !m.identified() && !seen.has(m.to) {
		// A mark without a signature could be forged. Only the log can confirm it, and here it does
		// not have the mark's event: ignore the mark and read the whole log.
		doubted, m = append(doubted, *m), nil
		if seen, err = l.readFrom(ctx, nil); err != nil {
			return nil, err
		}
	}
	if err := l.compareStore(m, doubted, seen); err != nil {
		return nil, err
	}
	p = &place{epoch: l.epoch, secret: l.secret, topicID: l.info.ID, partitions: seen.partitions, floors: seen.floors,
		published: seen.events, highest: seen.highest, compared: time.Now()}
	if m != nil {
		p.base = m.from
		if m.identified() {
			p.base = m.base
		}
		// Where retention deleted records behind the floor, the log cannot prove what it had. The
		// mark does: transactions are complete up to it.
		if p.cut = l.cutAt(seen.floors); len(p.cut) > 0 {
			p.cutAt = m.to
			if seen.newest.Position.Compare(m.to) < 0 {
				seen.newest = m.last()
			}
			r.log.Warn("relay: records were deleted from the beginning of the log; what it had is taken from the last position",
				"topic", l.topic, "partitions", len(p.cut))
		}
		if err := l.complete(ctx, p, m.from); err != nil {
			return nil, err
		}
	}
	// Continue at the base, not at the mark. Events on the log are skipped, and events that the
	// last transaction lacks are published.
	p.after = p.base
	if p.seals, err = l.sealing(ctx, m, m != nil || len(seen.events) > 0); err != nil {
		return nil, err
	}
	if int(l.info.Partitions) > int(p.partitions) {
		r.log.Warn("relay: the topic has more partitions than its keys are spread over, because it was widened; "+
			"keys stay where they are, as their events would lose their order", "topic", l.topic, "partitions", l.info.Partitions, "used", p.partitions)
	}
	r.putAside(ctx, l.strays)
	r.putAside(ctx, seen.strays)
	// The newest mark must identify this store and topic, and be the last record under its key.
	// Compaction would otherwise keep a stray and delete the mark.
	if seen.newest.ID != uuid.Nil && (m == nil || !m.identified() || m.epoch != l.epoch || l.hidden) {
		p.renew = &seen.newest
	}
	r.report(func(p *Progress) {
		p.Position, p.RecordedAt, p.Live = seen.newest.Position, seen.newest.RecordedAt, true
		p.Strays += l.strays.count + seen.strays.count
	})
	return p, nil
}

// lookout is what a relay sees of log and store when it resumes, or when it checks its topic.
type lookout struct {
	*Relay
	admin *kafka.Admin
	topic string

	// look reads these.
	epoch      string
	secret     []byte
	info       kafka.TopicInfo
	begin, end map[int32]int64

	strays strays // found on PositionsTopic
	hidden bool   // the service's last record is a stray, and compaction would keep it
	// written is where PositionsTopic ends, committed or not. hides reports whether another relay's
	// open transaction hides some of this service's records before that.
	written map[int32]int64
	hides   bool
}

// known reports for each event whether the store has it.
func (r *Relay) known(ctx context.Context, events []event.Event) ([]bool, error) {
	return within(ctx, func(ctx context.Context) ([]bool, error) { return r.cfg.Store.Known(ctx, events) })
}

// read returns at most limit events after a position.
func (r *Relay) read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	return within(ctx, func(ctx context.Context) ([]event.Event, error) { return r.cfg.Store.Read(ctx, after, limit) })
}

// look reads the store's epoch and secret, and the topic's id and offsets. It uses high watermarks,
// because a record behind another relay's open transaction is on the log too.
func (l *lookout) look(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer cancel()
	if l.epoch, err = l.cfg.Store.Epoch(ctx); err != nil {
		return err
	}
	if l.secret, err = l.cfg.Store.Secret(ctx); err != nil {
		return err
	}
	if l.info, err = l.admin.Topic(ctx, l.topic); err != nil {
		return err
	}
	if l.begin, err = l.admin.StartOffsets(ctx, l.topic); err != nil {
		return err
	}
	l.end, err = l.admin.HighWatermarks(ctx, l.topic)
	return err
}

// readFrom reads the log since the base of a mark, after checking that it is the mark's log.
// Without a mark it reads everything.
func (l *lookout) readFrom(ctx context.Context, m *mark) (*found, error) {
	switch {
	case m == nil:
		floors := make([]int64, l.info.Partitions)
		for p := range floors {
			floors[p] = l.begin[int32(p)]
		}
		return l.scan(ctx, floors, 0)
	case m.identified():
		if err := l.compareLog(m); err != nil {
			return nil, err
		}
		return l.scan(ctx, m.floors, m.partitions)
	}
	// A mark of an earlier version has no base. Read backwards in growing windows until every
	// partition has an event from before the mark's transaction.
	for window := int64(100); ; window *= 10 {
		floors := make([]int64, l.info.Partitions)
		for p := range floors {
			floors[p] = max(l.begin[int32(p)], l.end[int32(p)]-window)
		}
		seen, err := l.scan(ctx, floors, 0)
		if err != nil || l.reaches(seen, m.from) {
			return seen, err
		}
	}
}

// readWhole reads the whole log after compareLog failed with changed. A topic that was restored
// completely under another id is as good as the old one, so readWhole accepts the log if it has
// every event up to the mark. Otherwise it returns changed.
func (l *lookout) readWhole(ctx context.Context, m *mark, changed error) (*found, error) {
	// A log whose beginning is deleted cannot be shown to be complete.
	for _, begin := range l.begin {
		if begin > 0 {
			return nil, changed
		}
	}
	seen, err := l.readFrom(ctx, nil)
	if err != nil {
		return nil, err
	}
	err = l.complete(ctx, &place{published: seen.events, partitions: seen.partitions}, m.to)
	if errors.Is(err, ErrLogChanged) {
		return nil, changed
	}
	if err != nil {
		return nil, err
	}
	l.log.Warn("relay: the log is another one, and has all that was published; going on", "topic", l.topic, "up to", m.to, "was", changed)
	return seen, nil
}

// reaches reports whether each partition was read from its beginning, or has an event that was read
// and is not after a position.
func (l *lookout) reaches(seen *found, at event.Position) bool {
	for p, floor := range seen.floors {
		lowest, ok := seen.lowest[int32(p)]
		if floor > l.begin[int32(p)] && (!ok || lowest.Compare(at) > 0) {
			return false
		}
	}
	return true
}

// compareLog returns ErrLogChanged if the log is not the one that the mark belongs to: if its id
// differs, or if it has fewer partitions or records.
func (l *lookout) compareLog(m *mark) error {
	if m.topicID != "" && l.info.ID != "" && m.topicID != l.info.ID {
		return fmt.Errorf("%w: topic %s was deleted and made again (its id was %s and is %s) after events up to %s had been published: %s",
			ErrLogChanged, l.topic, m.topicID, l.info.ID, m.to, l.remedy())
	}
	if l.info.Partitions < m.partitions {
		return fmt.Errorf("%w: topic %s has %d partitions, and had %d: %s", ErrLogChanged, l.topic, l.info.Partitions, m.partitions, l.remedy())
	}
	for p, floor := range m.floors {
		if end := l.end[int32(p)]; end < floor {
			return fmt.Errorf("%w: topic %s, partition %d ends at offset %d, and had come to %d: %s", ErrLogChanged, l.topic, p, end, floor, l.remedy())
		}
	}
	return nil
}

// remedy returns what an operator can do about a changed log.
func (l *lookout) remedy() string {
	return fmt.Sprintf("stop Millrace and bring the topic back, or run `millrace rebuild --service %s`, which makes the log and all that is read from it anew from the store",
		l.cfg.Aggregate.Service)
}

// cutAt returns the partitions whose log begins after their floor, because retention deleted
// records.
func (l *lookout) cutAt(floors []int64) map[int32]bool {
	cut := map[int32]bool{}
	for p, floor := range floors {
		if l.begin[int32(p)] > floor {
			cut[int32(p)] = true
		}
	}
	return cut
}

// compareStore returns ErrStoreBehind if the log has events that this store published and no longer
// has.
//
// An unknown event alone proves nothing, since it may be a stray. These do:
//
//   - A mark that is signed with the store's secret, on this topic, and names an event that the
//     store lacks. Only a relay of a store that had the event could sign it.
//   - A mark without a signature, if no confirmed mark has one and its event is on the log. An
//     earlier version wrote it, or a store that this one has replaced.
//   - Any unknown event up to the mark, if the store's epoch has changed. Then the store may have
//     lost events.
func (l *lookout) compareStore(m *mark, doubted []mark, seen *found) error {
	for _, d := range doubted {
		if d.identified() {
			if d.topicID == l.info.ID {
				return l.behind(d.last())
			}
			continue // of a topic that no longer exists
		}
		if m != nil && m.identified() {
			continue
		}
		for _, s := range seen.unknown {
			if d.to == s.Position {
				return l.behind(s)
			}
		}
	}
	if m == nil || !m.identified() || m.epoch == l.epoch {
		return nil
	}
	for _, s := range seen.unknown {
		if s.Position.Compare(m.to) <= 0 {
			return l.behind(s)
		}
	}
	l.log.Warn("relay: the store has another epoch, after a failover or a restore; it has all that is on the log",
		"epoch", l.epoch, "before", m.epoch, "compared", len(seen.events))
	return nil
}

// behind returns the error for an event that the store lacks.
func (l *lookout) behind(e event.Event) error {
	return fmt.Errorf("%w: topic %s has event %s (version %d of stream %q, position %s), which was published from this store and which the store does not have: "+
		"it was lost, restored from a backup, or is another one. Stop Millrace and bring the newest store back; "+
		"or, to go on with what the store has, run `millrace rebuild --service %s`, which makes the log and all that is read from it anew",
		ErrStoreBehind, l.topic, e.ID, e.Version, e.Stream, e.Position, l.cfg.Aggregate.Service)
}

// complete checks that the log has all events after the base and up to a position. It returns
// ErrLogChanged if it lacks one.
func (l *lookout) complete(ctx context.Context, p *place, upTo event.Position) error {
	for after := p.base; after.Compare(upTo) < 0; {
		events, err := l.read(ctx, after, knownAtOnce)
		if err != nil {
			return fmt.Errorf("read the store after %s: %w", after, err)
		}
		if len(events) == 0 {
			return nil
		}
		for _, e := range events {
			if e.Position.Compare(upTo) <= 0 && !p.has(e) {
				return fmt.Errorf("%w: topic %s lacks event %s (version %d of stream %q, position %s), which was published: %s",
					ErrLogChanged, l.topic, e.ID, e.Version, e.Stream, e.Position, l.remedy())
			}
		}
		after = events[len(events)-1].Position
	}
	return nil
}

// markAt is a mark and the record that it was read from.
type markAt struct {
	mark
	at kafka.Message
}

// findMark returns the best mark of the service, or nil if there is none. A mark counts only if the
// store confirms its event. Signed marks precede unsigned ones, marks of this topic precede others,
// and then the highest wins. doubted are marks that the store does not confirm, at most the newest
// thousand.
//
// It reads backwards in growing windows, because the last mark is usually among the last records.
// It stops at a signed and confirmed mark, or at the beginning of the topic. It also sets strays,
// hidden, written and hides.
func (l *lookout) findMark(ctx context.Context) (best *mark, doubted []mark, err error) {
	begin, err := within(ctx, func(ctx context.Context) (map[int32]int64, error) { return l.admin.StartOffsets(ctx, PositionsTopic) })
	if err != nil {
		return nil, nil, err
	}
	l.written, err = within(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return l.admin.HighWatermarks(ctx, PositionsTopic)
	})
	if err != nil {
		return nil, nil, err
	}
	// Another relay's open transaction, which may outlive it by half a minute, hides what is behind it. An older mark
	// may suffice.
	to, err := within(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return l.admin.EndOffsets(ctx, PositionsTopic)
	})
	if err != nil {
		return nil, nil, err
	}
	l.hides = false
	err = kafka.ReadUncommitted(ctx, l.cfg.Kafka, PositionsTopic, to, l.written, func(m kafka.Message) error {
		l.hides = l.hides || string(m.Key) == l.cfg.Aggregate.Service
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for window := int64(100); ; window *= 10 {
		from, whole := map[int32]int64{}, true
		for p, end := range to {
			from[p] = max(begin[p], end-window)
			whole = whole && from[p] == begin[p]
		}
		var marks []markAt
		newest := int64(-1)
		l.strays = strays{}
		err := kafka.ReadAll(ctx, l.cfg.Kafka, PositionsTopic, from, to, func(m kafka.Message) error {
			if string(m.Key) != l.cfg.Aggregate.Service {
				return nil
			}
			newest = m.Offset
			parsed, err := parseMark(m, l.secret)
			if err != nil {
				l.strays.add(m, fmt.Errorf("not a position of a relay: %w", err))
				return nil
			}
			marks = append(marks, markAt{parsed, m})
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		confirmed, err := l.confirm(ctx, marks)
		if err != nil {
			return nil, nil, err
		}
		last, signed := -1, -1 // indexes of best and of the first signed mark
		for i, m := range marks {
			if m.identified() && signed < 0 {
				signed = i
			}
			if !confirmed[i] {
				doubted = append(doubted, m.mark)
			} else if best == nil || l.precedes(*best, m.mark) {
				best, last = &m.mark, i
			}
		}
		since := last // unsigned marks of an earlier version precede the first signed one
		if signed >= 0 {
			since = signed
		}
		for i, m := range marks {
			switch {
			case m.identified() && !confirmed[i]:
				l.strays.add(m.at, errors.New("a position of an event that the store does not have"))
			case !m.identified() && i > since:
				l.strays.add(m.at, errors.New("a position that is not signed with the store's secret"))
			}
		}
		if best != nil {
			l.hidden = newest > marks[last].at.Offset
		}
		if best != nil && best.identified() || whole {
			return best, doubted[max(0, len(doubted)-mostStrays):], nil
		}
		best, doubted = nil, nil
	}
}

// suffices reports whether a mark will do although newer ones may be hidden: it is of this topic and this store, and
// the log has no more than it and the store explain. Otherwise the newest mark decides: the topic may have been made
// again or cut since, and events that the store does not have may be lost ones or strays.
func (l *lookout) suffices(m *mark, seen *found) bool {
	return m != nil && m.identified() && m.topicID == l.info.ID && m.epoch == l.epoch &&
		len(seen.unknown) == 0 && len(l.cutAt(seen.floors)) == 0
}

// awaitMarks waits until every position that was written before can be read. All of this relay's own are among them:
// its transactions have ended, and no other relay of the service writes. Brokers end a dead relay's transaction after
// its timeout, 30 s.
func (l *lookout) awaitMarks(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer cancel()
	l.log.Warn("relay: waiting for the end of another relay's transaction, which hides where this relay was",
		"topic", PositionsTopic)
	for {
		readable, err := l.admin.EndOffsets(ctx, PositionsTopic)
		if err != nil {
			return err
		}
		behind := false
		for p, end := range l.written {
			behind = behind || readable[p] < end
		}
		if !behind {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another relay's open transaction on %s hides where this relay was: %w",
				PositionsTopic, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// precedes reports whether b is at least as good a mark as a. The store confirms both.
func (l *lookout) precedes(a, b mark) bool {
	if a.identified() != b.identified() {
		return b.identified()
	}
	if hereA, hereB := a.topicID == l.info.ID, b.topicID == l.info.ID; hereA != hereB {
		return hereB
	}
	return a.to.Compare(b.to) <= 0
}

// confirm reports for each mark whether the store has its event. A mark of an earlier version names
// only a position, so any event at that position confirms it.
func (l *lookout) confirm(ctx context.Context, marks []markAt) ([]bool, error) {
	confirmed := make([]bool, len(marks))
	for chunk := range slices.Chunk(indexes(marks), knownAtOnce) {
		events := make([]event.Event, len(chunk))
		for i, at := range chunk {
			events[i] = marks[at].last()
		}
		known, err := l.known(ctx, events)
		if err != nil {
			return nil, err
		}
		for i, at := range chunk {
			confirmed[at] = known[i]
		}
	}
	// Marks without an identity are checked from the last one backwards, each with a read of its
	// own. The first that is confirmed suffices.
	for i := len(marks) - 1; i >= 0; i-- {
		if marks[i].identified() || marks[i].to.IsZero() {
			continue
		}
		events, err := l.read(ctx, before(marks[i].to), 1)
		if err != nil {
			return nil, fmt.Errorf("look for the event at %s: %w", marks[i].to, err)
		}
		if confirmed[i] = len(events) == 1 && events[0].Position == marks[i].to; confirmed[i] {
			break
		}
	}
	return confirmed, nil
}

// indexes returns 0 to len(s)-1.
func indexes[T any](s []T) []int {
	out := make([]int, len(s))
	for i := range out {
		out[i] = i
	}
	return out
}

// before returns the last position before p, which must not be zero.
func before(p event.Position) event.Position {
	if p.Sequence > 0 {
		return event.Position{Transaction: p.Transaction, Sequence: p.Sequence - 1}
	}
	return event.Position{Transaction: p.Transaction - 1, Sequence: math.MaxInt64}
}
