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
	entities map[string]int32 // number of each entity of the spine in this range
	chunks   []*chunk
	rows     int
	texts    []dictionary // by column; unused for numbers

	// The previous fact's entity and its number, or -1 if the spine does not have it: facts of an
	// entity are often neighbours.
	cached bool
	last   []byte
	lastID int32

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
}

// number returns the number of a text.
func (d *dictionary) number(text string) int64 {
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
	return id
}

func newTable(source *sourcePlan, entities map[string]int32) *table {
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
	for i := range b.Rows {
		if entity := b.Entity[i]; !t.cached || entity != string(t.last) {
			t.last, t.cached = append(t.last[:0], entity...), true
			t.lastID = -1
			if id, ok := t.entities[entity]; ok {
				t.lastID = id
			}
		}
		if t.lastID < 0 {
			continue
		}
		t.rows++
		c := t.tail()
		c.entity = append(c.entity, t.lastID)
		c.at, c.known = append(c.at, b.At[i]), append(c.known, b.Known[i])
		c.offset, c.index = append(c.offset, b.Offset[i]), append(c.index, b.Index[i])
		c.keys = append(c.keys, b.Key[i]...)
		c.keyEnd = append(c.keyEnd, uint32(len(c.keys)))
		if retracted := len(b.Retracted) > 0 && b.Retracted[i]; retracted || c.retracted != nil {
			c.retracted = setFlag(c.retracted, len(c.entity)-1, retracted)
		}
		for j := range c.values {
			t.addValue(j, &c.values[j], &b.Values[j], i)
		}
	}
}

// addValue appends the value in row i of a batch's column.
func (t *table) addValue(j int, to *column, from *Values, i int) {
	at := len(to.ints)
	null := len(from.Null) > 0 && from.Null[i]
	if to.null != nil || null {
		to.null = setFlag(to.null, at, null)
	}
	if t.source.source.Columns[t.source.columns[j]].Kind == exact.Text {
		var id int64
		if !null {
			id = t.texts[j].number(from.Text[i])
		}
		to.ints = append(to.ints, id)
		return
	}
	n := from.Int[i]
	wide, isWide := from.Wide[i]
	if isWide && to.wide == nil {
		to.wide = make([]exact.Int, at, chunkRows)
		for k, n := range to.ints {
			to.wide[k] = exact.FromInt64(n)
		}
	}
	to.ints = append(to.ints, n)
	if to.wide != nil {
		if !isWide {
			wide = exact.FromInt64(n)
		}
		to.wide = append(to.wide, wide)
	}
}

// setFlag sets flag i of a slice that may be shorter.
func setFlag(flags []bool, i int, value bool) []bool {
	if flags == nil {
		flags = make([]bool, i, chunkRows)
	}
	return append(flags, value)
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
