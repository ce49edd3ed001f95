package declare

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/keyset"
)

// State declares a table that has one row for each stream of an aggregate: what its events have made of it so far. An
// event that comes changes the row: the old one is deleted by its key in the commit that brings the new one, and
// maintenance takes both the deletes and what they hit out of the files.
//
// All that a fold needs to know is in the row, so that any lander can go on from the table. So a column that is added
// later is not known of the streams before; to have it of all, drop the table, and it is landed anew.
//
// An event that was parked leaves a gap: the stream goes on without what it said, and its row has the version of the
// last event that is in it. An event whose version the row has passed changes nothing; so does a second one with
// version 1. A stream's events stand in one partition; where a topic is given partitions, its producers must wait until
// all that stood in it has landed, as for every other reader that wants events in order.
type State[S any] struct {
	Name, Doc   string
	Of          event.Aggregate
	Key, KeyDoc string
	Columns     Schema[S]
	// Change tells what an event does to the state of its stream. It fails where the event cannot be understood,
	// whatever the state. It must not change what the state before refers to.
	Change func(e event.Event) (func(*S), error)
}

// stateRow is a row of such a table, but for where it comes from: that is the last event in it.
type stateRow[S any] struct {
	key                  string
	state                S
	version              int64
	createdAt, updatedAt time.Time
}

func (d State[S]) shape() Schema[stateRow[S]] {
	return slices.Concat(
		Schema[stateRow[S]]{{Name: d.Key, Doc: d.KeyDoc, Required: true, Of: func(r *stateRow[S]) any { return &r.key }}},
		within(d.Columns, func(r *stateRow[S]) *S { return &r.state }),
		Schema[stateRow[S]]{
			{Name: "version", Doc: "of the stream: its last event in this row", Of: func(r *stateRow[S]) any { return &r.version }},
			{Name: "created_at", Doc: "when the event store took the first event in this row", Required: true, Of: func(r *stateRow[S]) any { return &r.createdAt }},
			{Name: "updated_at", Doc: "when the event store took the last event in this row", Required: true, Of: func(r *stateRow[S]) any { return &r.updatedAt }},
		},
	)
}

// Table is the whole declaration.
func (d State[S]) Table() Table {
	shape := d.shape()
	return Table{
		Name: d.Name, Topic: d.Of.Topic, Doc: d.Doc, Columns: shape.fields(), Sort: []Sort{{Column: d.Key}}, Derived: d.Of,
		Upserts: func(to *columnar.Columns, values *registry.Decoder) (Upserts, error) {
			known, err := simplelru.NewLRU[string, knownRow[S]](knownRows, nil)
			return &states[S]{
				declared: d, shape: shape, values: values, row: row{to: to},
				changes: map[string][]change[S]{}, before: map[string]stateRow[S]{}, known: known, stands: map[int32]stand{},
			}, err
		},
		Sums: Sums{
			Add: func(to *digest.Digest, rec arrow.RecordBatch) error {
				return addRows(to, rec, shape, func(r *stateRow[S]) string { return r.key })
			},
			Expect: func(events iter.Seq2[event.Event, error]) (*digest.Digest, error) { return d.expect(shape, events) },
		},
	}
}

// expect folds events; it holds a state for each stream, as long as it runs.
func (d State[S]) expect(shape Schema[stateRow[S]], events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	rows := map[string]*stateRow[S]{}
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		c, err := d.decode(e)
		if err != nil {
			return nil, err
		}
		if rows[e.Stream] == nil {
			rows[e.Stream] = &stateRow[S]{key: e.Stream}
		}
		rows[e.Stream].take(c)
	}
	to := digest.New()
	var content []byte
	for key, r := range rows {
		content = shape.Content(content[:0], r)
		to.Add(key, content)
		delete(rows, key)
	}
	return to, nil
}

func (d State[S]) decode(e event.Event) (change[S], error) {
	apply, err := d.Change(e)
	if err != nil {
		return change[S]{}, fmt.Errorf("event %s: %w", e.ID, err)
	}
	return change[S]{apply: apply, version: int64(e.Version), recordedAt: e.RecordedAt}, nil
}

// change is what one event does to a row.
type change[S any] struct {
	apply      func(*S)
	version    int64
	recordedAt time.Time
	partition  int32
	offset     int64
}

// take makes a change, and reports whether it was one.
func (r *stateRow[S]) take(c change[S]) bool {
	if c.version <= r.version {
		return false
	}
	if r.version == 0 {
		r.createdAt = c.recordedAt
	}
	c.apply(&r.state)
	r.version, r.updatedAt = c.version, c.recordedAt
	return true
}

// states are the upserts of a table of state. It holds what a batch changes until that is to land, for only then the rows
// before are asked for: those that are not known from the batches before are read from the table, all at once.
//
// What it knows of the table holds as long as nobody else lands the partition: its rows are as they were left where the
// table stands where they were left.
type states[S any] struct {
	declared State[S]
	shape    Schema[stateRow[S]]
	values   *registry.Decoder
	row      row

	changes map[string][]change[S] // of the batch, by key
	before  map[string]stateRow[S] // the rows that they are of
	after   []knownRow[S]          // and what becomes of them

	known  *simplelru.LRU[string, knownRow[S]]
	stands map[int32]stand

	first  []newcomer     // streams whose first event is in the batch and whose row is not remembered
	filter *keyset.Filter // of the table's keys; nil until it is needed
}

