package postgres

import (
	"time"

	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
)

// rows is a group as columns, which is how it goes to the server.
type rows struct {
	events    eventColumns
	answers   answerColumns
	snapshots snapshotColumns

	callOfEvent   []int          // by position in the transaction, less one
	callOfKey     map[string]int // by idempotency key
	withoutEvents bool           // some call has none
}

type eventColumns struct {
	position                      []int64
	id                            [][16]byte
	stream                        []string
	version                       []int64
	first                         []bool
	kind                          []string
	data                          [][]byte
	occurred, recorded            []time.Time
	correlation, causation, trace []string
}

func (c *eventColumns) args() []any {
	return []any{
		c.position, c.id, c.stream, c.version, c.first, c.kind, c.data,
		c.occurred, c.recorded, c.correlation, c.causation, c.trace,
	}
}

type answerColumns struct {
	key                   []string
	fingerprint, response [][]byte
	stream                []string
	version, place        []int64
}

func (c *answerColumns) args() []any {
	return []any{c.key, c.fingerprint, c.response, c.stream, c.version, c.place}
}

type snapshotColumns struct {
	stream  []string
	version []int64
	schema  []int32
	state   [][]byte
}

func (c *snapshotColumns) args() []any { return []any{c.stream, c.version, c.schema, c.state} }

func newRows(calls []*adapter.Call) *rows {
	r := &rows{callOfKey: map[string]int{}}
	for i, c := range calls {
		for _, s := range c.Batch.Streams {
			for j := range s.Events {
				r.addEvent(s.Stream, int64(s.ExpectedVersion)+int64(j)+1, j == 0, &s.Events[j])
				r.callOfEvent = append(r.callOfEvent, i)
			}
		}
		events := countEvents(c)
		if events == 0 {
			r.withoutEvents = true
		}
		if a := &c.Batch.Answer; a.Key != "" {
			place := int64(0)
			if events > 0 {
				place = int64(len(r.callOfEvent))
			}
			r.callOfKey[a.Key] = i
			r.answers.key = append(r.answers.key, a.Key)
			r.answers.fingerprint = append(r.answers.fingerprint, bytea(a.Fingerprint))
			r.answers.response = append(r.answers.response, bytea(a.Response))
			r.answers.stream = append(r.answers.stream, a.Stream)
			r.answers.version = append(r.answers.version, int64(a.Version))
			r.answers.place = append(r.answers.place, place)
		}
		for _, s := range c.Batch.Snapshots {
			r.snapshots.stream = append(r.snapshots.stream, s.Stream)
			r.snapshots.version = append(r.snapshots.version, int64(s.Version))
			r.snapshots.schema = append(r.snapshots.schema, int32(s.Schema))
			r.snapshots.state = append(r.snapshots.state, bytea(s.State))
		}
	}
	return r
}

func (r *rows) addEvent(stream string, version int64, first bool, e *event.Event) {
	c := &r.events
	c.position = append(c.position, int64(len(c.position))+1)
	c.id = append(c.id, e.ID)
	c.stream = append(c.stream, stream)
	c.version = append(c.version, version)
	c.first = append(c.first, first)
	c.kind = append(c.kind, e.Type)
	c.data = append(c.data, bytea(e.Data))
	c.occurred = append(c.occurred, event.Time(e.OccurredAt))
	c.recorded = append(c.recorded, event.Time(e.RecordedAt))
	c.correlation = append(c.correlation, e.CorrelationID)
	c.causation = append(c.causation, e.CausationID)
	c.trace = append(c.trace, e.TraceParent)
}

func countEvents(c *adapter.Call) (n int) {
	for _, s := range c.Batch.Streams {
		n += len(s.Events)
	}
	return n
}

// bytea keeps an empty slice from being stored as NULL.
func bytea(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
