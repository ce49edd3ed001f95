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

// State declares a table with one row per stream of an aggregate: the state that its events have
// produced so far. An event that changes a row replaces it: the commit that adds the new row also
// deletes the old one by its key. Maintenance removes the deletes and the deleted rows from the
// files.
//
// A row holds everything that the next fold needs, so any lander can continue from the table. As a
// consequence, a column that is added later has no values from earlier events. To fill it for all
// streams, drop the table: it is then landed from the beginning.
//
// A dead letter leaves a gap: the stream continues without that event, and the row's version is
// that of the last event folded into it. An event whose version is not above the row's changes
// nothing, and neither does a second event with version 1.
//
// The events of a stream must be in one partition. If partitions are added to a topic, producers
// must wait until everything before has landed, as for any other reader that relies on order.
type State[S any] struct {
	Name, Doc   string
	Of          event.Aggregate
	Key, KeyDoc string // name and doc of the key column
	Columns     Schema[S]
	// Change returns the effect of an event on the state of its stream. It fails if the event
	// cannot be decoded, independent of the state. The effect must not modify memory that the
	// previous state refers to, because remembered rows share it.
	Change func(e event.Event) (func(*S), error)
}

// stateRow is a row of such a table without its origin, which is that of the last event folded into
// it.
type stateRow[S any] struct {
	key                  string
	state                S
	version              int64
	createdAt, updatedAt time.Time
}

// shape returns the schema of the whole row: key, declared columns, version and times.
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

// Table returns the complete declaration.
func (d State[S]) Table() Table {
	shape := d.shape()
	return Table{
		Name: d.Name, Topic: d.Of.Topic, Doc: d.Doc, Columns: shape.fields(), Sort: []Sort{{Column: d.Key}},
		Derived: d.Of,
		Upserts: func(to *columnar.Columns, values *registry.Decoder) (Upserts, error) {
			known, err := simplelru.NewLRU[string, knownRow[S]](knownRows, nil)
			return &states[S]{
				declared: d, shape: shape, write: shape.write(to, 0), values: values, row: row{to: to},
				changes: map[string][]change[S]{}, before: map[string]stateRow[S]{}, known: known,
				positions: map[int32]position{},
			}, err
		},
		Sums: Sums{
			Add: func(to *digest.Digest, rec arrow.RecordBatch) error {
				return addRows(to, rec, shape, func(r *stateRow[S]) string { return r.key })
			},
			Expect: func(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
				return d.expect(shape, events)
			},
		},
	}
}

// expect folds all events in memory, with one state per stream, and returns the digest of the rows.
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

// decode returns the change that an event makes, without its coordinates.
func (d State[S]) decode(e event.Event) (change[S], error) {
	apply, err := d.Change(e)
	if err != nil {
		return change[S]{}, fmt.Errorf("event %s: %w", e.ID, err)
	}
	return change[S]{apply: apply, version: int64(e.Version), recordedAt: e.RecordedAt}, nil
}

// change is the effect of one event on a row.
type change[S any] struct {
	apply      func(*S)
	version    int64
	recordedAt time.Time
	partition  int32
	offset     int64
}

// take applies a change and reports whether it changed the row. Versions make this idempotent: the
// row already includes every event up to its version.
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

// states are the Upserts of a State table. They collect a batch's changes until it lands. Only then
// are the previous rows needed. Rows that earlier batches left in memory are reused; the others are
// read from the table in one scan.
//
// A remembered row is valid as long as no other lander has landed its partition. That is the case
// if the table's offset of the partition is the one at which this lander left it.
type states[S any] struct {
	declared State[S]
	shape    Schema[stateRow[S]]
	write    func(*stateRow[S]) // appends a row
	values   *registry.Decoder
	row      row

	changes map[string][]change[S] // of the batch, by key, in offset order
	before  map[string]stateRow[S] // previous rows of those keys
	after   []knownRow[S]          // resulting rows, remembered after the commit

	// known are the rows that earlier batches wrote. positions has the last landed offset of each
	// partition.
	known     *simplelru.LRU[string, knownRow[S]]
	positions map[int32]position

	first  []firstEvent   // streams whose first event is in the batch and whose row is not remembered
	filter *keyset.Filter // of the table's keys; nil until it is needed
}

