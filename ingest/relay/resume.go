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
//   - Find the last checkpoint that is signed with the store's secret and whose event the store has.
//   - Check that the log is the checkpoint's: the same topic, and no shorter than it was. A topic
//     with another id also passes if it has every event.
//   - Read the log since the checkpoint's base and compare it with the store, event by event. A
//     record is an event if the store has it. Any other record is invalid and becomes a dead letter.
//     So a forged record or checkpoint changes nothing.
//   - Check that the log has every event of the transactions before the last one.
//
// Kafka makes a transaction visible completely or not at all. The embedded broker writes the
// outcome to one partition after the other, so a kill can leave a transaction in some partitions
// only. Therefore events of the last transaction that the log lacks are published again. Earlier
// transactions were acknowledged as a whole. If the log lacks any of their events, it has lost
// them.
func (r *Relay) resume(ctx context.Context, a *kafka.Admin) (p *session, err error) {
	in := &inspector{Relay: r, admin: a, topic: r.cfg.Aggregate.Topic}
	if err := in.load(ctx); err != nil {
		return nil, err
	}
	c, unconfirmed, err := in.findCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := in.readFrom(ctx, c)
	// Newer checkpoints may be hidden. Wait for them only if this one does not explain the log.
	if in.openTransaction && (errors.Is(err, ErrLogChanged) || err == nil && !in.isSufficient(c, seen)) {
		if err := in.awaitCheckpoints(ctx); err != nil {
			return nil, err
		}
		if c, unconfirmed, err = in.findCheckpoint(ctx); err != nil {
			return nil, err
		}
		seen, err = in.readFrom(ctx, c)
	}
	if errors.Is(err, ErrLogChanged) {
		seen, err = in.readEntireLog(ctx, c, err)
		c = nil
	}
	if err != nil {
		return nil, err
	}
	if c != nil && !c.identified() && !seen.has(c.to) {
		// A checkpoint without a signature could be forged. Only the log can confirm it, and here it
		// does not have the checkpoint's event: ignore the checkpoint and read the whole log.
		unconfirmed, c = append(unconfirmed, *c), nil
		if seen, err = in.readFrom(ctx, nil); err != nil {
			return nil, err
		}
	}
	if err := in.compareStore(c, unconfirmed, seen); err != nil {
		return nil, err
	}
	p = &session{
		epoch: in.epoch, secret: in.secret, topicID: in.info.ID, topicChecked: time.Now(),
		partitions: seen.partitions, floors: seen.floors, published: seen.events, highest: seen.highest,
	}
	if c != nil {
		p.base = c.from
		if c.identified() {
			p.base = c.base
		}
		// Where retention deleted records behind the floor, the log cannot show which events it had.
		// The checkpoint can: transactions are complete up to it.
		if p.truncated = in.truncatedPartitions(seen.floors); len(p.truncated) > 0 {
			p.truncatedUpTo = c.to
			if seen.newest.Position.Compare(c.to) < 0 {
				seen.newest = c.last()
			}
			r.log.Warn("relay: retention deleted unverified records from the log; relying on the last checkpoint for them",
				"topic", in.topic, "partitions", len(p.truncated))
		}
		if err := in.checkComplete(ctx, p, c.from); err != nil {
			return nil, err
		}
	}
	// Continue at the base, not at the checkpoint. Events on the log are skipped, and events that
	// the last transaction lacks are published.
	p.after = p.base
	if p.seals, err = in.loadAnnouncements(ctx, c, c != nil || len(seen.events) > 0); err != nil {
		return nil, err
	}
	if int(in.info.Partitions) > int(p.partitions) {
		r.log.Warn("relay: the topic was widened; keys remain in their old partitions to keep events in order",
			"topic", in.topic, "partitions", in.info.Partitions, "used", p.partitions)
	}
	r.writeDeadLetters(ctx, in.invalid)
	r.writeDeadLetters(ctx, seen.invalid)
	// The newest checkpoint must identify this store and topic, and be the last record under its
	// key. Otherwise compaction would keep an invalid record and delete the checkpoint.
	if seen.newest.ID != uuid.Nil && (c == nil || !c.identified() || c.epoch != in.epoch || in.invalidLast) {
		p.renew = &seen.newest
	}
	r.report(func(p *Progress) {
		p.Position, p.RecordedAt, p.Live = seen.newest.Position, seen.newest.RecordedAt, true
		p.InvalidRecords += in.invalid.count + seen.invalid.count
	})
	return p, nil
}

