package relay

import (
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// place is the position of a relay in its store, and the log and store that it is valid for.
type place struct {
	after event.Position // every event up to here is on the log

	// What resume found. A session ends if the epoch or the topic changes.
	epoch      string // of the store
	secret     []byte // of the store
	topicID    string
	partitions int32 // number of partitions that keys are spread over; a widened topic has more

	base   event.Position // see identity; the next relay compares from here
	floors []int64        // see identity

	compared time.Time // when the topic was last checked; see compare

	// published are the events after base that resume found on the log, in order. These are usually
	// the events of one transaction. They are not published again.
	published []event.Position
	highest   map[int32]event.Position // highest position in published, by partition
	// cut are the partitions whose log begins after their floor, so they cannot show what they had.
	// Transactions are complete up to cutAt, so these partitions have had all events up to there.
	cut   map[int32]bool
	cutAt event.Position

	// renew is the newest event on the log if the last mark does not identify this store and topic.
	// A mark that does is then written for it. Otherwise it is nil.
	renew *event.Event

	seals *announcing
}

// has reports whether an event is on the log.
func (p *place) has(e event.Event) bool {
	if len(p.cut) > 0 && e.Position.Compare(p.cutAt) <= 0 && p.cut[p.partition(e)] {
		return true
	}
	_, ok := slices.BinarySearchFunc(p.published, e.Position, event.Position.Compare)
	return ok
}

// passed returns the highest position that the log has in the event's partition. late reports
// whether it is after the event. Readers take such an event for a copy unless a header says that it
// is late.
func (p *place) passed(e event.Event) (at event.Position, late bool) {
	if len(p.published) == 0 {
		return event.Position{}, false
	}
	at = p.highest[p.partition(e)]
	return at, at.Compare(e.Position) > 0
}

// hasAll reports whether every event of a batch is on the log.
func (p *place) hasAll(batch []event.Event) bool {
	if len(p.published) == 0 && len(p.cut) == 0 {
		return false
	}
	for _, e := range batch {
		if !p.has(e) {
			return false
		}
	}
	return true
}

// moveTo records that every event up to a position is on the log. It forgets what was only needed
// up to there.
func (p *place) moveTo(after event.Position) {
	p.after = after
	if n := len(p.published); n > 0 && after.Compare(p.published[n-1]) >= 0 {
		p.published = nil
	}
	if len(p.cut) > 0 && after.Compare(p.cutAt) >= 0 {
		p.cut = nil
	}
}

// even reports whether the log ends exactly at the event that the relay has reached.
func (p *place) even() bool { return len(p.published) == 0 && len(p.cut) == 0 }

// partition returns the partition of an event's key. It does not change when the topic is widened,
// because the events of a key would lose their order.
func (p *place) partition(e event.Event) int32 {
	return kafka.Partition([]byte(e.Stream), p.partitions)
}

// mark returns the mark of a transaction whose last event is last.
func (p *place) mark(last event.Event) mark {
	return mark{from: p.after, to: last.Position, recorded: last.RecordedAt, identity: identity{
		epoch: p.epoch, topicID: p.topicID, partitions: p.partitions, id: last.ID, stream: last.Stream, version: last.Version,
		base: p.base, floors: p.floors, seal: p.seals.name, sealFloors: p.seals.own[p.seals.name].floors,
	}}
}