// firstEvent is a stream whose event with version 1 is in the batch. The stream is new, or the
// event is a duplicate.
type firstEvent struct {
	key       string
	partition int32
	from      int64 // first offset of the batch in the partition
}

// knownRows is the number of rows that a lander remembers. The events of a stream tend to arrive
// close together, so a cache of recent streams saves most lookups.
const knownRows = 50_000

// knownRow is a row as the last batch that changed it left it. It is valid only while generation is
// its partition's current one.
type knownRow[S any] struct {
	stateRow[S]
	partition  int32
	generation int
}

// position is the offset up to which this lander has landed a partition. generation counts how
// often the partition came back after another lander had landed it. Rows remembered in an earlier
// generation may be outdated.
type position struct {
	next       int64
	generation int
}

// Take implements Upserts.
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

// Pending implements Upserts.
func (x *states[S]) Pending() bool { return len(x.changes) > 0 }

// Columns implements Upserts.
func (x *states[S]) Columns() []columnar.Field { return x.row.to.Fields()[:len(x.shape)] }

// LookupKeys implements Upserts.
func (x *states[S]) LookupKeys(from map[int32]int64) (keys []string) {
	// If the table is not where this lander left it, another one has landed the partition
	// meanwhile. A new generation invalidates the rows remembered of it.
	for partition, at := range from {
		if s, ours := x.positions[partition]; !ours || s.next != at {
			x.positions[partition] = position{next: at, generation: s.generation + 1}
		}
	}
	x.first = x.first[:0]
	for key, changes := range x.changes {
		first := changes[0]
		known, ok := x.known.Get(key)
		switch {
		case ok && known.partition == first.partition && known.generation == x.positions[first.partition].generation:
			x.before[key] = known.stateRow
		case first.version > 1:
			// A stream does not begin with this batch, so it should have a row.
			keys = append(keys, key)
		default:
			// Most likely a new stream, unless the event is a duplicate. The key filter decides.
			x.first = append(x.first, firstEvent{key, first.partition, from[first.partition]})
		}
	}
	return keys
}

// NeedsKeys implements Upserts.
func (x *states[S]) NeedsKeys() bool {
	return slices.ContainsFunc(x.first, func(n firstEvent) bool { return !x.filter.Covers(n.partition, n.from) })
}

// SetKeys implements Upserts.
func (x *states[S]) SetKeys(f *keyset.Filter) { x.filter = f }

// UncertainKeys implements Upserts.
func (x *states[S]) UncertainKeys() (keys []string) {
	for _, n := range x.first {
		if x.filter.MayContain(n.key) {
			keys = append(keys, n.key)
		}
	}
	return keys
}

// Found implements Upserts.
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
		// The scan's filter may be a range of keys, so other keys are expected.
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

// Fold implements Upserts.
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
		// Every event of the batch was a duplicate: keep the row.
		if last.apply == nil {
			continue
		}
		x.after = append(x.after, knownRow[S]{r, last.partition, x.positions[last.partition].generation})
		write := func() {
			x.row.begin()
			x.write(&r)
			x.row.filled(len(x.shape))
			x.row.end()
		}
		from := Record{Topic: x.declared.Of.Topic, Partition: last.partition, Offset: last.offset}
		if err := each(key, existed, write, from); err != nil {
			return err
		}
	}
	return nil
}

// Landed implements Upserts.
func (x *states[S]) Landed(next map[int32]int64) {
	for _, r := range x.after {
		x.known.Add(r.key, r)
		if x.filter != nil {
			x.filter.Add(r.key)
		}
	}
	for partition, at := range next {
		// The filter knew all keys up to the old offset and now has those of the batch, so it is
		// complete up to the new one.
		if s := x.positions[partition]; x.filter.Covers(partition, s.next) {
			x.filter.Advance(partition, at)
		}
		x.positions[partition] = position{next: at, generation: x.positions[partition].generation}
	}
	clear(x.changes)
	clear(x.before)
	x.after = x.after[:0]
}

// Forget drops the remembered rows, as a larger working set would.
func (x *states[S]) Forget() { x.known.Purge() }