// inspector reads the log and the store, for a relay that resumes or checks its topic. It holds what
// it has read, so one inspector serves one inspection.
type inspector struct {
	*Relay
	admin *kafka.Admin
	topic string

	// load reads these.
	epoch      string
	secret     []byte
	info       kafka.TopicInfo
	begin, end map[int32]int64

	invalid     invalidRecords // found on PositionsTopic
	invalidLast bool           // the service's last record is invalid, and compaction would keep it

	// highWatermarks are the ends of PositionsTopic, committed or not. openTransaction reports
	// whether another relay's open transaction hides records of this service before them.
	highWatermarks  map[int32]int64
	openTransaction bool
}

// storeHas reports for each event whether the store has it.
func (r *Relay) storeHas(ctx context.Context, events []event.Event) ([]bool, error) {
	return withTimeout(ctx, func(ctx context.Context) ([]bool, error) { return r.cfg.Store.Known(ctx, events) })
}

// readStore returns at most limit events after a position.
func (r *Relay) readStore(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	return withTimeout(ctx, func(ctx context.Context) ([]event.Event, error) {
		return r.cfg.Store.Read(ctx, after, limit)
	})
}

// load reads the store's epoch and secret, and the topic's id and offsets. It uses high watermarks,
// because a record behind another relay's open transaction is on the log too.
func (in *inspector) load(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer cancel()
	if in.epoch, err = in.cfg.Store.Epoch(ctx); err != nil {
		return err
	}
	if in.secret, err = in.cfg.Store.Secret(ctx); err != nil {
		return err
	}
	if in.info, err = in.admin.Topic(ctx, in.topic); err != nil {
		return err
	}
	if in.begin, err = in.admin.StartOffsets(ctx, in.topic); err != nil {
		return err
	}
	in.end, err = in.admin.HighWatermarks(ctx, in.topic)
	return err
}

// readFrom reads the log since the base of a checkpoint, after checking that it is the checkpoint's
// log. Without a checkpoint it reads everything.
func (in *inspector) readFrom(ctx context.Context, c *checkpoint) (*scanResult, error) {
	switch {
	case c == nil:
		floors := make([]int64, in.info.Partitions)
		for p := range floors {
			floors[p] = in.begin[int32(p)]
		}
		return in.scan(ctx, floors, 0)
	case c.identified():
		if err := in.compareLog(c); err != nil {
			return nil, err
		}
		return in.scan(ctx, c.floors, c.partitions)
	}
	// A checkpoint of an earlier version has no base. Read backwards in growing windows until every
	// partition has an event from before the checkpoint's transaction.
	for window := int64(100); ; window *= 10 {
		floors := make([]int64, in.info.Partitions)
		for p := range floors {
			floors[p] = max(in.begin[int32(p)], in.end[int32(p)]-window)
		}
		seen, err := in.scan(ctx, floors, 0)
		if err != nil || in.covers(seen, c.from) {
			return seen, err
		}
	}
}

// readEntireLog reads the whole log after compareLog failed with changed. A topic that was restored
// completely under another id is as good as the old one, so readEntireLog accepts the log if it has
// every event up to the checkpoint. Otherwise it returns changed.
func (in *inspector) readEntireLog(ctx context.Context, c *checkpoint, changed error) (*scanResult, error) {
	// A log whose beginning is deleted cannot be shown to be complete.
	for _, begin := range in.begin {
		if begin > 0 {
			return nil, changed
		}
	}
	seen, err := in.readFrom(ctx, nil)
	if err != nil {
		return nil, err
	}
	err = in.checkComplete(ctx, &session{published: seen.events, partitions: seen.partitions}, c.to)
	if errors.Is(err, ErrLogChanged) {
		return nil, changed
	}
	if err != nil {
		return nil, err
	}
	in.log.Warn("relay: the topic was replaced but has every published event; resuming",
		"topic", in.topic, "up to", c.to, "change", changed)
	return seen, nil
}

