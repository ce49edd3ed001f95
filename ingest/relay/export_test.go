package relay

import (
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// Steps are the steps at which OnStep can make a relay fail.
var Steps = map[string]step{
	string(beforeBegin): beforeBegin, string(afterProduce): afterProduce,
	string(beforeCommit): beforeCommit, string(afterCommit): afterCommit,
}

// OnStep calls f at each step. The step fails with f's error. Call it before Run.
func (r *Relay) OnStep(f func(at string) error) { r.hook = func(s step) error { return f(string(s)) } }

// CheckpointRecord returns the checkpoint of a transaction that contains the events after from, up
// to to. It is not signed, like those of earlier versions.
func CheckpointRecord(from, to event.Position, service string) kafka.Record {
	return checkpoint{from: from, to: to}.record(service, nil)
}

// CheckInterval sets how often a relay checks its announcements. Call it before Run.
func (r *Relay) CheckInterval(d time.Duration) { r.checkInterval = d }

// SealName returns the name under which the relay of a store seals the records of a topic.
func SealName(secret []byte, service, topicID string) string {
	a, err := newOwnAnnouncements(secret, service, topicID)
	if err != nil {
		panic(err)
	}
	return a.name
}

// Announcement returns the record with which the relay of a store announces its seal.
func Announcement(secret []byte, service, topicID string, floors ...int64) kafka.Record {
	a, err := newOwnAnnouncements(secret, service, topicID)
	if err != nil {
		panic(err)
	}
	out := announcement{name: a.name, key: publicKey(a.key), topicID: topicID, floors: floors}
	return out.record(service, a.key)
}

// ParseAnnouncement reads an announcement of any key.
func ParseAnnouncement(m kafka.Message) (name string, floors []int64, err error) {
	a, err := parseAnnouncement(m, "")
	return a.name, a.floors, err
}
