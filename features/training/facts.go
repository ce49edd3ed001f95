package training

import (
	"context"
	"math"
	"slices"
	"sort"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
)

// Facts is where the facts of sources are.
type Facts interface {
	// Positions returns, for the topic of each source, the next offset of each partition up to which
	// its facts are there.
	Positions(ctx context.Context, sources []*features.Source) (Positions, error)
	// Count returns about how many facts Read would read, to decide how to split them.
	Count(ctx context.Context, r Request) (int64, error)
	// Read passes the facts to each, in batches in any order. A batch is valid until each returns.
	Read(ctx context.Context, r Request, each func(*Batch) error) error
}

// Positions are the next offsets of partitions, by topic.
type Positions map[string]map[int32]int64

// Request describes the facts to read.
type Request struct {
	Source  *features.Source
	Columns []int           // indexes of the columns of the source that batches have
	Upto    map[int32]int64 // by partition: only facts with a smaller offset; none of other partitions
	Range   Range
	// Entities are the only ones whose facts are read. Nil: all of the range.
	Entities []string
	// Facts with other event times need not be in batches: After < at <= Until, microseconds.
	After, Until int64
}

// Range is the entities from From, included, to Before, excluded, in the order of their bytes. An empty
// Before is no bound. Stores that are sorted by entity read no more than the range.
type Range struct{ From, Before string }

// Contains reports whether the entity is in the range.
func (r Range) Contains(entity string) bool {
	return entity >= r.From && (r.Before == "" || entity < r.Before)
}

// division divides all entities into ranges: it has the first entity of each but the first, in order.
type division []string

// ranges returns the number of ranges.
func (d division) ranges() int { return len(d) + 1 }

// at returns a range.
func (d division) at(i int) Range {
	var r Range
	if i > 0 {
		r.From = d[i-1]
	}
	if i < len(d) {
		r.Before = d[i]
	}
	return r
}

// of returns the index of the range of an entity.
func (d division) of(entity string) int {
	return sort.Search(len(d), func(i int) bool { return entity < d[i] })
}

// divided returns a division into at most n ranges with about equally many of the sampled entities.
func divided(sample []string, n int) division {
	slices.Sort(sample)
	var d division
	for i := 1; i < n && len(sample) > 0; i++ {
		first := sample[i*len(sample)/n]
		if first > sample[0] && (len(d) == 0 || first > d[len(d)-1]) {
			d = append(d, first)
		}
	}
	return d
}

// Batch is facts in columns, which all have Rows values.
type Batch struct {
	Rows        int
	Entity, Key clickhouse.Texts
	At, Known   []int64 // microseconds
	Offset      []int64
	Index       []int32
	Retracted   []bool // nil: none
	Values      []Values
}

// Values is a column of a batch. It has Int, Text or both Int and Wide.
type Values struct {
	Null []bool // nil: none
	Int  []int64
	// Wide has the numbers of the rows whose number is not an int64. Nil: all are.
	Wide map[int]exact.Int
	Text clickhouse.Texts
}

// reset empties the batch for a request.
func (b *Batch) reset(columns int) {
	b.Rows = 0
	b.Entity.Reset()
	b.Key.Reset()
	b.At, b.Known, b.Offset, b.Index = b.At[:0], b.Known[:0], b.Offset[:0], b.Index[:0]
	b.Retracted = b.Retracted[:0]
	if len(b.Values) != columns {
		b.Values = make([]Values, columns)
	}
	for i := range b.Values {
		v := &b.Values[i]
		v.Null, v.Int, v.Wide = v.Null[:0], v.Int[:0], nil
		v.Text.Reset()
	}
}

// add appends a fact.
func (b *Batch) add(r Request, f *features.Fact) {
	b.Rows++
	b.Entity.Append(f.Entity)
	b.Key.Append(f.Key)
	b.At, b.Known = append(b.At, f.At.UnixMicro()), append(b.Known, f.Known.UnixMicro())
	b.Offset, b.Index = append(b.Offset, f.Origin.Offset), append(b.Index, f.Origin.Index)
	b.Retracted = append(b.Retracted, f.Retracted)
	for i, column := range r.Columns {
		v, to := exact.Value{}, &b.Values[i]
		if column < len(f.Values) { // a retracted fact may have none
			v = f.Values[column]
		}
		to.Null = append(to.Null, v.Kind == exact.Null)
		if r.Source.Columns[column].Kind == exact.Text {
			to.Text.Append(v.Text)
			continue
		}
		n, fits := v.Int.Int64()
		if !fits {
			if to.Wide == nil {
				to.Wide = map[int]exact.Int{}
			}
			to.Wide[b.Rows-1] = v.Int
		}
		to.Int = append(to.Int, n)
	}
}

// copy appends a fact of another batch, with another entity and key.
func (b *Batch) copy(r Request, from *Batch, i int, entity, key string) {
	b.Rows++
	b.Entity.Append(entity)
	b.Key.Append(key)
	b.At, b.Known = append(b.At, from.At[i]), append(b.Known, from.Known[i])
	b.Offset, b.Index = append(b.Offset, from.Offset[i]), append(b.Index, from.Index[i])
	b.Retracted = append(b.Retracted, len(from.Retracted) > 0 && from.Retracted[i])
	for j, column := range r.Columns {
		v, to := &from.Values[j], &b.Values[j]
		to.Null = append(to.Null, len(v.Null) > 0 && v.Null[i])
		if r.Source.Columns[column].Kind == exact.Text {
			to.Text.Append(v.Text.At(i))
			continue
		}
		to.Int = append(to.Int, v.Int[i])
		if n, ok := v.Wide[i]; ok {
			if to.Wide == nil {
				to.Wide = map[int]exact.Int{}
			}
			to.Wide[b.Rows-1] = n
		}
	}
}

// wants reports whether a fact is one of the request.
func (r Request) wants(f *features.Fact) bool {
	at := f.At.UnixMicro()
	return f.Origin.Offset < r.Upto[f.Origin.Partition] && at > r.After && at <= r.Until && r.Range.Contains(f.Entity) &&
		(r.Entities == nil || slices.Contains(r.Entities, f.Entity))
}

// batchRows is the size of batches.
const batchRows = 8192

// Slice is Facts in memory, by the name of their source.
type Slice map[string][]features.Fact

// Positions implements Facts.
func (s Slice) Positions(_ context.Context, sources []*features.Source) (Positions, error) {
	p := Positions{}
	for _, source := range sources {
		if p[source.Topic] == nil {
			p[source.Topic] = map[int32]int64{}
		}
		for _, f := range s[source.Name] {
			next := p[source.Topic]
			next[f.Origin.Partition] = max(next[f.Origin.Partition], f.Origin.Offset+1)
		}
	}
	return p, nil
}

// Count implements Facts.
func (s Slice) Count(_ context.Context, r Request) (int64, error) {
	return int64(len(s[r.Source.Name])), nil
}

// Read implements Facts.
func (s Slice) Read(ctx context.Context, r Request, each func(*Batch) error) error {
	var b Batch
	b.reset(len(r.Columns))
	all := s[r.Source.Name]
	for i := range all {
		if r.wants(&all[i]) {
			b.add(r, &all[i])
		}
		if b.Rows == batchRows || i == len(all)-1 && b.Rows > 0 {
			if err := each(&b); err != nil {
				return err
			}
			b.reset(len(r.Columns))
		}
		if i%batchRows == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// forever is a time after all others.
const forever = math.MaxInt64