// covers reports whether a scan reaches back to a position: each partition was read from its
// beginning, or an event that was read from it is not after the position.
func (in *inspector) covers(seen *scanResult, at event.Position) bool {
	for p, floor := range seen.floors {
		lowest, ok := seen.lowest[int32(p)]
		if floor > in.begin[int32(p)] && (!ok || lowest.Compare(at) > 0) {
			return false
		}
	}
	return true
}

// compareLog returns ErrLogChanged if the log is not the one that the checkpoint belongs to: if its
// id differs, or if it has fewer partitions or records.
func (in *inspector) compareLog(c *checkpoint) error {
	if c.topicID != "" && in.info.ID != "" && c.topicID != in.info.ID {
		return fmt.Errorf("%w: topic %s was deleted and recreated after events up to %s were published (id %s, was %s): %s",
			ErrLogChanged, in.topic, c.to, in.info.ID, c.topicID, in.remedy())
	}
	if in.info.Partitions < c.partitions {
		return fmt.Errorf("%w: topic %s has %d partitions, but had %d: %s",
			ErrLogChanged, in.topic, in.info.Partitions, c.partitions, in.remedy())
	}
	for p, floor := range c.floors {
		if end := in.end[int32(p)]; end < floor {
			return fmt.Errorf("%w: partition %d of topic %s ends at offset %d, but ended at %d before: %s",
				ErrLogChanged, p, in.topic, end, floor, in.remedy())
		}
	}
	return nil
}

// remedy returns the advice for an operator about a changed log.
func (in *inspector) remedy() string {
	return fmt.Sprintf("stop Millrace and restore the topic, or run `millrace rebuild --service %s`, "+
		"which rebuilds the topic, its views and its tables from the store", in.cfg.Aggregate.Service)
}

// truncatedPartitions returns the partitions whose log begins after their floor, because retention
// deleted records.
func (in *inspector) truncatedPartitions(floors []int64) map[int32]bool {
	truncated := map[int32]bool{}
	for p, floor := range floors {
		if in.begin[int32(p)] > floor {
			truncated[int32(p)] = true
		}
	}
	return truncated
}

// compareStore returns ErrStoreBehind if the log has events that this store published and no longer
// has.
//
// An unknown event alone proves nothing, since it may be forged. These do:
//
//   - A checkpoint that is signed with the store's secret, on this topic, and names an event that
//     the store lacks. Only a relay of a store that had the event could sign it.
//   - A checkpoint without a signature, if no confirmed checkpoint has one and its event is on the
//     log. An earlier version wrote it, or the relay of a store that this one has replaced.
//   - Any unknown event up to the checkpoint, if the store's epoch has changed. Then the store may
//     have lost events.
func (in *inspector) compareStore(c *checkpoint, unconfirmed []checkpoint, seen *scanResult) error {
	for _, d := range unconfirmed {
		if d.identified() {
			if d.topicID == in.info.ID {
				return in.storeBehind(d.last())
			}
			continue // of a topic that no longer exists
		}
		if c != nil && c.identified() {
			continue
		}
		for _, s := range seen.unknown {
			if d.to == s.Position {
				return in.storeBehind(s)
			}
		}
	}
	if c == nil || !c.identified() || c.epoch == in.epoch {
		return nil
	}
	for _, s := range seen.unknown {
		if s.Position.Compare(c.to) <= 0 {
			return in.storeBehind(s)
		}
	}
	in.log.Warn("relay: the store failed over or was restored; it has every event that is on the log",
		"epoch", in.epoch, "previous_epoch", c.epoch, "compared", len(seen.events))
	return nil
}

