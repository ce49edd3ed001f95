package relay

import (
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// place is where the relay stands, and between what.
type place struct {
	after event.Position // every event up to here is on the log

	epoch      string
	secret     []byte // of the store
	topicID    string
	partitions int32 // that keys are spread over; a topic that was widened has more

	base   event.Position // see identity
	floors []int64

	compared time.Time // with the log

	// published are the events after base that the relay found on the log when it came, in order;
	// most often those of one transaction.
	published []event.Position
	highest   map[int32]event.Position // of them, by partition
	// cut are the partitions whose log begins after their floor, so that it cannot tell what it
	// had. A transaction is on the log whole, so up to there they have all.
	cut   map[int32]bool
	cutAt event.Position

	// renew is the newest event on the log where the last mark does not say who this relay is, and
	// one has to be made that does.
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
// whether it is after the event. Then readers take the event for a copy, unless its record says
// otherwise.
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

// moveTo says that every event up to a position is on the log.
func (p *place) moveTo(after event.Position) {
	p.after = after
	if n := len(p.published); n > 0 && after.Compare(p.published[n-1]) >= 0 {
		p.published = nil
	}
	if len(p.cut) > 0 && after.Compare(p.cutAt) >= 0 {
		p.cut = nil
	}
}

// even reports whether the log ends with the event that the relay is at.
func (p *place) even() bool { return len(p.published) == 0 && len(p.cut) == 0 }

func (p *place) partition(e event.Event) int32 {
	return kafka.Partition([]byte(e.Stream), p.partitions)
}

// mark is that of a transaction which ends with an event.
func (p *place) mark(last event.Event) mark {
	return mark{from: p.after, to: last.Position, recorded: last.RecordedAt, identity: identity{
		epoch: p.epoch, topicID: p.topicID, partitions: p.partitions, id: last.ID, stream: last.Stream, version: last.Version,
		base: p.base, floors: p.floors, seal: p.seals.name, sealFloors: p.seals.own[p.seals.name].floors,
	}}
}
