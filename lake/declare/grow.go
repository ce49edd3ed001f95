package declare

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

// ErrGrow is what Append of a Grower wraps where the record needs columns that the Grower was not made with.
var ErrGrow = errors.New("the record needs columns that its table does not have")

// Grower is a Rows of a table whose columns follow from its records. Where a record needs more of them, what came
// before it lands, then the table gets its columns in a commit of its own, and then a new Grower goes on with the
// record. So a lander that dies in between leaves a table with columns that nothing uses yet, and others at work, which
// write files with the columns that they know, are not in its way: they learn of the new ones when they need any.
type Grower interface {
	Rows
	// Grow gives the columns that a table is to have so that records fit, from those that it has; without those of
	// their origin. A record that cannot fit whatever the columns asks for none: Append says why, and it is parked.
	Grow(ctx context.Context, have []columnar.Field, records iter.Seq[Record]) ([]columnar.Field, error)
}

// grown are the columns of a table that grows: those that it has, those declared, those its records ask for.
func (t Table) grown(have table.Metadata, keys evolution.Keys) ([]columnar.Field, error) {
	there, err := evolution.Columns(have.CurrentSchema(), keys)
	if err != nil {
		return nil, err
	}
	origin := t.OriginColumns()
	there = slices.DeleteFunc(there, func(f columnar.Field) bool {
		return slices.ContainsFunc(origin, func(o columnar.Field) bool { return o.Name == f.Name })
	})
	there = optional(there)
	want, err := evolution.Union(there, t.Columns)
	if refused := (*evolution.RefusedError)(nil); errors.As(err, &refused) {
		want, err = there, nil // records that need what is declared are parked, now as later
	}
	if err == nil && t.grow != nil {
		want, err = t.grow(want)
	}
	return slices.Concat(columnar.Storable(want), origin), err
}

// optional are columns whose structs may lack any of their fields, as records may.
func optional(fields []columnar.Field) []columnar.Field {
	out := slices.Clone(fields)
	for i, f := range out {
		switch t := f.Type.(type) {
		case columnar.Struct:
			inner := optional(t.Fields)
			for j := range inner {
				inner[j].Required = false
			}
			out[i].Type = columnar.Struct{Fields: inner}
		case columnar.List:
			t.Element = optional([]columnar.Field{t.Element})[0]
			out[i].Type = t
		case columnar.Map: // the key of a map cannot be changed
			t.Value = optional([]columnar.Field{t.Value})[0]
			out[i].Type = t
		}
	}
	return out
}

// Growing is the table with what adds to the columns that it has.
func (t Table) Growing(grow func(have []columnar.Field) ([]columnar.Field, error)) Table {
	t.grow = grow
	return t
}

// CheckColumns reports, as nil, that a table which grows can have the columns declared beside those that it has.
func (t Table) CheckColumns(have []columnar.Field) error {
	_, err := evolution.Union(optional(have), t.Columns)
	return err
}
