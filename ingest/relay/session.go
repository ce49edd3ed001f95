package relay

import (
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// session is the state of a relay between two errors: its position in the store, and the log and
// store that the position is valid for. Only the goroutine of Run uses it.
type session struct {
	after event.Position // every event up to here is on the log

	// What resume found. A session ends if the epoch or the topic changes.
	epoch      string // of the store
	secret     []byte // of the store
	topicID    string
	partitions int32 // number of partitions that keys are spread over; a widened topic has more

	base   event.Position // see identity; the next session compares from here
	floors []int64        // see identity

	topicChecked time.Time // when the topic was last checked; see checkTopic

	// published are the events after base that resume found on the log, in order. These are usually
	// the events of one transaction. They are not published again.
	published []event.Position
	highest   map[int32]event.Position // highest position in published, by partition
	// truncated are the partitions whose log begins after their floor, so it does not show all the
	// events that they had. Transactions are complete up to truncatedUpTo, so these partitions had
	// all events up to there.
	truncated     map[int32]bool
	truncatedUpTo event.Position

	// renew is the newest event on the log if the last checkpoint does not identify this store and
	// topic. The session then writes one that does. Otherwise renew is nil.
	renew *event.Event

	seals *ownAnnouncements // the name to seal records with, and its announcement
}

// has reports whether an event is on the log.
func (s *session) has(e event.Event) bool {
	if len(s.truncated) > 0 && e.Position.Compare(s.truncatedUpTo) <= 0 && s.truncated[s.partition(e)] {
		return true
	}
	_, ok := slices.BinarySearchFunc(s.published, e.Position, event.Position.Compare)
	return ok
}

// partitionHead returns the highest position in the event's partition of the log. late reports
// whether it is after the event. Readers take such an event for a copy unless a header marks it as
// late.
func (s *session) partitionHead(e event.Event) (at event.Position, late bool) {
	if len(s.published) == 0 {
		return event.Position{}, false
	}
	at = s.highest[s.partition(e)]
	return at, at.Compare(e.Position) > 0
}

// hasAll reports whether every event of a batch is on the log.
func (s *session) hasAll(batch []event.Event) bool {
	if len(s.published) == 0 && len(s.truncated) == 0 {
		return false
	}
	for _, e := range batch {
		if !s.has(e) {
			return false
		}
	}
	return true
}

// advance records that every event up to a position is on the log. It drops the state that was only
// needed up to there.
func (s *session) advance(after event.Position) {
	s.after = after
	if n := len(s.published); n > 0 && after.Compare(s.published[n-1]) >= 0 {
		s.published = nil
	}
	if len(s.truncated) > 0 && after.Compare(s.truncatedUpTo) >= 0 {
		s.truncated = nil
	}
}

// caughtUp reports whether the log ends exactly at the event that the relay has reached.
func (s *session) caughtUp() bool { return len(s.published) == 0 && len(s.truncated) == 0 }

// partition returns the partition of an event's key. It does not change when the topic is widened,
// because the events of a key would lose their order.
func (s *session) partition(e event.Event) int32 {
	return kafka.Partition([]byte(e.Stream), s.partitions)
}

// checkpoint returns the checkpoint of a transaction whose last event is last.
func (s *session) checkpoint(last event.Event) checkpoint {
	return checkpoint{from: s.after, to: last.Position, recorded: last.RecordedAt, identity: identity{
		epoch: s.epoch, topicID: s.topicID, partitions: s.partitions,
		id: last.ID, stream: last.Stream, version: last.Version,
		base: s.base, floors: s.floors, seal: s.seals.name, sealFloors: s.seals.own[s.seals.name].floors,
	}}
}