// storeBehind returns the error for an event that the store lacks.
func (in *inspector) storeBehind(e event.Event) error {
	return fmt.Errorf("%w: topic %s has event %s (version %d of stream %q, position %s), "+
		"which was published from this store and which the store does not have: "+
		"the store lost it, was restored from a backup, or was replaced. Stop Millrace and restore the newest store; "+
		"or, to continue with the events that the store has, run `millrace rebuild --service %s`, "+
		"which rebuilds the topic, its views and its tables",
		ErrStoreBehind, in.topic, e.ID, e.Version, e.Stream, e.Position, in.cfg.Aggregate.Service)
}

// checkComplete checks that the log has all events after the base and up to a position. It returns
// ErrLogChanged if it lacks one.
func (in *inspector) checkComplete(ctx context.Context, p *session, upTo event.Position) error {
	for after := p.base; after.Compare(upTo) < 0; {
		events, err := in.readStore(ctx, after, knownBatch)
		if err != nil {
			return fmt.Errorf("read the store after %s: %w", after, err)
		}
		if len(events) == 0 {
			return nil
		}
		for _, e := range events {
			if e.Position.Compare(upTo) <= 0 && !p.has(e) {
				return fmt.Errorf("%w: topic %s lacks event %s (version %d of stream %q, position %s), which was published: %s",
					ErrLogChanged, in.topic, e.ID, e.Version, e.Stream, e.Position, in.remedy())
			}
		}
		after = events[len(events)-1].Position
	}
	return nil
}

// checkpointRecord is a checkpoint and the record that it was read from.
type checkpointRecord struct {
	checkpoint
	at kafka.Message
}

