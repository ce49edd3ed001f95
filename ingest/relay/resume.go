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

// resume asks the log where to go on, and the store whether the log is its own. Only after Init: no transaction of this
// relay is open then.
//
// A mark counts where it is signed with the store's secret, and the store has the event it names. The log must be the
// mark's, too: the same topic, and no shorter than it was; or one that has all that it had. What the log has since the
// mark's base is then compared with the store event by event: a record is an event where the store knows it, and
// anything else is a stray, which is put aside. So a stray record, or mark, moves nothing.
//
// Kafka shows a transaction whole or not at all. The embedded broker writes one partition's outcome after the other,
// and a kill in between leaves the transaction in some partitions only. Events of the last transaction that the log
// lacks are published again; one before it was acknowledged whole, and where the log lacks events of those it has lost
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
		// Only the log tells whether a mark without an identity is right.
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
	if seen.newest.ID != uuid.Nil && (m == nil || !m.identified() || m.epoch != l.epoch || l.hidden) {
		p.renew = &seen.newest
	}
	r.report(func(p *Progress) {
		p.Position, p.RecordedAt, p.Live = seen.newest.Position, seen.newest.RecordedAt, true
		p.Strays += l.strays.count + seen.strays.count
	})
	return p, nil
}

// lookout is what a relay sees of both sides when it comes.
type lookout struct {
	*Relay
	admin *kafka.Admin
	topic string

	epoch      string
	secret     []byte
	info       kafka.TopicInfo
	begin, end map[int32]int64

	strays  strays          // on the positions
	hidden  bool            // the last position record is a stray, which compaction would keep instead of the mark
	written map[int32]int64 // up to where the positions are written, committed or not
	hides   bool            // another relay's open transaction hides positions of this one
}

func (r *Relay) known(ctx context.Context, events []event.Event) ([]bool, error) {
	return within(ctx, func(ctx context.Context) ([]bool, error) { return r.cfg.Store.Known(ctx, events) })
}

func (r *Relay) read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	return within(ctx, func(ctx context.Context) ([]event.Event, error) { return r.cfg.Store.Read(ctx, after, limit) })
}

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

// readFrom reads what the log has since a mark, after it has seen that it is the mark's log; without a mark, all.
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
	// A mark of an earlier version: as far back as every partition has an event from before it.
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

// readWhole reads the whole log after compareLog has failed with changed. It returns changed unless the log has every
// event up to the mark: a topic that was restored completely under another id is as good as the old one.
func (l *lookout) readWhole(ctx context.Context, m *mark, changed error) (*found, error) {
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

// reaches reports whether each partition was read from its beginning, or from an event that is not after a position.
func (l *lookout) reaches(seen *found, at event.Position) bool {
	for p, floor := range seen.floors {
		lowest, ok := seen.lowest[int32(p)]
		if floor > l.begin[int32(p)] && (!ok || lowest.Compare(at) > 0) {
			return false
		}
	}
	return true
}

// compareLog checks that the log is the one which a mark was made on.
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

func (l *lookout) remedy() string {
	return fmt.Sprintf("stop Millrace and bring the topic back, or run `millrace rebuild --service %s`, which makes the log and all that is read from it anew from the store",
		l.cfg.Aggregate.Service)
}

// cutAt tells the partitions whose log begins after their floor.
func (l *lookout) cutAt(floors []int64) map[int32]bool {
	cut := map[int32]bool{}
	for p, floor := range floors {
		if l.begin[int32(p)] > floor {
			cut[int32(p)] = true
		}
	}
	return cut
}

// compareStore checks that the store has what its relay has published. Events alone do not tell: an unknown one may be
// a stray. A mark that is signed with the store's secret, on this topic, and names an event which the store does not
// have, was made by a relay of a store which had it. So was one that is not signed, where no other is and its event
// stands on the log: of an earlier version, or of a store that this one has replaced. Where the store may have lost
// something, any unknown event up to the mark counts.
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

func (l *lookout) behind(e event.Event) error {
	return fmt.Errorf("%w: topic %s has event %s (version %d of stream %q, position %s), which was published from this store and which the store does not have: "+
		"it was lost, restored from a backup, or is another one. Stop Millrace and bring the newest store back; "+
		"or, to go on with what the store has, run `millrace rebuild --service %s`, which makes the log and all that is read from it anew",
		ErrStoreBehind, l.topic, e.ID, e.Version, e.Stream, e.Position, l.cfg.Aggregate.Service)
}

// complete checks that the log has all events from the base up to where the last transaction began.
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

// markAt is a mark on the positions topic.
type markAt struct {
	mark
	at kafka.Message
}

// findMark finds the last mark of the service: the highest of those that are signed and that the store confirms, if
// possible of this topic; else the highest one without a signature that the store confirms; nil where there is none. It
// gives those that the store does not confirm, too, of which the newest thousand.
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
		last, signed := -1, -1 // places of best and of the first that is signed
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
		since := last // those of an earlier version come first
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

// precedes reports whether b is a better mark than a, of those that the store confirms.
func (l *lookout) precedes(a, b mark) bool {
	if a.identified() != b.identified() {
		return b.identified()
	}
	if hereA, hereB := a.topicID == l.info.ID, b.topicID == l.info.ID; hereA != hereB {
		return hereB
	}
	return a.to.Compare(b.to) <= 0
}

// confirm asks the store for the events that marks name; for one of an earlier version, for any event at its position.
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
	// Those without an identity are confirmed from the last one on, as far as the first that is right.
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

func indexes[T any](s []T) []int {
	out := make([]int, len(s))
	for i := range out {
		out[i] = i
	}
	return out
}

// before is the last position before another, which is not zero.
func before(p event.Position) event.Position {
	if p.Sequence > 0 {
		return event.Position{Transaction: p.Transaction, Sequence: p.Sequence - 1}
	}
	return event.Position{Transaction: p.Transaction - 1, Sequence: math.MaxInt64}
}
