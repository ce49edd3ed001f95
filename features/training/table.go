package training

import (
	"slices"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// table is the facts of one source about the entities of one range, in columns. It grows by chunks,
// so that nothing is copied when it grows.
type table struct {
	source   *sourcePlan
	entities *entities
	chunks   []*chunk
	rows     int
	texts    []dictionary // by column; unused for numbers
	numbers  []int32      // of the entities of a batch; -1 if the spine does not have one
	near     int32        // where in entities the previous one was

	// Set by group: the rows of entity e are order[start[e]:start[e+1]].
	order []uint32
	start []uint32
}

const (
	chunkBits = 14
	chunkRows = 1 << chunkBits
)

// chunk is up to chunkRows facts.
type chunk struct {
	entity    []int32
	at, known []int64
	offset    []int64
	index     []int32
	retracted []bool
	keys      []byte
	keyEnd    []uint32
	values    []column
}

// column is the values of one column in a chunk. Numbers are in ints, or in wide if one of the
// chunk is not an int64. Texts are numbers of the dictionary in ints.
type column struct {
	null []bool // nil: none
	ints []int64
	wide []exact.Int
}

// dictionary numbers the texts of a column.
type dictionary struct {
	id   map[string]int64
	text []string
	last int64
}

// number returns the number of a text.
func (d *dictionary) number(text string) int64 {
	if len(d.text) > 0 && d.text[d.last] == text {
		return d.last
	}
	id, ok := d.id[text]
	if !ok {
		if d.id == nil {
			d.id = map[string]int64{}
		}
		text = strings.Clone(text)
		id = int64(len(d.text))
		d.id[text] = id
		d.text = append(d.text, text)
	}
	d.last = id
	return id
}

func newTable(source *sourcePlan, entities *entities) *table {
	return &table{source: source, entities: entities, texts: make([]dictionary, len(source.columns))}
}

// tail returns the chunk to append to.
func (t *table) tail() *chunk {
	if n := len(t.chunks); n > 0 && len(t.chunks[n-1].entity) < chunkRows {
		return t.chunks[n-1]
	}
	keys := chunkRows * 16 // a guess for the first chunk; then as the previous one
	if n := len(t.chunks); n > 0 {
		keys = len(t.chunks[n-1].keys) * 9 / 8
	}
	c := &chunk{
		entity: make([]int32, 0, chunkRows), at: make([]int64, 0, chunkRows), known: make([]int64, 0, chunkRows),
		offset: make([]int64, 0, chunkRows), index: make([]int32, 0, chunkRows),
		keyEnd: make([]uint32, 0, chunkRows), keys: make([]byte, 0, keys),
		values: make([]column, len(t.source.columns)),
	}
	for i := range c.values {
		c.values[i].ints = make([]int64, 0, chunkRows)
	}
	t.chunks = append(t.chunks, c)
	return c
}

// add appends the facts of a batch that are about entities of the spine.
func (t *table) add(b *Batch) {
	t.numbers = t.numbers[:0]
	for i := range b.Rows {
		// Facts of an entity are often neighbours.
		entity := b.Entity.At(i)
		if i > 0 && entity == b.Entity.At(i-1) {
			t.numbers = append(t.numbers, t.numbers[i-1])
			continue
		}
		id := t.entities.number(entity, t.near)
		if id >= 0 {
			t.near = id
		}
		t.numbers = append(t.numbers, id)
	}
	for begin := 0; begin < b.Rows; {
		if t.numbers[begin] < 0 {
			begin++
			continue
		}
		c := t.tail()
		limit, end := min(b.Rows, begin+chunkRows-len(c.entity)), begin+1
		for end < limit && t.numbers[end] >= 0 {
			end++
		}
		t.append(c, b, begin, end)
		begin = end
	}
}

// append appends the facts from begin, included, to end, excluded.
func (t *table) append(c *chunk, b *Batch, begin, end int) {
	at := len(c.entity)
	t.rows += end - begin
	c.entity = append(c.entity, t.numbers[begin:end]...)
	c.at, c.known = append(c.at, b.At[begin:end]...), append(c.known, b.Known[begin:end]...)
	c.offset, c.index = append(c.offset, b.Offset[begin:end]...), append(c.index, b.Index[begin:end]...)
	c.retracted = appendFlags(c.retracted, at, b.Retracted, begin, end)
	c.keys = append(c.keys, b.Key.Between(begin, end)...)
	shift := uint32(len(c.keys)) - b.Key.Ends[end-1] // modulo 2^32
	for _, keyEnd := range b.Key.Ends[begin:end] {
		c.keyEnd = append(c.keyEnd, keyEnd+shift)
	}
	for j := range c.values {
		t.appendValues(j, &c.values[j], &b.Values[j], begin, end)
	}
}

// appendValues appends the values of a column from begin, included, to end, excluded.
func (t *table) appendValues(j int, to *column, from *Values, begin, end int) {
	at := len(to.ints)
	to.null = appendFlags(to.null, at, from.Null, begin, end)
	if t.source.source.Columns[t.source.columns[j]].Kind == exact.Text {
		for i := begin; i < end; i++ {
			id := int64(0)
			if len(from.Null) == 0 || !from.Null[i] {
				id = t.texts[j].number(from.Text.At(i))
			}
			to.ints = append(to.ints, id)
		}
		return
	}
	if from.Wide != nil && to.wide == nil {
		to.wide = make([]exact.Int, at, chunkRows)
		for i, n := range to.ints {
			to.wide[i] = exact.FromInt64(n)
		}
	}
	to.ints = append(to.ints, from.Int[begin:end]...)
	if to.wide == nil {
		return
	}
	for i := begin; i < end; i++ {
		n, ok := from.Wide[i]
		if !ok {
			n = exact.FromInt64(from.Int[i])
		}
		to.wide = append(to.wide, n)
	}
}

// appendFlags appends the flags from begin, included, to end, excluded. A slice without flags stands for
// flags that are false: at of them in to.
func appendFlags(to []bool, at int, from []bool, begin, end int) []bool {
	switch {
	case len(from) > 0 && to == nil:
		to = make([]bool, at, chunkRows)
		fallthrough
	case len(from) > 0:
		return append(to, from[begin:end]...)
	case to != nil:
		return append(to, make([]bool, end-begin)...)
	}
	return nil
}

// group groups the rows by entity. It is called once, after the last add.
func (t *table) group(entities int) {
	t.start = make([]uint32, entities+1)
	for _, c := range t.chunks {
		for _, e := range c.entity {
			t.start[e+1]++
		}
	}
	for e := range entities {
		t.start[e+1] += t.start[e]
	}
	t.order = make([]uint32, t.rows)
	next := slices.Clone(t.start[:entities])
	for n, c := range t.chunks {
		for i, e := range c.entity {
			t.order[next[e]] = uint32(n<<chunkBits | i)
			next[e]++
		}
		c.entity = nil
	}
}

// of returns the rows of an entity.
func (t *table) of(entity int32) []uint32 { return t.order[t.start[entity]:t.start[entity+1]] }

func (t *table) at(row uint32) int64 { return t.chunks[row>>chunkBits].at[row&(chunkRows-1)] }

func (t *table) known(row uint32) int64 { return t.chunks[row>>chunkBits].known[row&(chunkRows-1)] }

func (t *table) key(row uint32) []byte {
	c, i := t.chunks[row>>chunkBits], row&(chunkRows-1)
	begin := uint32(0)
	if i > 0 {
		begin = c.keyEnd[i-1]
	}
	return c.keys[begin:c.keyEnd[i]]
}

func (t *table) origin(row uint32) features.Origin {
	c, i := t.chunks[row>>chunkBits], row&(chunkRows-1)
	return features.Origin{Offset: c.offset[i], Index: c.index[i]}
}

func (t *table) retracted(row uint32) bool {
	c := t.chunks[row>>chunkBits]
	return c.retracted != nil && c.retracted[row&(chunkRows-1)]
}

// value returns a value as facts have it.
func (t *table) value(column int, row uint32) exact.Value {
	c, i := &t.chunks[row>>chunkBits].values[column], row&(chunkRows-1)
	switch {
	case c.null != nil && c.null[i]:
		return exact.Value{}
	case t.source.source.Columns[t.source.columns[column]].Kind == exact.Text:
		return exact.TextValue(t.texts[column].text[c.ints[i]])
	case c.wide != nil:
		return exact.IntValue(c.wide[i])
	}
	return exact.IntValue(exact.FromInt64(c.ints[i]))
}