// findCheckpoint returns the best checkpoint of the service, or nil if there is none. A checkpoint
// counts only if the store confirms its event. Signed checkpoints precede unsigned ones, checkpoints
// of this topic precede others, and then the highest wins. unconfirmed are checkpoints that the
// store does not confirm, at most the newest thousand.
//
// It reads backwards in growing windows, because the last checkpoint is usually among the last
// records. It stops at a signed and confirmed checkpoint, or at the beginning of the topic. It also
// sets invalid, invalidLast, highWatermarks and openTransaction.
func (in *inspector) findCheckpoint(ctx context.Context) (best *checkpoint, unconfirmed []checkpoint, err error) {
	begin, err := withTimeout(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return in.admin.StartOffsets(ctx, PositionsTopic)
	})
	if err != nil {
		return nil, nil, err
	}
	in.highWatermarks, err = withTimeout(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return in.admin.HighWatermarks(ctx, PositionsTopic)
	})
	if err != nil {
		return nil, nil, err
	}
	// Another relay's open transaction hides everything after it, for up to half a minute after
	// that relay died. An older checkpoint may be sufficient.
	to, err := withTimeout(ctx, func(ctx context.Context) (map[int32]int64, error) {
		return in.admin.EndOffsets(ctx, PositionsTopic)
	})
	if err != nil {
		return nil, nil, err
	}
	in.openTransaction = false
	err = kafka.ReadUncommitted(ctx, in.cfg.Kafka, PositionsTopic, to, in.highWatermarks, func(m kafka.Message) error {
		in.openTransaction = in.openTransaction || string(m.Key) == in.cfg.Aggregate.Service
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for window := int64(100); ; window *= 10 {
		from, entire := map[int32]int64{}, true
		for p, end := range to {
			from[p] = max(begin[p], end-window)
			entire = entire && from[p] == begin[p]
		}
		var checkpoints []checkpointRecord
		newest := int64(-1)
		in.invalid = invalidRecords{}
		err := kafka.ReadAll(ctx, in.cfg.Kafka, PositionsTopic, from, to, func(m kafka.Message) error {
			if string(m.Key) != in.cfg.Aggregate.Service {
				return nil
			}
			newest = m.Offset
			parsed, err := parseCheckpoint(m, in.secret)
			if err != nil {
				in.invalid.add(m, fmt.Errorf("not a checkpoint of a relay: %w", err))
				return nil
			}
			checkpoints = append(checkpoints, checkpointRecord{parsed, m})
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		confirmed, err := in.confirm(ctx, checkpoints)
		if err != nil {
			return nil, nil, err
		}
		last, signed := -1, -1 // indexes of best and of the first signed checkpoint
		for i, m := range checkpoints {
			if m.identified() && signed < 0 {
				signed = i
			}
			if !confirmed[i] {
				unconfirmed = append(unconfirmed, m.checkpoint)
			} else if best == nil || in.isAsGood(*best, m.checkpoint) {
				best, last = &m.checkpoint, i
			}
		}
		since := last // unsigned checkpoints of an earlier version precede the first signed one
		if signed >= 0 {
			since = signed
		}
		for i, m := range checkpoints {
			switch {
			case m.identified() && !confirmed[i]:
				in.invalid.add(m.at, errors.New("a checkpoint at an event that the store does not have"))
			case !m.identified() && i > since:
				in.invalid.add(m.at, errors.New("a checkpoint that is not signed with the store's secret"))
			}
		}
		if best != nil {
			in.invalidLast = newest > checkpoints[last].at.Offset
		}
		if best != nil && best.identified() || entire {
			return best, unconfirmed[max(0, len(unconfirmed)-maxInvalid):], nil
		}
		best, unconfirmed = nil, nil
	}
}

// isSufficient reports whether a checkpoint is sufficient although newer ones may be hidden: it
// identifies this topic and this store, and together with the store it explains every event on the
// log. Otherwise the newest checkpoint is needed: the topic may have been recreated or truncated
// since, and unknown events on the log may be lost by the store or forged.
func (in *inspector) isSufficient(c *checkpoint, seen *scanResult) bool {
	return c != nil && c.identified() && c.topicID == in.info.ID && c.epoch == in.epoch &&
		len(seen.unknown) == 0 && len(in.truncatedPartitions(seen.floors)) == 0
}

// awaitCheckpoints blocks until every checkpoint that was written so far can be read. This includes
// all of this relay's own: its transactions have ended, and no other relay of the service writes.
// Brokers abort a dead relay's transaction after its timeout, 30 s.
func (in *inspector) awaitCheckpoints(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer cancel()
	in.log.Warn("relay: waiting for another relay's open transaction, which hides the last checkpoint",
		"topic", PositionsTopic)
	for {
		readable, err := in.admin.EndOffsets(ctx, PositionsTopic)
		if err != nil {
			return err
		}
		behind := false
		for p, end := range in.highWatermarks {
			behind = behind || readable[p] < end
		}
		if !behind {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another relay's open transaction on topic %s hides the last checkpoint: %w",
				PositionsTopic, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// isAsGood reports whether b is at least as good a checkpoint as a. The store confirms both.
func (in *inspector) isAsGood(a, b checkpoint) bool {
	if a.identified() != b.identified() {
		return b.identified()
	}
	if hereA, hereB := a.topicID == in.info.ID, b.topicID == in.info.ID; hereA != hereB {
		return hereB
	}
	return a.to.Compare(b.to) <= 0
}

// confirm reports for each checkpoint whether the store has its event. A checkpoint of an earlier
// version contains only a position, so any event at that position confirms it.
func (in *inspector) confirm(ctx context.Context, checkpoints []checkpointRecord) ([]bool, error) {
	confirmed := make([]bool, len(checkpoints))
	for chunk := range slices.Chunk(indexes(checkpoints), knownBatch) {
		events := make([]event.Event, len(chunk))
		for i, at := range chunk {
			events[i] = checkpoints[at].last()
		}
		known, err := in.storeHas(ctx, events)
		if err != nil {
			return nil, err
		}
		for i, at := range chunk {
			confirmed[at] = known[i]
		}
	}
	// Checkpoints without an identity are checked from the last one backwards, each with a read of
	// its own. The first that is confirmed is enough.
	for i := len(checkpoints) - 1; i >= 0; i-- {
		if checkpoints[i].identified() || checkpoints[i].to.IsZero() {
			continue
		}
		events, err := in.readStore(ctx, before(checkpoints[i].to), 1)
		if err != nil {
			return nil, fmt.Errorf("read the store's event at %s: %w", checkpoints[i].to, err)
		}
		if confirmed[i] = len(events) == 1 && events[0].Position == checkpoints[i].to; confirmed[i] {
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