// newcomer is a stream whose event with version 1 is in the batch. The stream is new, or the event is a duplicate.
type newcomer struct {
	key       string
	partition int32
	from      int64 // first offset of the batch in the partition
}

// How many rows a lander remembers: a stream's events mostly come soon after one another.
const knownRows = 50_000

// knownRow is a row as the last batch that changed it left it.
type knownRow[S any] struct {
	stateRow[S]
	partition int32
	turn      int
}

// stand is how far a partition was landed here, and in which turn: each time others have landed it meanwhile begins
// another.
type stand struct {
	next int64
	turn int
}

// Take implements upserts.
func (x *states[S]) Take(ctx context.Context, r Record) (Appended, error) {
	e, appended, err := r.event(ctx, x.values, x.declared.Of)
	if err != nil {
		return Appended{}, err
	}
	c, err := x.declared.decode(e)
	if err != nil {
		return Appended{}, err
	}
	c.partition, c.offset = r.Partition, r.Offset
	x.changes[e.Stream] = append(x.changes[e.Stream], c)
	return appended, nil
}

// Held implements upserts.
func (x *states[S]) Held() bool { return len(x.changes) > 0 }

// Columns implements upserts.
func (x *states[S]) Columns() []columnar.Field { return x.row.to.Fields()[:len(x.shape)] }

// Missing implements upserts.
func (x *states[S]) Missing(from map[int32]int64) (keys []string) {
	for partition, at := range from {
		if s, ours := x.stands[partition]; !ours || s.next != at {
			x.stands[partition] = stand{next: at, turn: s.turn + 1}
		}
	}
	x.first = x.first[:0]
	for key, changes := range x.changes {
		first := changes[0]
		known, ok := x.known.Get(key)
		switch {
		case ok && known.partition == first.partition && known.turn == x.stands[first.partition].turn:
			x.before[key] = known.stateRow
		case first.version > 1:
			keys = append(keys, key)
		default:
			x.first = append(x.first, newcomer{key, first.partition, from[first.partition]})
		}
	}
	return keys
}

// WantsKeys implements upserts.
func (x *states[S]) WantsKeys() bool {
	return slices.ContainsFunc(x.first, func(n newcomer) bool { return !x.filter.Knows(n.partition, n.from) })
}

// Keys implements upserts.
func (x *states[S]) Keys(f *keyset.Filter) { x.filter = f }

// Doubtful implements upserts.
func (x *states[S]) Doubtful() (keys []string) {
	for _, n := range x.first {
		if x.filter.May(n.key) {
			keys = append(keys, n.key)
		}
	}
	return keys
}

// Found implements upserts.
func (x *states[S]) Found(rec arrow.RecordBatch, names []string) error {
	read, err := x.shape.bind(rec, names)
	if err != nil {
		return err
	}
	keys, err := ColumnOf[*array.String](rec, names[0])
	if err != nil {
		return err
	}
	for i := range int(rec.NumRows()) {
		if x.changes[keys.Value(i)] == nil {
			continue
		}
		var r stateRow[S]
		if read(i, &r); r.version > x.before[r.key].version {
			x.before[r.key] = r
		}
	}
	return nil
}

// Fold implements upserts.
func (x *states[S]) Fold(each func(key string, existed bool, row func(), from Record) error) error {
	for _, key := range slices.Sorted(maps.Keys(x.changes)) {
		r, existed := x.before[key]
		r.key = key
		var last change[S]
		for _, c := range x.changes[key] {
			if r.take(c) {
				last = c
			}
		}
		if last.apply == nil {
			continue
		}
		x.after = append(x.after, knownRow[S]{r, last.partition, x.stands[last.partition].turn})
		write := func() {
			x.row.begin()
			x.shape.append(&x.row, &r)
			x.row.end()
		}
		if err := each(key, existed, write, Record{Topic: x.declared.Of.Topic, Partition: last.partition, Offset: last.offset}); err != nil {
			return err
		}
	}
	return nil
}

// Landed implements upserts.
func (x *states[S]) Landed(next map[int32]int64) {
	for _, r := range x.after {
		x.known.Add(r.key, r)
		if x.filter != nil {
			x.filter.Add(r.key)
		}
	}
	for partition, at := range next {
		if s := x.stands[partition]; x.filter.Knows(partition, s.next) {
			x.filter.Reaches(partition, at)
		}
		x.stands[partition] = stand{next: at, turn: x.stands[partition].turn}
	}
	clear(x.changes)
	clear(x.before)
	x.after = x.after[:0]
}

// Forget forgets the rows that are remembered, as if those of others had taken their place.
func (x *states[S]) Forget() { x.known.Purge() }
