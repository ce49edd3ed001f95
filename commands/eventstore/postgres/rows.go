package postgres

import (
	"time"

	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
)

// rows is a group of calls as columns, the form in which the statements take it.
type rows struct {
	events    eventColumns
	answers   answerColumns
	snapshots snapshotColumns

	callOfEvent   []int          // index of the call, by number in the transaction minus one
	callOfKey     map[string]int // index of the call, by idempotency key
	withoutEvents bool           // some call has no events
}

// eventColumns are the parameters of insertEvents, one element per event.
type eventColumns struct {
	position                      []int64 // number in the transaction, starting at 1
	id                            [][16]byte
	stream                        []string
	version                       []int64
	first                         []bool // first event of its stream in this batch
	kind                          []string
	data                          [][]byte
	occurred, recorded            []time.Time
	correlation, causation, trace []string
}

// args returns the parameters in the order of insertEvents.
func (c *eventColumns) args() []any {
	return []any{
		c.position, c.id, c.stream, c.version, c.first, c.kind, c.data,
		c.occurred, c.recorded, c.correlation, c.causation, c.trace,
	}
}

// answerColumns are the parameters of insertAnswers.
type answerColumns struct {
	key                   []string
	fingerprint, response [][]byte
	stream                []string
	// ordinal is the number of the batch's last event in the transaction, 0 if it has none.
	version, ordinal []int64
}

// args returns the parameters in the order of insertAnswers.
func (c *answerColumns) args() []any {
	return []any{c.key, c.fingerprint, c.response, c.stream, c.version, c.ordinal}
}

// snapshotColumns are the parameters of putSnapshots.
type snapshotColumns struct {
	stream  []string
	version []int64
	schema  []int32
	state   [][]byte
}

// args returns the parameters in the order of putSnapshots.
func (c *snapshotColumns) args() []any { return []any{c.stream, c.version, c.schema, c.state} }

// newRows converts calls to columns. The calls must not share streams or keys.
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
			// 0 means that the answer has the position of the store's newest event.
			ordinal := int64(0)
			if events > 0 {
				ordinal = int64(len(r.callOfEvent))
			}
			r.callOfKey[a.Key] = i
			r.answers.key = append(r.answers.key, a.Key)
			r.answers.fingerprint = append(r.answers.fingerprint, bytea(a.Fingerprint))
			r.answers.response = append(r.answers.response, bytea(a.Response))
			r.answers.stream = append(r.answers.stream, a.Stream)
			r.answers.version = append(r.answers.version, int64(a.Version))
			r.answers.ordinal = append(r.answers.ordinal, ordinal)
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

// addEvent adds an event. Times are cut to the precision of the database.
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

// countEvents returns the number of events in a call.
func countEvents(c *adapter.Call) (n int) {
	for _, s := range c.Batch.Streams {
		n += len(s.Events)
	}
	return n
}

// bytea returns an empty slice for nil, which would be stored as NULL.
func bytea(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
